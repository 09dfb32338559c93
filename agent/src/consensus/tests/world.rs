//! A mesh in memory: nodes that call each other's services directly, with
//! partitions, crashes and lost disks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::ledger::{Op, Outcome};
use weft_proto::wire::v1::NodeRecord;

use super::super::{
    Consensus, ConsensusConfig, ConsensusError, ConsensusHandle, Founding, StoreError,
};
use crate::mesh::net::{BoxFuture, CallError, Liveness, Member, MeshView, PeerNet, Service};

/// A directory that goes away with the test.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weft-consensus-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct State {
    services: BTreeMap<NodeId, Arc<dyn Service>>,
    records: BTreeMap<NodeId, NodeRecord>,
    views: BTreeMap<NodeId, watch::Sender<Arc<MeshView>>>,
    group: BTreeMap<NodeId, u8>,
}

impl State {
    fn reach(&self, a: NodeId, b: NodeId) -> bool {
        let group = |n| self.group.get(&n).copied().unwrap_or(0);
        a == b || (self.services.contains_key(&b) && group(a) == group(b))
    }

    fn refresh(&mut self) {
        for (me, view) in &self.views {
            let members = self
                .records
                .iter()
                .map(|(node, record)| {
                    let liveness =
                        if self.reach(*me, *node) { Liveness::Alive } else { Liveness::Dead };
                    (*node, Member { record: record.clone().into(), liveness })
                })
                .collect();
            view.send_replace(Arc::new(MeshView { members }));
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

struct Net {
    me: NodeId,
    world: World,
}

impl PeerNet for Net {
    fn me(&self) -> NodeId {
        self.me
    }

    fn view(&self) -> Arc<MeshView> {
        self.watch().borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<MeshView>> {
        self.world.0.lock().unwrap().views[&self.me].subscribe()
    }

    fn call(
        &self,
        to: NodeId,
        request: Frame,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Frame, CallError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let unreachable = || CallError::Unreachable { node: to, why: "partitioned".to_owned() };
            let service = {
                let state = self.world.0.lock().unwrap();
                if !state.reach(self.me, to) {
                    return Err(unreachable());
                }
                state.services.get(&to).cloned().ok_or_else(unreachable)?
            };
            let request = Frame::from_bytes(&request.to_bytes())?;
            let me = self.me;
            // Spawned: the serving side goes on when the asker gives up.
            let serve = tokio::spawn(async move { service.handle(me, request).await });
            let answer = tokio::time::timeout(patience, serve)
                .await
                .map_err(|_| CallError::Timeout { node: to, after: patience })?;
            if !self.world.0.lock().unwrap().reach(to, self.me) {
                return Err(unreachable());
            }
            match answer {
                Ok(Ok(Some(frame))) => Ok(Frame::from_bytes(&frame.to_bytes())?),
                Ok(Ok(None)) | Err(_) => Err(unreachable()),
                Ok(Err(failure)) => Err(CallError::Refused(failure)),
            }
        })
    }

    fn notify(&self, to: NodeId, frame: Frame) {
        let service = {
            let state = self.world.0.lock().unwrap();
            if !state.reach(self.me, to) {
                return;
            }
            state.services.get(&to).cloned()
        };
        let me = self.me;
        if let Some(service) = service {
            tokio::spawn(async move { service.handle(me, frame).await });
        }
    }

    fn update_record(&self, change: Box<dyn FnOnce(&mut NodeRecord) + Send>) {
        let mut state = self.world.0.lock().unwrap();
        if let Some(record) = state.records.get_mut(&self.me) {
            change(record);
            record.version += 1;
        }
        state.refresh();
    }
}

/// One node of the world.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) dir: TempDir,
    pub(crate) founding: Founding,
    pub(crate) ranges: &'static str,
    pub(crate) handle: Option<ConsensusHandle>,
    session: u64,
}

pub(crate) fn seats(members: &[&str], mine: &str) -> Founding {
    Founding::Seats {
        members: members.iter().map(|m| (*m).to_owned()).collect(),
        mine: members.contains(&mine).then(|| mine.to_owned()),
    }
}

impl World {
    /// A node that is not started yet.
    pub(crate) fn node(&self, n: u8, founding: Founding) -> Node {
        Node {
            id: NodeId([n; 16]),
            name: format!("n{n}"),
            dir: TempDir::new(),
            founding,
            ranges: "10.32.0.0/16",
            handle: None,
            session: 1,
        }
    }

    /// Started nodes of one list.
    pub(crate) async fn cluster(&self, members: &[&str]) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (n, address) in (1..).zip(members) {
            let mut node = self.node(n, seats(members, address));
            self.start(&mut node).await.unwrap();
            nodes.push(node);
        }
        nodes
    }

    pub(crate) async fn start(&self, node: &mut Node) -> Result<(), ConsensusError> {
        {
            let mut state = self.0.lock().unwrap();
            let record = NodeRecord::new(node.id, &node.name, node.session);
            state.records.insert(node.id, record);
            state.views.entry(node.id).or_insert_with(|| watch::Sender::new(Arc::default()));
            state.refresh();
        }
        node.session += 1;
        let limit = Instant::now() + Duration::from_secs(20);
        let (handle, service) = loop {
            let config = ConsensusConfig {
                state_dir: node.dir.0.clone(),
                me: node.id,
                name: node.name.clone(),
                ranges: vec![node.ranges.parse().unwrap()],
                session: node.session,
                founding: node.founding.clone(),
                quarantine: Duration::from_secs(60),
                voter_dead_after: Duration::from_secs(3),
            };
            let net = Arc::new(Net { me: node.id, world: self.clone() });
            match Consensus::start(config, net).await {
                // A life before this one is still letting go of the file.
                Err(ConsensusError::Store(StoreError::InUse(_))) if Instant::now() < limit => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => break other?,
            }
        };
        node.handle = Some(handle);
        let mut state = self.0.lock().unwrap();
        state.services.insert(node.id, service);
        state.refresh();
        Ok(())
    }

    /// Stops a node; its disk stays.
    pub(crate) async fn stop(&self, node: &mut Node) {
        {
            let mut state = self.0.lock().unwrap();
            state.services.remove(&node.id);
            state.refresh();
        }
        if let Some(handle) = node.handle.take() {
            handle.shutdown().await;
        }
    }

    /// Nobody knows of a stopped node any more.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut state = self.0.lock().unwrap();
        state.records.remove(&node);
        state.refresh();
    }

    /// Puts nodes into a group; only nodes of a group reach each other.
    pub(crate) fn group(&self, nodes: &[&Node], group: u8) {
        let mut state = self.0.lock().unwrap();
        for node in nodes {
            state.group.insert(node.id, group);
        }
        state.refresh();
    }
}

impl Node {
    pub(crate) fn h(&self) -> &ConsensusHandle {
        self.handle.as_ref().unwrap()
    }

    /// Voters of a membership that is committed and not joint; else none.
    pub(crate) fn settled_voters(&self) -> usize {
        let Some(running) = self.h().core.running() else { return 0 };
        let metrics = running.metrics();
        let config = &metrics.membership_config;
        let committed = config.log_id().as_ref() <= metrics.last_applied.as_ref();
        match config.membership().get_joint_config().as_slice() {
            [voters] if committed => voters.len(),
            _ => 0,
        }
    }

    pub(crate) fn waiting(&self) -> String {
        self.h().status().waiting.unwrap_or_default()
    }

    pub(crate) async fn acquire(&self) -> Vec<weft_proto::ledger::Block> {
        let op = Op::Acquire { node: self.id, ipv6: false, count: 1 };
        match self.h().propose(op, Duration::from_secs(60)).await.unwrap().1 {
            Outcome::Granted(blocks) => blocks,
            other => panic!("{other:?}"),
        }
    }
}

/// Waits for a condition; a minute is for overloaded machines only.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(90);
    while !condition() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn all_joined(nodes: &[Node]) {
    until("all joined", || nodes.iter().all(|n| n.h().joined())).await;
}

//! What the rest of the agent holds of the mesh.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use quinn::VarInt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_proto::api::{ConnectionStatus, MemberStatus, MeshStatus};
use weft_proto::frame::Frame;
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::wire::v1::{Ack, Failure, LedgerHead, NodeRecord};

use super::auth::ClusterKeys;
use super::clones::Copied;
use super::conn::{self, RequestError};
use super::dialer::reach;
use super::net::{BoxFuture, CallError, Liveness, MeshView, PeerNet, Service};
use super::state::{HeadCallback, Refusal, State, lock, read, unix_ms};
use super::swim::Input;
use super::targets::{self, Phase};
use super::{swim_task, sync};

/// A running mesh. Clones are the same mesh; [`MeshHandle::shutdown`] ends it.
#[derive(Clone)]
pub struct MeshHandle {
    pub(super) state: Arc<State>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
    local: SocketAddr,
}

impl MeshHandle {
    pub(super) fn new(state: Arc<State>, tasks: Vec<JoinHandle<()>>, local: SocketAddr) -> Self {
        Self { state, tasks: Arc::new(Mutex::new(tasks)), local }
    }

    /// Address of the socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// From now on, these kinds of frames are this service's.
    pub fn register(&self, kinds: &[u16], service: &Arc<dyn Service>) {
        let mut services = self.state.services.write().unwrap_or_else(PoisonError::into_inner);
        for kind in kinds {
            services.insert(*kind, Arc::clone(service));
        }
    }

    /// Adds targets, or replaces them all. Malformed ones are named; nothing
    /// is changed then. Connections stay.
    pub fn connect(&self, list: &[String], replace: bool) -> Result<(), String> {
        let bad: Vec<String> = list.iter().filter_map(|t| targets::parse(t).err()).collect();
        if !bad.is_empty() {
            return Err(bad.join("; "));
        }
        {
            let mut targets = lock(&self.state.targets);
            if replace {
                for gone in targets.names().iter().filter(|t| !list.contains(t)) {
                    targets.remove(gone);
                }
            }
            list.iter().for_each(|t| targets.add(t));
        }
        self.state.targets_changed.notify_one();
        Ok(())
    }

    /// Takes targets off the list. Connections stay.
    pub fn forget(&self, list: &[String]) {
        {
            let mut targets = lock(&self.state.targets);
            list.iter().for_each(|t| targets.remove(t));
        }
        self.state.targets_changed.notify_one();
    }

    /// The targets.
    pub fn targets(&self) -> Vec<String> {
        lock(&self.state.targets).names()
    }

    /// Targets with the node last found there, if it is connected or known to
    /// be alive. This node's own target gives this node's id.
    pub fn target_nodes(&self) -> BTreeMap<String, Option<NodeId>> {
        let node = |phase: &Phase| match phase {
            Phase::Connected(node) => Some(*node),
            Phase::Own => Some(self.state.me),
            Phase::Connecting | Phase::Waiting { .. } => None,
        };
        lock(&self.state.targets).iter().map(|(t, e)| (t.clone(), node(&e.phase))).collect()
    }

    /// The cluster this node belongs to; members of another one are refused.
    pub fn set_cluster(&self, cluster: Option<ClusterId>) {
        *lock(&self.state.cluster) = cluster;
    }

    /// The cluster's ranges, once they have grown beyond `IPALLOC_RANGE`.
    pub fn set_ranges(&self, ranges: Vec<IpNet>) {
        *self.state.ranges.write().unwrap_or_else(PoisonError::into_inner) = ranges;
    }

    /// For so long may the pods of a silent node be well: the cluster's quarantine.
    pub fn set_rest(&self, rest: Duration) {
        *lock(&self.state.rest) = rest;
    }

    /// Told whenever this node has to give way to another machine with its identity, or
    /// need not any more.
    pub fn copied(&self) -> watch::Receiver<Option<Copied>> {
        self.state.copied.subscribe()
    }

    /// True once some peer has let this node in for sure.
    pub fn is_let_in(&self) -> bool {
        self.state.let_in.load(Ordering::Relaxed) || !self.state.vouching().is_empty()
    }

    /// Other cluster keys: the first signs, all verify. Open connections stay.
    pub fn set_keys(&self, keys: &[String]) {
        *self.state.keys.write().unwrap_or_else(PoisonError::into_inner) = ClusterKeys::new(keys);
    }

    /// This replica's position, told to peers; a change is pushed to a few at once.
    pub fn set_ledger_head(&self, head: LedgerHead) {
        let before = std::mem::replace(&mut *lock(&self.state.head), head);
        if before != head {
            let state = Arc::clone(&self.state);
            self.state.runtime.spawn(async move { sync::push_head(&state, head).await });
        }
    }

    /// Called whenever a peer tells its ledger position. Must not block.
    pub fn on_head(&self, callback: Box<HeadCallback>) {
        *self.state.on_head.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::from(callback));
    }

    /// Forgets an evicted member: its record is refused until a clearly later life of it.
    pub fn remove(&self, node: NodeId) {
        lock(&self.state.records).remove(node, unix_ms());
        self.state.refresh_view();
    }

    /// Lets a removed member back in.
    pub fn unremove(&self, node: NodeId) {
        lock(&self.state.records).unremove(node);
    }

    /// True if the node was removed and has not come back.
    pub fn is_removed(&self, node: NodeId) -> bool {
        lock(&self.state.records).removed(node)
    }

    /// Smoothed round-trip time, if connected.
    pub fn rtt(&self, node: NodeId) -> Option<Duration> {
        lock(&self.state.pool).get(node).map(|c| c.quic.rtt())
    }

    /// Bytes sent on the connection to a node, with the headers around them.
    #[cfg(test)]
    pub(super) fn sent(&self, node: NodeId) -> Option<u64> {
        let sent = lock(&self.state.pool).get(node)?.quic.stats().udp_tx;
        Some(sent.bytes + 28 * sent.datagrams)
    }

    /// True if there is a connection right now.
    pub fn is_connected(&self, node: NodeId) -> bool {
        lock(&self.state.pool).get(node).is_some()
    }

    /// Connections refused lately, by either side.
    pub fn refusals(&self) -> Vec<Refusal> {
        lock(&self.state.refusals).clone()
    }

    /// For `agent status`. What the ledger knows of members is left empty.
    pub fn status(&self) -> MeshStatus {
        MeshStatus {
            keyed: self.state.keys.read().unwrap_or_else(PoisonError::into_inner).keyed(),
            targets: self.targets(),
            connections: self.connections(),
            members: self.members(),
            counters: lock(&self.state.counters)
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect(),
        }
    }

    fn members(&self) -> Vec<MemberStatus> {
        let view = self.view();
        let others = view.members.values().filter(|m| m.record.node != self.state.me);
        others
            .map(|m| MemberStatus {
                id: m.record.node.to_string(),
                name: m.record.name.clone(),
                state: match m.liveness {
                    Liveness::Alive => "alive",
                    Liveness::Suspect => "suspect",
                    Liveness::Dead => "dead",
                }
                .to_owned(),
                underlay: m.record.underlay.clone(),
                overlay: m.record.overlay.clone(),
                blocks: 0,
                leases: m.record.leases,
                version: m.record.software.clone(),
                ledger_index: m.record.ledger_index,
                overlay_rtt_us: None,
                overlay_ok: None,
            })
            .collect()
    }

    fn connections(&self) -> Vec<ConnectionStatus> {
        let mut list: Vec<_> = lock(&self.state.pool)
            .all()
            .iter()
            .map(|c| ConnectionStatus {
                address: c.remote,
                outbound: c.outbound,
                state: "established".to_owned(),
                node: Some(c.node.to_string()),
                name: Some(c.name.clone()),
                info: format!("{} encrypted", c.name),
                rtt_us: u64::try_from(c.quic.rtt().as_micros()).ok(),
            })
            .collect();
        let now = Instant::now();
        for (name, target) in lock(&self.state.targets).iter() {
            let (state, info) = match &target.phase {
                Phase::Connecting => ("connecting", format!("target {name}")),
                Phase::Connected(_) | Phase::Own => continue,
                Phase::Waiting { error, refused, next } => {
                    let wait = next.map_or(0, |t| t.saturating_duration_since(now).as_millis());
                    let state = if *refused { "failed" } else { "retrying" };
                    (state, format!("target {name}: {error}, retry in {wait} ms"))
                }
            };
            list.push(ConnectionStatus {
                address: target.address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
                outbound: true,
                state: state.to_owned(),
                node: None,
                name: None,
                info,
                rtt_us: None,
            });
        }
        for refusal in self.refusals() {
            let recent = now.duration_since(refusal.last) < Duration::from_secs(60);
            if recent
                && !list
                    .iter()
                    .any(|c| c.address.ip() == refusal.address.ip() && c.state != "established")
            {
                list.push(ConnectionStatus {
                    address: refusal.address,
                    outbound: !refusal.by_us,
                    state: "failed".to_owned(),
                    node: None,
                    name: None,
                    info: format!("refused ({}): {}", refusal.reason, refusal.message),
                    rtt_us: None,
                });
            }
        }
        list
    }

    /// A call to this node itself goes straight to the service.
    async fn call_self(&self, request: Frame, patience: Duration) -> Result<Frame, CallError> {
        let node = self.state.me;
        let service = read(&self.state.services).get(&request.kind).cloned();
        let Some(service) = service else {
            let message = format!("frame kind {} has no service here", request.kind);
            return Err(CallError::Refused(Failure { code: Failure::UNKNOWN_KIND, message }));
        };
        match tokio::time::timeout(patience, service.handle(node, request)).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Ok(Frame::new(&Ack)?),
            Ok(Err(failure)) => Err(CallError::Refused(failure)),
            Err(_) => Err(CallError::Timeout { node, after: patience }),
        }
    }

    /// Tells the others that this node goes, closes all connections, frees the port.
    pub async fn shutdown(&self) {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        if tasks.is_empty() {
            return;
        }
        lock(&self.state.targets).clear();
        let _ = self.state.swim.send(Input::Leave).await;
        // The farewell goes out in datagrams: it needs a moment, not a promise.
        tokio::time::sleep(Duration::from_millis(50)).await;
        tasks.iter().for_each(JoinHandle::abort);
        self.state.endpoint.close(VarInt::from_u32(0), b"leaving");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.state.endpoint.wait_idle()).await;
    }
}

impl PeerNet for MeshHandle {
    fn me(&self) -> NodeId {
        self.state.me
    }

    fn view(&self) -> Arc<MeshView> {
        Arc::clone(&self.state.view.borrow())
    }

    fn watch(&self) -> watch::Receiver<Arc<MeshView>> {
        self.state.view.subscribe()
    }

    fn call(
        &self,
        to: NodeId,
        request: Frame,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Frame, CallError>> {
        Box::pin(async move {
            if to == self.state.me {
                return self.call_self(request, patience).await;
            }
            let start = Instant::now();
            let unreachable = |why: String| CallError::Unreachable { node: to, why };
            let mut last = String::new();
            // A connection may turn out dead when the stream is opened; nothing
            // was sent then, and a new one is worth one more try.
            for _ in 0..2 {
                let left = patience.saturating_sub(start.elapsed());
                let conn = match tokio::time::timeout(left, reach(&self.state, to)).await {
                    Ok(conn) => conn.map_err(unreachable)?,
                    Err(_) => {
                        return Err(unreachable(format!("no connection within {patience:?}")));
                    }
                };
                let left = patience.saturating_sub(start.elapsed());
                match conn::request(&conn, &request, left).await {
                    Ok(answer) if answer.is::<Failure>() => {
                        return Err(CallError::Refused(answer.decode()?));
                    }
                    Ok(answer) => return Ok(answer),
                    Err(RequestError::NotSent(why)) => last = why,
                    Err(RequestError::Frame(e)) => return Err(e.into()),
                    Err(RequestError::Timeout) => {
                        return Err(CallError::Timeout { node: to, after: patience });
                    }
                    Err(RequestError::Lost) => {
                        return Err(CallError::Timeout { node: to, after: start.elapsed() });
                    }
                }
            }
            Err(unreachable(last))
        })
    }

    fn notify(&self, to: NodeId, frame: Frame) {
        swim_task::notify(&self.state, to, frame);
    }

    fn update_record(&self, change: Box<dyn FnOnce(&mut NodeRecord) + Send>) {
        self.state.update_own(change);
    }
}

//! Many nodes' real IPAM parts over one real ledger, with a registry and a
//! network that can be told to misbehave.

mod cluster;
mod leases;
mod promises;
mod schedules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::watch;
use weft_ipam::ledger::Ledger;
use weft_proto::attachment::AttachmentKey;
use weft_proto::frame::Frame;
use weft_proto::id::{ClusterId, NodeId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome};
use weft_proto::wire::v1::NodeRecord;

use super::donate::Donations;
use super::intents::Promises;
use super::journal::Journal;
use super::{IpamService, LeaseFacts, Registry, Supplier};
use crate::mesh::net::{BoxFuture, CallError, Liveness, Member, MeshView, PeerNet, Service};

const LONG: Duration = Duration::from_secs(20);

fn node(number: u8) -> NodeId {
    NodeId([number; 16])
}

fn key(id: &str) -> AttachmentKey {
    AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

fn facts(key: &AttachmentKey) -> LeaseFacts {
    LeaseFacts { host_ifname: format!("weft{}", key.container_id), ..LeaseFacts::default() }
}

/// A directory of its own, gone with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("weft-ipam-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the log does with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    /// Nothing is committed.
    NoQuorum,
    /// Committed; the one who asked never hears of it.
    AnswerLost,
}

struct World {
    ledger: Arc<Ledger>,
    clock: u64,
    fate: Fate,
    /// Fates of the next commands, before `fate` counts again.
    script: Vec<Fate>,
    services: BTreeMap<NodeId, Weak<Donations>>,
    view: Arc<MeshView>,
    /// Commands applied.
    log: Vec<Op>,
}

/// One log for all.
struct Shared(Mutex<World>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn founded(range: &str, nodes: u8) -> Arc<Self> {
        let members = (1..=nodes).map(|n| (node(n), member(n))).collect();
        let world = World {
            ledger: Arc::new(Ledger::new()),
            clock: 1_000,
            fate: Fate::Works,
            script: Vec::new(),
            services: BTreeMap::new(),
            view: Arc::new(MeshView { members }),
            log: Vec::new(),
        };
        let shared = Arc::new(Self(Mutex::new(world)));
        let ranges = vec![range.parse().unwrap()];
        let found =
            Op::Found { cluster: ClusterId([7; 16]), ranges: ranges.clone(), quarantine_ms: 1 };
        let mut seq = 0;
        let mut apply = |op| {
            seq += 1;
            shared.apply(RequestId { node: node(200), session: 1, seq }, op)
        };
        assert_eq!(apply(found).1, Outcome::Done);
        for n in 1..=nodes {
            let (name, ranges) = (format!("n{n}"), ranges.clone());
            let joined = apply(Op::Join { node: node(n), name, ranges, replace: false });
            assert!(matches!(joined.1, Outcome::Joined { .. }));
        }
        shared
    }

    fn apply(&self, request: RequestId, op: Op) -> (u64, Outcome) {
        let mut world = self.lock();
        world.clock += 1;
        world.log.push(op.clone());
        let mut ledger = (*world.ledger).clone();
        let at = ledger.head().index + 1;
        let outcome = ledger.apply(at, Some(&Command { request, at_ms: world.clock, op })).unwrap();
        world.ledger = Arc::new(ledger);
        (at, outcome)
    }

    fn set(&self, fate: Fate) {
        self.lock().fate = fate;
    }
}

fn member(number: u8) -> Member {
    let record = NodeRecord::new(node(number), format!("n{number}"), 1);
    Member { record: record.into(), liveness: Liveness::Alive }
}

/// One life of one node, as its parts see the world.
struct Seat {
    shared: Arc<Shared>,
    me: NodeId,
    session: u64,
    seq: AtomicU64,
    /// The ledger as it was when this replica was held back.
    held: Mutex<Option<Arc<Ledger>>>,
    views: watch::Sender<Arc<MeshView>>,
}

impl Registry for Seat {
    fn ledger(&self) -> Arc<Ledger> {
        let held = self.held.lock().unwrap().clone();
        held.unwrap_or_else(|| Arc::clone(&self.shared.lock().ledger))
    }

    fn propose(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(u64, Outcome), String>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let fate = {
                let mut world = self.shared.lock();
                let fate = world.fate;
                if world.script.is_empty() { fate } else { world.script.remove(0) }
            };
            let pause = patience.min(Duration::from_millis(20));
            match fate {
                Fate::Works => Ok(self.shared.apply(request, op)),
                Fate::NoQuorum => {
                    tokio::time::sleep(pause).await;
                    Err("no quorum: voters not reachable: n2, n3".to_owned())
                }
                Fate::AnswerLost => {
                    let _ = self.shared.apply(request, op);
                    tokio::time::sleep(pause).await;
                    Err("no quorum: the answer was lost".to_owned())
                }
            }
        })
    }

    fn next_request(&self) -> RequestId {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        RequestId { node: self.me, session: self.session, seq }
    }
}

impl PeerNet for Seat {
    fn me(&self) -> NodeId {
        self.me
    }

    fn view(&self) -> Arc<MeshView> {
        Arc::clone(&self.shared.lock().view)
    }

    fn watch(&self) -> watch::Receiver<Arc<MeshView>> {
        self.views.subscribe()
    }

    fn call(
        &self,
        to: NodeId,
        request: Frame,
        _patience: Duration,
    ) -> BoxFuture<'_, Result<Frame, CallError>> {
        let donor = self.shared.lock().services.get(&to).and_then(Weak::upgrade);
        Box::pin(async move {
            let gone = || CallError::Unreachable { node: to, why: "nobody there".into() };
            let answer = donor.ok_or_else(gone)?.handle(self.me, request).await;
            answer.map_err(CallError::Refused)?.ok_or_else(gone)
        })
    }

    fn notify(&self, _to: NodeId, _frame: Frame) {}

    fn update_record(&self, _change: Box<dyn FnOnce(&mut NodeRecord) + Send>) {}
}

/// One life of a node.
struct Node {
    service: Arc<IpamService>,
    donations: Arc<Donations>,
    seat: Arc<Seat>,
    supplier: OnceLock<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// Reads what earlier lives left in `dir`, as the agent does.
    fn open(shared: &Arc<Shared>, number: u8, dir: &Path) -> Self {
        static SESSION: AtomicU64 = AtomicU64::new(10);
        let me = node(number);
        let seat = Arc::new(Seat {
            shared: Arc::clone(shared),
            me,
            session: SESSION.fetch_add(1, Ordering::Relaxed),
            seq: AtomicU64::new(1),
            held: Mutex::default(),
            views: watch::Sender::new(Arc::default()),
        });
        let (journal, found) = Journal::open(&dir.join(format!("leases{number}.json"))).unwrap();
        let service = IpamService::new(me, Duration::ZERO, journal, &found);
        service.rebuilt().unwrap();
        let promises = Promises::open(&dir.join(format!("promises{number}.json"))).unwrap();
        let registry: Arc<dyn Registry> = Arc::clone(&seat) as Arc<dyn Registry>;
        let donations = Donations::new(Arc::clone(&service), registry, promises);
        shared.lock().services.insert(me, Arc::downgrade(&donations));
        Self { service, donations, seat, supplier: OnceLock::new() }
    }

    /// The same, and it has heard of the ledger.
    fn start(shared: &Arc<Shared>, number: u8, dir: &Path) -> Self {
        let node = Self::open(shared, number, dir);
        node.service.follow(&node.seat.ledger());
        node
    }

    /// The same with its supplier running.
    fn run(shared: &Arc<Shared>, number: u8, dir: &Path) -> Self {
        Self::start(shared, number, dir).supplied()
    }

    fn supplied(self) -> Self {
        let node = self;
        let supplier = Supplier::new(
            Arc::clone(&node.service),
            Arc::clone(&node.seat) as Arc<dyn Registry>,
            Arc::clone(&node.seat) as Arc<dyn PeerNet>,
        );
        node.supplier.set(tokio::spawn(supplier.run())).unwrap();
        node
    }

    async fn add(&self, id: &str) -> Result<IpAddr, super::BackendError> {
        self.add_within(id, LONG).await
    }

    async fn add_within(
        &self,
        id: &str,
        patience: Duration,
    ) -> Result<IpAddr, super::BackendError> {
        let key = key(id);
        let answer = self.service.allocate(&key, false, None, &facts(&key), patience).await;
        answer.map(|(address, _)| address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(supplier) = self.supplier.get() {
            supplier.abort();
        }
    }
}

fn cluster(range: &str, nodes: u8) -> (Arc<Shared>, Vec<Node>, Scratch) {
    let (shared, dir) = (Shared::founded(range, nodes), Scratch::new());
    let nodes = (1..=nodes).map(|n| Node::run(&shared, n, &dir.0)).collect();
    (shared, nodes, dir)
}

/// No address is leased twice, none is leased by a node that does not own it.
fn check_unique<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeSet<IpAddr> {
    let mut held = BTreeSet::new();
    for node in nodes {
        let ledger = Arc::clone(&node.seat.shared.lock().ledger);
        for lease in node.service.leases() {
            for address in lease.addresses {
                assert!(held.insert(address), "{address} is leased twice");
                let owner = ledger.owner_of(address).map(|b| b.owner);
                assert_eq!(owner, Some(node.seat.me), "{address} is leased by a stranger");
            }
        }
    }
    held
}

/// Waits for something that must come.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

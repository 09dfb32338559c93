//! The mesh over a simulated underlay (tests only): the real state machines of
//! membership, records and admission; connections are entries in a table.

mod sync;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use weft_proto::frame::Frame;
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::wire::v1::{
    Ack, Echo, Failure, Hello, LedgerHead, NodeRecord, Rumor, Standing, Swim as SwimFrame,
    SyncLeaves, SyncPart, SyncPartReply, SyncSummary,
};

use super::auth::{Facts, judge};
use super::backoff::pause;
use super::dialer::{ACTIVE, FULL_MESH, PER_ROUND, ROUND};
use super::net::{BoxFuture, CallError, Liveness, Member, MeshView, PeerNet, Service};
use super::records::{Offer, Records};
use super::state::{lock, read};
use super::swim::{GREET, Input, Swim};
use super::sync::{COALESCE, DOUBTED, FAN_OUT, PATIENCE, RUMOR, interval};
use super::tls::IDLE;
use crate::consensus::vote_given;
use crate::host;
use crate::sim::host::{Process, spawn};
use crate::sim::network::Network;

/// Longest handshake.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a node declared dead may take to show that it is not.
const LAST_ASK: Duration = Duration::from_secs(2);
/// As `mesh::start` has it.
const EXCHANGES: usize = 2;
const PORT: u16 = 6783;

/// What a node needs to know to take part.
pub(crate) struct SimMeshConfig {
    pub(crate) me: NodeId,
    pub(crate) name: String,
    pub(crate) session: u64,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) ip: IpAddr,
    /// Machines it is configured to know, by number: names, not addresses.
    pub(crate) targets: Vec<usize>,
}

#[derive(Clone)]
struct Conn {
    session: u64,
    ip: IpAddr,
    /// Which process is at the other end.
    peer: std::sync::Weak<SimMesh>,
    heard: Instant,
}

#[derive(Default)]
struct Dial {
    failures: u32,
    not_before: Option<Instant>,
    running: Option<watch::Receiver<bool>>,
}

type HeadCallback = dyn Fn(NodeId, LedgerHead) + Send + Sync;

/// See the module.
pub(crate) struct SimMesh {
    me: NodeId,
    name: String,
    session: u64,
    pub(crate) process: Arc<Process>,
    network: Arc<Network>,
    ip: Mutex<IpAddr>,
    ranges: RwLock<Vec<IpNet>>,
    cluster: Mutex<Option<ClusterId>>,
    targets: Vec<usize>,
    pool: Mutex<BTreeMap<NodeId, Conn>>,
    dials: Mutex<BTreeMap<IpAddr, Dial>>,
    records: Mutex<Records>,
    liveness: Mutex<BTreeMap<NodeId, Liveness>>,
    view: watch::Sender<Arc<MeshView>>,
    services: RwLock<BTreeMap<u16, Arc<dyn Service>>>,
    swim: mpsc::Sender<Input>,
    fresh: Mutex<BTreeMap<NodeId, Option<NodeId>>>,
    fresh_wake: Notify,
    doubted: Mutex<BTreeSet<NodeId>>,
    exchanging: Semaphore,
    head: Mutex<LedgerHead>,
    on_head: RwLock<Option<Arc<HeadCallback>>>,
    /// Why others would not have this node, last.
    refused: Mutex<Option<Failure>>,
}

impl SimMesh {
    /// Starts it within `process`.
    pub(crate) fn start(
        config: SimMeshConfig,
        process: &Arc<Process>,
        network: &Arc<Network>,
    ) -> Arc<Self> {
        let own = NodeRecord {
            underlay: vec![config.ip],
            mesh_port: PORT,
            ..NodeRecord::new(config.me, &config.name, config.session)
        };
        let (swim, inputs) = mpsc::channel(1024);
        let mesh = Arc::new(Self {
            me: config.me,
            name: config.name,
            session: config.session,
            process: Arc::clone(process),
            network: Arc::clone(network),
            ip: Mutex::new(config.ip),
            ranges: RwLock::new(config.ranges),
            cluster: Mutex::default(),
            targets: config.targets,
            pool: Mutex::default(),
            dials: Mutex::default(),
            records: Mutex::new(Records::new(own)),
            liveness: Mutex::default(),
            view: watch::channel(Arc::default()).0,
            services: RwLock::default(),
            swim,
            fresh: Mutex::default(),
            fresh_wake: Notify::new(),
            doubted: Mutex::default(),
            exchanging: Semaphore::new(EXCHANGES),
            head: Mutex::default(),
            on_head: RwLock::default(),
            refused: Mutex::default(),
        });
        mesh.refresh_view();
        network.attach(config.ip, &mesh);
        // What it calls knows it, too: nothing of a dead process may keep the other.
        let dead = Arc::downgrade(&mesh);
        process.at_end(move || {
            if let Some(mesh) = dead.upgrade() {
                mesh.services.write().unwrap().clear();
                *mesh.on_head.write().unwrap() = None;
            }
        });
        process.spawn(tasks::membership(Arc::clone(&mesh), inputs));
        process.spawn(sync::rumors(Arc::clone(&mesh)));
        process.spawn(sync::anti_entropy(Arc::clone(&mesh)));
        process.spawn(tasks::maintain(Arc::clone(&mesh)));
        for target in mesh.targets.clone() {
            process.spawn(tasks::pursue(Arc::clone(&mesh), target));
        }
        mesh
    }

    pub(crate) fn machine(&self) -> usize {
        self.process.machine.number
    }

    pub(crate) fn register(&self, kinds: &[u16], service: &Arc<dyn Service>) {
        let mut services = self.services.write().unwrap();
        services.extend(kinds.iter().map(|kind| (*kind, Arc::clone(service))));
    }

    pub(crate) fn set_cluster(&self, cluster: Option<ClusterId>) {
        *lock(&self.cluster) = cluster;
    }

    pub(crate) fn set_ranges(&self, ranges: Vec<IpNet>) {
        *self.ranges.write().unwrap() = ranges;
    }

    pub(crate) fn on_head(&self, callback: Box<HeadCallback>) {
        *self.on_head.write().unwrap() = Some(Arc::from(callback));
    }

    pub(crate) fn set_ledger_head(self: &Arc<Self>, head: LedgerHead) {
        let before = std::mem::replace(&mut *lock(&self.head), head);
        if before != head
            && let Ok(frame) = Frame::new(&head)
        {
            for node in self.some_peers(FAN_OUT, None) {
                self.send(node, frame.clone());
            }
        }
    }

    /// Forgets an evicted member.
    pub(crate) fn remove(&self, node: NodeId) {
        lock(&self.records).remove(node, host::now_ms());
        self.refresh_view();
    }

    pub(crate) fn unremove(&self, node: NodeId) {
        lock(&self.records).unremove(node);
    }

    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        lock(&self.records).removed(node)
    }

    /// Why others would not have this node, last.
    pub(crate) fn refused(&self) -> Option<Failure> {
        lock(&self.refused).clone()
    }

    /// The machine has another address now.
    pub(crate) fn move_to(self: &Arc<Self>, ip: IpAddr) {
        let before = std::mem::replace(&mut *lock(&self.ip), ip);
        self.network.detach(before);
        self.network.attach(ip, self);
        self.update_own(|record| record.underlay = vec![ip]);
    }

    /// Where it is.
    pub(crate) fn ip(&self) -> IpAddr {
        *lock(&self.ip)
    }

    fn update_own(&self, change: impl FnOnce(&mut NodeRecord)) {
        if lock(&self.records).update(change) {
            lock(&self.fresh).insert(self.me, None);
            self.fresh_wake.notify_one();
            self.refresh_view();
        }
    }

    fn refresh_view(&self) {
        let liveness = lock(&self.liveness);
        let pool = lock(&self.pool);
        let of = |node: NodeId| {
            if node == self.me {
                // Membership may remember a former life of it.
                return Liveness::Alive;
            }
            let unheard = if pool.contains_key(&node) { Liveness::Alive } else { Liveness::Dead };
            liveness.get(&node).copied().unwrap_or(unheard)
        };
        let members = lock(&self.records)
            .iter()
            .map(|r| (r.node, Member { record: r.clone(), liveness: of(r.node) }))
            .collect();
        drop((liveness, pool));
        let fresh = MeshView { members };
        self.view.send_if_modified(|current| {
            let differs = **current != fresh;
            if differs {
                *current = Arc::new(fresh);
            }
            differs
        });
    }

    fn tell_head(&self, from: NodeId, head: LedgerHead) {
        if let Some(callback) = read(&self.on_head) {
            callback(from, head);
        }
    }

    fn some_peers(&self, count: usize, not: Option<NodeId>) -> Vec<NodeId> {
        let all: Vec<_> = lock(&self.pool).keys().copied().filter(|n| Some(*n) != not).collect();
        all.choose_multiple(&mut host::rng(), count).copied().collect()
    }

    /// A frame that came over a connection.
    async fn handle(
        self: &Arc<Self>,
        from: NodeId,
        frame: Frame,
    ) -> Result<Option<Frame>, Failure> {
        let bad = |e: weft_proto::frame::FrameError| Failure {
            code: Failure::BAD_REQUEST,
            message: e.to_string(),
        };
        if frame.is::<SwimFrame>() {
            let SwimFrame(packet) = frame.decode().map_err(bad)?;
            let _ = self.swim.try_send(Input::Packet(from, packet));
            return Ok(None);
        }
        if frame.is::<SyncSummary>() {
            let asked = frame.decode().map_err(bad)?;
            return Frame::new(&self.leaves(from, &asked)).map(Some).map_err(bad);
        }
        if frame.is::<SyncPart>() {
            let reply = self.part(from, frame.decode().map_err(bad)?)?;
            return Frame::new(&reply).map(Some).map_err(bad);
        }
        if frame.is::<Rumor>() {
            let rumor: Rumor = frame.decode().map_err(bad)?;
            self.take_records(from, rumor.records);
            return Ok(None);
        }
        let service = read(&self.services).get(&frame.kind).cloned();
        if let Some(service) = service {
            return service.handle(from, frame).await;
        }
        if frame.is::<LedgerHead>() {
            self.tell_head(from, frame.decode().map_err(bad)?);
            return Ok(None);
        }
        if frame.is::<Echo>() {
            return Ok(Some(frame));
        }
        let message = format!("frame kind {} has no service here", frame.kind);
        Err(Failure { code: Failure::UNKNOWN_KIND, message })
    }

    /// One request on the connection there is.
    async fn request(&self, node: NodeId, frame: Frame, patience: Duration) -> Option<Frame> {
        let conn = lock(&self.pool).get(&node).cloned()?;
        let (from, me, back) = (self.machine(), self.me, self.ip());
        let network = Arc::clone(&self.network);
        let work = async {
            let peer = network.stream(from, conn.ip).await;
            // Another life sits there: nothing of this connection is known to it.
            if peer.session != conn.session || peer.me != node {
                return std::future::pending().await;
            }
            peer.hear(me, back);
            network.trace.note(&[1, from as u64, peer.machine() as u64, frame.kind.into()]);
            let serving = Arc::clone(&peer);
            let request = Frame::from_bytes(&frame.to_bytes()).ok()?;
            let answer = peer.process.spawn(async move {
                let asked = request.clone();
                let answer = serving.handle(me, request).await;
                if let Ok(Some(answer)) = &answer {
                    serving.answered(&asked, answer);
                }
                answer
            });
            let answer = match answer.await {
                Ok(answer) => answer,
                Err(_) => return std::future::pending().await,
            };
            if network.mute() {
                return std::future::pending().await;
            }
            let reply = match answer {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => Frame::new(&Ack),
                Err(failure) => Frame::new(&failure),
            };
            network.stream(peer.machine(), back).await;
            network.trace.note(&[2, from as u64, peer.machine() as u64]);
            reply.ok()
        };
        let answer = timeout(patience, work).await.ok().flatten();
        if answer.is_some() {
            self.hear(node, conn.ip);
        }
        answer
    }

    /// A vote that has left this node binds it, also after the power has failed.
    fn answered(&self, request: &Frame, answer: &Frame) {
        if let Some((founding, seat, vote)) = vote_given(request, answer) {
            self.network.checker.voted((founding, seat, self.me), vote);
            self.process.machine.has_voted();
        }
    }

    /// Something came from a peer, perhaps from a new address.
    fn hear(&self, node: NodeId, ip: IpAddr) {
        if let Some(conn) = lock(&self.pool).get_mut(&node) {
            conn.heard = Instant::now();
            conn.ip = ip;
        }
    }

    /// One frame on the connection there is, or on one made for it.
    fn send(self: &Arc<Self>, node: NodeId, frame: Frame) {
        let mesh = Arc::clone(self);
        self.process.spawn(async move {
            if mesh.reach(node).await.is_err() {
                return;
            }
            let Some(conn) = lock(&mesh.pool).get(&node).cloned() else { return };
            let (from, me, back) = (mesh.machine(), mesh.me, mesh.ip());
            let copies = if mesh.network.twice() { 2 } else { 1 };
            for _ in 0..copies {
                let (network, conn) = (Arc::clone(&mesh.network), conn.clone());
                let Ok(frame) = Frame::from_bytes(&frame.to_bytes()) else { return };
                // On its way it belongs to nobody.
                tokio::spawn(async move {
                    let Some(peer) = network.leg(from, conn.ip).await else { return };
                    if peer.session != conn.session || peer.me != node {
                        return;
                    }
                    network.trace.note(&[3, from as u64, peer.machine() as u64, frame.kind.into()]);
                    peer.hear(me, back);
                    let serving = Arc::clone(&peer);
                    peer.process.spawn(async move { serving.handle(me, frame).await });
                });
            }
        });
    }

    fn hello(&self, peer: IpAddr) -> Hello {
        Hello {
            node: self.me,
            name: self.name.clone(),
            cluster: *lock(&self.cluster),
            ranges: read(&self.ranges),
            session: self.session,
            software: String::new(),
            observed: SocketAddr::new(peer, PORT),
            proof: [0; 32],
        }
    }

    fn judge(&self, peer: &Hello) -> Result<(), Failure> {
        let ranges = read(&self.ranges);
        let namesake = self.view.borrow().members.values().find_map(|m| {
            let other = m.record.node != peer.node && m.record.node != self.me;
            let live = m.record.name == peer.name && m.liveness != Liveness::Dead;
            (other && live).then_some(m.record.node)
        });
        let me = Facts {
            node: self.me,
            name: &self.name,
            session: self.session,
            cluster: *lock(&self.cluster),
            ranges: &ranges,
            namesake,
        };
        judge(&me, peer)
    }

    /// A connection is in use from now on.
    fn started(self: &Arc<Self>, peer: &Arc<Self>, ip: IpAddr) {
        let conn =
            Conn { session: peer.session, ip, peer: Arc::downgrade(peer), heard: Instant::now() };
        lock(&self.pool).insert(peer.me, conn);
        lock(&self.records).connected(peer.me);
        let _ = self.swim.try_send(Input::Connected(peer.me, peer.session));
        self.refresh_view();
    }

    async fn dial(self: &Arc<Self>, ip: IpAddr) -> Result<NodeId, String> {
        let from = self.machine();
        let network = Arc::clone(&self.network);
        let work = async {
            let peer = network.stream(from, ip).await;
            if peer.me == self.me {
                return Err("this is this node itself".to_owned());
            }
            let (serving, hello, back) = (Arc::clone(&peer), self.hello(ip), self.ip());
            let caller = Arc::clone(self);
            let judged = peer.process.spawn(async move {
                serving.judge(&hello)?;
                serving.started(&caller, back);
                Ok::<_, Failure>(serving.hello(back))
            });
            let Ok(judged) = judged.await else { return std::future::pending().await };
            network.stream(peer.machine(), back).await;
            judged
                .and_then(|hello| self.judge(&hello))
                .inspect_err(|failure| {
                    lock(&peer.pool).remove(&self.me);
                    *lock(&self.refused) = Some(failure.clone());
                })
                .map_err(|failure| failure.message)?;
            self.started(&peer, ip);
            Ok(peer.me)
        };
        let node = timeout(DEADLINE, work).await.map_err(|_| "no answer".to_owned())??;
        *lock(&self.refused) = None;
        let mesh = Arc::clone(self);
        self.process.spawn(async move { mesh.exchange(node).await });
        Ok(node)
    }

    /// Dials unless somebody does already, or the last failure is too fresh.
    async fn dial_shared(self: &Arc<Self>, ip: IpAddr) -> Result<(), String> {
        let running = {
            let mut dials = lock(&self.dials);
            let dial = dials.entry(ip).or_default();
            if dial.not_before.is_some_and(|t| t > Instant::now()) {
                return Err("failed a moment ago".to_owned());
            }
            match &dial.running {
                Some(running) => running.clone(),
                None => {
                    let (tell, hear) = watch::channel(false);
                    dial.running = Some(hear.clone());
                    let mesh = Arc::clone(self);
                    self.process.spawn(async move {
                        let done = mesh.dial(ip).await;
                        let mut dials = lock(&mesh.dials);
                        let dial = dials.entry(ip).or_default();
                        dial.running = None;
                        if done.is_ok() {
                            *dial = Dial::default();
                        } else {
                            dial.failures += 1;
                            let wait = pause(dial.failures, host::rng().random());
                            dial.not_before = Some(Instant::now() + wait);
                        }
                        tell.send_replace(true);
                    });
                    hear
                }
            }
        };
        let mut running = running;
        let _ = running.wait_for(|done| *done).await;
        Ok(())
    }

    async fn reach(self: &Arc<Self>, node: NodeId) -> Result<(), String> {
        if lock(&self.pool).contains_key(&node) {
            return Ok(());
        }
        let known = lock(&self.records).get(node).map(|r| r.underlay.clone()).unwrap_or_default();
        for ip in known {
            self.dial_shared(ip).await?;
            if lock(&self.pool).contains_key(&node) {
                return Ok(());
            }
        }
        Err("not reached".to_owned())
    }

    fn drop_conn(&self, node: NodeId, input: Input) {
        if lock(&self.pool).remove(&node).is_some() {
            let _ = self.swim.try_send(input);
            self.refresh_view();
        }
    }

    /// Keep-alives: true if the two ends can still talk.
    fn keeps(&self, conn: &Conn) -> bool {
        let Some(peer) = conn.peer.upgrade() else { return false };
        let (a, b) = (self.machine(), peer.machine());
        let away = self.network.is_cut(a, b) || self.network.is_cut(b, a);
        !away && !peer.process.is_stopped() && peer.ip() == conn.ip && peer.process.is_live()
    }
}

impl PeerNet for Arc<SimMesh> {
    fn me(&self) -> NodeId {
        self.me
    }

    fn view(&self) -> Arc<MeshView> {
        Arc::clone(&self.view.borrow())
    }

    fn watch(&self) -> watch::Receiver<Arc<MeshView>> {
        self.view.subscribe()
    }

    fn call(
        &self,
        to: NodeId,
        request: Frame,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Frame, CallError>> {
        Box::pin(async move {
            let start = Instant::now();
            let unreachable = |why: String| CallError::Unreachable { node: to, why };
            if to == self.me {
                return Err(unreachable("a call to itself".to_owned()));
            }
            match timeout(patience, self.reach(to)).await {
                Ok(reached) => reached.map_err(unreachable)?,
                Err(_) => return Err(unreachable("no connection in time".to_owned())),
            }
            let left = patience.saturating_sub(start.elapsed());
            match self.request(to, request, left).await {
                Some(answer) if answer.is::<Failure>() => Err(CallError::Refused(answer.decode()?)),
                Some(answer) => Ok(answer),
                None => Err(CallError::Timeout { node: to, after: patience }),
            }
        })
    }

    fn notify(&self, to: NodeId, frame: Frame) {
        self.send(to, frame);
    }

    fn update_record(&self, change: Box<dyn FnOnce(&mut NodeRecord) + Send>) {
        self.update_own(change);
    }
}

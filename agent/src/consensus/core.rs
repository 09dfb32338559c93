//! State that the tasks of consensus share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use openraft::storage::RaftLogStorage;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_proto::id::{NodeId, RaftId, RequestId};
use weft_proto::wire::v1::LedgerHead;

use super::error::{ConsensusError, StoreError};
use super::founding::{Founding, Plan};
use super::network::Network;
use super::pace::Pace;
use super::replica::Replica;
use super::seats::Seats;
use super::store::{Db, LogStore, Machine, Seated};
use super::types::{Engine, Metrics};
use crate::mesh::net::{MeshView, PeerNet};

/// What consensus needs to know at start.
#[derive(Debug, Clone)]
pub struct ConsensusConfig {
    /// Where `consensus.redb` lives. It must share its fate with the node's key.
    pub state_dir: std::path::PathBuf,
    /// This node.
    pub me: NodeId,
    /// Node name.
    pub name: String,
    /// `IPALLOC_RANGE`.
    pub ranges: Vec<IpNet>,
    /// This life of the agent: Unix milliseconds at start.
    pub session: u64,
    /// How this node takes part in the founding.
    pub founding: Founding,
    /// How long blocks of an evicted node rest (used by the founder).
    pub quarantine: Duration,
    /// After this a dead voter is replaced, if another node can take over.
    pub voter_dead_after: Duration,
}

/// A leader that no majority has answered for so long leads nobody; one that has not been
/// heard for so long does not lead us.
const LONELY: Duration = Duration::from_secs(3);

type HeadHook = Box<dyn Fn(LedgerHead) + Send + Sync>;

/// See the module.
pub(crate) struct Core {
    pub(super) config: ConsensusConfig,
    pub(super) plan: Plan,
    pub(super) net: Arc<dyn PeerNet>,
    pub(super) db: Db,
    pub(super) replica: Arc<Replica>,
    pub(super) seats: Arc<Seats>,
    engine: watch::Sender<Option<Arc<Running>>>,
    pub(super) starting: tokio::sync::Mutex<()>,
    founded_without_us: AtomicBool,
    founding_waits: Mutex<Option<String>>,
    join_waits: Mutex<Option<String>>,
    pub(super) heads: mpsc::Sender<(NodeId, LedgerHead)>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) head_hook: Mutex<Option<HeadHook>>,
    next_request: AtomicU64,
    started: Instant,
    gone_since: Mutex<BTreeMap<NodeId, Instant>>,
    pub(super) last_answer: Mutex<Option<NodeId>>,
    pub(super) pace: Mutex<Pace>,
}

/// The engine and the seat it runs in.
pub(crate) struct Running {
    /// Seat and founding.
    pub seated: Seated,
    /// The engine.
    pub engine: Engine,
    /// When its leader was last heard.
    heard: Mutex<Instant>,
    /// Last entry of the log it was started with.
    inherited: Option<u64>,
}

impl Running {
    /// What the engine says of itself.
    pub(crate) fn metrics(&self) -> Metrics {
        self.engine.metrics().borrow().clone()
    }

    /// True if it takes itself for the leader.
    pub(crate) fn leads(&self) -> bool {
        let metrics = self.engine.metrics();
        let metrics = metrics.borrow();
        metrics.running_state.is_ok() && metrics.current_leader == Some(self.seated.raft_id)
    }

    /// Notes that seat `from` was heard.
    pub(crate) fn note_heard(&self, from: RaftId) {
        if self.engine.metrics().borrow().current_leader == Some(from) {
            *lock(&self.heard) = Instant::now();
        }
    }

    /// True if a leader is known that can lead. The engine takes a leader for
    /// one until it hears of another, itself included: alone among lost voters,
    /// or a learner of a founding that is no more, it would go on for ever, and
    /// hear of nothing.
    pub(crate) fn is_led(&self) -> bool {
        let metrics = self.engine.metrics();
        let metrics = metrics.borrow();
        match metrics.current_leader {
            None => false,
            Some(leader) if leader != self.seated.raft_id => lock(&self.heard).elapsed() < LONELY,
            Some(_) => {
                metrics.membership_config.voter_ids().count() < 2
                    || metrics
                        .millis_since_quorum_ack
                        .is_some_and(|ms| u128::from(ms) < LONELY.as_millis())
            }
        }
    }

    /// Completes once this leader has applied all it found in its log: what was there at
    /// its start (a leader that is started again goes on in its term), and an entry of its
    /// own term, before which all others are.
    pub(crate) async fn is_up_to_date(&self, patience: Duration) -> bool {
        let inherited = self.inherited;
        let applied = move |metrics: &Metrics| {
            let last = metrics.last_applied.map(|id| (id.leader_id.term, Some(id.index)));
            last.is_some_and(|(term, index)| term == metrics.current_term && index >= inherited)
        };
        self.engine.wait(Some(patience)).metrics(applied, "an entry of this term").await.is_ok()
    }

    /// True if the membership, as known here, has this seat.
    pub(crate) fn is_member(&self) -> bool {
        let metrics = self.engine.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&self.seated.raft_id).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Opens the store and loads what is there.
    pub(crate) async fn load(
        mut config: ConsensusConfig,
        net: Arc<dyn PeerNet>,
        heads: mpsc::Sender<(NodeId, LedgerHead)>,
    ) -> Result<Self, ConsensusError> {
        let plan = config.founding.plan(config.me, &config.name)?;
        let (dir, me) = (config.state_dir.clone(), config.me);
        let db = crate::host::blocking(move || Db::open(&dir, me))
            .await
            .map_err(|e| ConsensusError::Engine(e.to_string()))??;
        let replica = Arc::new(Replica::load(db.clone()).await?);
        // An earlier life may have had a clock that ran ahead, and its number may be lost: every
        // request of a lower one would be refused as stale.
        let before = replica.ledger().session_of(config.me).unwrap_or(0);
        config.session = config.session.max(before.saturating_add(1));
        let seats = Arc::new(Seats::load(db.clone()).await?);
        Ok(Self {
            config,
            plan,
            net,
            db,
            replica,
            seats,
            engine: watch::Sender::new(None),
            starting: tokio::sync::Mutex::new(()),
            founded_without_us: AtomicBool::new(false),
            founding_waits: Mutex::new(None),
            join_waits: Mutex::new(None),
            heads,
            stop: watch::Sender::new(false),
            head_hook: Mutex::new(None),
            next_request: AtomicU64::new(1),
            started: Instant::now(),
            gone_since: Mutex::new(BTreeMap::new()),
            last_answer: Mutex::new(None),
            pace: Mutex::default(),
        })
    }

    /// The engine, where this node has a seat.
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.engine.borrow().clone()
    }

    /// Starts the engine in a seat, once; the seat is on disk before.
    pub(crate) async fn start_engine(
        &self,
        seated: Seated,
    ) -> Result<Arc<Running>, ConsensusError> {
        let _one = self.starting.lock().await;
        if let Some(running) = self.running() {
            return Ok(running);
        }
        if *self.stop.borrow() {
            return Err(ConsensusError::Engine("the agent is shutting down".to_owned()));
        }
        match self.db.run(Db::seated).await? {
            None => self.db.run(move |db| db.take_seat(seated)).await?,
            Some(stored) if stored == seated => {}
            Some(stored) => {
                return Err(ConsensusError::Engine(format!(
                    "this node already has seat {}",
                    stored.raft_id
                )));
            }
        }
        self.launch(seated).await
    }

    /// Takes the engine out, to stop it.
    pub(crate) fn take_running(&self) -> Option<Arc<Running>> {
        self.engine.send_replace(None)
    }

    /// Starts the engine in the seat that is on disk.
    pub(crate) async fn launch(&self, seated: Seated) -> Result<Arc<Running>, ConsensusError> {
        let engine_error = |e: &dyn std::fmt::Display| ConsensusError::Engine(e.to_string());
        let machine = Machine::load(self.db.clone(), self.replica.clone()).await?;
        let network = Network {
            net: self.net.clone(),
            seats: self.seats.clone(),
            replica: self.replica.clone(),
            seated,
        };
        let mut log = LogStore::new(self.db.clone());
        let found = log.get_log_state().await.map_err(|e| engine_error(&e))?;
        let inherited = found.last_log_id.map(|id| id.index);
        let engine = Engine::new(
            seated.raft_id,
            Arc::new(engine_config().map_err(|e| engine_error(&e))?),
            network,
            log,
            machine,
        )
        .await
        .map_err(|e| engine_error(&e))?;
        let heard = Mutex::new(Instant::now());
        let running = Arc::new(Running { seated, engine, heard, inherited });
        self.engine.send_replace(Some(running.clone()));
        self.publish_seat(Some(seated.raft_id));
        Ok(running)
    }

    /// True if the engine leads, and still counts.
    pub(crate) fn leads(&self, running: &Running) -> bool {
        running.leads() && self.is_member(running)
    }

    /// True if the engine still counts: not if the ledger has gone on without
    /// it, beyond its log, and no leader talks to it. Such a voter was removed
    /// while it was away; it could never win an election. Nor if a recovery left
    /// it behind: then its leader was left behind with it, and may well talk.
    pub(crate) fn is_member(&self, running: &Running) -> bool {
        let metrics = running.metrics();
        let logged = metrics.last_log_index.map_or(0, |index| index + 1);
        let outrun = !running.is_led() && self.replica.head().index > logged;
        running.is_member() && !outrun && !self.left_behind(running)
    }

    /// Puts the seat (or that there is none) into this node's record.
    pub(crate) fn publish_seat(&self, seat: Option<RaftId>) {
        self.net.update_record(Box::new(move |record| record.raft_id = seat));
    }

    /// Seat on disk, if any.
    pub(crate) async fn stored_seat(&self) -> Result<Option<Seated>, StoreError> {
        self.db.run(Db::seated).await
    }

    /// A fresh request id.
    pub(crate) fn next_request(&self) -> RequestId {
        RequestId {
            node: self.config.me,
            session: self.config.session,
            seq: self.next_request.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The founding this node has a seat in was completed by others.
    pub(crate) fn founded_without_us(&self) -> bool {
        self.founded_without_us.load(Ordering::Relaxed)
    }

    /// Notes it.
    pub(crate) fn set_founded_without_us(&self) {
        self.founded_without_us.store(true, Ordering::Relaxed);
    }

    /// What founding waits for.
    pub(crate) fn set_founding_waits(&self, why: Option<String>) {
        let mut slot = lock(&self.founding_waits);
        if *slot != why {
            if let Some(why) = &why {
                tracing::info!("{why}");
            }
            *slot = why;
        }
    }

    /// What joining waits for.
    pub(crate) fn set_join_waits(&self, why: Option<String>) {
        let mut slot = lock(&self.join_waits);
        if *slot != why {
            if let Some(why) = &why {
                tracing::warn!("{why}");
            }
            *slot = why;
        }
    }

    /// Why joining was refused, if it was.
    pub(crate) fn join_waits(&self) -> Option<String> {
        lock(&self.join_waits).clone()
    }

    /// What founding or joining waits for.
    pub(crate) fn waits(&self) -> Option<String> {
        self.join_waits().or_else(|| lock(&self.founding_waits).clone())
    }

    /// Notes who went and who came back.
    pub(crate) fn note_view(&self, view: &MeshView) {
        let now = Instant::now();
        let mut gone = lock(&self.gone_since);
        gone.retain(|node, _| !view.is_alive(*node));
        for node in view.members.keys().filter(|node| !view.is_alive(**node)) {
            gone.entry(*node).or_insert(now);
        }
    }

    /// How long a node has not been alive; `None` while it is. A node never
    /// seen counts from the start of this agent.
    pub(crate) fn gone_for(&self, view: &MeshView, node: NodeId) -> Option<Duration> {
        if view.is_alive(node) {
            return None;
        }
        let since = lock(&self.gone_since).get(&node).copied().unwrap_or(self.started);
        Some(since.elapsed())
    }

    /// Completes when the agent stops.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error means that the sender is gone, which is a stop as well.
        let _gone = stop.wait_for(|stop| *stop).await;
    }

    /// Tells the hook the present head.
    pub(crate) fn tell_head(&self) {
        let head = self.replica.head();
        if let Some(hook) = lock(&self.head_hook).as_ref() {
            hook(head);
        }
    }
}

fn engine_config() -> Result<Config, String> {
    Config {
        cluster_name: "weft".to_owned(),
        heartbeat_interval: 500,
        election_timeout_min: 1500,
        election_timeout_max: 3000,
        install_snapshot_timeout: 5000,
        // At most 64 proposals of 64 KiB stay below the limit of a frame.
        max_payload_entries: 64,
        snapshot_max_chunk_size: 1 << 20,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(1000),
        max_in_snapshot_log_to_keep: 1000,
        ..Config::default()
    }
    .validate()
    .map_err(|e| e.to_string())
}

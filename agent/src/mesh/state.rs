//! What the tasks of the mesh share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::wire::v1::{Failure, LedgerHead};

use super::auth::ClusterKeys;
use super::clones::{Copied, Holds, Told};
use super::net::{Liveness, Member, MeshView, Service};
use super::pool::Pool;
use super::records::Records;
use super::swim::Input;
use super::targets::Targets;

/// A dead member stays visible for so long, unless it is removed.
const DEAD_VISIBLE: Duration = Duration::from_secs(24 * 3600);
/// The view is looked through for members long dead at least so often.
const VIEW: Duration = Duration::from_secs(60);
/// Most refusals kept for status.
const MAX_REFUSALS: usize = 64;
/// Who dialled this node may yet object to what it is; after this it has not.
const OBJECTS: Duration = Duration::from_secs(1);

/// Told whenever a peer tells its ledger position.
pub type HeadCallback = dyn Fn(NodeId, LedgerHead) + Send + Sync;

/// A connection that was refused, by us or by the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Remote address.
    pub address: SocketAddr,
    /// True if this node refused the peer.
    pub by_us: bool,
    /// One of the codes of [`Failure`].
    pub code: u16,
    /// Stable word for the code: `wrong_key`, `range`, `name`, ….
    pub reason: &'static str,
    /// For people, with both values.
    pub message: String,
    /// How often, from this address for this reason.
    pub count: u64,
    /// When last.
    pub last: Instant,
}

/// An attempt to reach a node that is under way: its end is told to all who wait.
pub(super) type DialResult = Option<Result<(), String>>;

/// How a node without connection is doing.
#[derive(Default)]
pub(super) struct DialState {
    pub(super) running: Option<watch::Receiver<DialResult>>,
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
    pub(super) error: String,
}

pub(super) struct State {
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) me: NodeId,
    pub(super) name: String,
    pub(super) session: u64,
    pub(super) software: String,
    pub(super) conn_limit: usize,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) client: quinn::ClientConfig,
    pub(super) keys: RwLock<ClusterKeys>,
    pub(super) ranges: RwLock<Vec<IpNet>>,
    pub(super) cluster: Mutex<Option<ClusterId>>,
    pub(super) pool: Mutex<Pool>,
    pub(super) next_conn: AtomicU64,
    /// Counts changes of the pool.
    pub(super) pool_changed: watch::Sender<u64>,
    pub(super) records: Mutex<Records>,
    pub(super) liveness: Mutex<BTreeMap<NodeId, Liveness>>,
    pub(super) dead_since: Mutex<BTreeMap<NodeId, Instant>>,
    /// Of what the view was made, and when.
    pub(super) viewed: Mutex<Option<(u64, u64, Instant)>>,
    /// Members taken for alive, this node included.
    pub(super) alive: AtomicUsize,
    /// Bounds exchanges of records that this node began.
    pub(super) exchanging: Arc<Semaphore>,
    pub(super) view: watch::Sender<Arc<MeshView>>,
    pub(super) services: RwLock<BTreeMap<u16, Arc<dyn Service>>>,
    pub(super) targets: Mutex<Targets>,
    pub(super) targets_changed: Notify,
    pub(super) dials: Mutex<BTreeMap<NodeId, DialState>>,
    pub(super) swim: mpsc::Sender<Input>,
    /// Records to push on, with whom they came from.
    pub(super) fresh: Mutex<BTreeMap<NodeId, Option<NodeId>>>,
    pub(super) fresh_wake: Notify,
    /// Connected nodes of whom others say something newer than they do themselves.
    pub(super) doubted: Mutex<BTreeSet<NodeId>>,
    pub(super) head: Mutex<LedgerHead>,
    pub(super) on_head: RwLock<Option<Arc<HeadCallback>>>,
    pub(super) counters: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) refusals: Mutex<Vec<Refusal>>,
    /// For so long may the pods of a silent node be well.
    pub(super) rest: Mutex<Duration>,
    /// Machines that came with the identity of another.
    pub(super) holds: Mutex<Holds>,
    /// What was said of this node being such a one, and what it comes to.
    pub(super) told: Mutex<Told>,
    pub(super) copied: watch::Sender<Option<Copied>>,
    /// Some peer has let this node in, in this life.
    pub(super) let_in: AtomicBool,
    pub(super) log_gate: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
    /// TLS exporters of handshakes under way from here, to know ourselves by.
    pub(super) dialling: Mutex<BTreeSet<[u8; 32]>>,
    /// The own underlay address is unknown until a peer tells it.
    pub(super) learn_address: AtomicBool,
    /// Bounds connections that have not proved the key.
    pub(super) strangers: Arc<Semaphore>,
    /// Bounds notifications under way.
    pub(super) notifying: Arc<Semaphore>,
}

/// A poisoned lock only means that some thread panicked; the data are whole,
/// for no lock is held across anything that can fail half way.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T: Clone>(cell: &RwLock<T>) -> T {
    cell.read().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// IPv4 as IPv4, also where a dual-stack socket says `::ffff:…`.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl State {
    pub(super) fn count(&self, name: &'static str) {
        *lock(&self.counters).entry(name).or_insert(0) += 1;
    }

    /// True if something of this kind may be logged now (once a second), with
    /// the number that was not.
    pub(super) fn may_log(&self, kind: &'static str) -> Option<u64> {
        let mut gate = lock(&self.log_gate);
        let now = Instant::now();
        match gate.get_mut(kind) {
            Some((last, missed)) if now.duration_since(*last) < Duration::from_secs(1) => {
                *missed += 1;
                None
            }
            entry => {
                let missed = entry.map_or(0, |(_, missed)| *missed);
                gate.insert(kind, (now, 0));
                Some(missed)
            }
        }
    }

    /// Keeps a refusal for status, counts it, logs it.
    pub(super) fn refusal(&self, address: SocketAddr, by_us: bool, failure: &Failure) {
        let reason = super::auth::reason(failure.code);
        let counter = match reason {
            "wrong_key" => "handshake_wrong_key",
            "range" => "handshake_range",
            "name" => "handshake_name",
            "cluster" => "handshake_cluster",
            "busy" => "handshake_busy",
            "clone" => "handshake_clone",
            _ => "handshake_refused",
        };
        self.count(counter);
        if let Some(missed) = self.may_log(counter) {
            tracing::warn!(
                %address, by_us, reason, missed,
                "connection refused: {}", failure.message
            );
        }
        let mut refusals = lock(&self.refusals);
        // An inbound stranger has a new port each time: one entry per host.
        let found = refusals
            .iter_mut()
            .find(|r| r.address.ip() == address.ip() && r.code == failure.code && r.by_us == by_us);
        if let Some(known) = found {
            known.address = address;
            known.message.clone_from(&failure.message);
            known.count += 1;
            known.last = Instant::now();
            return;
        }
        if refusals.len() >= MAX_REFUSALS
            && let Some(oldest) = (0..refusals.len()).min_by_key(|i| refusals[*i].last)
        {
            refusals.swap_remove(oldest);
        }
        refusals.push(Refusal {
            address,
            by_us,
            code: failure.code,
            reason,
            message: failure.message.clone(),
            count: 1,
            last: Instant::now(),
        });
    }

    /// A peer that has proved the cluster key refused this node as a copy.
    pub(super) fn told_copied(&self, by: NodeId, said: String) {
        lock(&self.told).refused(by, said, Instant::now());
        self.judge_copied();
    }

    /// Who has let this node in for sure, and since when.
    pub(super) fn vouching(&self) -> Vec<(NodeId, Instant)> {
        let conns = lock(&self.pool).all();
        let sure = conns.iter().filter(|c| c.outbound || c.since.elapsed() >= OBJECTS);
        sure.map(|c| (c.node, c.since)).collect()
    }

    /// Whether this node has to give way to another with its identity.
    pub(super) fn judge_copied(&self) {
        let (vouching, rest) = (self.vouching(), *lock(&self.rest));
        let mut told = lock(&self.told);
        let now = told.verdict(self.me, &vouching, Instant::now(), rest);
        self.copied.send_if_modified(|before| {
            let differs = *before != now;
            if differs {
                *before = now;
            }
            differs
        });
    }

    /// A member of this name that is alive and neither we nor `peer`. Of who is not
    /// connected we only know by hearsay: that keeps newcomers out, and nobody who
    /// has been here under this name.
    pub(super) fn namesake(&self, name: &str, peer: NodeId) -> Option<NodeId> {
        let connected = lock(&self.pool).all();
        let living = |node| node != peer && self.liveness_of(node) != Liveness::Dead;
        if let Some(holder) = connected.iter().find(|c| c.name == name && living(c.node)) {
            return Some(holder.node);
        }
        if lock(&self.records).get(peer).is_some_and(|r| r.name == name) {
            return None;
        }
        let view = self.view.borrow();
        view.members
            .values()
            .find(|m| {
                m.record.name == name
                    && m.record.node != peer
                    && m.record.node != self.me
                    && m.liveness != Liveness::Dead
            })
            .map(|m| m.record.node)
    }

    pub(super) fn liveness_of(&self, node: NodeId) -> Liveness {
        if node == self.me {
            return Liveness::Alive;
        }
        if let Some(known) = lock(&self.liveness).get(&node) {
            return *known;
        }
        let connected = lock(&self.pool).get(node).is_some();
        if connected { Liveness::Alive } else { Liveness::Dead }
    }

    /// Recomputes the view if anything has changed since, and now and then.
    pub(super) fn refresh_stale_view(&self) {
        let of = (lock(&self.records).generation(), *self.pool_changed.borrow());
        let fresh = lock(&self.viewed)
            .is_some_and(|(records, pool, at)| (records, pool) == of && at.elapsed() < VIEW);
        if !fresh {
            self.refresh_view();
        }
    }

    /// Recomputes the view; tells watchers if it differs.
    pub(super) fn refresh_view(&self) {
        let pool = *self.pool_changed.borrow();
        let (generation, records) = {
            let records = lock(&self.records);
            (records.generation(), records.iter().cloned().collect::<Vec<_>>())
        };
        *lock(&self.viewed) = Some((generation, pool, Instant::now()));
        let connected: BTreeSet<NodeId> = lock(&self.pool).all().iter().map(|c| c.node).collect();
        let heard = lock(&self.liveness);
        let liveness_of = |node: NodeId| {
            let here = node == self.me || connected.contains(&node);
            let unheard = if here { Liveness::Alive } else { Liveness::Dead };
            if node == self.me { Liveness::Alive } else { *heard.get(&node).unwrap_or(&unheard) }
        };
        let mut members = BTreeMap::new();
        let mut expired = Vec::new();
        {
            let mut dead_since = lock(&self.dead_since);
            for record in records {
                let node = record.node;
                let liveness = liveness_of(node);
                if liveness == Liveness::Dead {
                    let since = dead_since.entry(node).or_insert_with(Instant::now);
                    if since.elapsed() > DEAD_VISIBLE {
                        expired.push(node);
                        continue;
                    }
                } else {
                    dead_since.remove(&node);
                }
                members.insert(node, Member { record, liveness });
            }
            dead_since.retain(|node, _| members.contains_key(node));
        }
        drop(heard);
        for node in expired {
            lock(&self.records).expire(node);
        }
        let alive = members.values().filter(|m| m.liveness == Liveness::Alive).count();
        self.alive.store(alive, Ordering::Relaxed);
        let fresh = MeshView { members };
        self.view.send_if_modified(|current| {
            let differs = **current != fresh;
            if differs {
                *current = Arc::new(fresh);
            }
            differs
        });
    }

    /// Addresses where a node may be reached, best first.
    pub(super) fn addresses_of(&self, node: NodeId) -> Vec<SocketAddr> {
        lock(&self.records).get(node).map_or_else(Vec::new, |r| {
            r.underlay.iter().map(|ip| SocketAddr::new(*ip, r.mesh_port)).collect()
        })
    }

    /// A peer says where it sees us.
    pub(super) fn observed(&self, address: SocketAddr) {
        let address = canonical(address);
        let ip: IpAddr = address.ip();
        if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
            return;
        }
        if self.learn_address.swap(false, Ordering::Relaxed) {
            tracing::info!(%address, "a peer told this node its address");
            self.update_own(|r| {
                r.underlay = vec![ip];
                r.mesh_port = address.port();
            });
        }
    }

    pub(super) fn update_own(&self, change: impl FnOnce(&mut weft_proto::wire::v1::NodeRecord)) {
        if lock(&self.records).update(change) {
            lock(&self.fresh).insert(self.me, None);
            self.fresh_wake.notify_one();
            self.refresh_view();
        }
    }

    pub(super) fn tell_head(&self, from: NodeId, head: LedgerHead) {
        if let Some(callback) = read(&self.on_head) {
            callback(from, head);
        }
    }
}

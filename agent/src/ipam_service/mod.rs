//! Addresses of this node: leases from own blocks, blocks from the ledger.
//!
//! [`IpamService`] answers from memory; [`Supplier`] runs beside it and keeps
//! the stock filled. A request that finds the stock empty waits, says so in
//! status, and is forgotten the moment its caller goes away.

pub mod donate;
pub mod intents;
pub mod journal;
mod leases;
mod ports;
#[cfg(test)]
pub(crate) mod simulated;
pub mod supplier;
pub mod supply;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_ipam::leases::LeaseTable;
use weft_ipam::ledger::Ledger;
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};

use crate::api::backend::BackendError;
use crate::mesh::net::BoxFuture;
use journal::{Found, Journal, JournalError};

pub use leases::ClaimFailed;
pub use supplier::Supplier;

/// For how long a verdict says something about requests still to come: what
/// other nodes have to spare changes without this one hearing of it.
const VERDICT_LASTS: Duration = Duration::from_secs(30);

/// The ledger as the IPAM service needs it.
pub trait Registry: Send + Sync + 'static {
    /// Newest applied state.
    fn ledger(&self) -> Arc<Ledger>;
    /// Puts a command into the log; returns once this node's replica has applied it.
    /// The error text says why it could not be committed, and what to do.
    fn propose(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(u64, Outcome), String>>;
    /// A fresh request id. The same id again is the same request again.
    fn next_request(&self) -> RequestId;
}

/// Waits until the own replica has applied position `index`.
pub async fn catch_up(registry: &dyn Registry, index: u64) -> Result<(), String> {
    for _ in 0..100 {
        if registry.ledger().head().index >= index {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Err(format!("the ledger of this node has not reached position {index} within 3 s"))
}

/// How a request names its address.
#[derive(Debug, Clone, Default)]
pub struct LeaseFacts {
    /// `namespace/name`.
    pub pod: Option<String>,
    /// Uid of the pod.
    pub uid: Option<String>,
    /// Host end of the veth, if there is to be one.
    pub host_ifname: String,
    /// Host ports.
    pub port_mappings: Vec<weft_proto::api::PortMapping>,
}

/// Key of a lease made over Weave's HTTP routes: an id without an interface.
pub fn http_key(id: &str) -> AttachmentKey {
    AttachmentKey { container_id: id.to_owned(), ifname: String::new() }
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    crate::host::now_ms()
}

/// Why requests of a family cannot be served right now.
#[derive(Debug, Clone)]
struct Verdict {
    /// Number of the round of asking that found it out.
    round: u64,
    at: Instant,
    error: BackendError,
}

#[derive(Debug)]
struct Waiting {
    /// Rounds of asking that had begun before it.
    since: u64,
    /// Who, for status.
    who: String,
}

#[derive(Debug, Default)]
struct FamilyState {
    waiting: BTreeMap<u64, Waiting>,
    rounds: u64,
    verdict: Option<Verdict>,
    /// Why the last try did not get further, while somebody still waits.
    blocked: Option<String>,
}

impl FamilyState {
    /// Requests that wait and are not about to be told a verdict.
    fn unanswered(&self) -> usize {
        let round = self.verdict.as_ref().map_or(0, |v| v.round);
        self.waiting.values().filter(|w| w.since >= round).count()
    }
}

/// Whether addresses may be given out at all: another machine may run as this node, and
/// give out the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    #[default]
    Open,
    /// It is being asked; requests wait.
    Asking,
    /// They may not: why, and what to do. Requests are refused.
    Closed(String),
}

struct State {
    table: LeaseTable,
    leases: BTreeMap<AttachmentKey, LeaseInfo>,
    journal: Journal,
    busy: BTreeSet<AttachmentKey>,
    /// When an attachment was last asked for in this life of the agent.
    asked: BTreeMap<AttachmentKey, Instant>,
    /// Position of the ledger the table follows; it never goes back.
    followed: u64,
    families: [FamilyState; 2],
    next_waiter: u64,
    leaving: bool,
    gate: Gate,
    /// Counts changes of leases: observers compare it to see whether to look.
    generation: u64,
    /// Leases that came, went or changed since somebody last took the changes.
    changed: BTreeSet<AttachmentKey>,
}

impl State {
    /// Before every write: a store that was removed is written anew, so that
    /// no lease goes into a file nobody will read.
    fn secure(&mut self) -> Result<&mut Journal, JournalError> {
        if self.journal.is_lost() {
            self.journal.compact(self.leases.values(), &self.table.freed())?;
        }
        Ok(&mut self.journal)
    }

    /// What kept requests waiting is over for families with free addresses.
    fn clear_verdicts(&mut self) {
        for (ipv6, family) in [false, true].into_iter().zip(&mut self.families) {
            if self.table.free(ipv6) > 0 {
                family.verdict = None;
                family.blocked = None;
            }
        }
    }
}

/// See the module.
pub struct IpamService {
    me: NodeId,
    started: Instant,
    state: Mutex<State>,
    /// An address became free, a block arrived, or a verdict fell.
    changed: Notify,
    /// Somebody waits, or the stock runs low, by family.
    need: [Notify; 2],
    /// Leases changed (a watch, so that nobody misses the last change).
    leases_changed: tokio::sync::watch::Sender<u64>,
}

impl std::fmt::Debug for IpamService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IpamService").field("me", &self.me).finish_non_exhaustive()
    }
}

/// What status shows of the leases and the stock.
#[derive(Debug, Clone, Default)]
pub struct Stand {
    /// Leases.
    pub leases: usize,
    /// Usable addresses in own blocks.
    pub owned: u64,
    /// Free addresses, IPv4.
    pub free4: u64,
    /// Free addresses, IPv6.
    pub free6: u64,
    /// Requests that wait.
    pub waiting: Vec<String>,
    /// Why they wait.
    pub blocked: Option<String>,
    /// The last request of a family failed because the range is used up, and
    /// nothing has become free since.
    pub exhausted: Option<String>,
    /// Leases outside own blocks.
    pub foreign: Vec<(AttachmentKey, IpAddr)>,
}

impl IpamService {
    /// Takes over the journal and what it said.
    pub fn new(me: NodeId, cooldown: Duration, journal: Journal, found: &Found) -> Arc<Self> {
        let mut table = LeaseTable::new(u64::try_from(cooldown.as_millis()).unwrap_or(u64::MAX));
        for (address, at_ms) in &found.freed {
            table.remember_freed(*address, *at_ms);
        }
        let mut leases = found.leases.clone();
        leases.retain(|key, lease| {
            lease.addresses.retain(|address| match table.adopt(key, *address) {
                Ok(()) => true,
                Err(held) => {
                    tracing::error!(lease = %key, %address, by = %held.by,
                        "lease store names two holders of one address; the first keeps it");
                    false
                }
            });
            !lease.addresses.is_empty()
        });
        Arc::new(Self {
            me,
            started: Instant::now(),
            state: Mutex::new(State {
                table,
                leases,
                journal,
                busy: BTreeSet::new(),
                asked: BTreeMap::new(),
                followed: 0,
                families: Default::default(),
                next_waiter: 0,
                leaving: false,
                gate: Gate::Open,
                generation: 0,
                changed: BTreeSet::new(),
            }),
            changed: Notify::new(),
            need: Default::default(),
            leases_changed: tokio::sync::watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told whenever a lease comes or goes.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.leases_changed.subscribe()
    }

    fn leases_changed(&self, state: &mut State, key: &AttachmentKey) {
        state.generation += 1;
        if !state.changed.contains(key) {
            state.changed.insert(key.clone());
        }
        self.leases_changed.send_replace(state.generation);
    }

    /// Counts changes of leases.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The generation, and every lease that changed since the last call, as it now
    /// is; `None` if it has ended.
    pub fn take_changes(&self) -> (u64, Vec<(AttachmentKey, Option<LeaseInfo>)>) {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        let now = |key: AttachmentKey| {
            let lease = state.leases.get(&key).cloned();
            (key, lease)
        };
        (state.generation, changed.into_iter().map(now).collect())
    }

    /// Brings the lease table up to the ledger. An older state than one already
    /// followed changes nothing: it would bring back what was given away since.
    pub fn follow(&self, ledger: &Ledger) {
        {
            let mut state = self.lock();
            let index = ledger.head().index;
            if index < state.followed {
                return;
            }
            state.followed = index;
            let blocks: Vec<IpNet> = ledger.blocks_of(self.me).map(|b| b.prefix).collect();
            let same = state.table.ranges() == ledger.ranges()
                && state.table.blocks().eq(blocks.iter().copied());
            if !same {
                state.table.set_blocks(ledger.ranges(), &blocks);
            }
            state.clear_verdicts();
        }
        self.woken();
    }

    /// Position of the ledger it follows.
    pub(crate) fn followed(&self) -> u64 {
        self.lock().followed
    }

    /// Something may be free now; or the supplier may get further.
    fn woken(&self) {
        self.changed.notify_waiters();
        self.need.iter().for_each(Notify::notify_one);
    }

    /// Ends the withholding of a prefix: what of it is still own is free.
    fn unwithhold(&self, prefix: IpNet) {
        {
            let mut state = self.lock();
            state.table.unwithhold(prefix);
            state.clear_verdicts();
        }
        self.woken();
    }

    /// Every lease of an earlier life is known again.
    pub fn rebuilt(&self) -> Result<(), JournalError> {
        let mut state = self.lock();
        let State { journal, leases, table, .. } = &mut *state;
        journal.rebuilt(leases.values(), &table.freed())
    }

    /// This node hands everything back: from now on nothing is allocated.
    /// Refused, with their number, while leases other than `own` are there.
    pub fn stop_allocating(&self, own: &AttachmentKey) -> Result<(), usize> {
        {
            let mut state = self.lock();
            let others = state.leases.keys().filter(|key| *key != own).count();
            if others > 0 {
                return Err(others);
            }
            state.leaving = true;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// True after [`IpamService::stop_allocating`].
    pub fn is_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// From now on new addresses are given out, or are not. Leases stay as they are, and
    /// can be asked for again and given back.
    pub fn set_gate(&self, gate: Gate) {
        self.lock().gate = gate;
        self.woken();
    }

    /// Whether new addresses are given out.
    pub fn gate(&self) -> Gate {
        self.lock().gate.clone()
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.lock().leases.values().cloned().collect()
    }

    /// Looks at all leases without copying them; must not call back.
    pub fn with_leases<T>(&self, look: impl FnOnce(&BTreeMap<AttachmentKey, LeaseInfo>) -> T) -> T {
        look(&self.lock().leases)
    }

    /// One lease.
    pub fn lease(&self, key: &AttachmentKey) -> Option<LeaseInfo> {
        self.lock().leases.get(key).cloned()
    }

    /// Addresses of a lease.
    pub fn addresses(&self, key: &AttachmentKey) -> Vec<IpAddr> {
        self.lock().table.addresses(key).to_vec()
    }

    /// Who has an address.
    pub fn holder(&self, address: IpAddr) -> Option<AttachmentKey> {
        self.lock().table.holder(address).cloned()
    }

    /// Own blocks no lease lies in.
    pub fn idle_blocks(&self) -> Vec<IpNet> {
        self.lock().table.idle_blocks()
    }

    /// For status and readiness.
    pub fn stand(&self) -> Stand {
        let state = self.lock();
        let exhausted = state.families.iter().find_map(|f| match &f.verdict {
            Some(Verdict { error: BackendError::Exhausted(why), at, .. })
                if at.elapsed() < VERDICT_LASTS =>
            {
                Some(why.clone())
            }
            _ => None,
        });
        Stand {
            leases: state.leases.len(),
            owned: state.table.owned(false).saturating_add(state.table.owned(true)),
            free4: state.table.free(false),
            free6: state.table.free(true),
            waiting: state
                .families
                .iter()
                .flat_map(|f| f.waiting.values().map(|w| w.who.clone()))
                .collect(),
            blocked: state.families.iter().find_map(|f| f.blocked.clone()),
            exhausted,
            foreign: state.table.foreign(),
        }
    }
}

#[cfg(test)]
mod tests;

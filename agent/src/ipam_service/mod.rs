//! Addresses of this node: leases from own blocks, blocks from the ledger.
//!
//! [`IpamService`] answers from memory; [`Supplier`] runs beside it and keeps
//! the stock filled. A request that finds the stock empty waits, says so in
//! status, and is forgotten the moment its caller goes away.

pub mod donate;
pub mod intents;
pub mod journal;
mod leases;
pub mod supplier;
pub mod supply;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use tokio::sync::Notify;
use weft_ipam::leases::LeaseTable;
use weft_ipam::ledger::Ledger;
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};

use crate::api::backend::BackendError;
use crate::mesh::net::BoxFuture;
use journal::{Found, Journal};

pub use supplier::Supplier;

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

/// How a request names its address.
#[derive(Debug, Clone, Default)]
pub struct LeaseFacts {
    /// `namespace/name`.
    pub pod: Option<String>,
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Why requests of a family cannot be served right now.
#[derive(Debug, Clone)]
struct Verdict {
    /// Number of the round of asking that found it out.
    round: u64,
    error: BackendError,
}

#[derive(Debug, Default)]
struct FamilyState {
    waiting: BTreeMap<u64, String>,
    rounds: u64,
    verdict: Option<Verdict>,
    /// Why the last try did not get further, while somebody still waits.
    blocked: Option<String>,
}

struct State {
    table: LeaseTable,
    leases: BTreeMap<AttachmentKey, LeaseInfo>,
    journal: Journal,
    busy: BTreeSet<AttachmentKey>,
    families: [FamilyState; 2],
    next_waiter: u64,
    leaving: bool,
    /// Counts changes of leases: observers compare it to see whether to look.
    generation: u64,
}

/// See the module.
pub struct IpamService {
    me: NodeId,
    state: Mutex<State>,
    /// An address became free, a block arrived, or a verdict fell.
    changed: Notify,
    /// Somebody waits, or the stock runs low.
    need: Notify,
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
        for lease in found.leases.values() {
            for address in &lease.addresses {
                if let Err(held) = table.adopt(&lease.key, *address) {
                    tracing::error!(lease = %lease.key, %address, by = %held.by,
                        "lease store names two holders of one address; the first keeps it");
                }
            }
        }
        Arc::new(Self {
            me,
            state: Mutex::new(State {
                table,
                leases: found.leases.clone(),
                journal,
                busy: BTreeSet::new(),
                families: Default::default(),
                next_waiter: 0,
                leaving: false,
                generation: 0,
            }),
            changed: Notify::new(),
            need: Notify::new(),
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

    fn leases_changed(&self, state: &mut State) {
        state.generation += 1;
        self.leases_changed.send_replace(state.generation);
    }

    /// Brings the lease table up to the ledger; returns leases outside own blocks.
    pub fn follow(&self, ledger: &Ledger) -> Vec<(AttachmentKey, IpAddr)> {
        let blocks: Vec<IpNet> = ledger.blocks_of(self.me).map(|b| b.prefix).collect();
        let foreign = {
            let mut state = self.lock();
            let foreign = state.table.set_blocks(ledger.ranges(), &blocks);
            for (ipv6, family) in [false, true].into_iter().zip(0..) {
                if state.table.free(ipv6) > 0 {
                    state.families[family].verdict = None;
                    state.families[family].blocked = None;
                }
            }
            foreign
        };
        self.changed.notify_waiters();
        self.need.notify_one();
        foreign
    }

    /// This node hands everything back: from now on nothing is allocated.
    pub fn stop_allocating(&self) {
        self.lock().leaving = true;
        self.changed.notify_waiters();
    }

    /// True after [`IpamService::stop_allocating`].
    pub fn is_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.lock().leases.values().cloned().collect()
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
            Some(Verdict { error: BackendError::Exhausted(why), .. }) => Some(why.clone()),
            _ => None,
        });
        Stand {
            leases: state.leases.len(),
            owned: state.table.owned(false).saturating_add(state.table.owned(true)),
            free4: state.table.free(false),
            free6: state.table.free(true),
            waiting: state.families.iter().flat_map(|f| f.waiting.values().cloned()).collect(),
            blocked: state.families.iter().find_map(|f| f.blocked.clone()),
            exhausted,
            foreign: state.table.foreign(),
        }
    }
}

#[cfg(test)]
mod tests;

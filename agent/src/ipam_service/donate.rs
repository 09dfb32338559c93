//! Handing addresses to a node that has none left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::frame::Frame;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};
use weft_proto::wire::v1::{Donate, DonateReply, Failure};

use super::intents::{Promise, Promises};
use super::{Gate, IpamService, Registry};
use crate::mesh::net::{BoxFuture, Service};

const PATIENCE: Duration = Duration::from_secs(4);
/// Pause between two tries to settle what is open.
const AGAIN: Duration = Duration::from_secs(2);

/// Why a donor gives nothing that it may have to give in a moment.
pub(super) const WAITING_HERE: &str = "pods wait for addresses here";

/// What is known of the promises beyond the file.
#[derive(Debug, Default)]
struct Desk {
    /// Request ids of open promises: a repeated proposal must be the same
    /// request, so that a late commit of the first can never follow a refusal
    /// of the second. (Ids of an earlier life are refused by the ledger once
    /// this life has asked anything.)
    requests: BTreeMap<IpNet, RequestId>,
    /// Being settled now. Whoever comes second must stay away: by the time it
    /// acts, the promise may be history and the prefix in use.
    active: BTreeSet<IpNet>,
    /// Never proposed, since they may not be on disk. Withheld all the same
    /// until they are certainly not: a next life would propose what it reads.
    void: Vec<Promise>,
    /// Promises of an earlier life that hold leases: never proposed.
    stuck: BTreeSet<IpNet>,
}

/// Serves [`Donate`], and sees every promise through.
pub struct Donations {
    service: Arc<IpamService>,
    registry: Arc<dyn Registry>,
    promises: Arc<Mutex<Promises>>,
    desk: Arc<Mutex<Desk>>,
}

impl std::fmt::Debug for Donations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Donations").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to settle one promise, for as long as it is held.
struct Turn {
    desk: Arc<Mutex<Desk>>,
    prefix: IpNet,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.desk).active.remove(&self.prefix);
    }
}

impl Donations {
    /// Kinds it serves.
    pub const KINDS: &[u16] = &[60];

    /// Withholds what an earlier life has promised.
    pub fn new(
        service: Arc<IpamService>,
        registry: Arc<dyn Registry>,
        promises: Promises,
    ) -> Arc<Self> {
        let mut desk = Desk::default();
        for promise in promises.open_promises() {
            let withheld = service.lock().table.withhold(promise.prefix);
            if let Err(e) = withheld {
                tracing::error!("{e}: it is promised to node {}; not handed over", promise.to);
                desk.stuck.insert(promise.prefix);
            }
        }
        let promises = Arc::new(Mutex::new(promises));
        Arc::new(Self { service, registry, promises, desk: Arc::new(Mutex::new(desk)) })
    }

    /// Settles promises whose outcome an earlier life, or a lost quorum, left open.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(AGAIN).await;
            self.settle_open().await;
        }
    }

    /// One try for everything open.
    pub async fn settle_open(&self) {
        self.strike_void().await;
        let open = lock(&self.promises).open_promises().to_vec();
        for promise in open {
            let Some(turn) = self.turn(promise.prefix) else { continue };
            if let Err(e) = self.settle(promise, turn).await {
                tracing::debug!(prefix = %promise.prefix, "promise still open: {e}");
            }
        }
    }

    fn turn(&self, prefix: IpNet) -> Option<Turn> {
        let mut desk = lock(&self.desk);
        let free = !desk.stuck.contains(&prefix) && desk.active.insert(prefix);
        free.then(|| Turn { desk: Arc::clone(&self.desk), prefix })
    }

    async fn give(&self, to: NodeId, request: Donate) -> Result<DonateReply, String> {
        let (promise, turn) = {
            let mut state = self.service.lock();
            if state.gate != Gate::Open {
                let why = "another machine may run as this node, and use them";
                return Ok(DonateReply::Nothing { why: why.into() });
            }
            // What has just come may be more than is waited for here.
            let waiting = state.families[usize::from(request.ipv6)].unanswered();
            if waiting > 0 && state.table.free(request.ipv6) <= waiting as u64 {
                return Ok(DonateReply::Nothing { why: WAITING_HERE.into() });
            }
            let Some(prefix) = state.table.donation(request.ipv6, request.address) else {
                return Ok(DonateReply::Nothing { why: "none free".into() });
            };
            let turn = self.turn(prefix).ok_or("it is just changing hands: try again")?;
            state.table.withhold(prefix).map_err(|e| e.to_string())?;
            (Promise { prefix, to }, turn)
        };
        // The disk may be slow. If the asker hangs up meanwhile, the promise
        // is still either written, and settled later, or taken back.
        let (promises, desk) = (Arc::clone(&self.promises), Arc::clone(&self.desk));
        let written = crate::host::blocking(move || {
            let written = lock(&promises).add(promise).map_err(|e| e.to_string());
            if written.is_err() {
                lock(&desk).void.push(promise);
            }
            (written, turn)
        });
        let (written, turn) = written.await.map_err(|e| e.to_string())?;
        if let Err(e) = written {
            drop(turn);
            self.strike_void().await;
            return Err(e);
        }
        self.settle(promise, turn).await
    }

    /// Takes promises back that were never proposed.
    async fn strike_void(&self) {
        let void = std::mem::take(&mut lock(&self.desk).void);
        for promise in void {
            let Some(turn) = self.turn(promise.prefix) else { continue };
            if let Err(e) = self.strike(promise, turn).await {
                tracing::warn!("{e}");
                lock(&self.desk).void.push(promise);
            }
        }
    }

    /// Off the disk, then no longer withheld: as one, whoever hangs up meanwhile.
    async fn strike(&self, promise: Promise, turn: Turn) -> Result<(), String> {
        let (promises, service) = (Arc::clone(&self.promises), Arc::clone(&self.service));
        let strike = move || {
            lock(&promises).settle(promise).map_err(|e| e.to_string())?;
            lock(&turn.desk).requests.remove(&promise.prefix);
            service.unwithhold(promise.prefix);
            drop(turn);
            Ok(())
        };
        crate::host::blocking(strike).await.map_err(|e| e.to_string())?
    }

    /// Proposes the transfer, as often as it takes, and strikes the promise
    /// once the ledger has answered. A repeated transfer that had gone through
    /// is refused by the ledger, since the prefix has its new owner by then.
    async fn settle(&self, promise: Promise, turn: Turn) -> Result<DonateReply, String> {
        if !lock(&self.promises).open_promises().contains(&promise) {
            return Err("already settled".to_owned());
        }
        let from = self.service.me;
        let op = Op::Transfer { from, to: promise.to, prefix: promise.prefix };
        let request = *lock(&self.desk)
            .requests
            .entry(promise.prefix)
            .or_insert_with(|| self.registry.next_request());
        let (index, outcome) = self.registry.propose(request, op, PATIENCE).await?;
        let ledger = self.registry.ledger();
        self.service.follow(&ledger);
        if ledger.head().index < index {
            return Err("the ledger of this node lags behind".to_owned());
        }
        self.strike(promise, turn).await?;
        let owner = ledger.owner_of(promise.prefix.addr()).map(|b| b.owner);
        match outcome {
            Outcome::Granted(_) => Ok(DonateReply::Given { prefix: promise.prefix, index }),
            _ if owner == Some(promise.to) => {
                Ok(DonateReply::Given { prefix: promise.prefix, index })
            }
            Outcome::Refused(refusal) => Ok(DonateReply::Nothing { why: refusal.to_string() }),
            other => Err(format!("unexpected answer of the ledger: {other:?}")),
        }
    }

    /// Prefixes promised and not yet settled.
    pub fn open(&self) -> Vec<IpNet> {
        lock(&self.promises).open_promises().iter().map(|p| p.prefix).collect()
    }
}

impl Service for Donations {
    fn handle(&self, from: NodeId, frame: Frame) -> BoxFuture<'_, Result<Option<Frame>, Failure>> {
        Box::pin(async move {
            let fail = |code, message| Failure { code, message };
            let request = frame.decode().map_err(|e| fail(Failure::BAD_REQUEST, e.to_string()))?;
            let reply = self.give(from, request).await.map_err(|e| fail(Failure::INTERNAL, e))?;
            Frame::new(&reply).map(Some).map_err(|e| fail(Failure::INTERNAL, e.to_string()))
        })
    }
}

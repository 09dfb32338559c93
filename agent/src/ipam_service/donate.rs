//! Handing addresses to a node that has none left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::frame::Frame;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};
use weft_proto::wire::v1::{Donate, DonateReply, Failure};

use super::intents::{Promise, Promises};
use super::{IpamService, Registry};
use crate::mesh::net::{BoxFuture, Service};

const PATIENCE: Duration = Duration::from_secs(4);

/// Serves [`Donate`], and sees every promise through.
pub struct Donations {
    service: Arc<IpamService>,
    registry: Arc<dyn Registry>,
    promises: Mutex<Promises>,
    /// Request ids of open promises: a repeated proposal must be the same
    /// request, so that a late commit of the first can never follow a refusal
    /// of the second. (Ids of an earlier life are refused by the ledger once
    /// this life has asked anything.)
    requests: Mutex<BTreeMap<IpNet, RequestId>>,
}

impl std::fmt::Debug for Donations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Donations").finish_non_exhaustive()
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
        for promise in promises.open_promises() {
            if let Err(e) = service.lock().table.withhold(promise.prefix) {
                tracing::error!("{e}: it is promised to node {}", promise.to);
            }
        }
        Arc::new(Self {
            service,
            registry,
            promises: Mutex::new(promises),
            requests: Mutex::default(),
        })
    }

    fn promises(&self) -> std::sync::MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles promises whose outcome an earlier life, or a lost quorum, left open.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let open = self.promises().open_promises().to_vec();
            for promise in open {
                let _ = self.settle(promise).await;
            }
        }
    }

    async fn give(&self, to: NodeId, request: Donate) -> Result<DonateReply, String> {
        let promise = {
            let mut state = self.service.lock();
            if !state.families[usize::from(request.ipv6)].waiting.is_empty() {
                return Ok(DonateReply::Nothing { why: "pods wait for addresses here".into() });
            }
            let Some(prefix) = state.table.donation(request.ipv6, request.address) else {
                return Ok(DonateReply::Nothing { why: "none free".into() });
            };
            state.table.withhold(prefix).map_err(|e| e.to_string())?;
            Promise { prefix, to }
        };
        if let Err(e) = self.promises().add(promise) {
            self.service.lock().table.unwithhold(promise.prefix);
            return Err(e.to_string());
        }
        self.settle(promise).await
    }

    /// Proposes the transfer, as often as it takes, and strikes the promise
    /// once the ledger has answered. A repeated transfer that had gone through
    /// is refused by the ledger, since the prefix has its new owner by then.
    async fn settle(&self, promise: Promise) -> Result<DonateReply, String> {
        let from = self.service.me;
        let op = Op::Transfer { from, to: promise.to, prefix: promise.prefix };
        let request = {
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            *requests.entry(promise.prefix).or_insert_with(|| self.registry.next_request())
        };
        let (index, outcome) = self.registry.propose(request, op, PATIENCE).await?;
        let ledger = self.registry.ledger();
        self.service.follow(&ledger);
        if ledger.head().index < index {
            return Err("the ledger of this node lags behind".to_owned());
        }
        self.promises().settle(promise).map_err(|e| e.to_string())?;
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&promise.prefix);
        self.service.lock().table.unwithhold(promise.prefix);
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
        self.promises().open_promises().iter().map(|p| p.prefix).collect()
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

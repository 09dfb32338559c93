//! The running daemon: the parts, and how they are wired.
//!
//! ```text
//! ledger ──► lease table ──► leases ─┐
//! mesh view ──► book of peers ───────┼──► Intent ──► data plane
//! HTTP (shim, CLI, Weave's callers) ─┘
//! ```

mod backend;
mod cleanup;
mod cni;
mod copied;
mod form;
mod founding;
pub(crate) mod intent;
mod kubernetes;
mod loops;
mod own_address;
mod owner;
pub(crate) mod peers;
mod policy;
mod policy_feed;
mod probing;
mod remove;
mod renew;
pub(crate) mod session;
mod start;
mod status;
pub(crate) mod sweep;
pub(crate) mod telling;
mod underlay;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_ipam::ledger::Ledger;
use weft_proto::api::Condition;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};

use crate::config::Config;
use crate::consensus::ConsensusHandle;
use crate::dataplane::DataplaneHandle;
use crate::dataplane::intent::PeerIntent;
use crate::ipam_service::{IpamService, Registry};
use crate::mesh::MeshHandle;
use crate::mesh::net::BoxFuture;
use crate::policy::engine::EngineHandle;
use crate::policy::feed::Feed;

pub use cleanup::cleanup;
pub use start::run;

/// How long after a start objects are only added, while not every peer's
/// address is known again.
const SETTLE_AT_MOST: Duration = Duration::from_secs(60);

/// The daemon.
pub(crate) struct App {
    config: Config,
    me: NodeId,
    started: Instant,
    mesh: MeshHandle,
    consensus: ConsensusHandle,
    dataplane: DataplaneHandle,
    /// Enforces network policy, where there is one to enforce.
    policy: Option<EngineHandle>,
    ipam: Arc<IpamService>,
    registry: Arc<dyn Registry>,
    underlay: Vec<IpAddr>,
    /// What changes slowly and goes into every intent.
    routes: Mutex<Routes>,
    /// Conditions found by the daemon's own loops, by reason.
    conditions: Mutex<BTreeMap<String, Condition>>,
    /// Tells the engine what the API server knows.
    feed: Option<Feed>,
    /// Probes through the overlay.
    probing: Mutex<probing::Probing>,
    /// The API server, if there is one.
    kubernetes: Option<kubernetes::Wired>,
    /// Why a new life of the agent is wanted.
    renewal: tokio::sync::watch::Sender<Option<String>>,
    /// False until leases of an earlier life are known again.
    recovered: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Routes {
    ledger: Option<Arc<Ledger>>,
    peers: Arc<BTreeMap<NodeId, PeerIntent>>,
    /// Owners of blocks whose underlay address nobody has told yet.
    unknown: std::collections::BTreeSet<NodeId>,
    /// Generation of the leases that were last handed to the data plane.
    published: Option<u64>,
}

impl App {
    /// Key of the node's own address.
    fn own_key() -> weft_proto::attachment::AttachmentKey {
        crate::ipam_service::http_key(weft_proto::names::EXPOSE_ID)
    }

    /// This node's own overlay addresses.
    fn own_addresses(&self) -> Vec<IpAddr> {
        self.ipam.addresses(&Self::own_key())
    }

    /// Computes the intent and hands it to the data plane.
    ///
    /// Nothing is touched before the ledger is known and the leases of an
    /// earlier life are read: what is in the kernel carries packets meanwhile.
    /// False if nothing was handed over for that reason.
    fn publish(&self) -> bool {
        use std::sync::atomic::Ordering;
        if !self.recovered.load(Ordering::Acquire) {
            return false;
        }
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ledger) = routes.ledger.clone() else { return false };
        let settling = !routes.unknown.is_empty() && self.started.elapsed() < SETTLE_AT_MOST;
        // Leases are read under the lock, so that of two publishers the one
        // that saw the newer leases also publishes last.
        // Taken before the leases are read: at worst they are handed over once too often.
        routes.published = Some(self.ipam.take_changes().0);
        let (own, peers) = (self.own_addresses(), Arc::clone(&routes.peers));
        let intent = self
            .ipam
            .with_leases(|leases| intent::intent(&ledger, peers, own, leases.values(), settling));
        self.dataplane.set_intent(intent);
        self.publish_policy();
        true
    }

    /// Hands over only the leases that changed, unless somebody has done it. What an
    /// ADD costs must not grow with the pods and peers that are there already.
    fn publish_leases(&self) -> bool {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(published) = routes.published else {
            drop(routes);
            return self.publish();
        };
        if published == self.ipam.generation() {
            return true;
        }
        let (generation, changed) = self.ipam.take_changes();
        routes.published = Some(generation);
        if changed.iter().any(|(key, _)| *key == Self::own_key()) {
            // It is part of more than the pods.
            drop(routes);
            return self.publish();
        }
        let pods =
            changed.into_iter().map(|(key, lease)| (key, lease.as_ref().and_then(intent::pod)));
        self.dataplane.change_pods(pods.collect());
        self.publish_policy();
        true
    }

    /// Asks for a new life of the agent: something changed that counts at start.
    fn renew(&self, why: String) {
        self.renewal.send_replace(Some(why));
    }

    fn condition(&self, reason: &str, condition: Option<Condition>) {
        let mut all = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        match condition {
            Some(condition) => {
                if all.get(reason) != Some(&condition) {
                    tracing::warn!(reason, "{}; {}", condition.message, condition.hint);
                }
                all.insert(reason.to_owned(), condition);
            }
            None => {
                if all.remove(reason).is_some() {
                    tracing::info!(reason, "resolved");
                }
            }
        }
    }
}

/// The ledger through consensus.
pub(crate) struct LedgerRegistry(pub(crate) ConsensusHandle);

impl Registry for LedgerRegistry {
    fn ledger(&self) -> Arc<Ledger> {
        self.0.ledger()
    }

    fn propose(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(u64, Outcome), String>> {
        Box::pin(async move {
            self.0.propose_as(request, op, patience).await.map_err(|e| e.to_string())
        })
    }

    fn next_request(&self) -> RequestId {
        self.0.next_request()
    }
}

//! What the HTTP endpoint asks of the agent. Implemented by the running daemon,
//! and by a fake in tests of the endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::api::{
    AttachRequest, Attachment, GcReply, GcRequest, LeaseInfo, Readiness, Status,
};
use weft_proto::attachment::AttachmentKey;

use crate::mesh::net::BoxFuture;
use crate::policy::explain::{End, Explanation};
use crate::policy::state::Protocol;

/// Where nothing is enforced.
pub(crate) const NO_POLICY: &str =
    "network policy is not enforced here: EXPECT_NPC=0, no Kubernetes, or not ready yet";

/// A connection to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyQuestion {
    /// Who opens it.
    pub from: End,
    /// To whom.
    pub to: End,
    /// With which protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// Why the agent did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No address is free anywhere in the range.
    #[error("{0}")]
    Exhausted(String),
    /// Cannot be answered yet (no quorum, not founded, owner unreachable); why, and what to do.
    #[error("{0}")]
    NotReady(String),
    /// No such lease, peer, route.
    #[error("{0}")]
    NotFound(String),
    /// The address or peer is in use by somebody else.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Bad(String),
    /// Something broke here.
    #[error("{0}")]
    Internal(String),
}

/// The agent, as seen from its HTTP endpoint. A dropped future gives up the
/// request: nothing stays queued for a client that hung up.
pub trait Backend: Send + Sync + 'static {
    /// Whole state, for every status page and the metrics.
    fn status(&self) -> Status;
    /// Can ADD be served?
    fn readiness(&self) -> Readiness;
    /// Effective configuration, secrets removed.
    fn config(&self) -> serde_json::Value;

    /// Which policies and rules decide about a connection.
    fn explain(
        &self,
        question: PolicyQuestion,
    ) -> BoxFuture<'_, Result<Explanation, BackendError>> {
        let _ = question;
        Box::pin(std::future::ready(Err(BackendError::NotFound(NO_POLICY.to_owned()))))
    }

    /// Shim: an attachment's addresses, with everything in the kernel that must
    /// precede its first packet.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Attachment, BackendError>>;
    /// Shim: frees an attachment. `Ok(false)` if there was none.
    fn detach(&self, key: AttachmentKey) -> BoxFuture<'_, Result<bool, BackendError>>;
    /// Shim: is this attachment's lease here?
    fn attachment(&self, key: &AttachmentKey) -> Option<LeaseInfo>;
    /// Shim: CNI GC.
    fn gc(&self, request: GcRequest) -> BoxFuture<'_, Result<GcReply, BackendError>>;
    /// All leases of this node.
    fn leases(&self) -> Vec<LeaseInfo>;

    /// Weave: `POST /ip/{id}[/subnet]`. Any id; no interface goes with it.
    fn allocate(
        &self,
        id: String,
        subnet: Option<IpNet>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<IpNet, BackendError>>;
    /// Weave: `GET /ip/{id}[/subnet]`.
    fn lookup(&self, id: &str, subnet: Option<IpNet>) -> Vec<IpNet>;
    /// Weave: `PUT /ip/{id}/{ip}/{len}`.
    fn claim(
        &self,
        id: String,
        address: IpNet,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Weave: `DELETE /ip/{id}`: number of addresses released.
    fn release(&self, id: &str) -> BoxFuture<'_, Result<usize, BackendError>>;
    /// Weave: `DELETE /ip/{id}/{ip}`.
    fn release_one(&self, id: &str, address: IpAddr) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Weave: `GET /ip`: id -> addresses.
    fn owned(&self) -> BTreeMap<String, Vec<IpNet>>;
    /// The default subnet (first range).
    fn default_subnet(&self) -> Option<IpNet>;
    /// Weave: `GET /ring`: wait until blocks can be had.
    fn prime(&self, patience: Duration) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Weave: `POST /connect`. Errors name the bad targets; good ones are added.
    fn connect(&self, targets: Vec<String>, replace: bool) -> Result<(), BackendError>;
    /// Weave: `POST /forget`.
    fn forget(&self, targets: Vec<String>);
    /// Weave: `POST /expose/{ip}/{len}`: put the address on the bridge.
    fn expose(&self, address: IpNet, skip_nat: bool) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Weave: `DELETE /peer`: leave the cluster, handing all blocks back.
    fn leave(&self) -> BoxFuture<'_, Result<(), BackendError>>;
    /// Weave: `DELETE /peer/{name}`: evict a dead peer; addresses taken back.
    /// Refused for a live peer unless `force`.
    fn remove_peer(&self, name: String, force: bool) -> BoxFuture<'_, Result<u64, BackendError>>;
    /// Founds the cluster's consensus again from this node's ledger, with the
    /// operator's consent; the new ledger position. Refused while there is a quorum.
    fn recover(&self) -> BoxFuture<'_, Result<u64, BackendError>>;
    /// Add or widen a range.
    fn grow(&self, range: IpNet) -> BoxFuture<'_, Result<(), BackendError>>;
}

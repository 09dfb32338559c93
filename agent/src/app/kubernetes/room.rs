//! The waiting room: answers HTTP while the agent is not up yet, so that nobody
//! takes a first start that waits for one that hangs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use weft_proto::api::{
    AttachRequest, Attachment, Condition, ConsensusStatus, DataplaneStatus, GcReply, GcRequest,
    IpamStatus, LeaseInfo, MeshStatus, NodeStatus, OverlayStatus, Readiness, Status,
};
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;

use super::boot::Waits;
use super::judge;
use crate::api::backend::{Backend, BackendError, PolicyQuestion};
use crate::api::{self, Token};
use crate::config::{Callers, Config};
use crate::kube::Kube;
use crate::mesh::net::BoxFuture;
use crate::policy::explain::Explanation;

/// The daemon before there is one.
pub(super) struct Room {
    id: NodeId,
    name: String,
    ranges: Vec<IpNet>,
    report: serde_json::Value,
    callers: Callers,
    started: Instant,
    kube: Kube,
    waits: Waits,
}

impl Room {
    pub(super) fn new(config: &Config, id: NodeId, kube: Kube, waits: Waits) -> Self {
        Self {
            id,
            name: config.node_name.clone(),
            ranges: config.ranges.clone(),
            report: config.report(),
            callers: config.api_callers,
            started: Instant::now(),
            kube,
            waits,
        }
    }

    /// Why the agent is not up.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let mut all = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let denied = judge::denied(&self.kube);
        all.extend(denied.filter(|d| all.iter().all(|known| known.reason != d.reason)));
        all
    }

    fn why(&self) -> String {
        let first = self.conditions().into_iter().next();
        first.map_or_else(|| "the agent is starting".to_owned(), |c| c.message)
    }

    fn not_yet<T: Send + 'static>(&self) -> BoxFuture<'_, Result<T, BackendError>> {
        let error = BackendError::NotReady(self.why());
        Box::pin(async move { Err(error) })
    }
}

/// Serves until closed; connections get a moment to end.
pub(super) async fn serve(
    listener: TcpListener,
    room: Arc<Room>,
    token: Token,
    closed: oneshot::Receiver<()>,
) {
    let options = api::ApiOptions {
        token,
        callers: room.callers,
        limits: api::Limits::default(),
        stats: Arc::default(),
    };
    let closed = async {
        let _ = closed.await;
    };
    api::serve(listener, None, room, options, closed).await;
}

impl Backend for Room {
    fn status(&self) -> Status {
        let conditions = self.conditions();
        Status {
            health: conditions.iter().map(|c| c.health).max().unwrap_or_default(),
            node: NodeStatus {
                id: self.id.to_string(),
                name: self.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cluster: String::new(),
                uptime_s: self.started.elapsed().as_secs(),
                underlay: Vec::new(),
                overlay: Vec::new(),
            },
            mesh: MeshStatus::default(),
            consensus: ConsensusStatus {
                role: "founding".to_owned(),
                waiting: Some(self.why()),
                ..ConsensusStatus::default()
            },
            ipam: IpamStatus {
                state: "idle".to_owned(),
                ranges: self.ranges.clone(),
                ..IpamStatus::default()
            },
            dataplane: DataplaneStatus::default(),
            overlay: OverlayStatus::default(),
            kubernetes: Some(self.kube.status(None)),
            policy: None,
            conditions,
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: false, connectivity: false, reasons: vec![self.why()] }
    }

    fn config(&self) -> serde_json::Value {
        self.report.clone()
    }

    fn attach(&self, _: AttachRequest) -> BoxFuture<'_, Result<Attachment, BackendError>> {
        self.not_yet()
    }

    fn detach(&self, _: AttachmentKey) -> BoxFuture<'_, Result<bool, BackendError>> {
        self.not_yet()
    }

    fn attachment(&self, _: &AttachmentKey) -> Option<LeaseInfo> {
        None
    }

    fn gc(&self, _: GcRequest) -> BoxFuture<'_, Result<GcReply, BackendError>> {
        self.not_yet()
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        Vec::new()
    }

    fn allocate(
        &self,
        _: String,
        _: Option<IpNet>,
        _: Duration,
    ) -> BoxFuture<'_, Result<IpNet, BackendError>> {
        self.not_yet()
    }

    fn lookup(&self, _: &str, _: Option<IpNet>) -> Vec<IpNet> {
        Vec::new()
    }

    fn claim(&self, _: String, _: IpNet, _: Duration) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }

    fn release(&self, _: &str) -> BoxFuture<'_, Result<usize, BackendError>> {
        self.not_yet()
    }

    fn release_one(&self, _: &str, _: IpAddr) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }

    fn owned(&self) -> BTreeMap<String, Vec<IpNet>> {
        BTreeMap::new()
    }

    fn default_subnet(&self) -> Option<IpNet> {
        self.ranges.first().copied()
    }

    fn prime(&self, _: Duration) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }

    fn connect(&self, _: Vec<String>, _: bool) -> Result<(), BackendError> {
        Err(BackendError::NotReady(self.why()))
    }

    fn forget(&self, _: Vec<String>) {}

    fn expose(&self, _: IpNet, _: bool) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }

    fn remove_peer(&self, _: String, _: bool) -> BoxFuture<'_, Result<u64, BackendError>> {
        self.not_yet()
    }

    fn recover(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        self.not_yet()
    }

    fn explain(&self, _: PolicyQuestion) -> BoxFuture<'_, Result<Explanation, BackendError>> {
        self.not_yet()
    }

    fn grow(&self, _: IpNet) -> BoxFuture<'_, Result<(), BackendError>> {
        self.not_yet()
    }
}

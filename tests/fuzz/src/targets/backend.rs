//! An agent that does nothing but count what would have changed something.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use weft_agent::api::backend::{Backend, BackendError};
use weft_agent::mesh::net::BoxFuture;
use weft_proto::api::{
    AttachRequest, Attachment, ConsensusStatus, DataplaneStatus, GcReply, GcRequest, Health,
    IpamStatus, LeaseInfo, MeshStatus, NodeStatus, OverlayStatus, Readiness, Status,
};
use weft_proto::attachment::AttachmentKey;

#[derive(Debug, Default)]
pub(super) struct Counting {
    changes: AtomicUsize,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

impl Counting {
    /// Calls that change something.
    pub(super) fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }

    fn change<T: Send + 'static>(&self, result: Result<T, BackendError>) -> Answer<'_, T> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(result))
    }
}

fn none<T>() -> Result<T, BackendError> {
    Err(BackendError::NotFound("nothing is here".to_owned()))
}

impl Backend for Counting {
    fn status(&self) -> Status {
        Status {
            health: Health::Ok,
            conditions: Vec::new(),
            node: NodeStatus {
                id: "1".repeat(32),
                name: "n1".to_owned(),
                version: "0".to_owned(),
                cluster: String::new(),
                uptime_s: 1,
                underlay: Vec::new(),
                overlay: Vec::new(),
            },
            mesh: MeshStatus::default(),
            consensus: ConsensusStatus::default(),
            ipam: IpamStatus::default(),
            dataplane: DataplaneStatus::default(),
            overlay: OverlayStatus::default(),
            policy: None,
            kubernetes: None,
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: true, connectivity: true, reasons: Vec::new() }
    }

    fn config(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn attach(&self, _: AttachRequest) -> Answer<'_, Attachment> {
        self.change(none())
    }

    fn detach(&self, _: AttachmentKey) -> Answer<'_, bool> {
        self.change(Ok(true))
    }

    fn attachment(&self, _: &AttachmentKey) -> Option<LeaseInfo> {
        None
    }

    fn gc(&self, _: GcRequest) -> Answer<'_, GcReply> {
        self.change(Ok(GcReply::default()))
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        Vec::new()
    }

    fn allocate(&self, _: String, _: Option<IpNet>, _: Duration) -> Answer<'_, IpNet> {
        self.change(none())
    }

    fn lookup(&self, _: &str, _: Option<IpNet>) -> Vec<IpNet> {
        Vec::new()
    }

    fn claim(&self, _: String, _: IpNet, _: Duration) -> Answer<'_, ()> {
        self.change(Ok(()))
    }

    fn release(&self, _: &str) -> Answer<'_, usize> {
        self.change(Ok(1))
    }

    fn release_one(&self, _: &str, _: IpAddr) -> Answer<'_, ()> {
        self.change(Ok(()))
    }

    fn owned(&self) -> BTreeMap<String, Vec<IpNet>> {
        BTreeMap::new()
    }

    fn default_subnet(&self) -> Option<IpNet> {
        None
    }

    fn prime(&self, _: Duration) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn connect(&self, _: Vec<String>, _: bool) -> Result<(), BackendError> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn forget(&self, _: Vec<String>) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn expose(&self, _: IpNet, _: bool) -> Answer<'_, ()> {
        self.change(Ok(()))
    }

    fn leave(&self) -> Answer<'_, ()> {
        self.change(Ok(()))
    }

    fn remove_peer(&self, _: String, _: bool) -> Answer<'_, u64> {
        self.change(Ok(1))
    }

    fn recover(&self) -> Answer<'_, u64> {
        self.change(Ok(1))
    }

    fn grow(&self, _: IpNet) -> Answer<'_, ()> {
        self.change(Ok(()))
    }
}

//! Network policy in the daemon: whether it is enforced, for which pods, and what
//! an ADD and a DEL wait for.

use std::time::Duration;

use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;

use super::App;
use crate::api::backend::BackendError;
use crate::config::Config;
use crate::policy::engine::{AdmitError, EngineHandle, PolicyConfig, PolicyError};
use crate::policy::feed::FILE;
use crate::policy::objects::{LocalPod, PodRef};
use crate::policy::world::Settings;

/// How long a DEL waits for the kernel.
const SETTLED: Duration = Duration::from_secs(10);

/// Starts the engine where policy is to be enforced. Where it is not, rules that
/// an earlier life left are removed: nobody would keep them right, and the next
/// pod with such an address would live under a stranger's rules.
pub(super) fn start(
    config: &Config,
    kubernetes: bool,
) -> Result<Option<EngineHandle>, PolicyError> {
    if !(config.expect_npc && kubernetes) {
        if crate::policy::engine::remove()? {
            tracing::info!("network policy is not enforced: its rules are removed");
        }
        // Whoever enforces it again begins with what is true then.
        let _ = std::fs::remove_file(config.state_dir.join(FILE));
        return Ok(None);
    }
    let of_family = |v6: bool| config.ranges.iter().any(|range| range.addr().is_ipv6() == v6);
    let settings =
        Settings { unknown: config.policy_unknown, ipv4: of_family(false), ipv6: of_family(true) };
    let config = PolicyConfig { settings, drop_established: config.policy_established_drop };
    EngineHandle::start(config).map(Some)
}

/// A lease as policy sees it; `None` without an interface.
pub(super) fn local_pod(lease: &LeaseInfo) -> Option<LocalPod> {
    if lease.host_ifname.is_empty() {
        return None;
    }
    let pod = lease.pod.as_deref().and_then(|pod| pod.split_once('/'));
    let pod = pod.filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    Some(LocalPod {
        id: lease.key.to_string().into(),
        addresses: lease.addresses.clone().into(),
        pod: pod.map(|(namespace, name)| PodRef::new(namespace, name)),
        uid: lease.uid.as_deref().map(Into::into),
    })
}

impl App {
    /// Tells the engine the leases of this node.
    pub(super) fn publish_policy(&self) {
        if let Some(policy) = &self.policy {
            // Taken and handed over under one lock: the newer one also comes last.
            self.ipam.with_leases(|leases| {
                policy.local(leases.values().filter_map(local_pod).collect());
            });
        }
    }

    /// Waits until the kernel isolates a lease as it must.
    pub(super) async fn admit(
        &self,
        key: &AttachmentKey,
        deadline: tokio::time::Instant,
    ) -> Result<(), BackendError> {
        let Some(policy) = &self.policy else { return Ok(()) };
        policy.admit(&key.to_string(), deadline).await.map_err(|error| match error {
            AdmitError::Late(_) => BackendError::NotReady(error.to_string()),
            AdmitError::Policy(_) => BackendError::Internal(error.to_string()),
        })
    }

    /// Waits until the kernel has forgotten what is no pod's any more.
    pub(super) async fn policy_settled(&self) -> Result<(), BackendError> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let settled = tokio::time::timeout(SETTLED, policy.settled()).await;
        settled
            .unwrap_or(Err(PolicyError::Stopped))
            .map_err(|error| BackendError::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_names_its_pod() {
        let mut lease = LeaseInfo {
            key: AttachmentKey { container_id: "c".into(), ifname: "eth0".into() },
            addresses: vec!["10.32.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            pod: Some("default/web".into()),
            uid: Some("u1".into()),
            since_ms: 1,
            host_ifname: "weftx".into(),
            port_mappings: vec![],
        };
        let pod = local_pod(&lease).unwrap();
        assert_eq!((&*pod.id, pod.addresses.len()), ("c/eth0", 2));
        assert_eq!(pod.pod, Some(PodRef::new("default", "web")));
        assert_eq!(pod.uid.as_deref(), Some("u1"));
        // A container outside Kubernetes has an interface, but no pod.
        for none in [None, Some("/web".to_owned()), Some("default/".to_owned())] {
            lease.pod = none;
            assert_eq!(local_pod(&lease).unwrap().pod, None);
        }
        // The node's own address has not even that.
        lease.host_ifname = String::new();
        assert_eq!(local_pod(&lease), None);
    }
}

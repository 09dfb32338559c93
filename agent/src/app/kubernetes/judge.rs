//! Conditions that come from Kubernetes.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::api::{Condition, Health};
use weft_proto::id::ClusterId;

use crate::config::Config;
use crate::kube::founding::Record;
use crate::kube::mounts::{Kept, kept};
use crate::kube::{Ask, Kube, KubeError, NAME};

/// The API server may be silent so long without a word.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) fn condition(health: Health, reason: &str, message: String, hint: String) -> Condition {
    Condition { health, reason: reason.to_owned(), message, hint }
}

/// The API server is away.
pub(super) fn away(kube: &Kube) -> Option<Condition> {
    kube.away_for().filter(|silent| *silent >= SILENCE)?;
    let why = kube.status(None).last_error.unwrap_or_else(|| "no answer yet".to_owned());
    Some(condition(
        Health::Ok,
        "KubernetesAway",
        format!(
            "the API server {} does not answer ({why}); pods run and start, nodes that were deleted \
             are not noticed",
            kube.server()
        ),
        "bring the API server back; if only this node does not reach it: KUBE_APISERVER".to_owned(),
    ))
}

/// Rights are missing.
pub(super) fn denied(kube: &Kube) -> Option<Condition> {
    let denied = kube.denied();
    let (first, why) = denied.first()?;
    let asks: Vec<String> = denied.iter().map(|(ask, _)| ask.to_string()).collect();
    let rules: Vec<String> =
        denied.iter().map(|(ask, _): &(Ask, String)| ask.rule(kube.namespace())).collect();
    Some(condition(
        Health::Degraded,
        "KubernetesDenied",
        format!("the API server does not let this agent {} ({first}: {why})", asks.join(", ")),
        format!("apply the RBAC rules of deploy/daemonset.yaml; missing: {}", rules.join("; ")),
    ))
}

/// Why the first start waits.
pub(super) fn waiting(kube: &Kube, what: &str, error: &KubeError) -> Condition {
    let server = kube.server();
    match error {
        KubeError::Denied(_) => match denied(kube) {
            Some(found) => Condition { health: Health::Broken, ..found },
            None => condition(
                Health::Broken,
                "KubernetesDenied",
                format!("{what}: {error}"),
                "apply the RBAC rules of deploy/daemonset.yaml".to_owned(),
            ),
        },
        KubeError::Away(why) | KubeError::Unconnected(why) => condition(
            Health::Broken,
            "KubernetesAway",
            format!("this first start waits for the API server {server} ({what}): {why}"),
            "see that the API server runs and is reachable from this node without the pod network; \
             KUBE_APISERVER names another address of it"
                .to_owned(),
        ),
        other => condition(
            Health::Broken,
            "KubernetesUnusable",
            format!("{what}: {other}"),
            "the message says what to correct".to_owned(),
        ),
    }
}

/// The cluster's services are inside the pod network.
pub(super) fn service_overlap(host: Option<&str>, ranges: &[IpNet]) -> Option<Condition> {
    let service: IpAddr = host?.parse().ok()?;
    let range = ranges.iter().find(|range| range.contains(&service))?;
    Some(condition(
        Health::Broken,
        "ServiceOverlap",
        format!(
            "IPALLOC_RANGE {range} contains the address {service} of the API server's service: pods \
             and services would share addresses"
        ),
        "choose an IPALLOC_RANGE outside the cluster's service range, the same on every node"
            .to_owned(),
    ))
}

/// The same, by the ranges that the server tells.
pub(super) fn services_overlap(services: &[IpNet], ranges: &[IpNet]) -> Option<Condition> {
    let clash = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let (range, service) = ranges.iter().find_map(|range| {
        services.iter().find(|service| clash(range, service)).map(|service| (range, service))
    })?;
    Some(condition(
        Health::Broken,
        "ServiceOverlap",
        format!("IPALLOC_RANGE {range} overlaps {service}, which the cluster's services use"),
        "choose an IPALLOC_RANGE outside the cluster's service range, the same on every node"
            .to_owned(),
    ))
}

/// The range overlaps what this host uses.
pub(super) fn range_overlap(error: &anyhow::Error) -> Condition {
    condition(
        Health::Broken,
        "RangeOverlap",
        format!("{error:#}"),
        "set IPALLOC_RANGE to a range that is free on every node, the same everywhere".to_owned(),
    )
}

/// Directories that vanish with the container.
pub(super) fn unmounted(config: &Config, mountinfo: &str) -> Option<Condition> {
    let dirs = [
        ("STATE_DIR", Some(config.state_dir.as_path())),
        ("RUN_DIR", Some(config.run_dir.as_path())),
        ("CNI_CONF_DIR", config.cni_conf_dir.as_deref()),
        ("CNI_BIN_DIR", config.cni_bin_dir.as_deref()),
    ];
    let lost = |path: &Path| match kept(mountinfo, path) {
        Kept::Mounted => None,
        Kept::Container => Some("inside the container"),
        Kept::EmptyDir => Some("in an emptyDir"),
    };
    let found: Vec<(&str, String)> = dirs
        .into_iter()
        .filter_map(|(name, path)| Some((name, path?)))
        .filter_map(|(name, path)| {
            lost(path).map(|how| (name, format!("{name} {} is {how}", path.display())))
        })
        .collect();
    let cni = found.iter().any(|(name, _)| name.starts_with("CNI"));
    let words: Vec<&str> = found.iter().map(|(_, words)| words.as_str()).collect();
    (!found.is_empty()).then(|| {
        condition(
            if cni { Health::Broken } else { Health::Degraded },
            "HostPathMissing",
            format!(
                "not mounted from the host: {}; the runtime does not see it, or it is lost with the pod",
                words.join(", ")
            ),
            "mount these directories as hostPath volumes, as deploy/daemonset.yaml does".to_owned(),
        )
    })
}

/// The record says that there is a cluster, and nobody of it answers.
pub(super) fn silent(kube: &Kube, record: &Record) -> Condition {
    let place = format!("{}/{NAME}", kube.namespace());
    condition(
        Health::Broken,
        "ClusterSilent",
        format!(
            "ConfigMap {place} says that {} founded a cluster, but no member of it answers (tried: {})",
            record.founder,
            if record.contacts.is_empty() { "-".to_owned() } else { record.contacts.join(" ") }
        ),
        format!(
            "start the agents of its members, and open UDP 6783; only if their STATE_DIRs are all lost: \
             kubectl -n {} delete configmap {NAME}, then a new cluster is founded",
            kube.namespace()
        ),
    )
}

/// Nodes name a cluster, but there is no record of it.
pub(super) fn unrecorded(kube: &Kube, cluster: ClusterId) -> Condition {
    condition(
        Health::Broken,
        "ClusterUnrecorded",
        format!(
            "ConfigMap {}/{NAME} is not there, but Nodes name cluster {cluster}: waiting for a member to \
             restore the record",
            kube.namespace()
        ),
        "start the agents of its members; if that cluster is gone for good: kubectl annotate node --all \
         weft.io/cluster-"
            .to_owned(),
    )
}

/// The record names another cluster.
pub(super) fn differs(kube: &Kube, mine: ClusterId, theirs: ClusterId) -> Condition {
    condition(
        Health::Degraded,
        "ClusterDiffers",
        format!(
            "this node is a member of cluster {mine}, but ConfigMap {}/{NAME} names {theirs}",
            kube.namespace()
        ),
        "if the record is right: drain this node, run `agent cleanup`, start its agent again; if it is a \
         remnant: delete the ConfigMap, and members restore it"
            .to_owned(),
    )
}

/// There is no Node of this name.
pub(super) fn no_node(kube: &Kube) -> Condition {
    condition(
        Health::Degraded,
        "NodeMissing",
        format!("there is no Node `{}`", kube.node_name()),
        "NODE_NAME must be the Node's name (spec.nodeName); if the Node was deleted, restart its kubelet"
            .to_owned(),
    )
}

/// None of the Node's addresses is this machine's.
pub(super) fn foreign_address(addresses: &[IpAddr]) -> Condition {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    condition(
        Health::Degraded,
        "NodeAddress",
        format!("no InternalIP of this Node ({}) is an address of this machine", list.join(", ")),
        "correct the kubelet's --node-ip, or set NODE_IP; until then the address of the default route is \
         used"
        .to_owned(),
    )
}

/// Members that live on without a Node.
pub(super) fn node_gone(names: &[String]) -> Option<Condition> {
    (!names.is_empty()).then(|| {
        condition(
            Health::Degraded,
            "NodeGone",
            format!("the Node of {} is gone, but its agent is alive: it keeps its blocks", names.join(", ")),
            "restart its kubelet to bring the Node back; if the machine is to go, stop its agent: it is then \
             removed by itself"
            .to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, MapEnv};

    #[test]
    fn services_inside_the_range_are_named() {
        let ranges = ["10.96.0.0/12".parse().unwrap()];
        let found = service_overlap(Some("10.96.0.1"), &ranges).unwrap();
        assert!(found.message.contains("10.96.0.0/12") && found.message.contains("10.96.0.1"));
        assert_eq!(service_overlap(Some("10.0.0.1"), &ranges), None);
        assert_eq!(service_overlap(Some("api.example"), &ranges), None);
        assert_eq!(service_overlap(None, &ranges), None);
        let services = ["172.16.0.0/16".parse().unwrap(), "10.100.0.0/16".parse().unwrap()];
        let found = services_overlap(&services, &ranges).unwrap();
        assert!(found.message.contains("10.100.0.0/16"), "{}", found.message);
        assert_eq!(services_overlap(&services[..1], &ranges), None);
    }

    #[test]
    fn unmounted_directories_are_named() {
        let config = Config::parse(&MapEnv::new([]), &Flags::new()).unwrap();
        let line = |point: &str| format!("7 1 8:1 /x {point} rw - ext4 d rw\n");
        let mut info = line("/");
        for dir in ["/var/lib/weft", "/run/weft", "/etc/cni/net.d", "/opt/cni/bin"] {
            let found = unmounted(&config, &info).unwrap();
            assert!(found.message.contains(dir), "{}", found.message);
            info.push_str(&line(dir));
        }
        assert_eq!(unmounted(&config, &info), None);
    }
}

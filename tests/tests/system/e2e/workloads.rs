//! What runs in the cluster while it is tested.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_tests::Result;
use weft_tests::kubernetes::KubeCluster;
use weft_tests::kubernetes::images::TOOLBOX;
use weft_tests::kubernetes::kubectl::{list, text};
use weft_tests::kubernetes::pods::{self, HTTP, PodInfo, PodNetns};

/// Host port of the pods of `web`.
pub(crate) const HOST_PORT: u16 = 8088;
/// Port of the servers in the nodes' own namespaces.
pub(crate) const HOST_HTTP: u16 = 8090;
/// Port that tests listen on inside pods of `single`.
pub(crate) const BULK: u16 = 9000;
/// How long pods may take to start.
pub(crate) const START: Duration = Duration::from_secs(120);
/// How many pods carry the tests: two on each node, and one more.
pub(crate) fn expected(cluster: &KubeCluster) -> usize {
    2 * cluster.nodes().len() + 1
}

/// As CoreDNS is installed: before there is a network, on whatever node comes first.
pub(crate) fn dns() -> Value {
    let mut spec = pods::spec(&pods::server());
    spec["tolerations"] = json!([
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"},
    ]);
    pods::workload("Deployment", "dns", Some(2), &spec)
}

/// Everything else.
pub(crate) fn apply(cluster: &KubeCluster) -> Result {
    let server = pods::server();
    let mut web = server.clone();
    web["ports"] = json!([{"containerPort": HTTP, "hostPort": HOST_PORT}]);
    let mut host = pods::spec(&json!({
        "name": "server",
        "image": TOOLBOX,
        "args": ["netexec", format!("--http-port={HOST_HTTP}"), "--udp-port=8091"],
    }));
    host["hostNetwork"] = json!(true);
    cluster
        .kubectl()
        .apply(&[
            pods::workload("DaemonSet", "web", None, &pods::spec(&web)),
            pods::workload("DaemonSet", "peer", None, &pods::spec(&server)),
            pods::workload("DaemonSet", "host", None, &host),
            pods::workload("Deployment", "single", Some(1), &pods::spec(&server)),
            pods::workload("Deployment", "many", Some(0), &pods::spec(&pods::idle())),
            pods::service(
                "web",
                "web",
                &json!({"ports": [
                    {"name": "http", "port": 80, "targetPort": HTTP},
                    {"name": "udp", "port": 53, "targetPort": 8081, "protocol": "UDP"},
                ]}),
            ),
            pods::service("web-node", "web", &json!({"type": "NodePort"})),
            pods::service(
                "single",
                "single",
                &json!({"ports": [
                    {"name": "http", "port": 80, "targetPort": HTTP},
                    {"name": "bulk", "port": BULK, "targetPort": BULK},
                ]}),
            ),
            pods::service(
                "local",
                "single",
                &json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
            ),
        ])
        .map(drop)
}

/// The pods that carry the tests, once all of them run; no address twice.
pub(crate) fn wait(cluster: &KubeCluster) -> Result<Vec<PodInfo>> {
    pods::wait_running(cluster, "app=host", cluster.nodes().len(), START)?;
    let selector = "app in (web,peer,single)";
    let found = pods::wait_running(cluster, selector, expected(cluster), START)?;
    let mut addresses: Vec<_> = found.iter().map(|pod| pod.address).collect();
    addresses.sort();
    let before = addresses.len();
    addresses.dedup();
    ensure!(addresses.len() == before, "an address is there twice: {addresses:?}");
    Ok(found)
}

/// Their namespaces.
pub(crate) fn attach(cluster: &KubeCluster) -> Result<Vec<PodNetns>> {
    wait(cluster)?.iter().map(|pod| PodNetns::attach(cluster, pod)).collect()
}

/// A service as clients know it.
#[derive(Debug)]
pub(crate) struct Service {
    object: Value,
}

impl Service {
    /// Asks for it.
    pub(crate) fn of(cluster: &KubeCluster, name: &str) -> Result<Self> {
        Ok(Self { object: cluster.kubectl().get(&["service", name])? })
    }

    /// Its cluster address with a port.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        let address = text(&self.object, "/spec/clusterIP");
        Ok((address.parse::<IpAddr>().with_context(|| format!("cluster IP {address}"))?, port)
            .into())
    }

    /// Its (first) node port.
    pub(crate) fn node_port(&self) -> Result<u16> {
        let port =
            list(&self.object, "/spec/ports").first().and_then(|port| port["nodePort"].as_u64());
        Ok(u16::try_from(port.context("no node port")?)?)
    }
}

//! Who reaches whom, and as whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use weft_agent::lab::netns::Netns;
use weft_tests::kubernetes::KubeCluster;
use weft_tests::kubernetes::cluster::CONTROL_PLANE;
use weft_tests::kubernetes::pods::{HTTP, PodNetns, http};
use weft_tests::kubernetes::weft::AgentOf;
use weft_tests::stream;
use weft_tests::{Result, wait_until};

use crate::e2e::workloads::{self, BULK, HOST_HTTP, HOST_PORT, Service};

/// The API server's service.
const API: &str = "https://10.96.0.1:443/version";
/// Routes and rules of the newest pods may be a moment behind; kube-proxy, after
/// the API server was away, a minute.
const SETTLE: Duration = Duration::from_secs(90);
const LARGE: usize = 256 << 20;

/// Whom a server saw.
fn seen(from: &Netns, to: SocketAddr) -> Result<IpAddr> {
    let said = http(from, to, "/clientip")?;
    let address: SocketAddr = said.parse().with_context(|| format!("{to} saw `{said}`"))?;
    Ok(address.ip())
}

fn expect(from: &Netns, to: SocketAddr, as_whom: IpAddr) -> Result<usize> {
    let source = seen(from, to)?;
    ensure!(source == as_whom, "{to} was reached from {}, as {source}, not {as_whom}", from.name());
    Ok(1)
}

fn named(pod: &PodNetns, error: anyhow::Error) -> anyhow::Error {
    error.context(format!("from {} on {}", pod.pod.name, pod.pod.node))
}

/// All of it, by kind, tried again until it holds or has had its time.
pub(crate) fn all(cluster: &KubeCluster) -> Result<String> {
    let pods = workloads::attach(cluster)?;
    let kinds: [(&str, &dyn Fn() -> Result<usize>); 8] = [
        ("pod-pod", &|| pod_to_pod(&pods)),
        ("ClusterIP", &|| cluster_ip(cluster, &pods)),
        ("NodePort", &|| node_port(cluster, &pods)),
        ("Local", &|| local(cluster, &pods)),
        ("hostPort", &|| host_port(cluster, &pods)),
        ("host-pod", &|| host_to_pod(cluster, &pods)),
        ("pod-host", &|| pod_to_host(cluster, &pods)),
        ("pod-API", &|| pod_to_api(&pods)),
    ];
    let mut counts = Vec::new();
    let mut errors = Vec::new();
    for (kind, work) in kinds {
        let mut count = 0;
        match wait_until(kind, SETTLE, || {
            count = work()?;
            Ok(true)
        }) {
            Ok(_) => counts.push(format!("{kind} {count}")),
            Err(error) => errors.push(format!("{kind}: {error:#}")),
        }
    }
    if !errors.is_empty() {
        bail!("{}; fine: {}", errors.join("\n    "), counts.join(", "));
    }
    Ok(counts.join(", "))
}

/// Every pod reaches every pod, itself included, and is seen as itself.
fn pod_to_pod(pods: &[PodNetns]) -> Result<usize> {
    let mut count = 0;
    for from in pods {
        for to in pods {
            count += expect(from, SocketAddr::new(to.pod.address, HTTP), from.pod.address)
                .map_err(|error| named(from, error))?;
        }
    }
    Ok(count)
}

/// By TCP and UDP, from pods and nodes, and a pod to itself.
fn cluster_ip(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let web = Service::of(cluster, "web")?;
    let backends: BTreeSet<_> = pods
        .iter()
        .filter(|p| p.pod.name.starts_with("web-"))
        .map(|p| p.pod.name.clone())
        .collect();
    let mut count = 0;
    let mut met = BTreeSet::new();
    let inside = pods.iter().map(|pod| &**pod);
    for from in inside.chain(cluster.nodes().iter().map(weft_tests::kubernetes::KubeNode::netns)) {
        for _ in 0..4 {
            let name = http(from, web.at(80)?, "/hostname")?;
            ensure!(backends.contains(&name), "{} was answered by {name}", from.name());
            met.insert(name);
            met.insert(udp(from, web.at(53)?, "hostname")?);
            count += 2;
        }
    }
    ensure!(met == backends, "of {backends:?} only {met:?} ever answered");
    let single = Service::of(cluster, "single")?;
    for from in pods {
        let itself = from.pod.name.starts_with("single-");
        let source = seen(from, single.at(80)?).map_err(|error| named(from, error))?;
        // A pod that reaches itself needs another source to get its answer.
        ensure!(itself || source == from.pod.address, "{} was seen as {source}", from.pod.name);
        count += 1;
    }
    Ok(count)
}

fn udp(from: &Netns, to: SocketAddr, question: &str) -> Result<String> {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(question.as_bytes())?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).with_context(|| format!("UDP {to} does not answer"))?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// Every node's port, from outside, from nodes, and from pods.
fn node_port(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let port = Service::of(cluster, "web-node")?.node_port()?;
    let mut count = 0;
    for node in cluster.nodes() {
        let at = SocketAddr::new(node.address(), port);
        let others = cluster.nodes().iter().map(weft_tests::kubernetes::KubeNode::netns);
        let inside = pods.iter().map(|pod| &**pod);
        for from in others.chain(inside).chain([cluster.outside()]) {
            http(from, at, "/hostname").with_context(|| format!("from {}", from.name()))?;
            count += 1;
        }
    }
    Ok(count)
}

/// `externalTrafficPolicy: Local` keeps the client's address, and only nodes
/// that have the pod answer.
fn local(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let port = Service::of(cluster, "local")?.node_port()?;
    let backend = pods.iter().find(|pod| pod.pod.name.starts_with("single-"));
    let backend = backend.context("no pod `single`")?;
    for node in cluster.nodes() {
        let at = SocketAddr::new(node.address(), port);
        if node.name() == backend.pod.node {
            expect(cluster.outside(), at, CONTROL_PLANE.into())?;
        } else {
            let answer = cluster
                .outside()
                .run(|| std::net::TcpStream::connect_timeout(&at, Duration::from_millis(500)))?;
            ensure!(answer.is_err(), "{at} answers, though the pod is on {}", backend.pod.node);
        }
    }
    Ok(cluster.nodes().len())
}

/// Every node's own pod answers at its host port, and sees who asks from outside.
fn host_port(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let mut count = 0;
    for node in cluster.nodes() {
        let at = SocketAddr::new(node.address(), HOST_PORT);
        let own = pods.iter().find(|p| p.pod.node == node.name() && p.pod.name.starts_with("web-"));
        let own = &own.with_context(|| format!("no pod `web` on {}", node.name()))?.pod.name;
        let inside = pods.iter().map(|pod| &**pod);
        let nodes = cluster.nodes().iter().map(weft_tests::kubernetes::KubeNode::netns);
        for from in inside.chain(nodes).chain([cluster.outside()]) {
            let name =
                http(from, at, "/hostname").with_context(|| format!("from {}", from.name()))?;
            ensure!(name == *own, "{at} was answered by {name}, not {own}");
            count += 1;
        }
        count += expect(cluster.outside(), at, CONTROL_PLANE.into())?;
    }
    Ok(count)
}

/// Every node reaches every pod, as its own address in the pod network.
fn host_to_pod(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let mut count = 0;
    for node in cluster.nodes() {
        let own = AgentOf(node).status()?.node.overlay;
        let own =
            *own.first().with_context(|| format!("{} has no overlay address", node.name()))?;
        for to in pods {
            count += expect(node.netns(), SocketAddr::new(to.pod.address, HTTP), own)?;
        }
    }
    Ok(count)
}

/// Every pod reaches every node.
fn pod_to_host(cluster: &KubeCluster, pods: &[PodNetns]) -> Result<usize> {
    let mut count = 0;
    for from in pods {
        for node in cluster.nodes() {
            let name = http(from, SocketAddr::new(node.address(), HOST_HTTP), "/hostname")
                .map_err(|error| named(from, error))?;
            ensure!(name == node.name(), "{} was answered by {name}", node.name());
            count += 1;
        }
    }
    Ok(count)
}

/// Every pod reaches the API server, which has no route to pods.
fn pod_to_api(pods: &[PodNetns]) -> Result<usize> {
    for from in pods {
        let answer = from.exec(&["curl", "--silent", "--insecure", "--max-time", "5", API])?;
        ensure!(answer.contains("gitVersion"), "the API server answered {answer}");
    }
    Ok(pods.len())
}

/// Large transfers: between nodes, on one node, through a service, from a node.
pub(crate) fn large(cluster: &KubeCluster) -> Result<String> {
    let pods = workloads::attach(cluster)?;
    let to = pods.iter().find(|pod| pod.pod.name.starts_with("single-")).context("no `single`")?;
    let near = pods.iter().find(|p| p.pod.node == to.pod.node && p.pod.name != to.pod.name);
    let far = pods.iter().find(|p| p.pod.node != to.pod.node);
    let (near, far) = (near.context("no pod beside it")?, far.context("no pod elsewhere")?);
    let at = SocketAddr::new(to.pod.address, BULK);
    let via = Service::of(cluster, "single")?.at(BULK)?;
    let node = cluster.node_named(&far.pod.node)?.netns();
    let mut rates = Vec::new();
    for (what, from, via) in [
        ("between nodes", &**far, None),
        ("on one node", &**near, None),
        ("through a service", &**far, Some(via)),
        ("from a node", node, None),
    ] {
        let rate = stream::bulk_in(from, to, at, via, LARGE).with_context(|| what.to_owned())?;
        rates.push(format!("{what} {:.1} Gbit/s", rate / 1e9));
    }
    Ok(format!("{} MiB each, checksums equal: {}", LARGE >> 20, rates.join(", ")))
}

//! Workloads, and the pods that come of them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_agent::lab::netns::{self, Netns};

use super::KubeCluster;
use super::images::TOOLBOX;
use super::kubectl::{Kubectl, list, text};

/// Where the pods' server listens.
pub const HTTP: u16 = 8080;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

static ATTACHED: AtomicUsize = AtomicUsize::new(0);

/// A container that answers HTTP on [`HTTP`]: `/hostname`, `/clientip`, `/echo?msg=`.
pub fn server() -> Value {
    json!({
        "name": "server",
        "image": TOOLBOX,
        "args": ["netexec", format!("--http-port={HTTP}"), "--udp-port=8081"],
        "ports": [{"containerPort": HTTP}],
        "readinessProbe": {
            "httpGet": {"path": "/hostname", "port": HTTP},
            "periodSeconds": 1,
        },
    })
}

/// A container that waits to be deleted.
pub fn idle() -> Value {
    json!({"name": "idle", "image": TOOLBOX, "args": ["pause"]})
}

/// The spec of a pod with one container.
pub fn spec(container: &Value) -> Value {
    json!({
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
    })
}

/// A pod that nobody brings back.
pub fn pod(name: &str, mut spec: Value, node: Option<&str>) -> Value {
    if let Some(node) = node {
        spec["nodeName"] = json!(node);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": spec,
    })
}

/// A Deployment or DaemonSet in namespace `default`, labelled `app=NAME`.
pub fn workload(kind: &str, name: &str, replicas: Option<usize>, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    });
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = json!(replicas);
    }
    object
}

/// A service for the pods labelled `app=APP`, port 80.
pub fn service(name: &str, app: &str, more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"app": app},
            "ports": [{"port": 80, "targetPort": HTTP}],
        },
    });
    if let (Some(spec), Some(more)) = (object["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    object
}

/// A pod, as the API tells of it.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// Its name.
    pub name: String,
    /// What its control groups are named after.
    pub uid: String,
    /// Name of its node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
}

/// Running, ready pods with that label that are not being deleted.
pub fn running(kubectl: &Kubectl, selector: &str) -> Result<Vec<PodInfo>> {
    let items = kubectl.items(&["pods", "-n", "default", "-l", selector])?;
    items
        .iter()
        .filter(|pod| super::cluster::condition(pod, "Ready") == "True")
        .filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none())
        .map(|pod| {
            let address = text(pod, "/status/podIP");
            Ok(PodInfo {
                name: text(pod, "/metadata/name").to_owned(),
                // Static pods are known to their kubelet by another one.
                uid: match text(pod, "/metadata/annotations/kubernetes.io~1config.mirror") {
                    "" => text(pod, "/metadata/uid").to_owned(),
                    mirrored => mirrored.to_owned(),
                },
                node: text(pod, "/spec/nodeName").to_owned(),
                address: address.parse().with_context(|| format!("pod address `{address}`"))?,
            })
        })
        .collect()
}

/// Waits for exactly `count` of them.
pub fn wait_running(
    cluster: &KubeCluster,
    selector: &str,
    count: usize,
    patience: Duration,
) -> Result<Vec<PodInfo>> {
    let mut pods = Vec::new();
    cluster
        .kubectl()
        .wait(&format!("{count} running pods {selector}"), patience, || {
            pods = running(cluster.kubectl(), selector)?;
            ensure!(pods.len() == count, "{} of {count} run", pods.len());
            Ok(true)
        })
        .with_context(|| stuck(cluster.kubectl(), selector))?;
    Ok(pods)
}

/// Waits until no pod with that label exists, in whatever state.
pub fn wait_gone(cluster: &KubeCluster, selector: &str, patience: Duration) -> Result<Duration> {
    let kubectl = cluster.kubectl();
    kubectl
        .wait(&format!("no pods {selector}"), patience, || {
            let left = kubectl.items(&["pods", "-n", "default", "-l", selector])?.len();
            ensure!(left == 0, "{left} are left");
            Ok(true)
        })
        .with_context(|| stuck(kubectl, selector))
}

/// Why pods are not what they should be: their last event, or container state.
pub fn stuck(kubectl: &Kubectl, selector: &str) -> String {
    let pods = kubectl.items(&["pods", "-n", "default", "-l", selector]).unwrap_or_default();
    let events = kubectl.items(&["events", "-n", "default"]).unwrap_or_default();
    let mut lines = vec![format!("pods {selector}:")];
    for pod in pods.iter().filter(|pod| super::cluster::condition(pod, "Ready") != "True").take(8) {
        let name = text(pod, "/metadata/name");
        let last = events.iter().rev().find(|e| text(e, "/involvedObject/name") == name);
        let states: Vec<_> = list(pod, "/status/containerStatuses")
            .iter()
            .filter_map(|status| status.get("state").map(ToString::to_string))
            .collect();
        lines.push(format!(
            "  {name} on {}: {} {} {}",
            text(pod, "/spec/nodeName"),
            text(pod, "/status/phase"),
            states.join(" "),
            last.map_or("", |event| text(event, "/message")),
        ));
    }
    lines.join("\n")
}

/// The network namespace of a pod, under a name until dropped.
#[derive(Debug)]
pub struct PodNetns {
    netns: Netns,
    /// Whose it is.
    pub pod: PodInfo,
}

impl PodNetns {
    /// Finds it through a process of the pod.
    pub fn attach(cluster: &KubeCluster, pod: &PodInfo) -> Result<Self> {
        let node = cluster.node_named(&pod.node)?;
        let mut processes = Vec::new();
        crate::wait_until(&format!("a process of {}", pod.name), REQUEST, || {
            processes = node.pod_processes(&pod.uid);
            Ok(!processes.is_empty())
        })?;
        let number = ATTACHED.fetch_add(1, Ordering::Relaxed);
        let netns = cluster.netns(&format!("p{number}"));
        let pid = processes.first().context("no process")?;
        netns::ip(&[], &format!("netns attach {} {pid}\n", netns.name()))?;
        Ok(Self { netns, pod: pod.clone() })
    }
}

impl Deref for PodNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for PodNetns {
    fn drop(&mut self) {
        let _ = self.netns.delete();
    }
}

/// `GET` from inside a namespace; the body of the answer, without white space around it.
pub fn http(from: &Netns, to: SocketAddr, path: &str) -> Result<String> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, REQUEST))?;
    let mut stream = stream.with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(REQUEST))?;
    stream.set_write_timeout(Some(REQUEST))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {to}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("{to} answered `{answer}`");
    };
    ensure!(head.contains(" 200 "), "{to} answered `{head}`");
    Ok(body.trim().to_owned())
}

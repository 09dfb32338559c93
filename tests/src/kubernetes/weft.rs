//! weft in a cluster: its manifest, and its agents as seen from their nodes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_agent::lab::http;
use weft_proto::api::{LeaseInfo, Readiness, Status};
use weft_proto::names;

use super::KubeCluster;
use super::kubectl::{Kubectl, text};
use super::node::KubeNode;

/// Where it is installed.
pub const NAMESPACE: &str = "kube-system";
/// Label of its pods.
pub const SELECTOR: &str = "name=weft";
const NAME: &str = "weft";

/// The archive that `make image` wrote, or that `WEFT_IMAGE` names.
pub fn image() -> Result<PathBuf> {
    let path = match std::env::var_os("WEFT_IMAGE") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/weft-docker.tar"),
    };
    ensure!(path.is_file(), "no image at {}: run `make image`", path.display());
    Ok(path)
}

/// `deploy/daemonset.yaml`, to be applied as it is, or changed first.
#[derive(Debug, Clone)]
pub struct Manifest {
    objects: Vec<Value>,
}

impl Manifest {
    /// The file itself.
    pub fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/daemonset.yaml")
    }

    /// Its objects, as kubectl reads them.
    pub fn load(kubectl: &Kubectl) -> Result<Self> {
        let path = Self::path().display().to_string();
        let text = kubectl.run(&["create", "--dry-run=client", "-o", "json", "-f", &path])?;
        let objects: Result<Vec<Value>, _> =
            serde_json::Deserializer::from_str(&text).into_iter().collect();
        let mut objects = objects.context("kubectl printed no JSON")?;
        // Some versions print a list.
        if let [list] = objects.as_mut_slice()
            && let Some(Value::Array(items)) = list.get_mut("items").map(Value::take)
        {
            objects = items;
        }
        Ok(Self { objects })
    }

    /// The object of that kind and name.
    pub fn object_mut(&mut self, kind: &str, name: &str) -> Result<&mut Value> {
        let found = self
            .objects
            .iter_mut()
            .find(|o| text(o, "/kind") == kind && text(o, "/metadata/name") == name);
        found.with_context(|| format!("the manifest has no {kind} {name}"))
    }

    /// The DaemonSet.
    pub fn daemonset_mut(&mut self) -> Result<&mut Value> {
        self.object_mut("DaemonSet", NAME)
    }

    /// Adds a variable to the agent's environment.
    pub fn env(mut self, name: &str, value: &str) -> Result<Self> {
        let variables = self.daemonset_mut()?.pointer_mut("/spec/template/spec/containers/0/env");
        let variables =
            variables.and_then(Value::as_array_mut).context("no env in the manifest")?;
        variables.retain(|variable| variable["name"] != name);
        variables.push(json!({"name": name, "value": value}));
        Ok(self)
    }

    /// Any change.
    pub fn change(mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<Self> {
        work(&mut self)?;
        Ok(self)
    }

    /// Drops objects for which `keep` is false.
    pub fn retain(&mut self, keep: impl FnMut(&Value) -> bool) {
        self.objects.retain(keep);
    }

    /// `kubectl apply`.
    pub fn apply(&self, kubectl: &Kubectl) -> Result<()> {
        kubectl.apply(&self.objects).map(drop)
    }
}

/// The agent of one node, reached as the plugin reaches it.
#[derive(Debug, Clone, Copy)]
pub struct AgentOf<'a>(pub &'a KubeNode);

impl AgentOf<'_> {
    /// Any request, with the token of the node.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<http::Response> {
        let run = format!("/proc/{}/root/run/weft", self.0.init()?);
        let token = fs::read_to_string(Path::new(&run).join(names::TOKEN_FILE)).ok();
        let address: SocketAddr = names::HTTP_ADDR.parse()?;
        let ask = || http::request(address, method, path, token.as_deref().map(str::trim), body);
        self.0.netns().run(ask)?
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Status> {
        self.request("GET", "/v1/status", b"")?.json()
    }

    /// Can serve ADD.
    pub fn ready(&self) -> Result<bool> {
        let readiness: Readiness = self.request("GET", "/v1/ready", b"")?.json()?;
        ensure!(readiness.ready, "{}: {}", self.0.name(), readiness.reasons.join("; "));
        Ok(true)
    }

    /// Leases of pods; not the node's own.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>> {
        let all: Vec<LeaseInfo> = self.request("GET", "/v1/attachments", b"")?.json()?;
        Ok(all.into_iter().filter(|lease| !lease.host_ifname.is_empty()).collect())
    }

    /// Host ends of pods' veths.
    pub fn veths(&self) -> Result<usize> {
        let links = self.0.netns().exec(&["ip", "-o", "link", "show", "type", "veth"])?;
        let names = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        Ok(names.filter(|name| names::is_host_ifname(name)).count())
    }

    /// Sandboxes with a network of their own, as the runtime has them.
    pub fn sandboxes(&self) -> Result<usize> {
        let spaces = format!("/proc/{}/root/run/netns", self.0.init()?);
        Ok(fs::read_dir(spaces).map_or(0, Iterator::count))
    }

    /// Process id of the agent, as this machine counts; the runtime starts another
    /// when it ends.
    pub fn process(&self) -> Result<u32> {
        let netns = self.0.netns();
        let agents: Vec<_> = netns
            .processes()
            .into_iter()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "agent")
            })
            .collect();
        let pid = agents.first().with_context(|| format!("no agent runs on {}", self.0.name()))?;
        Ok(u32::try_from(*pid)?)
    }
}

/// Waits until the agents of all nodes can serve ADD.
pub fn wait_ready(cluster: &KubeCluster, patience: Duration) -> Result<Duration> {
    let kubectl = cluster.kubectl();
    kubectl.wait("agents that can serve", patience, || {
        cluster.nodes().iter().try_for_each(|node| AgentOf(node).ready().map(drop))?;
        Ok(true)
    })
}

/// What is on a node because of its pods: leases, veths and sandboxes. The
/// three must be the same number.
pub fn count(node: &KubeNode) -> Result<[usize; 3]> {
    let agent = AgentOf(node);
    Ok([agent.leases()?.len(), agent.veths()?, agent.sandboxes()?])
}

/// Waits until every node's leases, veths and sandboxes are as many as pods
/// that the API knows on it with a network of their own; the total.
pub fn wait_counted(cluster: &KubeCluster, patience: Duration) -> Result<usize> {
    let mut total = 0;
    cluster.kubectl().wait("as many leases, veths and sandboxes as pods", patience, || {
        let pods = cluster.kubectl().items(&["pods", "-A"])?;
        total = 0;
        for node in cluster.nodes() {
            let here = pods.iter().filter(|pod| {
                text(pod, "/spec/nodeName") == node.name()
                    && pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true))
            });
            let pods = here.count();
            let counted = count(node)?;
            ensure!(
                counted == [pods; 3],
                "{}: {pods} pods, but {counted:?} leases, veths, sandboxes",
                node.name()
            );
            total += pods;
        }
        Ok(true)
    })?;
    Ok(total)
}

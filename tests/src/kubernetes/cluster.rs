//! A whole cluster: control plane and nodes, each in its own namespaces.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_agent::lab::netns::Netns;

use super::api::{ADMIN, Server, Spec};
use super::binaries::Binaries;
use super::home::Home;
use super::images;
use super::kubectl::{Kubectl, list, text};
use super::node::{self, KubeNode};
use super::process::{Process, tail};

/// Address of the control plane between the nodes, which have .11, .12, …
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const BRIDGE: &str = "br0";
/// How long nodes may take to register.
const REGISTER: Duration = Duration::from_secs(120);

/// A cluster without a pod network: nodes are not ready until one is installed.
#[derive(Debug)]
pub struct KubeCluster {
    nodes: Vec<KubeNode>,
    parts: Vec<Process>,
    server: Server,
    netns: Netns,
    kubectl: Kubectl,
    binaries: Binaries,
    logs: Option<PathBuf>,
    // Last: files go when nothing uses them.
    home: Home,
}

impl KubeCluster {
    /// Starts a control plane and `nodes` nodes. `archives` are images that all
    /// nodes have from the start. Waits until the nodes have registered.
    pub fn start(nodes: u8, archives: &[PathBuf]) -> Result<Self> {
        let binaries = Binaries::all()?;
        let home = Home::new()?;
        let images = home.directory("images")?;
        images::build(&binaries, &images)?;
        for archive in archives {
            let name = archive.file_name().context("an image archive without a name")?;
            fs::copy(archive, images.join(name))
                .with_context(|| format!("no image archive {}", archive.display()))?;
        }
        let netns = home.netns("cp");
        netns.create()?;
        netns.ip(&format!(
            "link add {BRIDGE} type bridge\n\
             addr add {CONTROL_PLANE}/24 dev {BRIDGE}\n\
             link set {BRIDGE} up\n"
        ))?;
        let spec = Spec {
            netns: Some(netns.clone()),
            address: CONTROL_PLANE.into(),
            ports: [6443, 2379, 2380],
            controllers: true,
        };
        let mut server = Server::new(binaries.clone(), home.directory("control-plane")?, spec)?;
        server.start()?;
        let kubectl = server.kubectl(ADMIN, &server.token(ADMIN))?;
        let mut cluster = Self {
            nodes: Vec::new(),
            parts: Vec::new(),
            server,
            netns,
            kubectl,
            binaries,
            logs: log_directory(),
            home,
        };
        cluster.start_parts()?;
        for _ in 0..nodes {
            cluster.add_node()?;
        }
        cluster.wait_registered()?;
        Ok(cluster)
    }

    fn start_parts(&mut self) -> Result<()> {
        let key = self.server.path("service-accounts.key");
        let manager = [
            "--use-service-account-credentials=true".to_owned(),
            format!("--service-account-private-key-file={}", key.display()),
            format!("--root-ca-file={}", self.server.certificate().display()),
        ];
        self.parts = vec![
            self.server.start_part("kube-controller-manager", &manager)?,
            self.server.start_part("kube-scheduler", &[])?,
        ];
        Ok(())
    }

    /// Boots one more node; does not wait for it.
    pub fn add_node(&mut self) -> Result<&mut KubeNode> {
        let number = u8::try_from(self.nodes.len() + 1)?;
        let name = format!("n{number}");
        let spec = node::Spec {
            number,
            netns: self.home.netns(&name),
            cgroup: self.home.cgroup(&name),
            disk: self.home.directory(&format!("nodes/{name}"))?,
            binaries: self.binaries.directory.clone(),
            images: self.home.directory("images")?,
            underlay: self.netns.clone(),
            bridge: BRIDGE.to_owned(),
            gateway: CONTROL_PLANE,
            url: self.server.url(),
            certificate: self.server.certificate(),
            kubelet_token: self.server.token(&format!("system:node:{name}")),
            proxy_token: self.server.token("system:kube-proxy"),
            name,
        };
        self.nodes.push(KubeNode::new(spec)?);
        let node = self.nodes.last_mut().context("no node")?;
        node.boot()?;
        Ok(node)
    }

    /// Waits until all nodes have booted, and are known to the API server.
    pub fn wait_registered(&mut self) -> Result<Duration> {
        for node in &mut self.nodes {
            node.wait_booted()?;
        }
        let count = self.nodes.len();
        self.kubectl
            .wait(&format!("{count} registered nodes"), REGISTER, || {
                Ok(self.kubectl.items(&["nodes"])?.len() >= count)
            })
            .with_context(|| self.log_tails())
    }

    /// The API, as a user who may do everything.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Another identity: the token may be that of a service account.
    pub fn kubectl_as(&self, name: &str, token: &str) -> Result<Kubectl> {
        self.server.kubectl(name, token)
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: usize) -> &KubeNode {
        &self.nodes[number - 1]
    }

    /// Node `number`, from 1.
    pub fn node_mut(&mut self, number: usize) -> &mut KubeNode {
        &mut self.nodes[number - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[KubeNode] {
        &self.nodes
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Result<&KubeNode> {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.with_context(|| format!("no node {name}"))
    }

    /// Where the control plane is: to the nodes, a host of the outside world.
    pub fn outside(&self) -> &Netns {
        &self.netns
    }

    /// Where everything of this cluster is.
    pub fn directory(&self) -> &Path {
        self.home.disk()
    }

    /// A namespace of this cluster; it goes with the cluster.
    pub fn netns(&self, part: &str) -> Netns {
        self.home.netns(part)
    }

    /// `kill -9` of the API server. Its store goes on.
    pub fn kill_api(&mut self) {
        self.server.kill();
    }

    /// Starts it again.
    pub fn restart_api(&mut self) -> Result<Duration> {
        let took = self.server.start()?;
        // They may have given up meanwhile.
        if self.parts.iter_mut().any(|part| part.check().is_err()) {
            self.start_parts()?;
        }
        Ok(took)
    }

    /// Nodes whose condition `Ready` is true.
    pub fn ready(&self) -> Result<Vec<String>> {
        let nodes = self.kubectl.items(&["nodes"])?;
        Ok(nodes
            .iter()
            .filter(|node| condition(node, "Ready") == "True")
            .map(|node| text(node, "/metadata/name").to_owned())
            .collect())
    }

    /// Waits until all nodes are ready.
    pub fn wait_ready(&self, patience: Duration) -> Result<Duration> {
        let count = self.nodes.len();
        self.kubectl
            .wait(&format!("{count} ready nodes"), patience, || {
                let ready = self.ready()?;
                ensure!(ready.len() == count, "ready: {ready:?}");
                Ok(true)
            })
            .with_context(|| self.log_tails())
    }

    /// The last lines of all logs.
    pub fn log_tails(&self) -> String {
        let names = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
        let mut tails: Vec<_> =
            names.iter().map(|name| tail(&self.server.path(&format!("{name}.log")))).collect();
        tails.extend(self.nodes.iter().map(KubeNode::log_tails));
        tails.join("\n")
    }

    /// Copies all logs to where they outlive the cluster; says where.
    pub fn save_logs(&self) -> Result<PathBuf> {
        let logs = self.logs.clone().context("no directory for logs")?;
        let _ = fs::remove_dir_all(&logs);
        copy_logs(&self.server.path(""), &logs.join("control-plane"))?;
        for node in &self.nodes {
            let target = logs.join(node.name());
            copy_logs(&node.file("var/log"), &target)?;
            // Logs of containers: namespace_pod_uid/container/count.log.
            let pods = node.file("var/log/pods");
            for pod in fs::read_dir(&pods).into_iter().flatten().flatten() {
                for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
                    let part = target.join(pod.file_name()).join(container.file_name());
                    copy_logs(&container.path(), &part)?;
                }
            }
        }
        if let Ok(all) = self.kubectl.run(&["get", "-A", "-o", "wide", "nodes,pods,events"]) {
            fs::write(logs.join("objects.txt"), all)?;
        }
        Ok(logs)
    }
}

/// Status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    list(object, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
        .map_or("", |condition| text(condition, "/status"))
}

fn copy_logs(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") && path.is_file() {
            fs::copy(&path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// `target/weft-logs/kubernetes/TEST`.
fn log_directory() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().find(|path| path.ends_with("target"))?;
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("cluster").replace("::", ".");
    Some(target.join("weft-logs/kubernetes").join(name))
}

impl Drop for KubeCluster {
    fn drop(&mut self) {
        match self.save_logs() {
            Ok(logs) => eprintln!("logs of the cluster: {}", logs.display()),
            Err(error) => eprintln!("the cluster's logs are lost: {error:#}"),
        }
        // Nodes at the same time: each takes seconds.
        std::thread::scope(|scope| {
            for mut node in self.nodes.drain(..) {
                scope.spawn(move || drop(node.power_off()));
            }
        });
    }
}

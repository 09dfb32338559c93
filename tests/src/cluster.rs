//! A cluster in namespaces, removed on drop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use weft_agent::lab::agents::AgentSpec;
use weft_agent::lab::cleanup::{self, Entry};
use weft_agent::lab::netns::{self, Netns};
use weft_agent::lab::topology::{Topology, prefix};

use crate::apiserver::{ApiServer, objects};
use crate::node::Node;
use crate::pod::Pod;
use crate::{binaries, manifest, wait_until};

/// Cluster key of every cluster, unless told otherwise.
pub const KEY: &str = "a key for tests only";
/// How long agents may take until ready.
pub const READY: Duration = Duration::from_secs(30);
/// How long an overlay path may take to work after its last cause.
pub const REACH: Duration = Duration::from_secs(5);

static CLUSTERS: AtomicUsize = AtomicUsize::new(0);

/// Nodes in namespaces with their agents.
#[derive(Debug)]
pub struct Cluster {
    /// Names and addresses.
    pub plan: Topology,
    // Before the entry: agents end before their namespaces go.
    nodes: Vec<Node>,
    api: Option<ApiServer>,
    entry: Entry,
}

/// What a cluster shall be.
#[derive(Debug)]
pub struct Builder {
    nodes: usize,
    peers: Option<usize>,
    range: String,
    env: Vec<(String, String)>,
    node_env: BTreeMap<usize, Vec<(String, String)>>,
    binaries: Option<PathBuf>,
    start: bool,
    wait: bool,
    kubernetes: bool,
}

impl Cluster {
    /// Three nodes with the default range, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            peers: None,
            range: "10.32.0.0/12".to_owned(),
            env: vec![("PASSWORD".to_owned(), KEY.to_owned())],
            node_env: BTreeMap::new(),
            binaries: None,
            start: true,
            wait: true,
            kubernetes: false,
        }
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Node `number`, from 1.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The API server of a cluster made with [`Builder::kubernetes`].
    pub fn api(&self) -> Result<&ApiServer> {
        self.api.as_ref().context("this cluster has no API server: Builder::kubernetes")
    }

    /// To let it come back after an outage.
    pub fn api_mut(&mut self) -> Result<&mut ApiServer> {
        self.api.as_mut().context("this cluster has no API server: Builder::kubernetes")
    }

    /// Where the nodes keep their files.
    pub fn directory(&self) -> &PathBuf {
        &self.entry.directory
    }

    /// Waits until all running agents can serve ADD; how long that took.
    pub fn wait_ready(&mut self) -> Result<Duration> {
        let start = Instant::now();
        for node in &mut self.nodes {
            if node.is_running() {
                node.wait_ready(READY.saturating_sub(start.elapsed()))?;
            }
        }
        Ok(start.elapsed())
    }

    /// Waits until all running agents have the same ledger.
    pub fn wait_one_ledger(&mut self) -> Result<Duration> {
        let running: Vec<_> =
            self.nodes.iter_mut().filter_map(|n| n.is_running().then_some(&*n)).collect();
        wait_until("one ledger on all nodes", READY, || {
            let mut seen = Vec::new();
            for node in &running {
                let status = node.status()?;
                let mut owners: Vec<_> =
                    status.ipam.owners.iter().map(|o| (o.id.clone(), o.addresses)).collect();
                owners.sort();
                seen.push((status.node.cluster, owners, status.ipam.unowned));
            }
            if seen.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(true);
            }
            bail!("they differ: {seen:?}")
        })
    }

    /// Attaches `count` pods on every node.
    pub fn add_pods(&self, count: usize) -> Result<Vec<Pod>> {
        let mut pods = Vec::new();
        for node in &self.nodes {
            for _ in 0..count {
                pods.push(node.add_pod()?);
            }
        }
        Ok(pods)
    }

    /// Attaches a pod on each of these nodes.
    pub fn add_pods_on(&self, nodes: &[usize]) -> Result<Vec<Pod>> {
        nodes.iter().map(|number| self.node(*number).add_pod()).collect()
    }

    /// Every pod reaches every other within [`REACH`]; how long that took.
    pub fn assert_reachable(&self, pods: &[Pod]) -> Result<Duration> {
        let start = Instant::now();
        for from in pods {
            for to in pods {
                if from.address() != to.address() {
                    from.wait_ping(to.address(), REACH.saturating_sub(start.elapsed()))?;
                }
            }
        }
        Ok(start.elapsed())
    }

    /// No address is held by two pods.
    pub fn assert_unique(&self, pods: &[Pod]) -> Result<()> {
        let mut seen = BTreeMap::new();
        for pod in pods {
            if let Some(other) = seen.insert(pod.address(), &pod.plan.name) {
                bail!("{} is held by {} and {}", pod.address(), other, pod.plan.name);
            }
        }
        Ok(())
    }
}

impl Builder {
    /// Number of nodes.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Only the first so many nodes are in everybody's `KUBE_PEERS`.
    pub fn peers(mut self, first: usize) -> Self {
        self.peers = Some(first);
        self
    }

    /// `IPALLOC_RANGE`.
    pub fn range(mut self, range: &str) -> Self {
        range.clone_into(&mut self.range);
        self
    }

    /// More environment for all agents.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// More environment for one agent.
    pub fn node_env(mut self, number: usize, name: &str, value: &str) -> Self {
        self.node_env.entry(number).or_default().push((name.to_owned(), value.to_owned()));
        self
    }

    /// Agents live in Kubernetes: an API server for tests listens on the underlay,
    /// has a Node for each of them, and says all that `KUBE_PEERS`, `NODE_IP` and
    /// `PASSWORD` would, unless set after this.
    pub fn kubernetes(mut self) -> Self {
        self.kubernetes = true;
        for name in ["KUBE_PEERS", "NODE_IP", "PASSWORD"] {
            self.env.push((name.to_owned(), String::new()));
        }
        self
    }

    /// Agents and plugins from this directory, as of another version; a node gets
    /// others by [`Node::use_binaries`].
    pub fn binaries(mut self, directory: &Path) -> Self {
        self.binaries = Some(directory.to_owned());
        self
    }

    /// Starts no agent yet.
    pub fn stopped(mut self) -> Self {
        self.start = false;
        self
    }

    /// Does not wait for readiness.
    pub fn no_wait(mut self) -> Self {
        self.wait = false;
        self
    }

    /// Builds it.
    pub fn start(self) -> Result<Cluster> {
        // A skip would look like a pass.
        netns::check_host().context("namespace tests do not run without root")?;
        cleanup::reap()?;
        let name = format!("t{}.{}", std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let base: Ipv4Net = "172.31.117.0/24".parse()?;
        let plan = Topology::new(&name, base, self.nodes, 0)?;
        let (agent, shim) = match &self.binaries {
            Some(directory) => (directory.join("agent"), directory.join("weft")),
            None => (binaries::agent()?, binaries::shim()?),
        };
        let entry = Entry::register(&name, false)?;
        // From here on, dropping the cluster removes what was made.
        let mut cluster = Cluster { nodes: Vec::new(), api: None, entry, plan };
        netns::build(&cluster.plan)?;
        let kubeconfig = cluster.entry.directory.join("kubeconfig");
        if self.kubernetes {
            let api = api_server(&cluster.plan)?;
            api.write_kubeconfig(&kubeconfig)?;
            cluster.api = Some(api);
        }
        let in_peers = self.peers.unwrap_or(self.nodes);
        let peers: Vec<_> =
            cluster.plan.nodes.iter().take(in_peers).map(|n| n.address.to_string()).collect();
        for node in &cluster.plan.nodes {
            let directory = cluster.entry.directory.join(&node.name);
            let mut env = Vec::new();
            if self.kubernetes {
                env.push(("KUBECONFIG".to_owned(), kubeconfig.display().to_string()));
            }
            env.extend(self.env.iter().cloned());
            env.extend(self.node_env.get(&node.number).cloned().unwrap_or_default());
            let spec = AgentSpec {
                exe: agent.clone(),
                netns: Netns::named(&node.netns),
                name: node.name.clone(),
                address: node.address,
                peers: peers.join(" "),
                range: self.range.clone(),
                log: directory.join("agent.log"),
                directory,
                env,
                die_with_parent: true,
            };
            let underlay = Netns::named(&cluster.plan.underlay);
            cluster.nodes.push(Node::new(node.clone(), name.clone(), underlay, shim.clone(), spec));
        }
        if self.start {
            for node in &mut cluster.nodes {
                node.start()?;
            }
            if self.wait {
                cluster.wait_ready()?;
            }
        }
        Ok(cluster)
    }
}

/// An API server on the underlay, with a Node for each node. It allows what the
/// manifest's rules allow.
fn api_server(plan: &Topology) -> Result<ApiServer> {
    let api = ApiServer::builder()
        .netns(&Netns::named(&plan.underlay))
        .address((plan.gateway, 0).into())
        .token("a token for tests only")
        .rights(&manifest::documents("deploy/daemonset.yaml")?)?
        .start()?;
    api.put(&objects::endpoints(api.address()))?;
    for node in &plan.nodes {
        api.put(&objects::node(&node.name, node.address))?;
    }
    Ok(api)
}

/// `target/weft-logs/TEST`, so that a failed test leaves its logs.
fn log_directory(cluster: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().find(|path| path.ends_with("target"))?;
    let thread = std::thread::current();
    Some(target.join("weft-logs").join(thread.name().unwrap_or(cluster).replace("::", ".")))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(directory) = log_directory(&self.plan.name)
            && std::fs::create_dir_all(&directory).is_ok()
        {
            for node in &self.nodes {
                let _ =
                    std::fs::write(directory.join(format!("{}.log", node.plan.name)), node.log());
            }
            eprintln!("agents' logs: {}", directory.display());
        }
        if std::env::var_os("WEFT_TEST_KEEP").is_some() {
            eprintln!(
                "WEFT_TEST_KEEP: namespaces {}* stay until the next run; files in {}",
                prefix(&self.plan.name),
                self.entry.directory.display()
            );
            return;
        }
        for error in self.entry.remove() {
            eprintln!("{error}");
        }
    }
}

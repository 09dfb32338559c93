//! A cluster whose agents follow an API server: three nodes in namespaces, pods
//! that are both API objects and namespaces attached by the real plugin.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Call, IFNAME};
use weft_agent::lab::topology::PodPlan;
use weft_agent::policy::state::Protocol;
use weft_proto::api::PolicyStatus;

use crate::apiserver::{self, ApiServer, objects};
use crate::cluster::{Builder, Cluster};
use crate::prober::{Cell, Expect, Prober};
use crate::{Result, manifest, wait_until};

/// Ports of the matrix.
pub const PORTS: [u16; 2] = [80, 81];
/// How long agents may take until the kernel holds what the API server has.
const CONVERGE: Duration = Duration::from_secs(60);

/// A pod of the lab.
#[derive(Debug, Clone)]
pub struct LabPod {
    /// Node, from 1.
    pub node: usize,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where the pod network has both families.
    pub address6: Option<Ipv6Addr>,
    /// Its namespace and container id.
    pub plan: PodPlan,
    /// Uid of its API object.
    pub uid: String,
    /// Numbers at the prober, one per family; none for pods that are in no matrix.
    pub stations: Vec<usize>,
}

impl LabPod {
    /// All its addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.address6.map(IpAddr::from);
        [self.address.into()].into_iter().chain(v6).collect()
    }
}

/// The cluster.
#[derive(Debug)]
pub struct PolicyLab {
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, LabPod>,
    /// Tries all cells.
    pub prober: Prober,
    /// Nodes and agents.
    pub cluster: Cluster,
    /// What they follow.
    pub api: ApiServer,
}

/// What went wrong in a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// `namespace/name` that opens.
    pub from: String,
    /// `namespace/name` that listens.
    pub to: String,
    /// Addresses of both.
    pub ends: (IpAddr, IpAddr),
    /// Protocol and port.
    pub what: (Protocol, u16),
    /// What really happened.
    pub reached: bool,
}

/// `status` of a pod that runs.
pub fn status(pod: &LabPod) -> Value {
    let ips: Vec<Value> =
        pod.addresses().iter().map(|ip| serde_json::json!({ "ip": ip.to_string() })).collect();
    serde_json::json!({ "phase": "Running", "podIP": pod.address.to_string(), "podIPs": ips })
}

impl PolicyLab {
    /// Three nodes, no pods.
    pub fn start(change: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        Self::with(ApiServer::builder(), change)
    }

    /// The same, with an API server of another kind.
    pub fn with(
        server: apiserver::Builder,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Result<Self> {
        let mut cluster = change(Cluster::builder().nodes(3)).stopped().start()?;
        let underlay = Netns::named(&cluster.plan.underlay);
        let gateway: Ipv4Addr = "172.31.117.1".parse()?;
        let api = server
            .netns(&underlay)
            .address(SocketAddr::from((gateway, 6443)))
            .rights(&manifest::documents("deploy/daemonset.yaml")?)?
            .start()
            .context("API server of the lab")?;
        let file = cluster.directory().join("kubeconfig");
        api.write_kubeconfig(&file)?;
        for number in 1..=cluster.nodes().len() {
            let node = cluster.node_mut(number);
            api.put(&objects::node(&node.plan.name, node.plan.address))?;
            let path = file.display().to_string();
            node.spec_mut().env.push(("KUBECONFIG".to_owned(), path));
            node.start()?;
        }
        cluster.wait_ready()?;
        Ok(Self { pods: BTreeMap::new(), prober: Prober::new(&PORTS), cluster, api })
    }

    /// Three namespaces x, y, z of three pods a, b, c, spread over the nodes, all
    /// in the matrix. Each has its names as labels, and its ports have names.
    pub fn nine(&mut self) -> Result {
        for (s, space) in ["x", "y", "z"].into_iter().enumerate() {
            self.api.put(&objects::namespace(space, &[("ns", space)]))?;
            for (p, name) in ["a", "b", "c"].into_iter().enumerate() {
                self.add(space, name, (s + p) % 3 + 1, &[("pod", name)])?;
            }
        }
        Ok(())
    }

    /// A pod as scheduler and kubelet make it: bound, attached, running; then in
    /// the matrix.
    pub fn add(
        &mut self,
        namespace: &str,
        name: &str,
        node: usize,
        labels: &[(&str, &str)],
    ) -> Result<LabPod> {
        let uid = self.bind(namespace, name, node, labels)?;
        let pod = self.attach(namespace, name, node, &uid)?;
        self.running(namespace, name, &pod)?;
        self.enter(namespace, name, pod)
    }

    /// Takes an attached pod into the matrix, in the place of the last one of its name.
    pub fn enter(&mut self, namespace: &str, name: &str, mut pod: LabPod) -> Result<LabPod> {
        let key = format!("{namespace}/{name}");
        let netns = Netns::named(&pod.plan.netns);
        let old = self.pods.get(&key).map(|old| old.stations.clone()).unwrap_or_default();
        for (n, address) in pod.addresses().into_iter().enumerate() {
            pod.stations.push(match old.get(n) {
                Some(station) => {
                    self.prober.replace(*station, &netns, address)?;
                    *station
                }
                None => self.prober.add(&netns, address)?,
            });
        }
        self.pods.insert(key, pod.clone());
        Ok(pod)
    }

    /// The API object of a pod that is scheduled; its uid.
    pub fn bind(
        &self,
        namespace: &str,
        name: &str,
        node: usize,
        labels: &[(&str, &str)],
    ) -> Result<String> {
        let mut pod = objects::pod(namespace, name).node(&self.cluster.node(node).plan.name);
        for (key, value) in labels {
            pod = pod.label(key, value);
        }
        for (number, port) in PORTS.iter().zip(["80", "81"]) {
            for protocol in ["TCP", "UDP", "SCTP"] {
                let name = format!("serve-{port}-{}", protocol.to_lowercase());
                pod = pod.port(&name, *number, protocol);
            }
        }
        // Two ports of one name differ from pod to pod.
        let web = if name == "c" { 81 } else { 80 };
        let object = self.api.put(&pod.port("web", web, "TCP").build())?;
        Ok(object["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
    }

    /// ADD of a sandbox, with the words a kubelet's runtime says.
    pub fn attach(&self, namespace: &str, name: &str, node: usize, uid: &str) -> Result<LabPod> {
        let node_view = self.cluster.node(node);
        let plan = node_view.sandbox()?;
        let answer = self.call("ADD", node, &plan, namespace, name, uid)?;
        let answer = answer.ok(&format!("ADD of {namespace}/{name}"))?;
        let (mut address, mut address6) = (None, None);
        for net in answer.addresses() {
            match net.addr() {
                IpAddr::V4(v4) => address = Some(v4),
                IpAddr::V6(v6) => address6 = Some(v6),
            }
        }
        let address = address.with_context(|| format!("no IPv4 address in {}", answer.json))?;
        let (uid, stations) = (uid.to_owned(), Vec::new());
        Ok(LabPod { node, address, address6, plan, uid, stations })
    }

    fn call(
        &self,
        verb: &str,
        node: usize,
        plan: &PodPlan,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<weft_agent::lab::pods::Answer> {
        let shim = self.cluster.node(node).shim();
        shim.call(&Call {
            verb,
            container_id: &plan.container_id,
            ifname: IFNAME,
            netns: Some(Netns::named(&plan.netns).path()),
            args: &format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
                plan.container_id
            ),
            conf: shim.conf("1.0.0"),
        })
    }

    /// What a kubelet tells once the sandbox has its address.
    pub fn running(&self, namespace: &str, name: &str, attached: &LabPod) -> Result {
        let status = status(attached);
        self.api.edit("pods", namespace, name, |pod| pod["status"] = status)?;
        Ok(())
    }

    /// DEL of a sandbox.
    pub fn detach(&self, namespace: &str, name: &str, pod: &LabPod) -> Result {
        self.call("DEL", pod.node, &pod.plan, namespace, name, &pod.uid)?.ok("DEL")?;
        Netns::named(&pod.plan.netns).delete()
    }

    /// DEL, and the object goes.
    pub fn remove(&self, namespace: &str, name: &str, pod: &LabPod) -> Result {
        self.detach(namespace, name, pod)?;
        if self.api.get("pods", namespace, name)?.is_some() {
            self.api.delete("pods", namespace, name)?;
        }
        Ok(())
    }

    /// What a node says of policy.
    pub fn policy(&self, node: usize) -> Result<PolicyStatus> {
        self.cluster.node(node).request("GET", "/v1/policy", b"")?.json()
    }

    /// Waits until the kernels of all nodes with an agent hold what the API server
    /// has now; how long that took.
    pub fn converge(&self) -> Result<Duration> {
        self.converge_on(&[1, 2, 3])
    }

    /// The same, on some nodes.
    pub fn converge_on(&self, nodes: &[usize]) -> Result<Duration> {
        let start = Instant::now();
        let revision = self.api.revision();
        for node in nodes {
            let left = CONVERGE.saturating_sub(start.elapsed());
            wait_until(&format!("policy of revision {revision} on n{node}"), left, || {
                let policy = self.policy(*node)?;
                let behind: Vec<_> = policy
                    .sources
                    .iter()
                    // What is not served has no version.
                    .filter(|s| !s.complete || (s.version != 0 && s.version < revision))
                    .map(|s| format!("{} at {}", s.name, s.version))
                    .collect();
                if !behind.is_empty() {
                    // A watch that saw no change of its own learns the version so.
                    self.api.bookmark();
                    bail!("not yet: {}", behind.join(", "));
                }
                if policy.busy || !policy.enforced || !policy.synced {
                    bail!(
                        "busy {}, enforced {}, synced {}: {:?}",
                        policy.busy,
                        policy.enforced,
                        policy.synced,
                        policy.table.errors
                    );
                }
                Ok(true)
            })?;
        }
        Ok(start.elapsed())
    }

    /// Tries all cells between the pods of the matrix. `expected` tells of source,
    /// destination, protocol and port. What is not so; and how many cells there were.
    pub fn compare(
        &mut self,
        expected: impl Fn(IpAddr, IpAddr, Protocol, u16) -> Expect,
    ) -> Result<(Vec<Wrong>, usize)> {
        let mut names = BTreeMap::new();
        for (name, pod) in &self.pods {
            for (station, address) in pod.stations.iter().zip(pod.addresses()) {
                names.insert(*station, (name.clone(), address));
            }
        }
        let mut wanted = BTreeMap::new();
        let cells: Vec<Cell> = self
            .prober
            .cells()
            .into_iter()
            .filter(|cell| names.contains_key(&cell.from) && names.contains_key(&cell.to))
            .collect();
        for cell in &cells {
            let (from, to) = (names[&cell.from].1, names[&cell.to].1);
            wanted.insert(*cell, expected(from, to, cell.protocol, cell.port));
        }
        let reached = self.prober.run(&cells, |cell| wanted[cell])?;
        let wrong = reached
            .iter()
            .filter(|(cell, reached)| match wanted[*cell] {
                Expect::Through => !**reached,
                Expect::Refused => **reached,
                Expect::Either => false,
            })
            .map(|(cell, reached)| Wrong {
                from: names[&cell.from].0.clone(),
                to: names[&cell.to].0.clone(),
                ends: (names[&cell.from].1, names[&cell.to].1),
                what: (cell.protocol, cell.port),
                reached: *reached,
            })
            .collect();
        Ok((wrong, cells.len()))
    }

    /// What the agents of both ends say of a wrong cell.
    pub fn explain(&self, wrong: &Wrong) -> String {
        let protocol = match wrong.what.0 {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let path = format!(
            "/v1/policy/explain?from={}&to={}&port={}&protocol={protocol}",
            wrong.ends.0, wrong.ends.1, wrong.what.1
        );
        let node = |name: &str| self.pods.get(name).map_or(1, |pod| pod.node);
        let ask = |node: usize| {
            let answer = self.cluster.node(node).request("GET", &path, b"");
            let answer = answer.and_then(|answer| answer.json::<Value>());
            match answer {
                Ok(value) => value["text"].as_str().unwrap_or_default().to_owned(),
                Err(error) => format!("{error:#}"),
            }
        };
        let (from, to) = (node(&wrong.from), node(&wrong.to));
        format!("n{from} says: {}\nn{to} says: {}", ask(from), ask(to))
    }
}

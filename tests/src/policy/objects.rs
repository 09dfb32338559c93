//! Objects of the API as plain JSON, and changes of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::naive::{self, Connection};

/// A pod that a test has, or will make.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node it runs on.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A node of a test.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Name.
    pub name: String,
    /// Its addresses between nodes.
    pub addresses: Vec<IpAddr>,
}

/// Where a test's pods and nodes are. Names, addresses and nodes are taken as they are.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Pods: any number, in any number of namespaces.
    pub pods: Vec<PodPlan>,
    /// Nodes.
    pub nodes: Vec<NodePlan>,
    /// Addresses outside of the cluster that blocks may mean.
    pub outside: Vec<IpAddr>,
}

impl Plan {
    /// Three namespaces x, y, z of three pods a, b, c, spread over nodes n1, n2, n3.
    /// Pods have an address of each family asked for.
    pub fn nine(ipv4: bool, ipv6: bool) -> Self {
        let mut plan = Self { pods: Vec::new(), nodes: Vec::new(), outside: Vec::new() };
        let ips = |v4: [u8; 4], v6: u16| {
            let v4 = ipv4.then(|| IpAddr::from(v4));
            let v6 = ipv6.then(|| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, v6]));
            v4.into_iter().chain(v6).collect::<Vec<_>>()
        };
        for (s, namespace) in (0_u8..).zip(["x", "y", "z"]) {
            for (p, name) in (0_u8..).zip(["a", "b", "c"]) {
                let node = (s + p) % 3;
                plan.pods.push(PodPlan {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    node: format!("n{}", node + 1),
                    addresses: ips(
                        [10, 32, node, 10 + s * 4 + p],
                        u16::from(node) << 8 | u16::from(10 + s * 4 + p),
                    ),
                });
            }
        }
        for n in 1_u8..=3 {
            let addresses = ips([172, 31, 0, n], 0x1000 + u16::from(n));
            plan.nodes.push(NodePlan { name: format!("n{n}"), addresses });
        }
        plan.outside = ips([192, 0, 2, 7], 0x2000);
        plan
    }
}

/// What the API server holds.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// `v1/Pod`.
    pub pods: Vec<Value>,
    /// `v1/Namespace`.
    pub namespaces: Vec<Value>,
    /// `v1/Node`.
    pub nodes: Vec<Value>,
    /// `networking.k8s.io/v1` NetworkPolicy.
    pub policies: Vec<Value>,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    pub cluster_policies: Vec<Value>,
}

/// One change, as a client of the API makes it.
#[derive(Debug, Clone)]
pub enum Step {
    /// Create, or update if there is one of this kind, namespace and name.
    Put(Value),
    /// Delete what has this kind, namespace and name.
    Delete(Value),
}

/// Kind, namespace and name.
pub fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    (text(&object["kind"]), text(&meta["namespace"]), text(&meta["name"]))
}

impl Objects {
    /// Carries a change out.
    pub fn take(&mut self, step: &Step) {
        let (Step::Put(object) | Step::Delete(object)) = step;
        let list = match object["kind"].as_str() {
            Some("Pod") => &mut self.pods,
            Some("Namespace") => &mut self.namespaces,
            Some("Node") => &mut self.nodes,
            Some("NetworkPolicy") => &mut self.policies,
            _ => &mut self.cluster_policies,
        };
        let name = key(object);
        list.retain(|other| key(other) != name);
        if let Step::Put(object) = step {
            list.push(object.clone());
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Value> {
        let early = self.namespaces.iter().chain(&self.nodes).chain(&self.pods);
        early.chain(&self.policies).chain(&self.cluster_policies)
    }

    /// What the API says of each cell between pods.
    pub fn expected(&self) -> Vec<Cell> {
        let ends: Vec<(String, IpAddr)> = self
            .pods
            .iter()
            .flat_map(|pod| {
                let (_, namespace, name) = key(pod);
                let ips = naive::items(&pod["status"]["podIPs"]).iter();
                let ips = ips.filter_map(|one| one["ip"].as_str()?.parse().ok());
                ips.map(move |ip| (format!("{namespace}/{name}"), ip)).collect::<Vec<_>>()
            })
            .collect();
        let mut cells = Vec::new();
        for (from_name, from) in &ends {
            for (to_name, to) in ends.iter().filter(|(_, to)| to.is_ipv4() == from.is_ipv4()) {
                for protocol in PROTOCOLS {
                    for port in PORTS {
                        let connection = Connection { from: *from, to: *to, protocol, port };
                        cells.push(Cell {
                            from: from_name.clone(),
                            from_address: *from,
                            to: to_name.clone(),
                            to_address: *to,
                            protocol,
                            port,
                            allowed: naive::allowed(self, connection),
                        });
                    }
                }
            }
        }
        cells
    }
}

/// Protocols of the truth table.
pub const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Ports of the truth table.
pub const PORTS: [u16; 2] = [80, 81];

/// One entry of the truth table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// `namespace/name`.
    pub from: String,
    /// Its address.
    pub from_address: IpAddr,
    /// `namespace/name`.
    pub to: String,
    /// Its address.
    pub to_address: IpAddr,
    /// Protocol.
    pub protocol: &'static str,
    /// Port.
    pub port: u16,
    /// Whether a connection must succeed.
    pub allowed: bool,
}

/// A pod object with labels, running.
pub(super) fn pod(
    plan: &PodPlan,
    uid: &str,
    created: u64,
    labels: &BTreeMap<String, String>,
) -> Value {
    let ips: Vec<Value> = plan.addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": plan.name, "namespace": plan.namespace, "uid": uid, "labels": labels,
            "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", created / 60 % 60, created % 60),
        },
        "spec": { "nodeName": plan.node, "containers": [{ "name": "main" }] },
        "status": {
            "phase": "Running",
            "podIP": plan.addresses.first().map(ToString::to_string),
            "podIPs": ips,
        },
    })
}

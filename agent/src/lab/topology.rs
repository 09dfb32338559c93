//! Names and addresses of a lab: a pure function of its name, base network and size.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

/// First letters of everything a lab creates.
pub const PREFIX: &str = "weftlab-";
/// Host part of the underlay's own address.
const GATEWAY_HOST: u32 = 1;
/// Node N has host part 10 + N.
const NODE_HOST: u32 = 10;

/// A lab that cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The name goes into namespace and file names.
    #[error("lab name `{0}`: use 1 to 32 letters, digits, `.` or `_`")]
    Name(String),
    /// Nothing to do.
    #[error("a lab needs at least one node; --nodes {0}")]
    Nodes(usize),
    /// The underlay has not enough addresses.
    #[error(
        "{nodes} nodes do not fit into the underlay {base}: give --base a shorter prefix, for example 172.31.0.0/16"
    )]
    Base {
        /// Nodes asked for.
        nodes: usize,
        /// Underlay network.
        base: Ipv4Net,
    },
}

/// Everything a lab will create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Name of the lab.
    pub name: String,
    /// Underlay network.
    pub base: Ipv4Net,
    /// Namespace of the underlay: a bridge, and "outside" behind it.
    pub underlay: String,
    /// Address of the underlay's bridge: every node's default gateway.
    pub gateway: Ipv4Addr,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
}

/// A node to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// From 1.
    pub number: usize,
    /// `n1`, …
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// Its address on the underlay.
    pub address: IpAddr,
    /// Its port on the underlay's bridge.
    pub port: String,
    /// Its pods.
    pub pods: Vec<PodPlan>,
}

/// A pod to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodPlan {
    /// `n1p1`, …
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// What the shim is told as `CNI_CONTAINERID`.
    pub container_id: String,
}

impl Topology {
    /// Lays out `nodes` nodes with `pods` pods each.
    pub fn new(
        name: &str,
        base: Ipv4Net,
        nodes: usize,
        pods: usize,
    ) -> Result<Self, TopologyError> {
        let fits = !name.is_empty()
            && name.len() <= 32
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
        if !fits {
            return Err(TopologyError::Name(name.to_owned()));
        }
        if nodes == 0 {
            return Err(TopologyError::Nodes(nodes));
        }
        let host = |part: u32| Ipv4Addr::from(u32::from(base.network()).saturating_add(part));
        let last = u32::try_from(nodes).unwrap_or(u32::MAX).saturating_add(NODE_HOST);
        if !base.contains(&host(last)) || host(last) >= base.broadcast() {
            return Err(TopologyError::Base { nodes, base });
        }
        let plan = |number: usize| {
            let node = format!("n{number}");
            NodePlan {
                number,
                netns: format!("{}{node}", prefix(name)),
                address: IpAddr::V4(host(NODE_HOST + number as u32)),
                port: node.clone(),
                pods: (1..=pods).map(|pod| PodPlan::new(name, &node, &pod.to_string())).collect(),
                name: node,
            }
        };
        Ok(Self {
            name: name.to_owned(),
            base: base.trunc(),
            underlay: format!("{}u", prefix(name)),
            gateway: host(GATEWAY_HOST),
            nodes: (1..=nodes).map(plan).collect(),
        })
    }

    /// Underlay addresses of all nodes, as `KUBE_PEERS` wants them.
    pub fn peers(&self) -> String {
        self.nodes.iter().map(|n| n.address.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// `ip` batch that makes the namespaces of the underlay and the nodes.
    pub fn namespaces(&self) -> String {
        let mut batch = format!("netns add {}\n", self.underlay);
        for node in &self.nodes {
            batch += &format!("netns add {}\n", node.netns);
            for pod in &node.pods {
                batch += &format!("netns add {}\n", pod.netns);
            }
        }
        batch
    }

    /// `ip` batch inside the underlay: bridge, and one port per node whose
    /// other end is born in the node's namespace.
    pub fn underlay_links(&self) -> String {
        let mut batch = format!(
            "link set lo up\nlink add br0 type bridge\naddr add {}/{} dev br0\nlink set br0 up\n",
            self.gateway,
            self.base.prefix_len()
        );
        for node in &self.nodes {
            batch += &format!(
                "link add {port} type veth peer name eth0 netns {netns}\n\
                 link set {port} master br0 up\n",
                port = node.port,
                netns = node.netns
            );
        }
        batch
    }

    /// `ip` batch inside a node.
    pub fn node_links(&self, node: &NodePlan) -> String {
        format!(
            "link set lo up\naddr add {}/{} dev eth0\nlink set eth0 up\n\
             route add default via {}\n",
            node.address,
            self.base.prefix_len(),
            self.gateway
        )
    }

    /// All pods with their nodes.
    pub fn pods(&self) -> impl Iterator<Item = (&NodePlan, &PodPlan)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }
}

impl PodPlan {
    /// A pod of a lab's node.
    pub fn new(lab: &str, node: &str, pod: &str) -> Self {
        let name = format!("{node}p{pod}");
        let full = format!("{}{name}", prefix(lab));
        Self { name, netns: full.clone(), container_id: full }
    }
}

/// First letters of all namespaces of the lab `name`, of that lab alone.
pub fn prefix(name: &str) -> String {
    format!("{PREFIX}{name}-")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn base() -> Ipv4Net {
        "172.31.117.0/24".parse().unwrap()
    }

    #[test]
    fn addresses_follow_the_number() {
        let lab = Topology::new("x", base(), 3, 2).unwrap();
        assert_eq!(lab.peers(), "172.31.117.11 172.31.117.12 172.31.117.13");
        assert_eq!(lab.gateway, Ipv4Addr::new(172, 31, 117, 1));
        assert_eq!(lab.nodes[1].netns, "weftlab-x-n2");
        assert_eq!(lab.nodes[1].pods[1].netns, "weftlab-x-n2p2");
    }

    #[test]
    fn names_are_unique_and_of_one_lab() {
        let lab = Topology::new("x", base(), 12, 11).unwrap();
        let mut names: BTreeSet<_> = lab.pods().map(|(_, pod)| pod.netns.clone()).collect();
        names.extend(lab.nodes.iter().map(|n| n.netns.clone()));
        names.insert(lab.underlay.clone());
        assert_eq!(names.len(), 12 * 11 + 12 + 1);
        assert!(names.iter().all(|name| name.starts_with("weftlab-x-")));
        assert!(!names.iter().any(|name| name.starts_with(&prefix("x2"))));
    }

    #[test]
    fn port_names_fit_the_kernel() {
        let wide = "172.31.0.0/16".parse().unwrap();
        let lab = Topology::new("a-name".replace('-', "_").as_str(), wide, 500, 0).unwrap();
        assert!(lab.nodes.iter().all(|n| n.port.len() <= 15));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Topology::new("x", base(), 244, 0).is_ok());
        assert_eq!(
            Topology::new("x", base(), 245, 0),
            Err(TopologyError::Base { nodes: 245, base: base() })
        );
        assert_eq!(Topology::new("x", base(), 0, 0), Err(TopologyError::Nodes(0)));
        for bad in ["", "a/b", "a b", "a-b", &"x".repeat(33)] {
            assert_eq!(
                Topology::new(bad, base(), 1, 0),
                Err(TopologyError::Name(bad.to_owned())),
                "{bad}"
            );
        }
    }
}

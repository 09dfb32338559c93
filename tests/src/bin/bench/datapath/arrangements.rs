//! The same two nodes, wired as weft and as others do it, by plain `ip` commands.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use weft_agent::lab::netns::Netns;
use weft_tests::{Cluster, Node};

/// VXLAN over 1500 bytes.
const MTU: u16 = 1450;
/// Where routed pods think their gateway is; their node answers for it.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// From where to where.
pub(crate) struct Path {
    /// The client's namespace.
    pub(crate) from: Netns,
    /// The server's.
    pub(crate) to: Netns,
    /// The server's address.
    pub(crate) address: IpAddr,
}

/// Two nodes and the paths that are measured between their pods.
pub(crate) struct Arrangement {
    /// As the table calls it.
    pub(crate) name: &'static str,
    /// Two pods of one node; the bare network has none.
    pub(crate) near: Option<Path>,
    /// Pods of two nodes.
    pub(crate) far: Path,
    /// Removed on drop.
    _cluster: Cluster,
}

/// The nodes' own network, without pods: what no overlay can be faster than.
pub(crate) fn underlay() -> Result<Arrangement> {
    let cluster = Cluster::builder().nodes(2).stopped().start()?;
    let far = Path {
        from: cluster.node(1).netns(),
        to: cluster.node(2).netns(),
        address: cluster.node(2).plan.address,
    };
    Ok(Arrangement { name: "underlay", near: None, far, _cluster: cluster })
}

/// The real agents and the real shim.
pub(crate) fn weft() -> Result<Arrangement> {
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods_on(&[1, 1, 2])?;
    cluster.assert_reachable(&pods)?;
    let path = |to: usize| Path {
        from: pods[0].netns(),
        to: pods[to].netns(),
        address: pods[to].address(),
    };
    Ok(Arrangement { name: "weft", near: Some(path(1)), far: path(2), _cluster: cluster })
}

/// Whether pods reach the outside by the node's address, as they do on every real
/// cluster: then the kernel tracks all connections, between pods as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    /// Only pods reach pods.
    Closed,
    /// By masquerading.
    Masqueraded,
}

/// A bridge per node, a route per other node through a VXLAN device, with its
/// neighbour and FDB entry: what flannel makes.
pub(crate) fn bridged(name: &'static str, outside: Outside) -> Result<Arrangement> {
    let cluster = Cluster::builder().nodes(2).stopped().start()?;
    for (node, other) in pair(&cluster) {
        tunnel(node, other, outside)?;
        let own = node.plan.number;
        node.netns().ip(&format!(
            "link add pods type bridge\nlink set pods mtu {MTU} up\naddr add {}/24 dev pods\n",
            host(own, 1)
        ))?;
    }
    let pod = |number: usize, which: u8| -> Result<Netns> {
        let node = cluster.node(number);
        let netns = sandbox(node)?;
        node.netns().ip(&format!(
            "link add p{which} mtu {MTU} type veth peer name eth0 netns {}\nlink set p{which} master pods up\n",
            netns.name()
        ))?;
        netns.ip(&format!(
            "link set eth0 mtu {MTU} up\naddr add {}/24 dev eth0\nroute add default via {}\n",
            host(number, which),
            host(number, 1)
        ))?;
        Ok(netns)
    };
    let (client, near, far) = (pod(1, 10)?, pod(1, 11)?, pod(2, 10)?);
    Ok(Arrangement {
        name,
        near: Some(Path { from: client.clone(), to: near, address: host(1, 11).into() }),
        far: Path { from: client, to: far, address: host(2, 10).into() },
        _cluster: cluster,
    })
}

/// A route per pod to its veth, no bridge, the same tunnel: what Calico makes.
pub(crate) fn routed(name: &'static str, outside: Outside) -> Result<Arrangement> {
    let cluster = Cluster::builder().nodes(2).stopped().start()?;
    for (node, other) in pair(&cluster) {
        tunnel(node, other, outside)?;
    }
    let pod = |number: usize, which: u8| -> Result<Netns> {
        let node = cluster.node(number);
        let netns = sandbox(node)?;
        let (device, address) = (format!("p{which}"), host(number, which));
        node.netns().ip(&format!(
            "link add {device} mtu {MTU} type veth peer name eth0 netns {}\nlink set {device} up\n",
            netns.name()
        ))?;
        sysctl(node, &format!("net.ipv4.conf.{device}.proxy_arp=1"))?;
        // Before anything asks: the kernel delays a proxy's answer at will.
        sysctl(node, &format!("net.ipv4.neigh.{device}.proxy_delay=0"))?;
        node.netns().ip(&format!("route add {address}/32 dev {device}\n"))?;
        netns.ip(&format!(
            "link set eth0 mtu {MTU} up\naddr add {address}/32 dev eth0\n\
             route add {NOWHERE}/32 dev eth0 scope link\nroute add default via {NOWHERE}\n"
        ))?;
        Ok(netns)
    };
    let (client, near, far) = (pod(1, 10)?, pod(1, 11)?, pod(2, 10)?);
    Ok(Arrangement {
        name,
        near: Some(Path { from: client.clone(), to: near, address: host(1, 11).into() }),
        far: Path { from: client, to: far, address: host(2, 10).into() },
        _cluster: cluster,
    })
}

fn pair(cluster: &Cluster) -> [(&Node, &Node); 2] {
    let (one, two) = (cluster.node(1), cluster.node(2));
    [(one, two), (two, one)]
}

fn host(node: usize, part: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, u8::try_from(node).unwrap_or(u8::MAX), part)
}

fn vtep(node: &Node) -> String {
    format!("02:00:00:00:00:{:02x}", node.plan.number)
}

/// The VXLAN device and the way to the other node's pods.
fn tunnel(node: &Node, other: &Node, outside: Outside) -> Result<()> {
    sysctl(node, "net.ipv4.ip_forward=1")?;
    let there = other.plan.number;
    node.netns().ip(&format!(
        "link add vx type vxlan id 1 dev eth0 local {own} dstport 8472 nolearning\n\
         link set vx address {mac} mtu {MTU} up\n\
         addr add {gateway}/32 dev vx\n\
         neigh add {next} lladdr {other} dev vx nud permanent\n\
         route add {next}/24 via {next} dev vx onlink\n",
        own = node.plan.address,
        mac = vtep(node),
        gateway = host(node.plan.number, 0),
        next = host(there, 0),
        other = vtep(other),
    ))?;
    let to = other.plan.address.to_string();
    node.exec(&["bridge", "fdb", "append", &vtep(other), "dev", "vx", "dst", &to])?;
    if outside == Outside::Masqueraded {
        node.exec(&[
            "nft",
            "table ip others { chain outside { type nat hook postrouting priority srcnat; \
             ip daddr 10.244.0.0/16 return; ip saddr 10.244.0.0/16 masquerade fully-random; }; }",
        ])?;
    }
    Ok(())
}

fn sandbox(node: &Node) -> Result<Netns> {
    let netns = Netns::named(node.sandbox()?.netns);
    netns.ip("link set lo up\n")?;
    Ok(netns)
}

fn sysctl(node: &Node, setting: &str) -> Result<()> {
    let (name, value) = setting.split_once('=').context("no `=`")?;
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    node.netns().run(|| std::fs::write(&path, value))?.with_context(|| path.clone())
}

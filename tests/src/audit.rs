//! What is really there, compared with what should be: leases, devices,
//! routes, neighbours, forwarding entries, rule set elements and the addresses
//! inside the pods' namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use weft_agent::lab::netns::Netns;
use weft_proto::api::LeaseInfo;
use weft_proto::names::{BRIDGE, format_mac, pod_mac};

use crate::node::Node;
use crate::pod::Pod;
use crate::wait_until;

/// How long leftovers may take to go.
const SETTLE: Duration = Duration::from_secs(15);

/// Addresses of the pods' interface inside a namespace, by asking its kernel.
pub fn inside(netns: &Netns) -> Result<BTreeSet<IpAddr>> {
    let text = netns.exec(&["ip", "-o", "-4", "addr", "show", "scope", "global"])?;
    Ok(text.split_whitespace().filter_map(address).collect())
}

fn address(word: &str) -> Option<IpAddr> {
    word.split('/').next()?.parse().ok()
}

/// Leases of pods by container id.
pub fn leases(node: &Node) -> Result<BTreeMap<String, LeaseInfo>> {
    let all: Vec<LeaseInfo> = node.request("GET", "/v1/attachments", b"")?.json()?;
    let pods = all.into_iter().filter(|lease| !lease.host_ifname.is_empty());
    Ok(pods.map(|lease| (lease.key.container_id.clone(), lease)).collect())
}

fn same<T: Ord + std::fmt::Debug>(
    node: &Node,
    what: &str,
    found: &BTreeSet<T>,
    wanted: &BTreeSet<T>,
) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let extra: Vec<_> = found.difference(wanted).collect();
    let missing: Vec<_> = wanted.difference(found).collect();
    bail!("{} of {}: too many {extra:?}, missing {missing:?}", what, node.plan.name)
}

/// Exactly these pods are on the node, with all that belongs to them, and nothing else.
pub fn exactly(node: &Node, pods: &[&Pod]) -> Result<()> {
    let leases = leases(node)?;
    let wanted: BTreeSet<_> =
        pods.iter().map(|pod| (pod.plan.container_id.clone(), pod.address())).collect();
    let leased = leases
        .iter()
        .flat_map(|(id, lease)| lease.addresses.iter().map(move |ip| (id.clone(), *ip)))
        .collect();
    same(node, "leases", &leased, &wanted)?;
    let names: BTreeSet<_> = leases.values().map(|lease| lease.host_ifname.clone()).collect();
    same(node, "host ends", &node.veths()?.into_iter().collect(), &names)?;
    let addresses: BTreeSet<_> = wanted.iter().map(|(_, ip)| *ip).collect();
    let routes = node.exec(&["ip", "-4", "route", "show", "dev", BRIDGE])?;
    let routes: BTreeSet<IpAddr> =
        routes.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    same(node, "routes", &routes, &addresses)?;
    let neighbours = node.exec(&["ip", "-4", "neigh", "show", "dev", BRIDGE])?;
    let neighbours: BTreeSet<IpAddr> =
        neighbours.lines().filter_map(|line| address(line.split(' ').next()?)).collect();
    same(node, "neighbours", &neighbours, &addresses)?;
    let rules = node.exec(&["nft", "list", "set", "bridge", "weft", "pods4"])?;
    let rules: BTreeSet<IpAddr> = rules
        .split(|c: char| c.is_whitespace() || c == ',')
        .filter_map(|word| word.parse().ok())
        .collect();
    same(node, "rule set elements", &rules, &addresses)?;
    let fdb = node.exec(&["bridge", "fdb", "show", "br", BRIDGE])?;
    for lease in leases.values() {
        for ip in &lease.addresses {
            let start = format!("{} dev {} ", format_mac(pod_mac(*ip)), lease.host_ifname);
            ensure!(fdb.lines().any(|line| line.starts_with(&start)), "no FDB entry `{start}`");
        }
    }
    for pod in pods {
        let inside = inside(&pod.netns())?;
        same(
            node,
            &format!("addresses inside {}", pod.plan.name),
            &inside,
            &[pod.address()].into(),
        )?;
    }
    Ok(())
}

/// Waits until [`exactly`] these pods are there.
pub fn wait_exactly(node: &Node, pods: &[&Pod]) -> Result<Duration> {
    wait_until(&format!("exactly {} pods on {}", pods.len(), node.plan.name), SETTLE, || {
        exactly(node, pods).map(|()| true)
    })
}

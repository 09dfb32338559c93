//! The node's address between nodes changes while everything runs.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::ensure;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Pod, Result, wait_until};

use crate::faults::common::{
    PATIENCE, audit_all, second_address, wait_all_alive, wait_condition, wait_reachable,
    wait_without,
};

/// As DHCP does it: the old address goes, another comes, the gateway stays.
fn readdress(cluster: &Cluster, number: usize, from: IpAddr, to: &str) -> Result {
    let (gateway, bits) = (cluster.plan.gateway, cluster.plan.base.prefix_len());
    cluster.node(number).netns().ip(&format!(
        "addr del {from}/{bits} dev eth0\naddr add {to}/{bits} dev eth0\n\
         route replace default via {gateway}\n"
    ))
}

/// Every pod reaches both addresses of every other.
fn wait_both_families(pods: &[Pod]) -> Result {
    for from in pods {
        for to in pods.iter().filter(|to| to.address() != from.address()) {
            from.wait_ping(to.address(), PATIENCE)?;
            from.wait_ping(second_address(to)?, PATIENCE)?;
        }
    }
    Ok(())
}

#[test]
fn underlay_addresses_change_while_running() -> Result {
    // Nodes 1 and 2 find their addresses themselves, node 3 was told its own.
    let mut cluster = Cluster::builder()
        .range("10.32.0.0/16,fd00:10:32::/64")
        .node_env(1, "NODE_IP", "")
        .node_env(2, "NODE_IP", "")
        .start()?;
    let mut pods = cluster.add_pods(1)?;
    wait_both_families(&pods)?;
    let [one, two, three] = [1, 2, 3].map(|n| cluster.node(n).plan.address);

    let start = Instant::now();
    let new = ["172.31.117.61", "172.31.117.62"];
    readdress(&cluster, 1, one, new[0])?;
    readdress(&cluster, 2, two, new[1])?;
    wait_until("node 3 to know the new addresses", PATIENCE, || {
        let members = cluster.node(3).status()?.mesh.members;
        for (name, new) in [("n1", new[0]), ("n2", new[1])] {
            let new: IpAddr = new.parse()?;
            let known = members.iter().any(|m| m.name == name && m.underlay == [new]);
            ensure!(known, "{name} has to move to {new}: {members:?}");
        }
        Ok(true)
    })?;
    wait_both_families(&pods)?;
    let moved = start.elapsed();
    cluster.wait_ready()?;
    wait_all_alive(&cluster)?;
    pods.extend(cluster.add_pods(1)?);
    wait_both_families(&pods)?;
    cluster.assert_unique(&pods)?;
    told(
        "underlay addresses of two of three nodes change at once (dual stack)",
        "pods keep their addresses, all reach all in both families, new pods start",
        &format!("by itself, after {}", took(moved)),
    );

    // Who was told an address keeps to it, and says that it is gone.
    readdress(&cluster, 3, three, "172.31.117.63")?;
    let named = wait_condition(cluster.node(3), "NoUnderlay", &[&three.to_string()])?;
    readdress(&cluster, 3, "172.31.117.63".parse()?, &three.to_string())?;
    let start = Instant::now();
    wait_without(cluster.node(3), &["NoUnderlay"])?;
    wait_both_families(&pods)?;
    told(
        "the address that NODE_IP names is taken from the node",
        &format!("`NoUnderlay` names it after {}", took(named)),
        &format!("{} after it is back", took(start.elapsed())),
    );
    wait_reachable(&cluster, &pods)?;
    let log = cluster.node(1).log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// Without families: the audit reads one address per pod.
#[test]
fn an_address_change_leaves_every_lease() -> Result {
    let mut cluster = Cluster::builder().nodes(2).node_env(1, "NODE_IP", "").start()?;
    let mut pods = cluster.add_pods(2)?;
    wait_reachable(&cluster, &pods)?;
    let old = cluster.node(1).plan.address;
    readdress(&cluster, 1, old, "172.31.117.71")?;
    let (start, new) = (Instant::now(), "172.31.117.71".parse::<IpAddr>()?);
    wait_until("node 2 to know the new address", PATIENCE, || {
        let members = cluster.node(2).status()?.mesh.members;
        Ok(members.iter().any(|m| m.underlay == [new]))
    })?;
    wait_reachable(&cluster, &pods)?;
    let back = start.elapsed();
    cluster.wait_ready()?;
    pods.extend(cluster.add_pods(1)?);
    audit_all(&cluster, &pods)?;
    told(
        "the underlay address of a node changes",
        "every lease, route, neighbour and rule as before, no address twice",
        &format!("by itself, after {}", took(back)),
    );
    Ok(())
}

//! The mesh is fine and the tunnel is not: probes through the overlay name it.

use std::time::Duration;

use anyhow::{bail, ensure};
use weft_proto::api::{Condition, Health};
use weft_tests::{Cluster, Node, Result, wait_until};

/// A round of probes, the losses that make a verdict, and a busy machine.
const NOTICED: Duration = Duration::from_secs(40);

fn data_path(node: &Node) -> Result<Vec<Condition>> {
    let mut conditions = node.status()?.conditions;
    conditions.retain(|c| c.reason == "DataPath");
    Ok(conditions)
}

/// All overlay paths of these nodes are known to work; unless they were broken
/// before, nobody was blamed meanwhile.
fn wait_well(cluster: &Cluster, nodes: &[usize], healing: bool) -> Result<Duration> {
    wait_until("probes of all peers to come back", NOTICED, || {
        for number in nodes {
            let status = cluster.node(*number).status()?;
            let blamed = status.conditions.iter().find(|c| c.reason == "DataPath");
            assert!(blamed.is_none_or(|_| healing), "blamed while it starts: {blamed:?}");
            for member in status.mesh.members.iter().filter(|m| m.state == "alive") {
                if member.overlay_ok != Some(true) || member.overlay_rtt_us.is_none() {
                    bail!("n{number} thinks of {}: {:?}", member.name, member.overlay_ok);
                }
            }
            ensure!(status.mesh.members.len() == cluster.nodes().len() - 1, "too few members");
        }
        Ok(true)
    })
}

/// Packets that match are dropped on their way into the node.
fn block(node: &Node, matches: &str) -> Result {
    node.exec(&["nft", "add", "table", "inet", "fence"])?;
    let chain = "{ type filter hook input priority -10 ; }";
    node.exec(&["nft", "add", "chain", "inet", "fence", "in", chain])?;
    let rule = ["nft", "add", "rule", "inet", "fence", "in"];
    let words: Vec<&str> = rule.into_iter().chain(matches.split(' ')).chain(["drop"]).collect();
    node.exec(&words).map(drop)
}

fn unblock(node: &Node) -> Result {
    node.exec(&["nft", "delete", "table", "inet", "fence"]).map(drop)
}

#[test]
fn a_blocked_tunnel_is_named_on_both_sides() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(1)?;
    let began = std::time::Instant::now();
    wait_well(&cluster, &[1, 2, 3], false)?;
    println!("all paths known to work {:?} after readiness", began.elapsed());

    let two = cluster.node(2).plan.address;
    block(cluster.node(1), &format!("ip saddr {two} udp dport 6784"))?;
    for (here, there) in [(1, "n2"), (2, "n1")] {
        let node = cluster.node(here);
        let took = wait_until(&format!("n{here} to name {there}"), NOTICED, || {
            let found = data_path(node)?;
            Ok(found.iter().any(|c| {
                c.health == Health::Degraded
                    && c.message.contains(there)
                    && !c.message.contains("n3")
                    && c.hint.contains("UDP 6784")
            }))
        })?;
        println!("n{here} names {there} after {took:?}: {}", data_path(node)?[0].message);
        let status = node.status()?;
        let member = status.mesh.members.iter().find(|m| m.name == there);
        let member = member.ok_or_else(|| anyhow::anyhow!("{there} is no member"))?;
        ensure!(member.state == "alive", "the mesh does not use that port: {member:?}");
        ensure!(member.overlay_ok == Some(false), "{member:?}");
        ensure!(node.agent()?.readiness()?.ready, "readiness of n{here} suffered");
    }
    ensure!(data_path(cluster.node(3))?.is_empty(), "n3 sees nothing wrong");
    let metrics = cluster.node(1).request("GET", "/metrics", b"")?.text().clone();
    ensure!(metrics.contains("weft_overlay_probe_peers{state=\"lost\"} 1"), "{metrics}");

    unblock(cluster.node(1))?;
    for number in [1, 2] {
        let took = wait_until("the end of the condition", NOTICED, || {
            Ok(data_path(cluster.node(number))?.is_empty())
        })?;
        println!("n{number} is satisfied {took:?} after the port was open");
    }
    cluster.assert_reachable(&pods)?;

    // A peer that is gone is a dead peer, not a broken path.
    cluster.node_mut(3).kill9()?;
    wait_until("n1 to miss n3", Duration::from_secs(30), || {
        let status = cluster.node(1).status()?;
        assert!(
            status.conditions.iter().all(|c| c.reason != "DataPath"),
            "blamed instead of dead: {:?}",
            status.conditions
        );
        Ok(status.conditions.iter().any(|c| c.reason == "PeerDead"))
    })
    .map(drop)
}

#[test]
fn a_path_that_swallows_large_packets_is_named() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    wait_well(&cluster, &[1, 2], false)?;
    let two = cluster.node(2).plan.address;
    block(cluster.node(1), &format!("ip saddr {two} udp dport 6784 meta length > 1400"))?;
    let node = cluster.node(2);
    let took = wait_until("n2 to name n1", NOTICED, || {
        let found = data_path(node)?;
        Ok(found.iter().any(|c| {
            c.message.contains("large") && c.message.contains("n1") && c.hint.contains("MTU")
        }))
    })?;
    println!("after {took:?}: {}", data_path(node)?[0].message);
    // The other way they pass, and answers are small.
    ensure!(data_path(cluster.node(1))?.is_empty(), "{:?}", data_path(cluster.node(1))?);
    unblock(cluster.node(1))?;
    wait_well(&cluster, &[1, 2], true).map(drop)
}

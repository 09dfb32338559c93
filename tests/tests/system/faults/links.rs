//! Bad cables: packets lost by chance, in one direction, or for being large.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_tests::pinger::Pinger;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Node, Pod, Result, stream, wait_until};

use crate::faults::common::{
    PATIENCE, SMALL, audit_all, condition, number, underlay, until_new_block, wait_all_alive,
    wait_condition, wait_reachable, wait_without,
};

/// Rules on the bridge between the nodes.
fn rules(cluster: &Cluster, rules: &[String]) -> Result {
    let mut script = "add table bridge faults\nflush table bridge faults\n\
                      add chain bridge faults f { type filter hook forward priority 0; }\n"
        .to_owned();
    for rule in rules {
        script += &format!("add rule bridge faults f {rule}\n");
    }
    let file = cluster.directory().join("faults.nft");
    std::fs::write(&file, script)?;
    let file = file.to_str().context("a path")?;
    underlay(cluster).exec(&["nft", "-f", file]).map(drop)
}

/// How often any node took another for dead.
fn deaths(cluster: &Cluster) -> Result<u64> {
    let of = |node: &Node| -> Result<u64> {
        Ok(node.status()?.mesh.counters.get("member_dead").copied().unwrap_or(0))
    };
    cluster.nodes().iter().map(of).sum()
}

fn under_loss(cluster: &mut Cluster, pods: &mut Vec<Pod>, percent: u32) -> Result {
    let before = deaths(cluster)?;
    rules(cluster, &[format!("numgen random mod 100 < {percent} counter drop")])?;
    let ping = Pinger::start(&pods[0], pods[1].address(), Duration::from_millis(10))?;
    let start = Instant::now();
    // Decisions of the voters, from every node.
    for node in cluster.nodes() {
        pods.extend(until_new_block(node)?);
    }
    let worked = start.elapsed();
    // A measurement over time, not a wait for a condition: who is thought dead meanwhile?
    let window = Duration::from_secs(number("WEFT_LOSS", 20));
    while start.elapsed() < window {
        for node in cluster.nodes() {
            node.add_pod()?.detach()?;
        }
    }
    let ledger = cluster.wait_one_ledger()?;
    let tally = ping.stop()?;
    let dead = deaths(cluster)? - before;
    let shown: Vec<String> = cluster
        .nodes()
        .iter()
        .flat_map(|node| node.status().map(|s| s.conditions).unwrap_or_default())
        .map(|condition| condition.reason)
        .collect();
    rules(cluster, &[])?;
    let alive = wait_all_alive(cluster)?;
    cluster.wait_one_ledger()?;
    wait_reachable(cluster, pods)?;
    audit_all(cluster, pods)?;
    ensure!(percent > 10 || dead == 0, "{dead} deaths at {percent} % of loss");
    told(
        &format!("{percent} % of all packets between nodes lost, by chance"),
        &format!(
            "3 new blocks in {} ({} of {} pings lost), {dead} false deaths in {}, no \
             address twice; status at the end: {shown:?}",
            took(worked),
            tally.lost.len(),
            tally.sent,
            took(window)
        ),
        &format!("ledger equal after {}, all alive {} after the end", took(ledger), took(alive)),
    );
    Ok(())
}

#[test]
fn packets_lost_by_chance() -> Result {
    let mut cluster = Cluster::builder().range(SMALL).start()?;
    let mut pods = cluster.add_pods(1)?;
    wait_reachable(&cluster, &pods)?;
    under_loss(&mut cluster, &mut pods, 10)?;
    under_loss(&mut cluster, &mut pods, 30)
}

#[test]
fn a_cut_in_one_direction() -> Result {
    let mut cluster = Cluster::builder().range(SMALL).start()?;
    let mut pods = cluster.add_pods(1)?;
    wait_reachable(&cluster, &pods)?;
    // Nothing of node 1 reaches node 2; all else gets through.
    rules(&cluster, &["iifname n1 oifname n2 counter drop".to_owned()])?;
    let start = Instant::now();
    wait_until("node 1 or 2 to say so", PATIENCE, || {
        for (node, other) in [(1, "n2"), (2, "n1")] {
            for reason in ["DataPath", "PeerDead"] {
                let found = condition(cluster.node(node), reason)?;
                if found.is_some_and(|c| c.message.contains(other)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    })?;
    let named = start.elapsed();
    // All three still get new blocks, and who is not cut off is reached.
    for number in 1..=3 {
        pods.extend(until_new_block(cluster.node(number))?);
    }
    let last = pods.last().context("pods")?;
    for from in [&pods[0], &pods[1]] {
        from.wait_ping(last.address(), PATIENCE)?;
    }
    rules(&cluster, &[])?;
    let start = Instant::now();
    wait_reachable(&cluster, &pods)?;
    let reached = start.elapsed();
    wait_all_alive(&cluster)?;
    wait_without(cluster.node(1), &["DataPath", "PeerDead"])?;
    wait_without(cluster.node(2), &["DataPath", "PeerDead"])?;
    let well = start.elapsed();
    cluster.wait_one_ledger()?;
    audit_all(&cluster, &pods)?;
    told(
        "asymmetric partition: nothing of node 1 reaches node 2",
        &format!(
            "status names it after {}; all nodes own new blocks, no address twice",
            took(named)
        ),
        &format!("pods reached {} after the repair, status clean {}", took(reached), took(well)),
    );
    Ok(())
}

#[test]
fn a_smaller_mtu() -> Result {
    const LARGE: usize = 1450;
    let cluster = Cluster::builder().nodes(2).start()?;
    let mut pods = cluster.add_pods(1)?;
    wait_reachable(&cluster, &pods)?;
    let whole = |pods: &[Pod]| -> Result<bool> {
        Ok(matches!(pods[0].ping_whole(pods[1].address(), LARGE)?, Ok(true)))
    };
    ensure!(whole(&pods)?, "a packet of {LARGE} bytes at first");

    // The nodes' own devices.
    for number in [1, 2] {
        cluster.node(number).exec(&["ip", "link", "set", "eth0", "mtu", "1400"])?;
    }
    let told_after = wait_until("the status to name the new MTU", PATIENCE, || {
        let data = cluster.node(1).status()?.dataplane;
        Ok(data.mtu == 1350 && data.mtu_source.contains("1400"))
    })?;
    pods[0].wait_ping(pods[1].address(), PATIENCE)?;
    // Pods of before learn it from the path.
    let bits = stream::bulk(&pods[0], &pods[1], 2 << 20)?;
    pods.push(cluster.node(1).add_pod()?);
    ensure!(pods[2].mtu()? == 1350, "a new pod has MTU {}", pods[2].mtu()?);
    told(
        "MTU of the nodes' devices lowered to 1400 while running",
        &format!(
            "status says 1350, and why, after {}; new pods get it; running pods' TCP adapts \
             ({:.0} Mbit/s)",
            took(told_after),
            bits / 1e6
        ),
        "nothing to repair",
    );
    for number in [1, 2] {
        cluster.node(number).exec(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
    }
    wait_until("the old MTU again", PATIENCE, || {
        // What a kernel has learned of a path it believes for ten minutes.
        for netns in [pods[0].netns(), cluster.node(1).netns()] {
            netns.exec(&["ip", "route", "flush", "cache"])?;
        }
        ensure!(whole(&pods)?, "{:?}", pods[0].ping_whole(pods[1].address(), LARGE)?);
        Ok(cluster.node(1).status()?.dataplane.mtu == LARGE as u32)
    })?;

    // Something in between, which nobody is told of.
    for port in ["n1", "n2"] {
        underlay(&cluster).ip(&format!("link set {port} mtu 1400\n"))?;
    }
    let start = Instant::now();
    wait_condition(cluster.node(1), "DataPath", &["n2"])?;
    let named = start.elapsed();
    pods[0].wait_ping(pods[1].address(), PATIENCE)?;
    for port in ["n1", "n2"] {
        underlay(&cluster).ip(&format!("link set {port} mtu 1500\n"))?;
    }
    let back = wait_without(cluster.node(1), &["DataPath"])?;
    ensure!(whole(&pods)?, "a packet of {LARGE} bytes at last");
    told(
        "MTU lowered in between, where no node sees it",
        &format!("small packets flow; `DataPath` names the large ones after {}", took(named)),
        &format!("clean {} after the repair", took(back)),
    );
    audit_all(&cluster, &pods)
}

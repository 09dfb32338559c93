//! The data path does not need the agent: traffic outlives its death.

use std::time::Duration;

use anyhow::{Result as AnyResult, ensure};
use weft_proto::api::LeaseInfo;
use weft_tests::pinger::Pinger;
use weft_tests::stream::Steady;
use weft_tests::{Cluster, Node, Result, wait_until};

fn state(node: &Node) -> AnyResult<(Vec<LeaseInfo>, Vec<ipnet::IpNet>)> {
    let mut leases: Vec<LeaseInfo> = node.request("GET", "/v1/attachments", b"")?.json()?;
    leases.sort_by(|a, b| a.key.cmp(&b.key));
    let mut blocks = node.status()?.ipam.blocks;
    blocks.sort();
    Ok((leases, blocks))
}

#[test]
fn traffic_and_leases_survive_kill_9_and_sigterm() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    cluster.wait_one_ledger()?;
    let before = state(cluster.node(1))?;
    ensure!(!before.0.is_empty() && !before.1.is_empty(), "there is something to keep");

    let ping = Pinger::start(&pods[0], pods[1].address(), Duration::from_millis(1))?;
    let stream = Steady::start(&pods[0], &pods[1])?;
    wait_until("a flowing stream", Duration::from_secs(5), || Ok(stream.echoed() > 100))?;

    cluster.node_mut(1).kill9()?;
    let echoed = stream.echoed();
    wait_until("traffic without an agent", Duration::from_secs(5), || {
        Ok(stream.echoed() > echoed + 200)
    })?;
    let took = cluster.node_mut(1).restart()?;
    println!("ready {took:?} after the restart");
    ensure!(state(cluster.node(1))? == before, "leases and blocks are the same after kill -9");

    cluster.node_mut(1).terminate()?;
    cluster.node_mut(1).restart()?;
    ensure!(state(cluster.node(1))? == before, "leases and blocks are the same after SIGTERM");
    let echoed = stream.echoed();
    wait_until("traffic after it all", Duration::from_secs(5), || {
        Ok(stream.echoed() > echoed + 200)
    })?;

    let words = stream.stop()?;
    let tally = ping.stop()?;
    println!(
        "{} echo requests, {} lost; {words} words echoed by TCP",
        tally.sent,
        tally.lost.len()
    );
    ensure!(tally.lost.is_empty(), "lost of {}: {:?}", tally.sent, tally.lost);
    Ok(())
}

#[test]
fn a_lost_lease_store_is_rebuilt_from_the_kernel() -> Result {
    let mut cluster = Cluster::builder().nodes(1).start()?;
    let pods = cluster.add_pods(3)?;
    let mut before = state(cluster.node(1))?.0;
    cluster.node_mut(1).kill9()?;
    std::fs::remove_file(cluster.node(1).spec().run_dir().join("leases.json"))?;
    cluster.node_mut(1).restart()?;
    let mut after = state(cluster.node(1))?.0;
    for lease in before.iter_mut().chain(&mut after) {
        // The alias does not carry the time.
        lease.since_ms = 0;
    }
    before.retain(|lease| !lease.host_ifname.is_empty());
    after.retain(|lease| !lease.host_ifname.is_empty());
    ensure!(before == after, "before {before:?}, after {after:?}");
    let more = cluster.add_pods(3)?;
    cluster.assert_unique(&[pods, more].concat())
}

#[test]
fn a_living_node_that_was_removed_comes_back_with_its_pods() -> Result {
    let cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let name = cluster.node(1).status()?.node.name;
    let path = format!("/v1/peers/{name}?force=true");
    let answer = cluster.node(2).request("DELETE", &path, b"")?;
    ensure!(answer.code == 200, "{answer:?}");
    // Who removed it must hear of it again, and route to what it claimed back.
    cluster.node(2).wait_log(&["joined again"], Duration::from_secs(30))?;
    wait_until("the blocks claimed back", Duration::from_secs(30), || {
        Ok(cluster.node(1).status()?.ipam.blocks.iter().any(|b| b.contains(&pods[0].address())))
    })?;
    for pod in &pods[1..] {
        pods[0].wait_ping(pod.address(), Duration::from_secs(30))?;
        pod.wait_ping(pods[0].address(), Duration::from_secs(30))?;
    }
    Ok(())
}

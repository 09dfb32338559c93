//! Voters die, nodes are cut off: what still works, and that it all comes back.

use std::time::Duration;

use anyhow::{bail, ensure};
use weft_tests::{Cluster, Result, wait_until};

use crate::faults::common::{TOO_MANY, until_new_block};

#[test]
fn minority_and_majority_of_voters() -> Result {
    // A small range has small blocks: they run out quickly.
    let mut cluster = Cluster::builder().range("10.32.0.0/23").start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;

    cluster.node_mut(3).kill9()?;
    pods.extend(until_new_block(cluster.node(1))?);
    println!("one of three voters dead: a new block after {} pods", pods.len());

    cluster.node_mut(2).kill9()?;
    wait_until("node 1 to see that it has no quorum", Duration::from_secs(30), || {
        Ok(!cluster.node(1).status()?.consensus.quorum)
    })?;
    let mut owned = 0;
    let refusal = loop {
        ensure!(owned < TOO_MANY, "{owned} pods without quorum, and still no end");
        match cluster.node(1).add_pod() {
            Ok(pod) => {
                pods.push(pod);
                owned += 1;
            }
            Err(error) => break error.to_string(),
        }
    };
    println!("two of three voters dead: {owned} more pods from owned blocks, then: {refusal}");
    ensure!(owned > 0, "pods still start from owned blocks");
    ensure!(refusal.contains("code 11"), "a runtime must try again: {refusal}");
    let reason = refusal.to_lowercase();
    ensure!(
        ["quorum", "majority", "voter"].iter().any(|word| reason.contains(word)),
        "the refusal says what it waits for: {refusal}"
    );

    cluster.node_mut(2).restart()?;
    let mut added = None;
    wait_until("a new block after the majority is back", Duration::from_secs(30), || {
        added = Some(cluster.node(1).add_pod()?);
        Ok(true)
    })?;
    pods.extend(added);
    cluster.node_mut(3).restart()?;
    cluster.wait_one_ledger()?;
    cluster.assert_unique(&pods)?;
    let ends = [pods[0].clone(), pods[1].clone(), pods[2].clone(), pods[pods.len() - 1].clone()];
    cluster.assert_reachable(&ends).map(drop)
}

#[test]
fn a_node_cut_off_and_reconnected() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    cluster.node(3).cut()?;
    wait_until("node 1 to miss node 3", Duration::from_secs(30), || {
        let status = cluster.node(1).status()?;
        Ok(status.mesh.members.iter().any(|m| m.name == "n3" && m.state != "alive"))
    })?;
    // Both sides go on, from what they own.
    for node in [1, 3, 2, 3, 1, 3] {
        pods.push(cluster.node(node).add_pod()?);
    }
    cluster.assert_unique(&pods)?;
    let took = pods[0].wait_ping(pods[3].address(), Duration::from_secs(5))?;
    println!("within the majority's side: {took:?}");

    cluster.node(3).heal()?;
    let took = cluster.wait_one_ledger()?;
    println!("one ledger {took:?} after the cable was back");
    let took = cluster.assert_reachable(&pods)?;
    println!("{} pods reach each other after {took:?}", pods.len());
    wait_until("all members alive for all", Duration::from_secs(60), || {
        for node in cluster.nodes() {
            let status = node.status()?;
            if let Some(member) = status.mesh.members.iter().find(|m| m.state != "alive") {
                bail!("{} thinks {} is {}", status.node.name, member.name, member.state);
            }
        }
        Ok(true)
    })?;
    cluster.add_pods(1).map(drop)
}

#[test]
fn a_frozen_agent_does_not_stop_the_others() -> Result {
    let cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    cluster.node(2).freeze()?;
    // Its data path needs no agent; new pods elsewhere do not need it either.
    pods[0].wait_ping(pods[1].address(), Duration::from_secs(2))?;
    let more = cluster.node(1).add_pod()?;
    more.wait_ping(pods[2].address(), Duration::from_secs(5))?;
    cluster.node(2).thaw()?;
    let late = cluster.node(2).add_pod()?;
    late.wait_ping(more.address(), Duration::from_secs(5)).map(drop)
}

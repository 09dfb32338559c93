//! Agents that are stopped for a while: alive for the kernel, dead for everybody else.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_tests::pinger::Pinger;
use weft_tests::stream::Steady;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Pod, Result, wait_until};

use crate::faults::common::{
    PATIENCE, SMALL, audit_all, number, opinion, until_new_block, wait_all_alive, wait_reachable,
};

/// The number of the node that leads, as the others see it.
fn leader(cluster: &Cluster) -> Result<usize> {
    let mut found = None;
    wait_until("a leader", PATIENCE, || {
        let named = cluster.node(1).status()?.consensus.leader.context("nobody leads")?;
        found = cluster.nodes().iter().position(|node| node.plan.name == named);
        Ok(found.is_some())
    })?;
    Ok(found.context("a leader")? + 1)
}

/// Stops the agent of a node till the others have done without it, at least `WEFT_FREEZE`
/// seconds.
fn freeze(cluster: &mut Cluster, number_of: usize, pods: &mut Vec<Pod>, what: &str) -> Result {
    let at_least = Duration::from_secs(number("WEFT_FREEZE", 0));
    let name = cluster.node(number_of).plan.name.clone();
    let others: Vec<usize> = (1..=3).filter(|n| *n != number_of).collect();
    let here = pods.iter().find(|pod| pod.shim.netns == cluster.node(number_of).netns());
    let here = here.context("a pod of the node")?.clone();
    let there = pods.iter().find(|pod| pod.shim.netns == cluster.node(others[0]).netns());
    let there = there.context("a pod of another")?.clone();
    let ping = Pinger::start(&here, there.address(), Duration::from_millis(5))?;
    let stream = Steady::start(&there, &here)?;

    let start = Instant::now();
    cluster.node(number_of).freeze()?;
    let dead = wait_until(&format!("{name} dead for the others"), PATIENCE, || {
        for other in &others {
            let state = opinion(cluster.node(*other), &name)?;
            ensure!(state == "dead", "node {other} thinks {name} is {state}");
        }
        Ok(true)
    })?;
    // Ordinary life goes on, with decisions of the voters that are left.
    for other in &others {
        pods.extend(until_new_block(cluster.node(*other))?);
    }
    // The one wait for time: a stall of this length is what is tested.
    std::thread::sleep(at_least.saturating_sub(start.elapsed()));
    let stopped = start.elapsed();
    cluster.node(number_of).thaw()?;

    let alive = wait_all_alive(cluster)?;
    let ledger = cluster.wait_one_ledger()?;
    pods.push(cluster.node(number_of).add_pod()?);
    wait_reachable(cluster, pods)?;
    audit_all(cluster, pods)?;
    stream.stop().context("TCP across the stopped agent")?;
    let tally = ping.stop()?;
    ensure!(tally.lost.is_empty(), "lost {:?} of {}", tally.lost, tally.sent);
    told(
        &format!("agent of {what} stopped for {}", took(stopped)),
        &format!(
            "0 of {} packets of its pods lost; dead for the others after {}; they own new blocks, \
             no address twice",
            tally.sent,
            took(dead)
        ),
        &format!("alive for all {} after it went on, one ledger {}", took(alive), took(ledger)),
    );
    Ok(())
}

#[test]
fn a_stopped_agent_is_missed_and_comes_back() -> Result {
    let mut cluster = Cluster::builder().range(SMALL).start()?;
    let mut pods = cluster.add_pods(1)?;
    wait_reachable(&cluster, &pods)?;
    let leads = leader(&cluster)?;
    freeze(&mut cluster, leads % 3 + 1, &mut pods, "a follower")?;
    let leads = leader(&cluster)?;
    freeze(&mut cluster, leads, &mut pods, "the leader")
}

//! Everything at once: all agents, a whole node, all nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use weft_tests::pinger::Pinger;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Node, Pod, Result, audit};

use crate::faults::common::{audit_all, underlay, wait_all_alive, wait_reachable};

#[test]
fn all_agents_killed_at_once() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let mut pods = cluster.add_pods(2)?;
    wait_reachable(&cluster, &pods)?;
    let ping = Pinger::start(&pods[0], pods[5].address(), Duration::from_millis(5))?;
    for number in 1..=3 {
        cluster.node_mut(number).kill9()?;
    }
    // A pod goes while nobody is there to hear of it.
    pods.remove(1).detach()?;
    let start = Instant::now();
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    let ready = start.elapsed();
    cluster.wait_one_ledger()?;
    pods.extend(cluster.add_pods(1)?);
    let added = start.elapsed();
    wait_all_alive(&cluster)?;
    audit_all(&cluster, &pods)?;
    wait_reachable(&cluster, &pods)?;
    let tally = ping.stop()?;
    ensure!(tally.lost.is_empty(), "lost {:?} of {}", tally.lost, tally.sent);
    told(
        "all agents killed at once, a pod deleted meanwhile",
        &format!("0 of {} packets lost, leases as before, no address twice", tally.sent),
        &format!("all ready {} after the start, pods added after {}", took(ready), took(added)),
    );
    Ok(())
}

/// A power cut and what follows: the kernel's state, `/run` and all pods are gone.
fn power_cut(cluster: &mut Cluster, number: usize, pods: &[Pod]) -> Result {
    let underlay = underlay(cluster);
    let plan = cluster.plan.clone();
    let node = cluster.node_mut(number);
    node.kill9()?;
    for pod in pods.iter().filter(|pod| pod.shim.netns == node.netns()) {
        pod.netns().delete()?;
    }
    // The cable first: the kernel takes its time with the rest of a namespace.
    underlay.ip(&format!("link del {}\n", node.plan.port))?;
    node.netns().delete()?;
    std::fs::remove_dir_all(node.spec().run_dir())?;
    node.netns().create()?;
    underlay.ip(&format!(
        "link add {port} type veth peer name eth0 netns {netns}\nlink set {port} master br0 up\n",
        port = node.plan.port,
        netns = node.plan.netns
    ))?;
    let links = plan.node_links(&node.plan);
    node.netns().ip(&links)
}

/// What it owned it still owns; there may be more by now.
fn kept(node: &Node, blocks: &[IpNet]) -> Result {
    let now = node.status()?.ipam.blocks;
    let all = blocks.iter().all(|block| now.contains(block));
    ensure!(all, "{} had {blocks:?}, and has {now:?}", node.plan.name);
    Ok(())
}

#[test]
fn nodes_that_reboot() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let mut pods = cluster.add_pods(3)?;
    wait_reachable(&cluster, &pods)?;
    let blocks: Vec<_> =
        cluster.nodes().iter().map(|n| Ok(n.status()?.ipam.blocks)).collect::<Result<_>>()?;
    let of = |cluster: &Cluster, number: usize| cluster.node(number).netns();

    power_cut(&mut cluster, 1, &pods)?;
    let gone: Vec<Pod> = pods.extract_if(.., |pod| pod.shim.netns == of(&cluster, 1)).collect();
    let ready = cluster.node_mut(1).restart()?;
    let node = cluster.node(1);
    audit::wait_exactly(node, &[])?;
    kept(node, &blocks[0])?;
    let new = node.add_pod()?;
    let start = Instant::now();
    for other in &pods {
        other.wait_ping(new.address(), Duration::from_secs(10))?;
        new.wait_ping(other.address(), Duration::from_secs(10))?;
    }
    let back = start.elapsed();
    pods.push(new);
    // The runtime tidies up what it remembers from before.
    for pod in &gone {
        pod.shim.pod("DEL", &pod.plan)?.ok("a late DEL")?;
    }
    audit_all(&cluster, &pods)?;
    told(
        "a node reboots: kernel, /run and pods gone",
        "no lease of before is left, its blocks are, late DELs succeed",
        &format!("ready after {}, new pods reached by all after {}", took(ready), took(back)),
    );

    for number in 1..=3 {
        power_cut(&mut cluster, number, &pods)?;
    }
    pods.clear();
    let start = Instant::now();
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    let ready = start.elapsed();
    cluster.wait_one_ledger()?;
    for (node, blocks) in cluster.nodes().iter().zip(&blocks) {
        kept(node, blocks)?;
    }
    pods.extend(cluster.add_pods(2)?);
    wait_reachable(&cluster, &pods)?;
    audit_all(&cluster, &pods)?;
    let last = pods.last().context("pods")?;
    ensure!(last.mtu()? > 0, "a whole pod");
    told(
        "all nodes lose power at once",
        "cluster, blocks and identities as before, no stale lease, no address twice",
        &format!("all ready {} after the start", took(ready)),
    );
    Ok(())
}

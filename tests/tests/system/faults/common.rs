//! What these tests share.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use weft_agent::lab::netns::Netns;
use weft_proto::api::Condition;
use weft_tests::{Cluster, Node, Pod, Result, audit, wait_until};

/// Bound of waits; the figures printed are what counts.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// More pods than any node can own addresses for, in a small range.
pub(crate) const TOO_MANY: usize = 300;

/// A range with blocks that a few pods use up.
pub(crate) const SMALL: &str = "10.32.0.0/22";

/// The condition of that reason, if the node has it.
pub(crate) fn condition(node: &Node, reason: &str) -> Result<Option<Condition>> {
    Ok(node.status()?.conditions.into_iter().find(|c| c.reason == reason))
}

/// Waits until the node tells of it, in words that contain all of `parts`.
pub(crate) fn wait_condition(node: &Node, reason: &str, parts: &[&str]) -> Result<Duration> {
    let what = format!("{reason} {parts:?} on {}", node.plan.name);
    wait_until(&what, PATIENCE, || {
        let conditions = node.status()?.conditions;
        let found = conditions
            .iter()
            .any(|c| c.reason == reason && parts.iter().all(|part| c.message.contains(part)));
        ensure!(found, "there are {conditions:?}");
        Ok(true)
    })
}

/// Waits until the node has none of these conditions.
pub(crate) fn wait_without(node: &Node, reasons: &[&str]) -> Result<Duration> {
    wait_until(&format!("{} without {reasons:?}", node.plan.name), PATIENCE, || {
        let mut conditions = node.status()?.conditions;
        conditions.retain(|c| reasons.contains(&c.reason.as_str()));
        ensure!(conditions.is_empty(), "there are {conditions:?}");
        Ok(true)
    })
}

/// What a node thinks of another.
pub(crate) fn opinion(node: &Node, of: &str) -> Result<String> {
    let members = node.status()?.mesh.members;
    let member = members.into_iter().find(|m| m.name == of);
    Ok(member.with_context(|| format!("{} does not know {of}", node.plan.name))?.state)
}

/// Waits until all think that all are alive.
pub(crate) fn wait_all_alive(cluster: &Cluster) -> Result<Duration> {
    wait_until("all members alive for all", PATIENCE, || {
        for node in cluster.nodes() {
            for member in node.status()?.mesh.members {
                if member.state != "alive" {
                    bail!("{} thinks {} is {}", node.plan.name, member.name, member.state);
                }
            }
        }
        Ok(true)
    })
}

/// Attaches pods until the node owns more than before: a decision of the voters.
pub(crate) fn until_new_block(node: &Node) -> Result<Vec<Pod>> {
    let owned = node.status()?.ipam.owned;
    let mut pods = Vec::new();
    while node.status()?.ipam.owned <= owned {
        ensure!(pods.len() < TOO_MANY, "{} pods, and no new block", pods.len());
        pods.push(node.add_pod()?);
    }
    Ok(pods)
}

/// Every pod has all that belongs to it, and no address is anywhere twice.
pub(crate) fn audit_all(cluster: &Cluster, pods: &[Pod]) -> Result {
    for node in cluster.nodes() {
        let own: Vec<&Pod> = pods.iter().filter(|pod| pod.shim.netns == node.netns()).collect();
        audit::wait_exactly(node, &own)?;
        let log = node.log();
        let panic = log.lines().find(|line| line.contains("panicked"));
        ensure!(panic.is_none(), "{} panicked: {panic:?}", node.plan.name);
    }
    cluster.assert_unique(pods)
}

/// The last pod of every node reaches that of every other.
pub(crate) fn wait_reachable(cluster: &Cluster, pods: &[Pod]) -> Result<Duration> {
    let last = |node: &Node| pods.iter().rfind(|pod| pod.shim.netns == node.netns());
    let ends: Vec<Pod> = cluster.nodes().iter().filter_map(last).cloned().collect();
    let start = std::time::Instant::now();
    for from in &ends {
        for to in &ends {
            if from.address() != to.address() {
                from.wait_ping(to.address(), PATIENCE)?;
            }
        }
    }
    Ok(start.elapsed())
}

/// The namespace with the bridge between the nodes.
pub(crate) fn underlay(cluster: &Cluster) -> Netns {
    Netns::named(&cluster.plan.underlay)
}

/// Second address of a dual-stack pod.
pub(crate) fn second_address(pod: &Pod) -> Result<IpAddr> {
    let address = pod.result.addresses().get(1).map(ipnet::IpNet::addr);
    address.with_context(|| format!("{} has one address", pod.plan.name))
}

/// A number from the environment, for longer runs.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

//! Nodes that go, come back, and join.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use weft_tests::Result;
use weft_tests::kubernetes::KubeCluster;
use weft_tests::kubernetes::weft::{self, AgentOf};

use crate::e2e::{QUARANTINE, disruptions, reach, workloads};

const PATIENCE: Duration = Duration::from_secs(240);

/// A node dies and its Node object is deleted: its blocks rest. After the
/// quarantine it comes back with its old disk, as a new Node; nothing rests then.
pub(crate) fn dies_and_returns(cluster: &mut KubeCluster) -> Result<String> {
    let id = AgentOf(cluster.node(3)).status()?.node.id;
    cluster.node_mut(3).power_off()?;
    cluster.kubectl().delete(&["node", "n3"])?;
    let start = Instant::now();
    cluster.kubectl().wait("resting blocks of n3", PATIENCE, || {
        for node in &cluster.nodes()[..2] {
            let ipam = AgentOf(node).status()?.ipam;
            ensure!(!ipam.owners.iter().any(|o| o.id == id && o.addresses > 0), "n3 owns");
            ensure!(ipam.quarantined > 0, "nothing rests on {}", node.name());
        }
        Ok(true)
    })?;
    let evicted = start.elapsed();
    // It ends although nobody asks for an address.
    cluster.kubectl().wait("the end of the quarantine", QUARANTINE + PATIENCE, || {
        let resting =
            cluster.nodes()[..2].iter().map(|n| Ok(AgentOf(n).status()?.ipam.quarantined));
        Ok(resting.collect::<Result<Vec<_>>>()?.iter().all(|resting| *resting == 0))
    })?;
    let start = Instant::now();
    cluster.node_mut(3).boot()?;
    cluster.wait_registered()?;
    cluster.wait_ready(PATIENCE)?;
    let back = start.elapsed();
    let pods = together(cluster)?;
    let resting = AgentOf(cluster.node(1)).status()?.ipam.quarantined;
    ensure!(resting == 0, "{resting} addresses still rest");
    Ok(format!(
        "evicted {:.0} s after the deletion, Ready {:.0} s after its boot, nothing rests; {pods}",
        evicted.as_secs_f64(),
        back.as_secs_f64()
    ))
}

/// The Node object of a living node is deleted; its kubelet registers it again.
pub(crate) fn deleted_alive(cluster: &mut KubeCluster) -> Result<String> {
    cluster.kubectl().delete(&["node", "n2"])?;
    let left = "app in (web,peer)";
    cluster.kubectl().wait("the end of the pods of n2", PATIENCE, || {
        let field = "--field-selector=spec.nodeName=n2";
        let pods = cluster.kubectl().items(&["pods", "-n", "default", "-l", left, field])?;
        ensure!(pods.is_empty(), "{} are left", pods.len());
        Ok(true)
    })?;
    let start = Instant::now();
    cluster.node(2).exec(&["pkill", "-x", "kubelet"])?;
    cluster.wait_registered()?;
    cluster.wait_ready(PATIENCE)?;
    let back = start.elapsed();
    let pods = together(cluster)?;
    Ok(format!("Ready {:.0} s after the kubelet's start; {pods}", back.as_secs_f64()))
}

/// One more node.
pub(crate) fn joins(cluster: &mut KubeCluster) -> Result<String> {
    cluster.add_node()?;
    let start = Instant::now();
    cluster.wait_registered()?;
    cluster.wait_ready(PATIENCE)?;
    let ready = start.elapsed();
    let pods = together(cluster)?;
    Ok(format!("Ready after {:.0} s; {pods}", ready.as_secs_f64()))
}

/// All nodes are one network again, and nobody has what another has.
fn together(cluster: &KubeCluster) -> Result<String> {
    weft::wait_ready(cluster, PATIENCE)?;
    workloads::wait(cluster)?;
    weft::wait_counted(cluster, PATIENCE)?;
    disruptions::settled(cluster)?;
    let mut blocks = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for node in cluster.nodes() {
        let agent = AgentOf(node);
        let status = agent.status()?;
        for block in status.ipam.blocks {
            ensure!(blocks.insert(block), "block {block} has two owners");
        }
        for address in status.node.overlay {
            ensure!(addresses.insert(address), "{address} is there twice");
        }
        for address in agent.leases()?.into_iter().flat_map(|lease| lease.addresses) {
            ensure!(addresses.insert(address), "{address} is there twice");
        }
    }
    let reached = reach::all(cluster)?;
    Ok(format!(
        "{} addresses in {} blocks, none twice; reached: {reached}",
        addresses.len(),
        blocks.len()
    ))
}

//! Pods with an address of each family, over either family of underlay.

use std::time::Duration;

use anyhow::ensure;
use weft_agent::lab::netns::Netns;
use weft_tests::{Cluster, Result};

const RANGES: &str = "10.32.0.0/12,fd00:77::/48";

#[test]
fn over_an_ipv4_underlay() -> Result {
    let cluster = Cluster::builder().range(RANGES).start()?;
    everybody_reaches_all(&cluster, 1450)
}

#[test]
fn over_an_ipv6_underlay() -> Result {
    let nodes = 3;
    let address = |number: usize| format!("fd00:99::{number}");
    let peers: Vec<_> = (1..=nodes).map(address).collect();
    let mut builder =
        Cluster::builder().nodes(nodes).range(RANGES).stopped().env("KUBE_PEERS", &peers.join(" "));
    for number in 1..=nodes {
        builder = builder.node_env(number, "NODE_IP", &address(number));
    }
    let mut cluster = builder.start()?;
    for number in 1..=nodes {
        let netns = Netns::named(&cluster.node(number).plan.netns);
        netns.exec(&["ip", "-4", "addr", "flush", "dev", "eth0"])?;
        let net = format!("{}/64", address(number));
        netns.exec(&["ip", "addr", "add", &net, "dev", "eth0", "nodad"])?;
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    everybody_reaches_all(&cluster, 1430)
}

fn everybody_reaches_all(cluster: &Cluster, mtu: usize) -> Result {
    let pods = cluster.add_pods(2)?;
    let patience = Duration::from_secs(5);
    for from in &pods {
        let own = from.result.addresses();
        ensure!(own.len() == 2, "one address per family: {own:?}");
        ensure!(from.mtu()? == mtu, "{} instead of {mtu}", from.mtu()?);
        for to in pods.iter().filter(|to| to.plan != from.plan) {
            for net in to.result.addresses() {
                from.wait_ping(net.addr(), patience)?;
            }
        }
    }
    for node in cluster.nodes() {
        let overlay = node.status()?.node.overlay;
        ensure!(overlay.len() == 2, "one address per family: {overlay:?}");
        for address in overlay {
            pods[0].wait_ping(address, patience)?;
        }
    }
    Ok(())
}

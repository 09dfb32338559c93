//! Every pod reaches every other: small packets, the largest, and a gigabyte.

use anyhow::ensure;
use weft_tests::{Cluster, Result, stream};

#[test]
fn pods_reach_each_other_with_every_size() -> Result {
    let cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(2)?;
    cluster.assert_unique(&pods)?;
    let took = cluster.assert_reachable(&pods)?;
    println!("30 pairs reachable {took:?} after the last ADD");

    let (a, b) = (&pods[0], &pods[5]);
    let mtu = a.mtu()?;
    ensure!(mtu == 1450, "1500 of the underlay minus 50 of VXLAN, not {mtu}");
    ensure!(matches!(a.ping_whole(b.address(), mtu)?, Ok(true)), "{mtu} bytes with DF pass");
    ensure!(a.ping_whole(b.address(), mtu + 1)?.is_err(), "one byte more is refused at once");

    let bytes = match std::env::var("WEFT_BULK_BYTES") {
        Ok(text) => text.parse()?,
        Err(_) => 1 << 30,
    };
    let rate = stream::bulk(a, b, bytes)?;
    println!("{bytes} bytes of TCP between nodes, SHA-256 equal: {:.2} Gbit/s", rate / 1e9);
    let rate = stream::bulk(&pods[0], &pods[1], bytes / 4)?;
    println!("{} bytes within a node: {:.2} Gbit/s", bytes / 4, rate / 1e9);
    Ok(())
}

#[test]
fn pods_reach_the_outside_and_their_node() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let pod = cluster.node(1).add_pod()?;
    let second = std::time::Duration::from_secs(5);
    // The underlay's bridge stands for the world: only masqueraded packets come back.
    pod.wait_ping(cluster.plan.gateway.into(), second)?;
    pod.wait_ping(cluster.node(1).plan.address, second)?;
    pod.wait_ping(cluster.node(2).plan.address, second)?;
    for node in cluster.nodes() {
        for address in node.status()?.node.overlay {
            pod.wait_ping(address, second)?;
        }
    }
    Ok(())
}

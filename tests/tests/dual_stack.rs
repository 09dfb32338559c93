//! Pods with an address of each family over an IPv4 underlay.

use std::time::Duration;

use anyhow::ensure;
use weft_tests::{Cluster, Result};

#[test]
fn every_pod_has_both_families_and_reaches_all() -> Result {
    let cluster = Cluster::builder().range("10.32.0.0/12,fd00:77::/48").start()?;
    let pods = cluster.add_pods(2)?;
    let second = Duration::from_secs(5);
    for pod in &pods {
        let addresses = pod.result.addresses();
        ensure!(addresses.len() == 2, "one address per family: {addresses:?}");
        ensure!(addresses.iter().any(|net| net.addr().is_ipv6()), "{addresses:?}");
    }
    cluster.assert_reachable(&pods)?;
    for from in &pods {
        for to in &pods {
            for net in to.result.addresses().iter().filter(|net| net.addr().is_ipv6()) {
                if from.plan != to.plan {
                    from.wait_ping(net.addr(), second)?;
                }
            }
        }
    }
    for node in cluster.nodes() {
        for address in node.status()?.node.overlay {
            pods[0].wait_ping(address, second)?;
        }
    }
    Ok(())
}

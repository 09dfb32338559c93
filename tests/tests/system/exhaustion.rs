//! A tiny range is used to the last address, from whichever node asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{bail, ensure};
use ipnet::IpNet;
use weft_tests::{Cluster, Result};

const RANGE: &str = "10.32.1.0/28";

#[test]
fn every_address_is_handed_out_exactly_once() -> Result {
    let cluster = Cluster::builder().range(RANGE).start()?;
    let range: IpNet = RANGE.parse()?;
    let mut held = BTreeSet::new();
    for node in cluster.nodes() {
        for address in node.status()?.node.overlay {
            ensure!(held.insert(address), "two nodes have {address}");
        }
    }
    println!("the nodes' own addresses: {held:?}");

    let mut pods = Vec::new();
    let mut full = vec![None; 3];
    // Round robin, then whoever can still get one, until nobody can.
    while let Some(at) =
        (0..3).filter(|at| full[*at].is_none()).min_by_key(|at| (pods.len() + at) % 3)
    {
        match cluster.node(at + 1).add_pod() {
            Ok(pod) => {
                let address = pod.address();
                ensure!(range.contains(&address), "{address} is not in {RANGE}");
                ensure!(held.insert(address), "{address} was handed out twice");
                pods.push(pod);
            }
            Err(error) => full[at] = Some(error.to_string()),
        }
        ensure!(pods.len() <= 16, "more pods than addresses");
    }
    let all: BTreeSet<IpAddr> = range.hosts().collect();
    let unused: Vec<_> = all.difference(&held).collect();
    println!("{} pods; refusals: {full:#?}", pods.len());
    ensure!(unused.is_empty(), "usable, but never handed out: {unused:?}");
    for refusal in full.iter().flatten() {
        ensure!(refusal.contains("code 11"), "a runtime must try again: {refusal}");
        ensure!(refusal.contains(RANGE), "the refusal names the range: {refusal}");
    }
    cluster.assert_reachable(&pods)?;

    // One comes free on one node; another node may have it.
    let Some(gone) = pods.iter().position(|pod| pod.plan.name.starts_with("n1")) else {
        bail!("node 1 has no pod")
    };
    let gone = pods.swap_remove(gone);
    gone.detach()?;
    let node = cluster.node(2);
    let mut late = None;
    weft_tests::wait_until("an address after DEL", std::time::Duration::from_secs(40), || {
        late = Some(node.add_pod()?);
        Ok(true)
    })?;
    pods.extend(late);
    cluster.assert_unique(&pods)?;
    cluster.assert_reachable(&pods).map(drop)
}

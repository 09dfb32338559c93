//! The range grows while pods talk.

use std::time::Duration;

use anyhow::{Context, ensure};
use weft_tests::pinger::Pinger;
use weft_tests::{Cluster, Result, wait_until};

/// The bridge's address gets another prefix, and with it every route its source: no packet
/// is lost meanwhile, within a node or between nodes.
#[test]
fn a_range_that_grows_loses_no_packet() -> Result {
    let cluster = Cluster::builder().range("10.32.0.0/22").start()?;
    let pods = cluster.add_pods_on(&[1, 1, 2])?;
    cluster.assert_reachable(&pods)?;
    let pings = [(0, 1), (0, 2), (2, 0)]
        .map(|(from, to)| Pinger::start(&pods[from], pods[to].address(), Duration::from_millis(1)));
    for (node, range) in [(1, "10.32.0.0/21"), (2, "10.32.0.0/20"), (3, "10.32.0.0/19")] {
        let body = format!("{{\"range\":\"{range}\"}}");
        let answer = cluster.node(node).request("POST", "/v1/ranges", body.as_bytes())?;
        ensure!(answer.code == 204, "{answer:?}");
        let (_, length) = range.split_once('/').context("a prefix length")?;
        wait_until(&format!("{range} in all kernels"), Duration::from_secs(30), || {
            for node in cluster.nodes() {
                let text = node.exec(&["ip", "-o", "-4", "addr", "show", "dev", "weft"])?;
                ensure!(text.contains(&format!("/{length} ")), "{}: {text}", node.plan.name);
                ensure!(text.lines().count() == 1, "{}: {text}", node.plan.name);
            }
            Ok(true)
        })?;
    }
    for ping in pings {
        let tally = ping?.stop()?;
        println!("{} echoes, {} lost", tally.sent, tally.lost.len());
        ensure!(tally.lost.is_empty(), "lost: {:?}", tally.lost);
    }
    cluster.assert_reachable(&pods).map(drop)
}

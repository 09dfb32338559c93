//! Whatever is deleted behind the agent's back is put back, without a restart.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_tests::{Cluster, Result, wait_until};

/// Bound of the wait; the figure printed is what counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// iproute2 cannot flush routes that use nexthop objects (the kernel refuses
/// its request half-way), so they are also deleted one by one.
const FLUSH_ROUTES: &str = "ip route flush proto 117 2>/dev/null
    ip -o route show proto 117 | sed 's/ nhid .*//; s/ dev .*//' |
    while read -r route; do ip route del $route; done
    ip route flush cache";

const DAMAGES: [(&str, &[&str]); 9] = [
    ("ip link del weft-vx", &["ip", "link", "del", "weft-vx"]),
    ("ip link del weft", &["ip", "link", "del", "weft"]),
    ("ip link set weft down", &["ip", "link", "set", "weft", "down"]),
    ("ip link set weft-vx down", &["ip", "link", "set", "weft-vx", "down"]),
    ("ip route flush (ours)", &["sh", "-c", FLUSH_ROUTES]),
    ("ip nexthop flush (ours)", &["ip", "nexthop", "flush", "proto", "117"]),
    ("ip neigh flush weft-vx", &["ip", "neigh", "flush", "dev", "weft-vx", "nud", "all"]),
    ("nft flush ruleset", &["nft", "flush", "ruleset"]),
    ("ip addr flush dev weft", &["ip", "addr", "flush", "dev", "weft"]),
];

#[test]
fn deleted_objects_come_back() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(2)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(1);
    let outside = cluster.plan.gateway.into();
    pods[0].wait_ping(outside, PATIENCE)?;
    wait_until("a node in sync", PATIENCE, || Ok(node.status()?.dataplane.in_sync))?;
    let rules = || -> Result<usize> {
        let tables = node.exec(&["nft", "list", "tables"])?;
        Ok(tables.lines().filter(|line| line.ends_with(" weft")).count())
    };
    // Not the link-local address of IPv6: that is the kernel's.
    let addresses = || node.exec(&["ip", "-br", "-4", "addr", "show", "dev", "weft"]);
    let (tables, address) = (rules()?, addresses()?);
    let pid = node.agent()?.pid();

    for (what, damage) in DAMAGES {
        let start = Instant::now();
        node.exec(damage).with_context(|| format!("damage: {what}"))?;
        let all_back = || -> Result<bool> {
            for (from, to) in [(0, 2), (0, 1), (2, 0), (3, 1)] {
                if pods[from].ping(pods[to].address())?.is_none() {
                    return Ok(false);
                }
            }
            // Only masqueraded packets get an answer from outside.
            Ok(pods[1].ping(outside)?.is_some() && rules()? == tables && addresses()? == address)
        };
        wait_until(&format!("all traffic back after `{what}`"), PATIENCE, all_back)
            .with_context(|| node.log_tail())?;
        println!("{what:<26} back after {:>6.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    }
    ensure!(node.agent()?.pid() == pid, "without a restart");
    Ok(())
}

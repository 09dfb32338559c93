//! Another program that keeps deleting what is ours, or adds to it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Node, Pod, Result, wait_until};

use crate::faults::common::{PATIENCE, audit_all, wait_condition};

/// A shell that does the same again and again inside a node, until dropped.
struct Loop(Child);

impl Loop {
    fn start(node: &Node, command: &str) -> Result<Self> {
        let script = format!("while :; do {command}; sleep 0.01; done >/dev/null 2>&1");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::null()).process_group(0);
        Ok(Self(node.netns().run(|| shell.spawn())?.context("sh")?))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The whole group: `sleep` or `ip` may be what runs at the moment.
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// What the other program does, and what weft will be seen doing against it. `VETH` is a pod's
/// host end, `BLOCK` a block of the other node.
const HABITS: [(&str, &str, &str); 18] = [
    ("deletes a route", "ip route del BLOCK", "set route"),
    (
        "adds a route of ours",
        "ip route replace 10.32.99.0/26 dev weft-vx proto 117",
        "delete route",
    ),
    ("flushes neighbours", "ip neigh flush dev weft-vx nud all", "set neighbour"),
    (
        "adds a neighbour",
        "ip neigh replace 10.32.77.77 lladdr 02:00:00:00:00:01 dev weft nud permanent",
        "delete neighbour",
    ),
    ("flushes nexthops", "ip nexthop flush proto 117", "set nexthop"),
    ("adds a nexthop of ours", "ip nexthop replace id 7777 dev lo proto 117", "delete nexthop"),
    (
        "flushes FDB entries",
        "bridge fdb flush dev VETH master; bridge fdb show dev VETH master \
      static | while read mac rest; do bridge fdb del $mac dev VETH master; done",
        "set FDB",
    ),
    (
        "adds an FDB entry",
        "bridge fdb replace 02:00:00:00:00:02 dev VETH master static",
        "delete FDB",
    ),
    ("takes a port off the bridge", "ip link set VETH nomaster", "set port"),
    ("flushes the rule set", "nft flush ruleset", "rule set"),
    ("deletes table inet weft", "nft delete table inet weft", "rule set"),
    ("deletes table bridge weft", "nft delete table bridge weft", "rule set"),
    ("adds a rule", "nft insert rule inet weft forward drop", "rule set"),
    ("adds an element", "nft add element bridge weft pods4 '{ KEY }'", "rule set"),
    ("deletes the tunnel", "ip link del weft-vx", "create link weft-vx"),
    ("deletes the bridge", "ip link del weft", "create link weft"),
    ("flushes the address", "ip addr flush dev weft", "add address"),
    ("adds an address", "ip addr replace 10.32.200.200/32 dev weft", "delete address"),
];

/// Processor time of an agent in hundredths of a second, user and system.
fn ticks(node: &Node) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.agent()?.pid()))?;
    let (_, rest) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<_> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Everything is as it was, and stays so.
fn healed(node: &Node, pods: &[Pod]) -> Result<bool> {
    for (from, to) in [(0, 2), (2, 0), (0, 1), (3, 1)] {
        ensure!(pods[from].ping(pods[to].address())?.is_some(), "{from} does not reach {to}");
    }
    let data = node.status()?.dataplane;
    ensure!(data.in_sync && data.errors.is_empty(), "{:?}", data.errors);
    Ok(true)
}

#[test]
fn another_program_fights_weft() -> Result {
    let mut cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(2)?;
    cluster.assert_reachable(&pods)?;
    let block = cluster.node(2).status()?.ipam.blocks.first().context("a block")?.to_string();
    let mut worst = 0.0_f64;
    for (what, command, answer) in HABITS {
        // A new life: it remembers no earlier fight.
        cluster.node_mut(1).restart()?;
        let node = cluster.node(1);
        let veth = node.veths()?.into_iter().next().context("a pod's interface")?;
        let command = command
            .replace("VETH", &veth)
            .replace("BLOCK", &block)
            .replace("KEY", &format!("\"{veth}\" . 02:00:00:00:00:03 . 10.32.0.99"));
        wait_until("a quiet node", PATIENCE, || healed(node, &pods))?;
        let (start, before, used) =
            (Instant::now(), node.status()?.dataplane.repairs, ticks(node)?);
        let fight = Loop::start(node, &command)?;
        let named = wait_condition(node, "KernelFight", &[answer])
            .with_context(|| format!("a program that {what}: `{command}`"))?;
        let seconds = start.elapsed().as_secs_f64();
        let repairs = node.status()?.dataplane.repairs - before;
        let share = (ticks(node)? - used) as f64 / seconds;
        worst = worst.max(share);
        drop(fight);
        let start = Instant::now();
        wait_until("everything back", PATIENCE, || healed(node, &pods)).context(what)?;
        let back = start.elapsed();
        ensure!(share < 50.0, "{what}: {share:.0} % of a processor");
        told(
            &format!("another program {what} in a loop"),
            &format!(
                "`KernelFight` after {}; {:.1} repairs/s, {share:.0} % of a processor",
                took(named),
                repairs as f64 / seconds
            ),
            &format!("{} after it stopped", took(back)),
        );
    }
    println!("at most {worst:.0} % of a processor");
    audit_all(&cluster, &pods)
}

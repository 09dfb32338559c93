//! How little it takes: the shim's size and speed, an idle agent's memory and time.

use std::time::Duration;

use anyhow::{Context, ensure};
use weft_agent::lab::pods::Call;
use weft_tests::stats::{ms, percentile};
use weft_tests::{Cluster, Result, binaries};

#[test]
fn the_shim_is_small_and_quick() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let shim = cluster.node(1).shim();
    let mut times = Vec::new();
    for _ in 0..100 {
        let conf = shim.conf("1.0.0");
        let call =
            Call { verb: "VERSION", container_id: "", ifname: "", netns: None, args: "", conf };
        times.push(shim.call(&call)?.ok("VERSION")?.took);
    }
    let bytes = std::fs::metadata(binaries::shim()?)?.len();
    println!(
        "shim: {} KiB; exec to answer p50 {:.2} ms, p99 {:.2} ms",
        bytes / 1024,
        ms(percentile(&times, 50)),
        ms(percentile(&times, 99))
    );
    let release = binaries::directory()?.ends_with("release");
    ensure!(!release || bytes <= 2 << 20, "the shim has {bytes} bytes, more than 2 MiB");
    Ok(())
}

#[test]
fn an_idle_agent_takes_next_to_nothing() -> Result {
    const WINDOW: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::builder().start()?;
    cluster.wait_one_ledger()?;
    let ticks = |pid: i32| -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(") ").context("stat")?;
        let fields: Vec<_> = rest.split(' ').collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let before: Vec<_> =
        cluster.nodes().iter().map(|n| ticks(n.agent()?.pid())).collect::<Result<_>>()?;
    // A measurement over time, not a wait for a condition.
    std::thread::sleep(WINDOW);
    let release = binaries::directory()?.ends_with("release");
    for (node, before) in cluster.nodes().iter().zip(before) {
        let used = ticks(node.agent()?.pid())? - before;
        let rss = node.agent()?.rss_kib().context("no memory")?;
        println!(
            "{}: {:.1} MiB, {:.2} % of one CPU",
            node.plan.name,
            rss as f64 / 1024.0,
            // 100 ticks a second, on every Linux there is.
            used as f64 / WINDOW.as_secs_f64()
        );
        ensure!(!release || rss <= 20 * 1024, "{rss} KiB are more than 20 MiB");
    }
    Ok(())
}

//! ADD and DEL of weft against `bridge` + `host-local`, interleaved in one run.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use weft_agent::lab::netns::Netns;
use weft_tests::reference::Reference;
use weft_tests::stats::{ms, percentile};
use weft_tests::{Cluster, Node};

const SEQUENTIAL: usize = 200;
const AT_ONCE: usize = 32;
const ROUNDS: usize = 5;

trait Plugin: Sync {
    fn call(&self, verb: &str, sandbox: &Netns) -> Result<Duration>;
}

impl Plugin for Reference {
    fn call(&self, verb: &str, sandbox: &Netns) -> Result<Duration> {
        Self::call(self, verb, sandbox)
    }
}

struct Weft<'a>(&'a Node);

impl Plugin for Weft<'_> {
    fn call(&self, verb: &str, sandbox: &Netns) -> Result<Duration> {
        use weft_agent::lab::topology::PodPlan;
        let name = sandbox.name().to_owned();
        let plan = PodPlan { name: name.clone(), netns: name.clone(), container_id: name };
        Ok(self.0.shim().pod(verb, &plan)?.ok(verb)?.took)
    }
}

/// Wall time of one verb on all sandboxes at once.
fn at_once(plugin: &dyn Plugin, verb: &str, sandboxes: &[Netns]) -> Result<Duration> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| scope.spawn(move || plugin.call(verb, sandbox)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_| anyhow!("a worker panicked"))?.map(drop)
        })
    })?;
    Ok(start.elapsed())
}

#[derive(Default)]
struct Times {
    add: Vec<Duration>,
    del: Vec<Duration>,
    add_at_once: Vec<Duration>,
    del_at_once: Vec<Duration>,
    /// From the first DEL until no device is left.
    gone: Vec<Duration>,
}

fn main() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let reference = Reference::new(cluster.node(2).netns(), cluster.directory())?;
    let weft = Weft(cluster.node(1));
    let plugins: [(&str, &dyn Plugin); 2] = [("bridge+host-local", &reference), ("weft", &weft)];
    // Each its own: nobody waits for devices the other one left to be removed.
    let sandboxes = |whose: &str| {
        (0..AT_ONCE)
            .map(|number| {
                let name = format!("weftlab-{}-{whose}{number}", cluster.plan.name);
                let netns = Netns::named(name);
                netns.create().map(|()| netns)
            })
            .collect::<Result<Vec<_>>>()
    };
    let sandboxes = [sandboxes("r")?, sandboxes("w")?];
    let before = cluster.node(1).status()?.ipam.leases;

    let mut times = [Times::default(), Times::default()];
    for round in 0..SEQUENTIAL {
        for (((_, plugin), times), own) in plugins.iter().zip(&mut times).zip(&sandboxes) {
            let sandbox = &own[round % own.len()];
            times.add.push(plugin.call("ADD", sandbox)?);
            times.del.push(plugin.call("DEL", sandbox)?);
            // What DEL leaves to the kernel must not slow down the next one.
            cluster.node(1).wait_clean(before, 0)?;
        }
    }
    for _ in 0..ROUNDS {
        for (((_, plugin), times), own) in plugins.iter().zip(&mut times).zip(&sandboxes) {
            times.add_at_once.push(at_once(*plugin, "ADD", own)?);
            let start = Instant::now();
            times.del_at_once.push(at_once(*plugin, "DEL", own)?);
            cluster.node(1).wait_clean(before, 0)?;
            times.gone.push(start.elapsed());
        }
    }

    println!(
        "{SEQUENTIAL} times ADD, DEL one after the other; {ROUNDS} times {AT_ONCE} at once; ms"
    );
    println!(
        "{:<18} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12} {:>12}",
        "",
        "ADD p50",
        "ADD p99",
        "DEL p50",
        "DEL p99",
        "ADD/s at 32",
        "DEL/s at 32",
        "gone/s at 32"
    );
    let rate = |walls: &[Duration]| AT_ONCE as f64 / percentile(walls, 50).as_secs_f64();
    for ((name, _), times) in plugins.iter().zip(&times) {
        println!(
            "{name:<18} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>12.0} {:>12.0} {:>12.0}",
            ms(percentile(&times.add, 50)),
            ms(percentile(&times.add, 99)),
            ms(percentile(&times.del, 50)),
            ms(percentile(&times.del, 99)),
            rate(&times.add_at_once),
            rate(&times.del_at_once),
            rate(&times.gone),
        );
    }
    let [theirs, ours] = &times;
    let ratio = |a: &[Duration], b: &[Duration]| ms(percentile(a, 50)) / ms(percentile(b, 50));
    let rows = [
        ("ADD p50, theirs / ours", ratio(&theirs.add, &ours.add), 4.0),
        ("DEL p50, theirs / ours", ratio(&theirs.del, &ours.del), 8.0),
        ("ADD throughput at 32, ours / theirs", ratio(&theirs.add_at_once, &ours.add_at_once), 4.0),
        ("DEL throughput at 32, ours / theirs", ratio(&theirs.del_at_once, &ours.del_at_once), 4.0),
    ];
    for (what, got, wanted) in rows {
        let verdict = if got >= wanted { "ok" } else { "MISSED" };
        println!("{what:<38} {got:>6.1}   wanted {wanted:.0}   {verdict}");
    }
    cluster.node(1).wait_clean(before, 0)?;
    println!("no address and no device left behind");
    Ok(())
}

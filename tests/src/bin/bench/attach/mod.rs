//! Attaching pods: weft against the kernel floor, `bridge` + `host-local`, and
//! `bridge` (masquerading) + `portmap`, side by side in one run.
//!
//! Every figure is a ratio within one round; what is printed is the median of the
//! rounds, with the smallest and the largest. `WEFT_BENCH_ROUNDS=9` so many rounds.

mod floor;
mod plugins;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use weft_agent::lab::netns::{Netns, ip};
use weft_agent::lab::pods::{Call, Shim};
use weft_tests::ratios::{self, Ratio, Wanted};
use weft_tests::reference::Reference;
use weft_tests::stats::{ms, percentile};
use weft_tests::{Cluster, Node};

use self::floor::Floor;
use self::plugins::{Plugin, Ports, Sandbox, Weft};

/// One after the other, per round.
const SINGLE: usize = 30;
/// The same with host ports.
const WITH_PORTS: usize = 5;
const AT_ONCE: usize = 32;
/// Pods of one node, and how many make its beginning and its end.
const MANY: usize = 500;
const EDGE: usize = 50;

/// Namespaces, by `ip` in one go.
fn sandboxes(cluster: &Cluster, whose: &str, first: usize, count: usize) -> Result<Vec<Sandbox>> {
    let all: Vec<Sandbox> = (first..first + count)
        .map(|number| Sandbox {
            netns: Netns::named(format!("weftlab-{}-{whose}{number}", cluster.plan.name)),
            number: u16::try_from(number).unwrap_or(u16::MAX),
        })
        .collect();
    let add = |sandbox: &Sandbox| format!("netns add {}\n", sandbox.netns.name());
    ip(&[], &all.iter().map(add).collect::<String>())?;
    Ok(all)
}

/// Time of one verb on each of the sandboxes at once, and of all.
fn at_once(
    sandboxes: &[Sandbox],
    call: impl Fn(&Sandbox) -> Result<Duration> + Sync,
) -> Result<(Vec<Duration>, Duration)> {
    let start = Instant::now();
    let times = std::thread::scope(|scope| {
        let call = &call;
        let workers: Vec<_> =
            sandboxes.iter().map(|sandbox| scope.spawn(move || call(sandbox))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    Ok((times, start.elapsed()))
}

/// What one round measured, by what was measured; milliseconds.
type Round = std::collections::BTreeMap<&'static str, f64>;

fn p50(times: &[Duration]) -> f64 {
    ms(percentile(times, 50))
}

struct Bench {
    cluster: Cluster,
    start: Shim,
    floor: Floor,
    bridge: Reference,
    portmap: Ports,
    weft: Weft,
    weft_ports: Weft,
    /// A node with few pods.
    beside: Weft,
    /// Leases of the two nodes before anything.
    before: [usize; 2],
    singles: [Vec<Sandbox>; 3],
    /// Of the full node, of the one beside it, and of the kernel floor.
    many: [Vec<Sandbox>; 3],
}

impl Bench {
    fn new() -> Result<Self> {
        let cluster = Cluster::builder().start()?;
        let node = |name: &str| {
            let netns = Netns::named(format!("weftlab-{}-{name}", cluster.plan.name));
            netns.create().map(|()| netns)
        };
        let (theirs, bare) = (node("theirs")?, node("floor")?);
        let shim = |node: &Node, ports| Weft { shim: node.shim(), ports };
        let own = std::env::current_exe()?;
        Ok(Self {
            start: Shim { exe: own, ..cluster.node(1).shim() },
            floor: Floor::new(bare)?,
            bridge: Reference::new(theirs.clone(), cluster.directory())?,
            portmap: Ports::new(theirs, cluster.directory())?,
            weft: shim(cluster.node(1), false),
            weft_ports: shim(cluster.node(1), true),
            beside: shim(cluster.node(2), false),
            before: [cluster.node(1).status()?.ipam.leases, cluster.node(2).status()?.ipam.leases],
            singles: [
                sandboxes(&cluster, "b", 0, AT_ONCE)?,
                sandboxes(&cluster, "w", 100, AT_ONCE)?,
                sandboxes(&cluster, "f", 200, 1)?,
            ],
            many: [
                sandboxes(&cluster, "m", 1000, MANY)?,
                sandboxes(&cluster, "e", 2000, EDGE)?,
                sandboxes(&cluster, "g", 3000, MANY)?,
            ],
            cluster,
        })
    }

    /// What DEL leaves to the kernel must not slow down the next one.
    fn settle(&self) -> Result<()> {
        self.cluster.node(1).wait_clean(self.before[0], 0).map(drop)
    }

    /// A process that does nothing.
    fn start_process(&self) -> Result<Duration> {
        let call = Call {
            verb: "NOTHING",
            container_id: "",
            ifname: "",
            netns: None,
            args: "",
            conf: Value::Null,
        };
        Ok(self.start.call(&call)?.ok("starting a process")?.took)
    }

    fn singles(&self, out: &mut Round) -> Result<()> {
        let [theirs, ours, bare] = &self.singles;
        let (mut start, mut floor) = (Vec::new(), Vec::new());
        let mut plugins: [(&dyn Plugin, _, _, _); 2] = [
            (&self.bridge, theirs, Vec::new(), Vec::new()),
            (&self.weft, ours, Vec::new(), Vec::new()),
        ];
        for turn in 0..SINGLE {
            start.push(self.start_process()?);
            floor.push(self.floor.add(&bare[0])?);
            self.floor.del(bare)?;
            for (plugin, sandboxes, add, del) in &mut plugins {
                let sandbox = &sandboxes[turn % AT_ONCE];
                add.push(plugin.add(sandbox)?);
                del.push(plugin.del(sandbox)?);
                self.settle()?;
            }
        }
        out.extend([("process start", p50(&start)), ("kernel floor ADD", p50(&floor))]);
        let [(.., add, del), (.., our_add, our_del)] = &plugins;
        out.extend([("bridge ADD", p50(add)), ("bridge DEL", p50(del))]);
        out.extend([("weft ADD", p50(our_add)), ("weft DEL", p50(our_del))]);
        out.extend([
            ("bridge ADD p99", ms(percentile(add, 99))),
            ("weft ADD p99", ms(percentile(our_add, 99))),
        ]);
        Ok(())
    }

    fn ports(&self, out: &mut Round) -> Result<()> {
        let mut plugins: [(&dyn Plugin, _, _, _); 2] = [
            (&self.portmap, &self.singles[0], Vec::new(), Vec::new()),
            (&self.weft_ports, &self.singles[1], Vec::new(), Vec::new()),
        ];
        for turn in 0..WITH_PORTS {
            for (plugin, sandboxes, add, del) in &mut plugins {
                add.push(plugin.add(&sandboxes[turn])?);
                del.push(plugin.del(&sandboxes[turn])?);
                self.settle()?;
            }
        }
        let [(.., add, del), (.., our_add, our_del)] = &plugins;
        out.extend([("portmap ADD", p50(add)), ("portmap DEL", p50(del))]);
        out.extend([("weft ports ADD", p50(our_add)), ("weft ports DEL", p50(our_del))]);
        Ok(())
    }

    fn parallel(&self, out: &mut Round) -> Result<()> {
        let names = [
            ["bridge 32 ADD wall", "bridge 32 ADD p99", "bridge 32 DEL wall"],
            ["weft 32 ADD wall", "weft 32 ADD p99", "weft 32 DEL wall"],
        ];
        let plugins: [(&dyn Plugin, _); 2] =
            [(&self.bridge, &self.singles[0]), (&self.weft, &self.singles[1])];
        for ((plugin, sandboxes), [wall, p99, del]) in plugins.iter().zip(names) {
            let (times, took) = at_once(sandboxes, |sandbox| plugin.add(sandbox))?;
            out.extend([(wall, ms(took)), (p99, ms(percentile(&times, 99)))]);
            out.insert(del, ms(at_once(sandboxes, |sandbox| plugin.del(sandbox))?.1));
            self.settle()?;
        }
        Ok(())
    }

    /// Many pods on one node. In turn with the first and the last ones, a pod comes to
    /// another node that has at most `EDGE`, a process starts, and the kernel floor makes
    /// the same pod on a node as full: the machine's own ups and downs are in all.
    fn many(&self, out: &mut Round) -> Result<()> {
        let edges = [
            (0..EDGE, ["first 50", "beside the first", "floor first 50", "process first 50"]),
            (MANY - EDGE..MANY, ["last 50", "beside the last", "floor last 50", "process last 50"]),
        ];
        let [many, few, bare] = &self.many;
        let mut added = 0;
        for (edge, names) in edges {
            let between = added..edge.start;
            for (floor, sandbox) in bare[between.clone()].iter().zip(&many[between]) {
                self.floor.add(floor)?;
                self.weft.add(sandbox)?;
            }
            let mut times: [Vec<Duration>; 4] = Default::default();
            for (number, beside) in edge.clone().zip(few) {
                let took = [
                    self.weft.add(&many[number])?,
                    self.beside.add(beside)?,
                    self.floor.add(&bare[number])?,
                    self.start_process()?,
                ];
                times.iter_mut().zip(took).for_each(|(all, one)| all.push(one));
            }
            added = edge.end;
            out.extend(names.into_iter().zip(times.iter().map(|all| p50(all))));
            // None may find what another of its name has left behind.
            for beside in few {
                self.beside.del(beside)?;
            }
            self.cluster.node(2).wait_clean(self.before[1], 0)?;
        }
        self.floor.del(bare)?;
        for sandbox in many {
            self.weft.del(sandbox)?;
        }
        self.settle()
    }

    fn round(&self) -> Result<Round> {
        let mut out = Round::new();
        self.singles(&mut out)?;
        self.ports(&mut out)?;
        self.parallel(&mut out)?;
        self.many(&mut out)?;
        Ok(out)
    }
}

/// A figure of one round, by its name.
type Figure<'a> = &'a dyn Fn(&str) -> f64;

fn judge(rounds: &[Round]) -> Vec<Ratio> {
    use Wanted::{AtLeast, AtMost};
    let line = |name, what, wanted, of: &dyn Fn(Figure<'_>) -> f64| Ratio {
        name,
        what,
        rounds: rounds
            .iter()
            .map(|round| of(&|key| round.get(key).copied().unwrap_or(f64::NAN)))
            .collect(),
        wanted,
    };
    vec![
        line("add_bridge", "ADD p50: bridge + host-local / weft", AtLeast(6.0), &|v| {
            v("bridge ADD") / v("weft ADD")
        }),
        line(
            "add_floor",
            "ADD p50: weft / (2 x kernel floor + one process start)",
            AtMost(1.0),
            &|v| v("weft ADD") / (2.0 * v("kernel floor ADD") + v("process start")),
        ),
        line("add_ports", "ADD p50, a host port: bridge + portmap / weft", AtLeast(30.0), &|v| {
            v("portmap ADD") / v("weft ports ADD")
        }),
        line("del_bridge", "DEL p50: bridge + host-local / weft", AtLeast(8.0), &|v| {
            v("bridge DEL") / v("weft DEL")
        }),
        line("del_ports", "DEL p50, a host port: bridge + portmap / weft", AtLeast(30.0), &|v| {
            v("portmap DEL") / v("weft ports DEL")
        }),
        line("add_32", "32 ADD at once, per second: weft / bridge", AtLeast(5.0), &|v| {
            v("bridge 32 ADD wall") / v("weft 32 ADD wall")
        }),
        line("add_32_p99", "32 ADD at once, p99: weft / bridge", AtMost(0.2), &|v| {
            v("weft 32 ADD p99") / v("bridge 32 ADD p99")
        }),
        line("del_32", "32 DEL at once, per second: weft / bridge", AtLeast(5.0), &|v| {
            v("bridge 32 DEL wall") / v("weft 32 DEL wall")
        }),
        line("add_500", "500 pods, ADD p50: last 50 / first 50", AtMost(1.25), &|v| {
            v("last 50") / v("first 50")
        }),
        line(
            "add_500_beside",
            "500 pods, ADD p50 of the last 50: weft / a node with 50 beside",
            AtMost(1.25),
            &|v| v("last 50") / v("beside the last"),
        ),
        line(
            "add_500_floor",
            "500 pods, ADD p50 of the last 50: weft / (2 x floor at 500 + process start)",
            AtMost(1.0),
            &|v| v("last 50") / (2.0 * v("floor last 50") + v("process last 50")),
        ),
    ]
}

pub(crate) fn run() -> Result<()> {
    let count = std::env::var("WEFT_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let bench = Bench::new()?;
    let mut rounds = Vec::new();
    for number in 1..=count {
        let start = Instant::now();
        rounds.push(bench.round()?);
        println!("round {number} of {count}: {:.0} s", start.elapsed().as_secs_f64());
    }
    bench.settle()?;
    println!("no address and no device left behind\n");
    println!("{:<22} {:>9} {:>20}", "ms", "median", "[min, max]");
    let mut figures = serde_json::Map::new();
    for key in rounds.first().into_iter().flat_map(Round::keys) {
        let of: Vec<f64> = rounds.iter().filter_map(|round| round.get(key).copied()).collect();
        let (min, max) = of.iter().fold((f64::MAX, 0.0_f64), |(a, b), x| (a.min(*x), b.max(*x)));
        println!("{key:<22} {:>9.2} {:>20}", ratios::median(&of), format!("[{min:.2}, {max:.2}]"));
        figures.insert((*key).to_owned(), json!(of));
    }
    println!();
    let ratios = judge(&rounds);
    ratios::print(&ratios);
    ratios::write(&ratios::path("attach"), &ratios, &Value::Object(figures))
}

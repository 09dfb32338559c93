//! Ready for thousands of nodes? The mesh, simulated by its real state machines; the real
//! data plane against a real kernel; real agents that know thousands of members.
//!
//! `bench scale [mesh|kernel|agents]... [--nodes N,N] [--out DIR]`; all, without words.
//! Figures are printed, and written as JSON and SVG; never judged.

mod agents;
mod kernel;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use weft_agent::mesh::scale::{self, Figures};
use weft_tests::plot::{Curve, Plot, short};

#[derive(Debug, Serialize)]
struct Mesh {
    nodes: usize,
    rest: Figures,
    join: Figures,
    death: Figures,
    heal: Option<Figures>,
    cold: Option<Figures>,
}

struct Options {
    what: Vec<String>,
    nodes: Vec<usize>,
    /// The slow scenes (partition, cold start) only up to this size.
    slow: usize,
    out: PathBuf,
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        what: Vec::new(),
        nodes: vec![10, 100, 1000, 5000],
        slow: 1000,
        out: PathBuf::from("docs/scale"),
    };
    let mut words = arguments.iter().cloned();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "mesh" | "kernel" | "agents" => options.what.push(word),
            "--nodes" => {
                options.nodes = value()?
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .context("--nodes")?;
            }
            "--slow" => options.slow = value()?.parse()?,
            "--out" => options.out = value()?.into(),
            other => bail!("`{other}` is neither mesh, kernel, agents nor an option"),
        }
    }
    if options.what.is_empty() {
        options.what = ["mesh", "kernel", "agents"].map(str::to_owned).to_vec();
    }
    Ok(options)
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |s| format!("{s:.2}"))
}

fn mesh(options: &Options, mut keep: impl FnMut(&[Mesh]) -> Result<()>) -> Result<()> {
    println!(
        "\n  NODES  REST B/s   MOST  CONNS  JOIN s  OWN s  JOIN kB  DEATH s  DEATH kB  HEAL s  HEAL kB  COLD s  COLD kB  CONTACT MB"
    );
    let mut rows = Vec::new();
    for nodes in &options.nodes {
        let begun = Instant::now();
        let mut world = scale::settled(*nodes);
        let rest = scale::rest(&mut world);
        let join = scale::join(&mut world);
        let death = scale::death(&mut world);
        let slow = *nodes <= options.slow;
        let heal = slow.then(|| scale::heal(&mut world));
        drop(world);
        let cold = slow.then(|| scale::cold(*nodes));
        let kb = |f: &Figures| short(f.bytes / 1e3);
        let some = |f: &Option<Figures>, show: &dyn Fn(&Figures) -> String| {
            f.as_ref().map_or_else(|| "-".to_owned(), show)
        };
        println!(
            "{nodes:>7} {:>9} {:>6} {:>6} {:>7} {:>6} {:>8} {:>8} {:>9} {:>7} {:>8} {:>7} {:>8} {:>11}",
            short(rest.bytes),
            short(rest.most_bytes),
            short(rest.connections),
            seconds(join.seconds),
            seconds(join.own_seconds),
            kb(&join),
            seconds(death.seconds),
            kb(&death),
            some(&heal, &|f| seconds(f.seconds)),
            some(&heal, &kb),
            some(&cold, &|f| seconds(f.seconds)),
            some(&cold, &kb),
            some(&cold, &|f| short(f.most_bytes / 1e6)),
        );
        eprintln!("{nodes} nodes took {:.0} s", begun.elapsed().as_secs_f64());
        rows.push(Mesh { nodes: *nodes, rest, join, death, heal, cold });
        keep(&rows)?;
    }
    Ok(())
}

fn plots(rows: &[Mesh]) -> Vec<(&'static str, Plot)> {
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let curve = |name, value: &dyn Fn(&Mesh) -> Option<f64>| Curve {
        name,
        points: rows.iter().filter_map(|r| Some((r.nodes as f64, value(r)?))).collect(),
    };
    let traffic = Plot {
        title: "Sent by one node at rest",
        value: "bytes per second",
        curves: vec![
            curve("average", &|r| Some(r.rest.bytes)),
            curve("most", &|r| Some(r.rest.most_bytes)),
        ],
        limit: Some((2000.0, "2 kB/s")),
    };
    let times = Plot {
        title: "Until all know it",
        value: "seconds",
        curves: vec![
            curve("a node joined", &|r| r.join.seconds),
            curve("a node died", &|r| r.death.seconds),
            curve("halves healed", &|r| r.heal.as_ref()?.seconds),
            curve("all started", &|r| r.cold.as_ref()?.seconds),
        ],
        limit: Some((5.0, "join: 5 s")),
    };
    let events = Plot {
        title: "Sent by one node until all know it",
        value: "bytes",
        curves: vec![
            curve("a node joined", &|r| Some(r.join.bytes)),
            curve("a node died", &|r| Some(r.death.bytes)),
            curve("halves healed", &|r| Some(r.heal.as_ref()?.bytes)),
            curve("all started", &|r| Some(r.cold.as_ref()?.bytes)),
            curve("… a contact", &|r| Some(r.cold.as_ref()?.most_bytes)),
        ],
        limit: None,
    };
    vec![("rest.svg", traffic), ("times.svg", times), ("events.svg", events)]
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = options(arguments)?;
    std::fs::create_dir_all(&options.out)?;
    let file = options.out.join("scale.json");
    // What is not measured now stays as it was.
    let mut all: Value = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_else(|| json!({}));
    for what in &options.what {
        match what.as_str() {
            "mesh" => mesh(&options, |rows| {
                for (name, plot) in plots(rows) {
                    std::fs::write(options.out.join(name), plot.svg())?;
                }
                all["mesh"] = serde_json::to_value(rows)?;
                save(&file, &all)
            })?,
            "kernel" => {
                println!(
                    "\n  PEERS  COLD ms  CPU ms  MOVE ms  LEAVE  JOIN  WORST  OF THAT PLAN  (ANEW)  RESTART ms  LOOK ms CPU"
                );
                let mut rows = Vec::new();
                for peers in options.nodes.iter().filter(|n| **n >= 100) {
                    let k = kernel::measure(*peers)?;
                    println!(
                        "{:>7} {:>8.0} {:>7.0} {:>8.2} {:>6.2} {:>5.2} {:>6.2} {:>13.2} {:>7.2} {:>11.0} {:>12.1}",
                        k.peers,
                        k.cold_ms,
                        k.cold_cpu_ms,
                        k.change_ms,
                        k.leave_ms,
                        k.join_ms,
                        k.change_worst_ms,
                        k.few_ms,
                        k.anew_ms,
                        k.warm_ms,
                        k.look_cpu_ms,
                    );
                    rows.push(k);
                }
                all["kernel"] = serde_json::to_value(rows)?;
            }
            _ => {
                let a =
                    agents::measure(options.nodes.iter().copied().max().unwrap_or(5000).max(100))?;
                println!(
                    "\n  MEMBERS  RSS MiB  (OF 9: )  HEAP MiB  CPU %  SENT B/s  LEDGER s  ROUTES"
                );
                println!(
                    "{:>9} {:>8.1} {:>9.1} {:>9.1} {:>6.2} {:>9.0} {:>9.1} {:>7}",
                    a.members,
                    a.rss_mib,
                    a.rss_few_mib,
                    a.heap_mib,
                    a.cpu_percent,
                    a.sent,
                    a.ledger_s,
                    a.routes,
                );
                all["agents"] = serde_json::to_value(a)?;
            }
        }
        save(&file, &all)?;
    }
    Ok(())
}

fn save(file: &Path, all: &Value) -> Result<()> {
    Ok(std::fs::write(file, serde_json::to_string_pretty(all)? + "\n")?)
}

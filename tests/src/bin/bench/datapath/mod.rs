//! Packets between pods: weft, the bare network, and what others make of the same two
//! nodes, in turn and in one run: a bridge with VXLAN as flannel, routed veths with VXLAN
//! as Calico, each with the masquerading (and so the connection tracking) that clusters
//! have, and without it. `ROUNDS` rounds, 21 unless told otherwise.

mod arrangements;
mod load;

use anyhow::{Context, Result};
use serde_json::json;
use weft_tests::ratios;

use self::arrangements::{Arrangement, Outside, Path};
use self::load::{Load, Server};

/// Least, median, greatest.
type Spread = [f64; 3];

struct Line {
    path: &'static str,
    load: Load,
    /// Of each arrangement: its name, its figures, and weft's share of them in the same
    /// round, above 1 where weft is better.
    columns: Vec<(&'static str, Spread, Spread)>,
}

pub(crate) fn run() -> Result<()> {
    let rounds = match std::env::var("ROUNDS") {
        Ok(text) => text.parse().with_context(|| format!("ROUNDS={text}: not a number"))?,
        Err(_) => 21,
    };
    // weft first: its share is counted against each of the others.
    let all = [
        arrangements::weft()?,
        arrangements::bridged("bridge, masq", Outside::Masqueraded)?,
        arrangements::routed("routed, masq", Outside::Masqueraded)?,
        arrangements::bridged("bridge", Outside::Closed)?,
        arrangements::routed("routed", Outside::Closed)?,
        arrangements::underlay()?,
    ];
    let mut lines = Vec::new();
    for (path, of) in [
        ("one node", near as fn(&Arrangement) -> Option<&Path>),
        ("two nodes", |a: &Arrangement| Some(&a.far)),
    ] {
        let paths: Vec<_> = all.iter().filter_map(|a| Some((a.name, of(a)?))).collect();
        let _servers = paths.iter().map(|(_, p)| Server::start(p)).collect::<Result<Vec<_>>>()?;
        for load in Load::ALL {
            lines.push(measure(path, load, &paths, rounds)?);
        }
    }
    print(&lines, rounds);
    write(&lines, rounds)
}

fn near(arrangement: &Arrangement) -> Option<&Path> {
    arrangement.near.as_ref()
}

fn measure(
    path: &'static str,
    load: Load,
    paths: &[(&'static str, &Path)],
    rounds: usize,
) -> Result<Line> {
    let mut figures = vec![Vec::new(); paths.len()];
    for (_, path) in paths {
        // Neighbours, routes and caches are warm from here on.
        load.run(path)?;
    }
    for round in 0..rounds {
        for turn in 0..paths.len() {
            // Whoever is first in a round is another each time.
            let which = (turn + round) % paths.len();
            figures[which].push(load.run(paths[which].1)?);
        }
    }
    let share = |own: &f64, other: &f64| if load.is_rate() { own / other } else { other / own };
    let columns = paths
        .iter()
        .zip(&figures)
        .map(|((name, _), theirs)| {
            let shares = figures[0].iter().zip(theirs).map(|(own, other)| share(own, other));
            (*name, spread(theirs.iter().copied()), spread(shares))
        })
        .collect();
    Ok(Line { path, load, columns })
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    ratios::quantiles(values, [0.0, 0.5, 1.0])
}

fn print(lines: &[Line], rounds: usize) {
    println!(
        "{rounds} rounds, median [min, max]; \"weft\" is its figure over theirs in the same round, \
         above 1 where weft is better\n"
    );
    println!("{:<10} {:<10} {:<15} {:>26} {:>24}", "pods of", "load", "", "figure", "weft");
    for line in lines {
        let (load, unit) = line.load.name();
        for (name, [low, median, high], [less, share, more]) in &line.columns {
            println!(
                "{:<10} {load:<10} {name:<15} {:>26} {:>24}",
                line.path,
                format!("{median:.1} [{low:.1}, {high:.1}] {unit:<4}"),
                if *name == "weft" {
                    String::new()
                } else {
                    format!("{share:.2} [{less:.2}, {more:.2}]")
                }
            );
        }
    }
}

fn write(lines: &[Line], rounds: usize) -> Result<()> {
    let lines: Vec<_> = lines
        .iter()
        .flat_map(|line| {
            let (load, unit) = line.load.name();
            line.columns.iter().map(move |(name, figure, share)| {
                json!({
                    "path": line.path, "load": load, "unit": unit, "arrangement": name,
                    "min_median_max": figure, "weft_over_it": share,
                })
            })
        })
        .collect();
    ratios::save(&ratios::path("datapath"), &json!({ "rounds": rounds, "lines": lines }))
}

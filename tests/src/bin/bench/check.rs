//! `make bench-check`: has anything become slower than the committed baseline says?
//!
//! Compares the ratios that `bench attach` has written, and the instructions of pure hot
//! paths, counted by callgrind. `RENEW=1` makes what is measured now the baseline.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_tests::baseline::{self, Better, Figure, Figures};
use weft_tests::ratios;

/// Others' load moves ratios; an accident moves them further.
const RATIO_SLACK: f64 = 0.4;
/// Instructions do not depend on load, only a little on the compiler.
const COUNT_SLACK: f64 = 0.05;

/// Name, and a count at which the path outweighs what differs from run to run.
const PATHS: [(&str, u64); 4] = [
    ("ledger-apply", 500),
    ("lease-allocate", 2000),
    ("plan-5000-peers", 2),
    ("frame-decode", 2000),
];

/// Instructions of a program from start to end.
fn instructions(name: &str, count: u64) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["hot-path", name, &count.to_string()])
        .output()
        .context("cannot run valgrind: install it")?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("hot-path {name} {count} under callgrind: {}: {told}", output.status);
    }
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.with_context(|| format!("callgrind counted nothing: {told}"))?;
    number.trim().parse().with_context(|| format!("callgrind counted {number:?}"))
}

fn attach(path: &Path, out: &mut Figures) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: run `bench attach` first", path.display()))?;
    let json: Value = serde_json::from_str(&text)?;
    for ratio in json["ratios"].as_array().into_iter().flatten() {
        let name = ratio["name"].as_str().context("a ratio has no name")?;
        let better = if ratio["at_least"].is_null() { Better::Lower } else { Better::Higher };
        let value = ratio["median"].as_f64().unwrap_or(f64::NAN);
        out.insert(format!("attach/{name}"), Figure { value, better, slack: RATIO_SLACK });
    }
    Ok(())
}

fn measure() -> Result<Figures> {
    let mut out = Figures::new();
    attach(&ratios::path("attach"), &mut out)?;
    for (name, count) in PATHS {
        let (few, many) = (instructions(name, count)?, instructions(name, 3 * count)?);
        let value = ((many - few) / (2 * count) as f64).round();
        let figure = Figure { value, better: Better::Lower, slack: COUNT_SLACK };
        out.insert(format!("instructions/{name}"), figure);
    }
    Ok(out)
}

pub(crate) fn run() -> Result<ExitCode> {
    let now = measure()?;
    let path = baseline::path();
    if std::env::var("RENEW").is_ok_and(|renew| renew == "1") {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&path, baseline::text(&now))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} says now what was measured; commit it with the reason", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: make bench-check RENEW=1 writes it", path.display()))?;
    let before = baseline::parse(&text).with_context(|| format!("{}", path.display()))?;
    let mut names: Vec<&String> = before.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    let mut good = true;
    for name in names {
        let (line, ok) = baseline::judge(name, before.get(name), now.get(name));
        println!("{line}");
        good &= ok;
    }
    if good {
        println!("nothing has regressed");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nregressed: find out why. If it is meant so, make bench-check RENEW=1 on a quiet machine, \
         and commit {} with the reason.",
        path.display()
    );
    Ok(ExitCode::FAILURE)
}

//! All benchmarks in one program; `make bench`, `make bench-policy` and so on call it.
//!
//! Figures are ratios, taken side by side in one run; absolute ones are only shown.

mod attach;
mod check;
mod compile;
mod datapath;
mod hot_paths;
mod packets;
mod scale;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str =
    "usage: bench attach|check|compile|datapath|hot-path|packets|scale [ARGUMENT]...
  attach                          ADD and DEL against the kernel and the reference plugins
  check                           what `attach` wrote, and instructions, against the baseline
  compile [PODS] [POLICIES]       the policy compiler: time and memory
  datapath                        packets between pods, against other ways to wire two nodes
  hot-path NAME COUNT             a pure hot path so many times, for `check`
  packets                         what policies cost new connections and round trips
  scale [mesh|kernel|agents]... [--nodes N,N] [--out DIR]   up to 5,000 nodes";

fn main() -> Result<ExitCode> {
    if std::env::var_os("CNI_COMMAND").is_some() {
        // Called as a plugin by `attach`: this is what starting a process costs.
        return Ok(ExitCode::SUCCESS);
    }
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match name.as_deref() {
        Some("attach") => attach::run(),
        Some("check") => return check::run(),
        Some("compile") => compile::run(&rest),
        Some("datapath") => datapath::run(),
        Some("hot-path") => hot_paths::run(&rest),
        Some("packets") => packets::run(),
        Some("scale") => scale::run(&rest),
        Some(other) => bail!("no benchmark `{other}`\n{USAGE}"),
        None => bail!("{USAGE}"),
    }?;
    Ok(ExitCode::SUCCESS)
}

//! Command line of `agent lab`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use weft_proto::names;

/// A weft network of several nodes on this machine: nodes and pods are network
/// namespaces; agents, shim, packets are real.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "agent lab")]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Args {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: usize,
    /// Pods per node.
    #[arg(long, default_value_t = 2, value_name = "M")]
    pub pods: usize,
    /// Judge whether every pod reaches every other, tear down, exit 0 or 1.
    #[arg(long)]
    pub check: bool,
    /// Leave the lab running; `agent lab --down` removes it.
    #[arg(long)]
    pub keep: bool,
    /// Remove the lab --name, or all that were kept, and what crashed labs left.
    #[arg(long, conflicts_with_all = ["check", "keep"])]
    pub down: bool,
    /// Pod network (IPALLOC_RANGE).
    #[arg(long, default_value = names::DEFAULT_RANGE, value_name = "CIDR")]
    pub range: String,
    /// Name of the lab, part of all namespace names [default: the process id].
    #[arg(long)]
    pub name: Option<String>,
    /// Underlay network between the nodes.
    #[arg(long, default_value = "172.31.117.0/24", value_name = "CIDR")]
    pub base: Ipv4Net,
    /// The agent [default: this program].
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// The CNI plugin [default: `weft` beside the agent].
    #[arg(long, value_name = "FILE")]
    pub shim: Option<PathBuf>,
    /// Keep the agents' logs here.
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

impl Args {
    /// The name of the lab.
    pub fn lab_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| std::process::id().to_string())
    }

    /// Agent and shim binaries, both there.
    pub fn binaries(&self) -> Result<(PathBuf, PathBuf)> {
        let agent = match &self.agent {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("cannot find this program's own file")?,
        };
        let shim = match &self.shim {
            Some(path) => path.clone(),
            None => agent.parent().unwrap_or(Path::new(".")).join("weft"),
        };
        for (path, option) in [(&agent, "--agent"), (&shim, "--shim")] {
            if !path.is_file() {
                bail!(
                    "{} is not there: `cargo build --release` makes it, or give {option} FILE",
                    path.display()
                );
            }
        }
        // The shim and the agent are started from other directories.
        Ok((std::path::absolute(agent)?, std::path::absolute(shim)?))
    }
}

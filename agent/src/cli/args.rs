//! The command line. Flags of the daemon are made from the table of
//! variables, so that neither can have what the other lacks.

use std::ffi::OsString;

use clap::{
    Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};

use crate::config::{Flags, VARS};

/// Names of variables that commands talking to a running agent need.
const CLIENT_VARS: &[&str] = &["HTTP_ADDR", "RUN_DIR"];
/// Commands that take every variable as a flag.
const CONFIGURED: &[&str] = &["config", "cleanup"];

/// The container network for Kubernetes clusters without a cloud network.
#[derive(Debug, Parser)]
#[command(name = "agent", version, display_name = "weft")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Cmd>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct OutputArg {
    /// text or json
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// Part of the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    Peers,
    Connections,
    Ipam,
    Targets,
    /// What isolates the pods of this node
    Policy,
}

#[derive(Debug, Subcommand)]
pub(super) enum Cmd {
    /// Is this node's network healthy, and if not, what to do (exit code 0 ok, 1 degraded, 2 broken)
    Status {
        /// Only this part (those that Weave had: in its layout)
        part: Option<Part>,
        /// Again every two seconds, until Ctrl-C
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Everything this node knows, as one JSON document
    Report {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Effective configuration and where each value came from
    Config {
        /// Ask the running agent instead of reading this environment
        #[arg(long)]
        running: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Leases of this node
    Ps {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Network policy: why is a connection allowed or refused?
    Policy {
        #[command(subcommand)]
        ask: PolicyCmd,
    },
    /// Evict a dead node: its blocks can be reused
    Rmpeer {
        /// Name or identity of the node
        name: String,
        /// Also if it is alive
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Connect to more peers
    Connect {
        /// HOST or HOST:PORT
        #[arg(required = true)]
        targets: Vec<String>,
        /// These peers and no others
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Stop connecting to peers
    Forget {
        /// As given to connect
        #[arg(required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Add a range to the pod network, or widen one, for the whole cluster
    Grow {
        /// Network in CIDR form
        range: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Found consensus again from this node, when most voters are lost for good; first shows what that means
    Recover {
        /// Do it: the voters that cannot be reached are lost
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Remove everything weft put on this machine; the agent must be stopped
    Cleanup {
        /// Then wait to be stopped: for a DaemonSet, whose pods must not end
        #[arg(long)]
        stay: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Version of this program
    Version {
        #[command(flatten)]
        output: OutputArg,
    },
    /// A whole network in namespaces of this machine: see `agent lab --help`
    #[command(disable_help_flag = true)]
    Lab {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// `agent policy …`.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCmd {
    /// Which policy and rule decides, on both ends (exit code 0 allowed, 1 refused, 2 not known)
    Explain {
        /// Who opens the connection: namespace/pod, or an address
        from: String,
        /// To whom: namespace/pod, or an address
        to: String,
        /// PORT or PORT/PROTOCOL: 80, 53/udp
        port: String,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// The whole command, with the flags of the variables.
pub(super) fn command() -> Command {
    let mut command = with_vars(Cli::command(), |_| true)
        .after_help("Without a command: the daemon. Every flag can be given as the environment variable of its name; `agent config` shows what is in effect.");
    for name in ["status", "report", "ps", "rmpeer", "connect", "forget", "grow", "recover"] {
        command =
            command.mut_subcommand(name, |sub| with_vars(sub, |var| CLIENT_VARS.contains(&var)));
    }
    command = command.mut_subcommand("policy", |policy| {
        policy.mut_subcommand("explain", |sub| with_vars(sub, |var| CLIENT_VARS.contains(&var)))
    });
    for name in CONFIGURED {
        command = command.mut_subcommand(name, |sub| with_vars(sub, |_| true));
    }
    command
}

fn with_vars(mut command: Command, wanted: impl Fn(&str) -> bool) -> Command {
    for var in VARS.iter().filter(|v| wanted(v.name)) {
        let mut help = format!("{}: {}", var.help, var.form);
        if !var.default.is_empty() {
            help.push_str(&format!(" [default: {}]", var.default));
        }
        if let Some(why) = var.without_effect {
            help = format!("accepted, without effect: {why}");
        }
        command = command.arg(
            Arg::new(var.name)
                .long(var.flag())
                .value_name(var.name)
                .help(help)
                .help_heading("Configuration")
                .hide(var.without_effect.is_some())
                // `--peer -x` is a wrong value, to be named as such.
                .allow_hyphen_values(true),
        );
    }
    command
}

/// Reads a command line.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, Flags), clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let mut flags = Flags::new();
    collect(&matches, &mut flags);
    // Flags before and after the command's name both count; the later wins.
    let mut at = &matches;
    while let Some((_, sub)) = at.subcommand() {
        collect(sub, &mut flags);
        at = sub;
    }
    Ok((Cli::from_arg_matches(&matches)?, flags))
}

fn collect(matches: &ArgMatches, flags: &mut Flags) {
    for var in VARS {
        if let Ok(Some(value)) = matches.try_get_one::<String>(var.name) {
            flags.insert(var.name, value.clone());
        }
    }
}

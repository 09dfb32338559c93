//! The command line: the daemon without a command, and commands that talk to
//! the running agent over its local HTTP endpoint.

mod args;
mod client;
mod out;
mod recover;
mod remote;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, ConfigErrors, Env, Flags, LogFormat, ProcessEnv};
pub use args::Output;
use args::{Cli, Cmd, PolicyCmd};
use client::Client;
use out::{Out, complain};

/// Exit code for a wrong command line or configuration (sysexits.h EX_USAGE).
const USAGE: u8 = 64;
/// To see whether an agent runs.
const PROBE: Duration = Duration::from_millis(500);

/// What `agent cleanup` did.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// What was removed, one item each.
    pub removed: Vec<String>,
    /// What is left, and the command that ends it.
    pub left: Vec<String>,
}

/// What the command line starts but does not do itself.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Runs the agent until it is told to stop.
    pub daemon: fn(Config) -> anyhow::Result<()>,
    /// Removes everything weft put on this machine.
    pub cleanup: fn(&Config) -> anyhow::Result<Cleaned>,
    /// `agent lab`, with the arguments after `lab`.
    pub lab: fn(Vec<OsString>) -> anyhow::Result<ExitCode>,
}

/// Runs a command line to its end. The first argument is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>, hooks: Hooks) -> ExitCode {
    match args::parse(args) {
        Ok((cli, flags)) => dispatch(cli, &flags, &ProcessEnv, hooks),
        Err(error) => {
            // Help goes to standard output and is no failure.
            let text = error.render().to_string();
            if error.use_stderr() {
                complain(text.trim_end());
                ExitCode::from(USAGE)
            } else {
                finish(Out::default().text(&text).map(|()| ExitCode::SUCCESS))
            }
        }
    }
}

fn dispatch(cli: Cli, flags: &Flags, env: &dyn Env, hooks: Hooks) -> ExitCode {
    match cli.command {
        None => daemon(env, flags, hooks),
        Some(Cmd::Lab { args }) => finish((hooks.lab)(args)),
        Some(Cmd::Version { output }) => finish(version(output.output)),
        Some(Cmd::Config { running: false, output }) => match Config::parse(env, flags) {
            Ok(config) => finish(show_config(&config.report(), output.output)),
            Err(errors) => refuse(&errors),
        },
        Some(Cmd::Cleanup { stay, output }) => match Config::parse(env, flags) {
            Ok(config) => finish(cleanup(&config, output.output, stay, hooks)),
            Err(errors) => refuse(&errors),
        },
        Some(command) => match Config::endpoint(env, flags) {
            Ok(endpoint) => ask(command, &Client::new(endpoint)),
            Err(errors) => refuse(&errors),
        },
    }
}

fn ask(command: Cmd, client: &Client) -> ExitCode {
    match command {
        Cmd::Status { part, watch, output } => {
            finish(remote::status(client, part, watch, output.output))
        }
        Cmd::Report { .. } => finish(remote::report(client)),
        Cmd::Config { output, .. } => finish(remote::config(client, output.output)),
        Cmd::Ps { output } => finish(remote::ps(client, output.output)),
        Cmd::Policy { ask: PolicyCmd::Explain { from, to, port, output } } => {
            finish(remote::explain(client, &from, &to, &port, output.output))
        }
        Cmd::Rmpeer { name, force, output } => {
            finish(remote::rmpeer(client, &name, force, output.output))
        }
        Cmd::Connect { targets, replace, output } => {
            finish(remote::targets(client, "/connect", &targets, replace, output.output))
        }
        Cmd::Forget { targets, output } => {
            finish(remote::targets(client, "/forget", &targets, false, output.output))
        }
        Cmd::Grow { range, output } => finish(remote::grow(client, &range, output.output)),
        Cmd::Recover { yes, output } => finish(recover::recover(client, yes, output.output)),
        // Handled before an agent is looked for.
        Cmd::Cleanup { .. } | Cmd::Version { .. } | Cmd::Lab { .. } => ExitCode::FAILURE,
    }
}

fn cleanup(config: &Config, output: Output, stay: bool, hooks: Hooks) -> anyhow::Result<ExitCode> {
    if std::net::TcpStream::connect_timeout(&config.http_addr, PROBE).is_ok() {
        anyhow::bail!(
            "something listens on {}: stop the agent first, it would put everything back",
            config.http_addr
        );
    }
    let Cleaned { removed, left } = (hooks.cleanup)(config)?;
    let text = match output {
        Output::Json => json!({ "removed": removed, "left": left }).to_string(),
        Output::Text if removed.is_empty() && left.is_empty() => "nothing to remove".to_owned(),
        Output::Text => {
            let removed = removed.iter().map(|item| format!("removed {item}\n"));
            removed.chain(left.iter().map(|item| format!("left: {item}\n"))).collect()
        }
    };
    Out::default().text(&text)?;
    if stay {
        // As the first process of a container it gets only signals it waits for.
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTERM);
        stop.add(Signal::SIGINT);
        stop.thread_block()?;
        stop.wait()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn finish<E: Into<anyhow::Error>>(result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(&format!("agent: {:#}", error.into()));
        ExitCode::FAILURE
    })
}

fn refuse(errors: &ConfigErrors) -> ExitCode {
    for error in &errors.0 {
        complain(&format!("agent: {error}"));
    }
    ExitCode::from(USAGE)
}

fn daemon(env: &dyn Env, flags: &Flags, hooks: Hooks) -> ExitCode {
    let config = match Config::parse(env, flags) {
        Ok(config) => config,
        Err(errors) => return refuse(&errors),
    };
    init_log(&config);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    finish((hooks.daemon)(config).map(|()| ExitCode::SUCCESS))
}

fn init_log(config: &Config) {
    let to = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let filtered = tracing_subscriber::registry().with(config.log_targets());
    // A second subscriber in one process (the lab) is no reason to stop.
    let _ = match config.log_format {
        LogFormat::Text => filtered.with(to).try_init(),
        LogFormat::Json => filtered.with(to.json().flatten_event(true)).try_init(),
    };
}

fn version(output: Output) -> std::io::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let text = match output {
        Output::Text => format!("weft {version}"),
        Output::Json => json!({ "name": "weft", "version": version }).to_string(),
    };
    Out::default().text(&text).map(|()| ExitCode::SUCCESS)
}

fn show_config(report: &serde_json::Value, output: Output) -> std::io::Result<ExitCode> {
    let text = match output {
        Output::Json => format!("{report:#}"),
        Output::Text => config_text(report),
    };
    Out::default().text(&text).map(|()| ExitCode::SUCCESS)
}

/// From the report and not from [`Config`], so that a running agent's is shown the same way.
fn config_text(report: &serde_json::Value) -> String {
    let mut text = String::new();
    let empty = Vec::new();
    let values = report["values"].as_array().unwrap_or(&empty);
    let length = |value: &serde_json::Value| value["value"].as_str().unwrap_or_default().len();
    // One long list of peers must not push everything else to the right.
    let width = values.iter().map(length).filter(|len| *len <= 48).max().unwrap_or(0);
    for value in values {
        let source = match &value["source"] {
            serde_json::Value::Object(map) => map
                .iter()
                .map(|(kind, name)| format!("{kind} {}", name.as_str().unwrap_or_default()))
                .collect(),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        let note = match value["without_effect"].as_str() {
            Some(why) => format!("  (without effect: {why})"),
            None => String::new(),
        };
        text.push_str(&format!(
            "{:<26} {:<width$} {source}{note}\n",
            value["name"].as_str().unwrap_or_default(),
            value["value"].as_str().unwrap_or_default(),
        ));
    }
    for warning in report["warnings"].as_array().unwrap_or(&empty) {
        text.push_str(&format!("warning: {}\n", warning.as_str().unwrap_or_default()));
    }
    text
}

#[cfg(test)]
mod tests;

//! The weft agent: the daemon, and the commands that talk to it.

use std::ffi::OsString;
use std::process::ExitCode;

use weft_agent::app;
use weft_agent::cli::{self, Hooks};

fn main() -> ExitCode {
    cli::run(std::env::args_os(), Hooks { daemon: app::run, cleanup: app::cleanup, lab })
}

#[cfg(feature = "lab")]
fn lab(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    use clap::Parser;
    use weft_agent::lab;

    let name = OsString::from("agent lab");
    match lab::Args::try_parse_from(std::iter::once(name).chain(args)) {
        Ok(args) => lab::run(args),
        Err(error) => {
            error.print()?;
            Ok(ExitCode::from(if error.use_stderr() { 64 } else { 0 }))
        }
    }
}

#[cfg(not(feature = "lab"))]
fn lab(_: Vec<OsString>) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this agent, as it is in the image, has no lab: use one of `make build`")
}

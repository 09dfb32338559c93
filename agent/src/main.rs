//! The weft agent: the daemon, and the commands that talk to it.

use std::process::ExitCode;

use clap::Parser;
use weft_agent::cli::{self, Hooks};
use weft_agent::{app, lab};

fn main() -> ExitCode {
    let hooks = Hooks {
        daemon: app::run,
        cleanup: app::cleanup,
        lab: |args| {
            let name = std::ffi::OsString::from("agent lab");
            match lab::Args::try_parse_from(std::iter::once(name).chain(args)) {
                Ok(args) => lab::run(args),
                Err(error) => {
                    error.print()?;
                    Ok(ExitCode::from(if error.use_stderr() { 64 } else { 0 }))
                }
            }
        },
    };
    cli::run(std::env::args_os(), hooks)
}

//! The weft agent.

use std::process::ExitCode;

use weft_agent::cli::{self, Hooks};

fn main() -> ExitCode {
    cli::run(
        std::env::args_os(),
        Hooks {
            daemon: |_| anyhow::bail!("the daemon is not connected yet"),
            cleanup: |_| anyhow::bail!("cleanup is not connected yet"),
            lab: |_| anyhow::bail!("the lab is not connected yet"),
        },
    )
}

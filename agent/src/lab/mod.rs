//! `agent lab`: N nodes with M pods each on one machine, without Kubernetes.
//!
//! Nodes and pods are network namespaces. Nothing of the machine's own network
//! is touched: every device is born inside a namespace.

/// A line to standard output. A reader that went away (`| head`) is no reason
/// to leave a lab half done, which the panic of `println` would.
macro_rules! out {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout().lock(), $($text)*);
    }};
}

/// The same to standard error.
macro_rules! err {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr().lock(), $($text)*);
    }};
}

pub mod agents;
pub mod args;
pub mod cleanup;
pub mod http;
pub mod netns;
pub mod pods;
pub mod probe;
pub mod report;
pub mod topology;
mod up;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
pub use args::Args;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once somebody asked this process to stop.
fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn on_signal(_: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Ctrl-C and its like only set a flag: every wait looks at it, so a lab is
/// always taken down by the same path.
#[allow(unsafe_code, reason = "a signal handler")]
fn catch_signals() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Runs `agent lab`.
pub fn run(args: Args) -> Result<ExitCode> {
    netns::check_host()?;
    catch_signals()?;
    for name in cleanup::reap()? {
        out!("removed what crashed lab {name} had left");
    }
    if args.down {
        return down(args.name.as_deref());
    }
    let mut lab = up::Lab::prepare(args)?;
    let verdict = lab.up().and_then(|()| lab.judge());
    let verdict = match verdict {
        Err(_) if interrupted() => {
            out!("interrupted, taking the lab down");
            return Ok(ExitCode::from(130));
        }
        Err(error) => {
            err!("\n{}", lab.post_mortem());
            return Err(error);
        }
        Ok(verdict) => verdict,
    };
    if lab.stays() {
        lab.stay();
    } else if lab.keeps() {
        lab.leave();
    }
    Ok(if verdict { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down(name: Option<&str>) -> Result<ExitCode> {
    let chosen: Vec<_> = cleanup::labs()?
        .into_iter()
        .filter(|lab| name.map_or(lab.keep, |name| lab.name == name))
        .collect();
    if let (Some(name), true) = (name, chosen.is_empty()) {
        bail!("there is no lab named `{name}`");
    }
    if chosen.is_empty() {
        out!("no lab to remove");
    }
    let mut clean = true;
    for lab in chosen {
        let errors = cleanup::down(&lab);
        errors.iter().for_each(|error| err!("{error}"));
        if errors.is_empty() {
            out!("removed lab {}", lab.name);
        }
        clean &= errors.is_empty();
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! One processor for what is measured.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this thread, and those it starts, on one processor. Clients and servers of what is
/// measured in microseconds share it: the length of the path shows, and not how long
/// another processor takes to wake up.
pub fn pin() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no processor is allowed")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

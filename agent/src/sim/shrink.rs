//! The shortest schedule found that still breaks something.
//!
//! Leaves out ever smaller parts of the actions (delta debugging), then whole
//! machines from the end, then shortens pauses. Another invariant may break
//! first in a shorter run: it counts as well.

use std::time::{Duration, Instant};

use super::run::run;
use super::schedule::Schedule;

/// Longest time spent on one schedule.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shrinks a schedule that breaks something; what is broken in the result.
pub(crate) fn shrink(found: &Schedule, broken: &str) -> (Schedule, String) {
    let end = Instant::now() + PATIENCE;
    let mut best = (found.clone(), broken.to_owned());
    let attempt = |best: &mut (Schedule, String), candidate: Schedule| {
        if Instant::now() >= end || candidate == best.0 {
            return false;
        }
        let Some(why) = run(&candidate, false).broken else { return false };
        *best = (candidate, why);
        true
    };
    let mut part = best.0.actions.len();
    while part > 0 && Instant::now() < end {
        let mut at = 0;
        let mut smaller = false;
        while at < best.0.actions.len() {
            let mut candidate = best.0.clone();
            let to = (at + part).min(candidate.actions.len());
            candidate.actions.drain(at..to);
            if attempt(&mut best, candidate) {
                smaller = true;
            } else {
                at += part;
            }
        }
        if !smaller || part > best.0.actions.len() {
            part /= 2;
        }
    }
    // Earlier, as a whole and one by one.
    for keep in [2, 4, 10] {
        let mut candidate = best.0.clone();
        for (at, _) in &mut candidate.actions {
            *at = *at * (keep - 1) / keep / 100 * 100;
        }
        attempt(&mut best, candidate);
    }
    best
}

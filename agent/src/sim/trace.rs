//! What happened, as one number (two runs of a seed must agree on it) and, for
//! a run that is looked at, as text.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Mutex;
use std::time::Duration;

use super::host::elapsed;

#[derive(Default)]
struct State {
    hash: u64,
    lines: Option<Vec<(Duration, String)>>,
    counts: BTreeMap<&'static str, u64>,
}

/// See the module.
pub(crate) struct Trace(Mutex<State>);

impl Trace {
    /// `told`: keeps the text.
    pub(crate) fn new(told: bool) -> Self {
        let lines = told.then(Vec::new);
        Self(Mutex::new(State { hash: 0xcbf2_9ce4_8422_2325, lines, counts: BTreeMap::new() }))
    }

    /// Adds something to the hash.
    pub(crate) fn note(&self, words: &[u64]) {
        let mut state = self.0.lock().unwrap();
        let now = u64::try_from(elapsed().as_micros()).unwrap();
        for word in words.iter().chain([&now]) {
            state.hash = (state.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    /// Counts a fault or an event.
    pub(crate) fn count(&self, what: &'static str) {
        *self.0.lock().unwrap().counts.entry(what).or_default() += 1;
    }

    /// Adds a line, if somebody reads it.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        let told = self.0.lock().unwrap().lines.is_some();
        if told {
            let line = (elapsed(), line());
            if let Some(lines) = &mut self.0.lock().unwrap().lines {
                lines.push(line);
            }
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.lock().unwrap().hash
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap().counts.clone()
    }

    /// The text.
    pub(crate) fn text(&self) -> Vec<String> {
        let show = |(at, line): &(Duration, String)| stamp(*at, line);
        self.0.lock().unwrap().lines.iter().flatten().map(show).collect()
    }
}

/// A line with its time.
pub(crate) fn stamp(at: Duration, line: &dyn Display) -> String {
    format!("{:>8.3}  {line}", at.as_secs_f64())
}

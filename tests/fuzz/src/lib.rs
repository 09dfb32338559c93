//! Fuzz targets: every reader of bytes that come from outside, and what must hold of it.
//!
//! A target is a function of bytes that panics when a property does not hold. Two
//! drivers call it: `tests/kept.rs` replays the corpus and mutates it for a short
//! while (`make test`), `libfuzzer` searches, led by coverage (`make fuzz`).

pub mod corpus;
pub mod mutate;
mod targets;

/// One reader of outside bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name: of its directory in the corpus too.
    pub name: &'static str,
    /// Panics if a property does not hold.
    pub run: fn(&[u8]),
    /// Inputs to start from, made by the code itself.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input worth trying.
    pub longest: usize,
}

/// All targets.
pub const TARGETS: &[Target] = targets::ALL;

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

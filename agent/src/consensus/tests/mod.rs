//! Whole nodes over a mesh in memory.

mod clusters;
mod faults;
mod golden;
mod world;

pub(crate) use world::TempDir;

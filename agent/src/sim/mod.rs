//! Deterministic simulation: real code, simulated world, one seed.
//!
//! Consensus with its engine, log and disk format, the IPAM service with its
//! journal and promises, membership, records and the plan of the data plane run
//! as they are. Network, disks, clocks, chance and processes are simulated:
//! a run is a function of its schedule.
//!
//! ```text
//!  schedule ─► run ─► world ─► agent (real) ─► mesh::simulated ─► network
//!               │               │  └► host: clock, chance, tasks ► disk, fs
//!               └► check ◄──────┘
//! ```

mod agent;
mod campaign;
mod check;
pub(crate) mod disk;
pub(crate) mod fs;
pub(crate) mod host;
mod kernel;
pub(crate) mod machine;
pub(crate) mod network;
mod operator;
mod panics;
mod pods;
mod run;
pub(crate) mod runtime;
mod schedule;
mod shrink;
mod tests;
pub(crate) mod trace;
mod world;

//! Thousands of nodes in one thread: the real state machines of membership, records and
//! density, driven by a queue of events. Time is virtual; the network is modelled as in
//! [`wire`]. For `bench scale` and the tests.

mod host;
mod scenes;
pub(in crate::mesh) mod wire;
mod world;

pub use scenes::{Figures, cold, death, heal, join, rest, settled};
pub use world::World;

#[cfg(test)]
mod tests;

//! What happens to real machines, done on purpose to real agents: each test says what was
//! broken, what held, and how long the repair took (see `docs/faults.md`).

mod clock;
pub(crate) mod common;
mod fight;
mod files;
mod frozen;
mod links;
mod moved;
mod power;

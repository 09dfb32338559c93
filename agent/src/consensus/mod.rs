//! Consensus: which node owns which block.
//!
//! A few voters (1, 3 or 5) run openraft; everybody else follows the ledger by
//! pulling from whoever is further. The data path needs none of this to run.
//!
//! ```text
//! propose ─► leader ─► log (redb, fsync) ─► Machine ─┐
//!                                                    ├─► Replica ─► watch<Ledger>
//! heads by gossip ─► pull (delta or snapshot) ───────┘      └─► heads to others
//! ```
//! *Position* = index in openraft's log + 1 = number of entries applied.

mod core;
mod driver;
mod error;
mod founder;
mod founding;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod network;
mod pace;
mod propose;
mod recover;
mod replica;
mod seats;
mod service;
#[cfg(test)]
mod simulated;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod types;
mod voters;

pub use self::core::ConsensusConfig;
pub use error::{ConsensusError, ProposeError, StoreError};
pub use founding::Founding;
pub use handle::{Consensus, ConsensusHandle};
pub use recover::RecoverError;
pub use service::KINDS;
#[cfg(test)]
pub(crate) use simulated::{Ballot, vote_given};

//! Block ledger and local leases of weft: pure.
//!
//! [`ledger`] is the replicated state machine that says which node owns which
//! part of the ranges; [`leases`] is what one node does with the parts it
//! owns. Neither knows a clock, a socket or a runtime: time comes in with the
//! call, so both replay exactly.

pub mod leases;
pub mod ledger;
mod net;

pub use leases::LeaseTable;
pub use ledger::Ledger;
pub use net::{block_len, is_reserved, usable, usable_in};

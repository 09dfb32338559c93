//! Network policy: who may open a connection to whom.
//!
//! ```text
//! API objects ──► World ──► Delta ──► nftables table `inet weft-policy`
//! leases ────────►  (pure)              (one transaction per change)
//! ```
//! [`state`] is the border: what the compiler makes and the kernel part applies.

pub(crate) mod conntrack;
pub mod engine;
pub mod explain;
pub mod feed;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod nflog;
pub(crate) mod nft;
pub mod objects;
pub mod selector;
pub mod state;
pub mod verdict;
pub mod world;

#[cfg(test)]
mod tests;

//! The nftables rule set: what it should be, and how it gets into the kernel.
//!
//! Two tables named `weft`. Rules are fixed by the configuration and the
//! ranges; everything that changes with a pod is an element of a set or map,
//! so that an attach or a release is a few elements in one transaction.

pub(crate) mod batch;
pub(crate) mod expr;
pub(crate) mod forward;
pub mod ruleset;
pub(crate) mod transaction;

//! The policy in nftables' words: table `inet weft-policy`.
//!
//! ```text
//! PolicyState ──layout──► Model ◄──read── kernel
//!                           │ diff
//! Delta ────────track────► Edit ──write─► kernel, one transaction
//! ```
//! [`layout`], [`model`] and [`track`] are pure; [`kernel`] reads and writes.

pub(crate) mod elements;
pub(crate) mod hold;
pub(crate) mod kernel;
pub(crate) mod layout;
pub(crate) mod model;
pub(crate) mod track;

/// The table, apart from the data plane's: each heals without the other.
pub(crate) const TABLE: &str = "weft-policy";

/// Netlink log group of refused packets.
pub(crate) const LOG_GROUP: u16 = 6784;

//! The kernel's netlink interface, as little of it as the data plane needs.
//!
//! Messages are written and read attribute by attribute. Two reasons: the
//! kernel objects that matter most here (nexthops, most nftables expressions)
//! have no type in the netlink crates, and a full look at 10,000 routes should
//! not build 10,000 trees of enums.

pub(crate) mod codec;
pub(crate) mod socket;

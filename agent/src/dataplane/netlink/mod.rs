//! The kernel's netlink interface: [`rtnl`] for what rtnetlink has good types
//! for, [`codec`] and [`socket`] for the rest (why, says `rtnl`).

use netlink_sys::protocols::NETLINK_ROUTE;

pub(crate) mod codec;
pub(crate) mod rtnl;
pub(crate) mod socket;

/// Both ways to links, addresses, neighbours, nexthops and routes.
pub(crate) struct Kernel {
    /// Attribute by attribute, in batches.
    pub(crate) raw: socket::Requests,
    /// Typed, one by one.
    pub(crate) rtnl: rtnl::Rtnl,
}

impl Kernel {
    /// In the network namespace of the calling thread, which must not belong
    /// to an async runtime.
    pub(crate) fn open() -> std::io::Result<Self> {
        Ok(Self { raw: socket::Requests::open(NETLINK_ROUTE)?, rtnl: rtnl::Rtnl::open()? })
    }
}

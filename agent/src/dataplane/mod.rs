//! Data plane: what the kernel should hold, what it holds, and the difference.
//!
//! ```text
//! Intent --desired--> Desired --+
//!                               +--plan--> [Op] --apply--> kernel
//! kernel --observe--> Observed -+                             |
//!    ^----------------- netlink events: "look again" ---------+
//! ```
//! The pure part is [`desired`], [`peers`], [`plan`], [`model`], [`facts`] and the
//! rule set in [`nft`]; the rest reads or writes netlink. One thread
//! ([`driver`]) owns the kernel side; [`handle`] is how the agent talks to it.

mod apply;
mod cleanup;
pub mod desired;
mod driver;
pub(crate) mod events;
pub mod facts;
mod fights;
#[doc(hidden)]
pub mod fuzzing;
pub mod handle;
mod inet;
pub mod intent;
mod legacy;
pub mod model;
pub(crate) mod netlink;
pub mod nft;
mod observe;
pub mod peers;
pub mod plan;
mod reaper;
mod sysctl;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod thread;

use std::net::IpAddr;

pub use cleanup::{cleanup, overlaps};
pub use handle::{Dataplane, DataplaneHandle, WiredPod};
use weft_proto::id::NodeId;
use weft_proto::names::{MIN_MTU, VXLAN_PORT};

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Node name: the bridge's MAC comes from it.
    pub node_name: String,
    /// Node identity: the VXLAN device's MAC comes from it, and peers must agree.
    pub node_id: NodeId,
    /// Underlay address, if it is not to be found out.
    pub underlay: Option<IpAddr>,
    /// Overlay MTU, if it is not to be found out.
    pub mtu: Option<u32>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Plain routes instead of tunnels to on-link peers.
    pub direct_routing: bool,
    /// Hairpin on pod ports.
    pub hairpin: bool,
    /// Masquerade what leaves the pod network.
    pub masquerade: bool,
    /// Keep accepts of ours in iptables' FORWARD chain where it drops.
    pub forward_accept: bool,
}

impl DataplaneConfig {
    /// Defaults for a node.
    pub fn new(node_name: impl Into<String>, node_id: NodeId) -> Self {
        Self {
            node_name: node_name.into(),
            node_id,
            underlay: None,
            mtu: None,
            vxlan_port: VXLAN_PORT,
            direct_routing: false,
            hairpin: true,
            masquerade: true,
            forward_accept: true,
        }
    }
}

/// What can go wrong between the agent and the kernel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DataplaneError {
    /// A socket could not be opened or used.
    #[error(
        "netlink: {what}: {why}; the agent needs CAP_NET_ADMIN and the host's network namespace"
    )]
    Netlink {
        /// Doing what.
        what: String,
        /// The kernel's reason.
        why: String,
    },
    /// The kernel refused a rule set.
    #[error("nftables: {what}: {why}; is nf_tables (with nat and bridge support) in this kernel?")]
    Nftables {
        /// Doing what.
        what: String,
        /// The kernel's reason.
        why: String,
    },
    /// An MTU that cannot work.
    #[error(
        "MTU {value} is too small: the overlay needs at least {MIN_MTU}; unset MTU to have it found out"
    )]
    MtuTooSmall {
        /// What was asked for.
        value: u32,
    },
    /// The data plane thread is gone.
    #[error("the data plane has stopped; see the log for its last error, then restart the agent")]
    Stopped,
}

//! Keeps the kernel's table equal to the policy.
//!
//! One thread ([`driver`]) owns the world and the table; [`EngineHandle`] is how
//! the agent talks to it. Each change is one transaction. Nothing is trusted to
//! stay: a notification or a failure leads to a look at the kernel and to the
//! difference, an equal table is not touched.

mod books;
mod driver;
mod handle;
mod report;
mod tell;

pub use handle::{EngineHandle, PodLookup};
pub use report::{Count, Established, PodReport, PolicyReport, RefusedPackets};

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::policy::nft::{TABLE, kernel};
use crate::policy::world::Settings;

/// What does not change while the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Families, and what unknown pods may do.
    pub settings: Settings,
    /// Established connections end when a change forbids them.
    pub drop_established: bool,
}

/// What can go wrong between the agent and the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A socket could not be opened or used.
    #[error(
        "policy: netlink: {what}: {why}; the agent needs CAP_NET_ADMIN and the host's network namespace"
    )]
    Netlink {
        /// Doing what.
        what: String,
        /// The kernel's reason.
        why: String,
    },
    /// The kernel refused the rules.
    #[error(
        "policy: nftables: {what}: {why}; is nf_tables (with sets, log and conntrack) in this kernel?"
    )]
    Nftables {
        /// Doing what.
        what: String,
        /// The kernel's reason.
        why: String,
    },
    /// An address of a family that the pod network had not when the agent started.
    #[error("policy: the pod network had no {0} addresses when the agent started; restart it")]
    Family(&'static str),
    /// The policy thread is gone.
    #[error(
        "the policy engine has stopped; see the log for its last error, then restart the agent"
    )]
    Stopped,
}

/// Why a pod is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The kernel did not take its rules.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Not in time.
    #[error("policy: the rules of {0} are not in the kernel yet; try again")]
    Late(String),
}

/// Removes the table from the kernel of the calling thread's network namespace;
/// true if there was one.
pub fn remove() -> Result<bool, PolicyError> {
    let failed = |why: Refused| PolicyError::Nftables {
        what: format!("remove table {TABLE}"),
        why: why.to_string(),
    };
    let mut nft = Requests::open(NETLINK_NETFILTER).map_err(|e| failed(e.into()))?;
    let there = kernel::exists(&mut nft).map_err(failed)?;
    if there {
        kernel::remove(&mut nft).map_err(failed)?;
    }
    Ok(there)
}

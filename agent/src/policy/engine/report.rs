//! What the engine tells: per pod, of the table, of refused packets.

use serde::Serialize;
use weft_proto::api::{PolicyRefusedPort, PolicyTable};

use crate::policy::objects::Problem;
use crate::policy::world::LocalStatus;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A pod interface of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodReport {
    /// What isolates it.
    #[serde(flatten)]
    pub status: LocalStatus,
    /// The kernel restricts connections to it.
    pub restricted_ingress: bool,
    /// The kernel restricts connections from it.
    pub restricted_egress: bool,
    /// Refused packets to it, since it is restricted.
    pub refused_ingress: Count,
    /// Refused packets from it, since it is restricted.
    pub refused_egress: Count,
}

/// Refused packets since the table was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RefusedPackets {
    /// To pods of this node, all there were in this life of the agent.
    pub ingress: Count,
    /// From pods of this node.
    pub egress: Count,
    /// By destination port, at most 256.
    pub ports: Vec<PolicyRefusedPort>,
    /// Packets told in the log or suppressed there.
    pub logged: u64,
    /// Packets that reached the log's reader but not the log.
    pub suppressed: u64,
}

/// Established connections that a change forbade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Established {
    /// Conntrack entries looked at.
    pub looked_at: u64,
    /// Entries dropped.
    pub dropped: u64,
    /// Looks that failed.
    pub failed: u64,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PolicyReport {
    /// All that the API server knows is known: see
    /// [`EngineHandle::synced`](super::EngineHandle::synced).
    pub synced: bool,
    /// The kernel has had the whole policy in this life of the agent.
    pub enforced: bool,
    /// Pods of this node.
    pub pods: Vec<PodReport>,
    /// The table.
    pub table: PolicyTable,
    /// Refused packets.
    pub refused: RefusedPackets,
    /// Established connections.
    pub established: Established,
    /// Parts of policies that are not enforced as written.
    pub problems: Vec<Problem>,
}

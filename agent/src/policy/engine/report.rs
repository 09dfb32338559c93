//! What the engine tells: per pod, of the table, of refused packets.

use serde::Serialize;

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

/// Refused packets to a port. Bounded: see `other` of [`RefusedPackets`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RefusedPort {
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Destination port, after destination NAT.
    pub port: u16,
    /// Packets.
    pub packets: u64,
}

/// Refused packets since the table was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RefusedPackets {
    /// To pods of this node, all there were in this life of the agent.
    pub ingress: Count,
    /// From pods of this node.
    pub egress: Count,
    /// By destination port, at most 256.
    pub ports: Vec<RefusedPort>,
    /// Packets told in the log or suppressed there.
    pub logged: u64,
    /// Packets that reached the log's reader but not the log.
    pub suppressed: u64,
}

/// The table in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// It holds what it should.
    pub in_sync: bool,
    /// Sets of the policy, elements in them, chains of the policy, restricted addresses.
    pub sets: usize,
    /// See `sets`.
    pub elements: usize,
    /// See `sets`.
    pub chains: usize,
    /// See `sets`.
    pub subjects: usize,
    /// Transactions made.
    pub transactions: u64,
    /// Times the kernel held something else than it should have.
    pub repairs: u64,
    /// How long the last transaction took, with its preparation, in microseconds.
    pub last_us: u64,
    /// The longest so far.
    pub longest_us: u64,
    /// Why it is not in sync.
    pub errors: Vec<String>,
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
    pub table: TableReport,
    /// Refused packets.
    pub refused: RefusedPackets,
    /// Established connections.
    pub established: Established,
    /// Parts of policies that are not enforced as written.
    pub problems: Vec<Problem>,
}

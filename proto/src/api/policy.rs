//! `GET /v1/policy`: what is enforced on this node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Network policy on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// All that the API server knows and that can matter is known here.
    pub synced: bool,
    /// The kernel has had the whole policy in this life of the agent.
    pub enforced: bool,
    /// Until the API server has told everything, new pods are judged by what an
    /// earlier life of the agent knew; when that was true, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered_ms: Option<u64>,
    /// Something that was learned is not in the kernel yet.
    pub busy: bool,
    /// Pods of this node.
    pub pods: Vec<PolicyPod>,
    /// The table in the kernel.
    pub table: PolicyTable,
    /// Refused packets to pods of this node, since the table was made.
    pub refused_in: u64,
    /// Refused packets from pods of this node.
    pub refused_out: u64,
    /// Refused packets by destination port; bounded.
    pub refused_ports: Vec<PolicyRefusedPort>,
    /// Established connections that were ended because a change forbade them.
    pub established_dropped: u64,
    /// What is followed at the API server.
    pub sources: Vec<PolicySource>,
    /// Parts of policies that are not enforced as written.
    pub problems: Vec<PolicyProblem>,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// What is not known of it: `Pod`, `OtherUid`, `Namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Connections to it.
    pub ingress: PolicyDirection,
    /// Connections from it.
    pub egress: PolicyDirection,
}

/// One direction of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyDirection {
    /// What no rule allows is refused.
    pub isolated: bool,
    /// The kernel holds rules for it.
    pub restricted: bool,
    /// Policies with a say, as `NetworkPolicy NAMESPACE/NAME` or
    /// `ClusterNetworkPolicy NAME`, in the order in which they are asked.
    pub policies: Vec<String>,
    /// Refused packets since it is restricted.
    pub refused: u64,
}

/// The table in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyTable {
    /// It holds what it should.
    pub in_sync: bool,
    /// Sets of the policy.
    pub sets: usize,
    /// Elements in them.
    pub elements: usize,
    /// Chains.
    pub chains: usize,
    /// Restricted addresses.
    pub subjects: usize,
    /// Transactions made since start.
    pub transactions: u64,
    /// Times the kernel held something else than it should have.
    pub repairs: u64,
    /// How long the last transaction took, microseconds.
    pub last_us: u64,
    /// The longest so far, microseconds.
    pub longest_us: u64,
    /// Why it is not in sync.
    pub errors: Vec<String>,
}

/// Refused packets to a port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyRefusedPort {
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// Destination port, after destination NAT.
    pub port: u16,
    /// Packets.
    pub packets: u64,
}

/// A collection of the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicySource {
    /// `NetworkPolicies`, `pods of this node`, ….
    pub name: String,
    /// Its first list is complete.
    pub complete: bool,
    /// Objects known.
    pub objects: usize,
    /// Resource version up to which all is known.
    pub version: u64,
    /// Seconds since the server was last heard about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_s: Option<u64>,
    /// Seconds for which it could not be followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_s: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A part of a policy that is not enforced as written, but more strictly.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// `NetworkPolicy NAMESPACE/NAME` or `ClusterNetworkPolicy NAME`.
    pub policy: String,
    /// Path of the field.
    pub field: String,
    /// What is wrong, and what it counts as.
    pub what: String,
    /// What to write instead.
    pub hint: String,
}

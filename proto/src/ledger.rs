//! Commands of the block ledger: what consensus agrees on, version 1.
//!
//! These types are written to disk (the consensus log) and to the wire. They
//! are frozen: a change is a new variant at the end of an enum, never a new
//! field. Their meaning is in crate `weft-ipam`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, NodeId, RequestId};

/// One entry of the replicated log. Deterministic: time comes in with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Who asks, and which of its requests this is; a replay has the same.
    pub request: RequestId,
    /// The leader's clock, Unix milliseconds. The ledger never lets time run back.
    pub at_ms: u64,
    /// What is asked.
    pub op: Op,
}

/// What can be asked of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// First command of every cluster.
    Found {
        /// Drawn by the founder.
        cluster: ClusterId,
        /// Ranges to allocate from, at most one overlap-free set per family.
        ranges: Vec<IpNet>,
        /// How long freed blocks of an evicted node rest before reuse.
        quarantine_ms: u64,
    },
    /// A node enters, or a known node confirms itself. Refused with the ranges
    /// of the cluster if `ranges` differ, or if a live other node has the name.
    Join {
        /// Who.
        node: NodeId,
        /// Node name, unique in the cluster.
        name: String,
        /// The ranges it was configured with.
        ranges: Vec<IpNet>,
        /// Evict the previous holder of the name first (the leader sets this
        /// only when that node is known to be dead).
        replace: bool,
    },
    /// `count` more blocks of a family for `node`; fewer if fewer are free.
    Acquire {
        /// New owner.
        node: NodeId,
        /// True for IPv6.
        ipv6: bool,
        /// Whole blocks asked for, 1 to 256.
        count: u32,
    },
    /// One given address for `node`: granted if free or already its own.
    Claim {
        /// New owner.
        node: NodeId,
        /// The address.
        address: IpAddr,
    },
    /// `node` gives prefixes back; free for others at once (it no longer uses them).
    Release {
        /// Present owner.
        node: NodeId,
        /// Parts of its blocks.
        prefixes: Vec<IpNet>,
    },
    /// `from` hands a part of its blocks to `to`.
    Transfer {
        /// Present owner.
        from: NodeId,
        /// New owner.
        to: NodeId,
        /// A part of one of its blocks.
        prefix: IpNet,
    },
    /// `node` is gone for good: its blocks rest in quarantine, then are free.
    Evict {
        /// Who.
        node: NodeId,
    },
    /// Adds a range, or widens one to a prefix that contains it.
    Grow {
        /// The new range.
        range: IpNet,
    },
}

/// A block and its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Block {
    /// Aligned part of a range.
    pub prefix: IpNet,
    /// Who may allocate from it.
    pub owner: NodeId,
    /// Log index of the command that made this owner the owner.
    pub epoch: u64,
}

/// Answer of the ledger to one command; the same for every replay of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done (Found, Release, Evict, Grow).
    Done,
    /// Join: the node is a member of this cluster.
    Joined {
        /// The cluster.
        cluster: ClusterId,
    },
    /// Acquire, Claim, Transfer: these blocks now belong to the (new) owner.
    Granted(Vec<Block>),
    /// Nothing was changed, and why.
    Refused(Refusal),
}

/// Why the ledger changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A second Found, of another cluster.
    #[error("this ledger already belongs to cluster {cluster}")]
    AlreadyFounded {
        /// The cluster.
        cluster: ClusterId,
    },
    /// Anything before Found.
    #[error("the cluster is not founded yet")]
    NotFounded,
    /// Join with other ranges.
    #[error("IPALLOC_RANGE differs: the cluster uses {}, this node was given {}; set the same value on every node, or grow the range with `agent grow`", join(.cluster), join(.given))]
    RangeDiffers {
        /// What the cluster uses.
        cluster: Vec<IpNet>,
        /// What the node brought.
        given: Vec<IpNet>,
    },
    /// Join with a name another node has.
    #[error(
        "node name `{name}` belongs to node {holder}; two machines must not share a name: set NODE_NAME, or remove the old one with `agent rmpeer {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: NodeId,
    },
    /// The node is not a member (it never joined, or was evicted).
    #[error("node {node} is not a member of the cluster (evicted, or never joined)")]
    UnknownNode {
        /// Who.
        node: NodeId,
    },
    /// No free block is left; others may have spare addresses to hand over.
    #[error("no free block is left in {}", join(.ranges))]
    Exhausted {
        /// The ranges asked.
        ranges: Vec<IpNet>,
    },
    /// The address or prefix is not (wholly) the one who gives or asks for it.
    #[error("{prefix} belongs to {}", owner_text(.owner))]
    NotOwner {
        /// What was asked for.
        prefix: IpNet,
        /// Its owner, if any.
        owner: Option<NodeId>,
    },
    /// The address or prefix rests after the eviction of its owner.
    #[error("{prefix} rests in quarantine until {until_ms} ms (Unix time)")]
    Quarantined {
        /// What was asked for.
        prefix: IpNet,
        /// When it is free again, Unix milliseconds.
        until_ms: u64,
    },
    /// The address or range does not fit the cluster's ranges.
    #[error("{prefix} does not fit the cluster's ranges {}: {why}", join(.ranges))]
    OutOfRange {
        /// What was asked for.
        prefix: IpNet,
        /// The cluster's ranges.
        ranges: Vec<IpNet>,
        /// What does not fit.
        why: String,
    },
    /// A request older than the ones already answered for this node.
    #[error("request {}/{} of node {} was answered long ago", .0.session, .0.seq, .0.node)]
    Stale(RequestId),
    /// A command that makes no sense (no ranges, count of zero, name too long).
    #[error("bad request: {0}")]
    Bad(String),
}

fn owner_text(owner: &Option<NodeId>) -> String {
    owner.map_or_else(|| "nobody".to_owned(), |node| format!("node {node}"))
}

fn join(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

//! The replicated state machine: which node owns which prefix.
//!
//! [`Ledger::apply`] takes the entries of the consensus log one by one. It is
//! deterministic: every replica that applied the same entries is equal, and
//! time comes in with the commands.
//!
//! - The *position* of a replica is the number of entries applied. The *epoch*
//!   of a block is the position of the command that gave it to its owner.
//! - Free is what is neither owned nor at rest. Blocks are not merged, even if
//!   one node owns both halves: each keeps its epoch. They merge when freed.
//! - A request is executed once. Its answer is kept for the last 64 requests
//!   of a node's newest session; what is older is refused as stale. Refusals
//!   are answers too: who wants to try again asks with a new number.
//! - An evicted node's stored answers are dropped, its old requests are stale:
//!   a late copy of its join cannot bring it back. It returns with a new one.
//! - While the blocks of an evicted node rest, only that node itself can have
//!   them back, by claiming an address in them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::ledger::{Block, Command, Outcome};
use weft_proto::wire::v1::LedgerHead;

mod execute;
mod requests;
mod snapshot;
mod space;

pub use snapshot::{SnapshotError, SnapshotV1};

use crate::net::{Span, number};
use requests::Requests;
use space::{Holder, Space};

/// Most members of a cluster.
pub const MAX_MEMBERS: usize = 10_000;
/// Most prefixes held at a time; bounds the snapshot.
pub const MAX_PREFIXES: usize = 131_072;
/// Most ranges of a cluster.
pub const MAX_RANGES: usize = 16;
/// Longest node name in bytes.
pub const MAX_NAME: usize = 253;
/// Most blocks of one Acquire.
pub const MAX_ACQUIRE: u32 = 256;

/// What the ledger knows of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Node name, unique among the members.
    pub name: String,
    /// Position of the command that made it a member.
    pub joined_at: u64,
}

/// A prefix at rest after the eviction of its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resting {
    /// The prefix.
    pub prefix: IpNet,
    /// Who owned it.
    pub former: NodeId,
    /// When it is free, Unix milliseconds.
    pub until_ms: u64,
}

/// An entry was offered out of order; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ledger entry {got} offered where {expected} is next: pull the entries in between")]
pub struct Gap {
    /// Position of the next entry.
    pub expected: u64,
    /// Position offered.
    pub got: u64,
}

/// A replica of the ledger.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    index: u64,
    clock_ms: u64,
    cluster: Option<ClusterId>,
    quarantine_ms: u64,
    ranges: Vec<IpNet>,
    /// Earlier sets of ranges, oldest first: nodes still configured with one
    /// of them may confirm themselves after the range has grown.
    former_ranges: Vec<Vec<IpNet>>,
    members: BTreeMap<NodeId, MemberInfo>,
    by_name: BTreeMap<String, NodeId>,
    space: Space,
    requests: Requests,
}

impl Ledger {
    /// An empty ledger at position 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the log entry at `position`, which must be the next one.
    /// Entries without a command only advance the position.
    pub fn apply(&mut self, position: u64, command: Option<&Command>) -> Result<Outcome, Gap> {
        let expected = self.index.saturating_add(1);
        if position != expected || position == self.index {
            return Err(Gap { expected, got: position });
        }
        self.index = position;
        let Some(command) = command else { return Ok(Outcome::Done) };
        self.clock_ms = self.clock_ms.max(command.at_ms);
        self.space.expire(self.clock_ms);
        if let Some(outcome) = self.requests.recall(&command.request) {
            return Ok(outcome);
        }
        let outcome = self.execute(&command.op).unwrap_or_else(Outcome::Refused);
        self.requests.record(&command.request, outcome.clone(), position);
        self.requests.trim(|node| self.members.contains_key(node), self.members.len());
        Ok(outcome)
    }

    /// The newest session in which a node asked for anything.
    pub fn session_of(&self, node: NodeId) -> Option<u64> {
        self.requests.windows.get(&node).map(|window| window.session)
    }

    /// Cluster and position.
    pub fn head(&self) -> LedgerHead {
        LedgerHead { cluster: self.cluster, index: self.index }
    }

    /// The cluster, once founded.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The ranges, sorted.
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// How long freed blocks of an evicted node rest.
    pub fn quarantine_ms(&self) -> u64 {
        self.quarantine_ms
    }

    /// The latest time seen in a command, Unix milliseconds.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// All owned blocks, sorted by prefix.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.space.iter().filter_map(|(span, by)| owned(span, by))
    }

    /// The blocks of one node, sorted by prefix.
    pub fn blocks_of(&self, node: NodeId) -> impl Iterator<Item = Block> + '_ {
        self.space.owned_by(node).map(move |(span, epoch)| Block {
            prefix: span.net(),
            owner: node,
            epoch,
        })
    }

    /// The block an address lies in, if somebody owns it.
    pub fn owner_of(&self, address: IpAddr) -> Option<Block> {
        let (v6, number) = number(address);
        self.space.at(v6, number).and_then(|(span, by)| owned(span, by))
    }

    /// All members, sorted by id.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &MemberInfo)> + '_ {
        self.members.iter().map(|(node, info)| (*node, info))
    }

    /// One member.
    pub fn member(&self, node: NodeId) -> Option<&MemberInfo> {
        self.members.get(&node)
    }

    /// The member of a name.
    pub fn node_by_name(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// Addresses of a family that are neither owned nor at rest, reserved ones
    /// included.
    pub fn unowned(&self, ipv6: bool) -> u128 {
        let all: u128 =
            self.ranges.iter().map(Span::of).filter(|s| s.v6 == ipv6).map(Span::size).sum();
        let held: u128 =
            self.space.iter().map(|(s, _)| s).filter(|s| s.v6 == ipv6).map(Span::size).sum();
        all.saturating_sub(held)
    }

    /// Addresses of a family at rest.
    pub fn quarantined(&self, ipv6: bool) -> u128 {
        self.space
            .iter()
            .filter(|(span, by)| span.v6 == ipv6 && matches!(by, Holder::Resting { .. }))
            .map(|(span, _)| span.size())
            .sum()
    }

    /// Addresses of a family at rest of which the quarantine is over at `now_ms`, Unix
    /// milliseconds. They count as at rest until the next command, which says what
    /// time it is, and can be had by it.
    pub fn rested(&self, ipv6: bool, now_ms: u64) -> u128 {
        self.space
            .iter()
            .filter(|(span, by)| {
                let over = |until_ms: u64| until_ms <= now_ms;
                span.v6 == ipv6 && matches!(by, Holder::Resting { until_ms, .. } if over(*until_ms))
            })
            .map(|(span, _)| span.size())
            .sum()
    }

    /// All prefixes at rest, sorted.
    pub fn quarantine(&self) -> impl Iterator<Item = Resting> + '_ {
        self.space.iter().filter_map(|(span, by)| match by {
            Holder::Resting { former, until_ms } => {
                Some(Resting { prefix: span.net(), former, until_ms })
            }
            Holder::Owned { .. } => None,
        })
    }

    /// The whole replica as one frame, for [`Self::decode`].
    pub fn encode(&self) -> Vec<u8> {
        snapshot::encode(self)
    }

    /// Reads what [`Self::encode`] wrote, and checks that it is a ledger.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        snapshot::decode(bytes)
    }
}

fn owned(span: Span, by: Holder) -> Option<Block> {
    match by {
        Holder::Owned { owner, epoch } => Some(Block { prefix: span.net(), owner, epoch }),
        Holder::Resting { .. } => None,
    }
}

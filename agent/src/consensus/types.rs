//! Types openraft is instantiated with, and how they become bytes.

use std::fmt;
use std::io::Cursor;

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_proto::id::{NodeId, RaftId, RequestId};
use weft_proto::ledger::{Command, Outcome};

/// What the membership says of a seat. It is part of the log: frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seat {
    /// Founding address, or the node's name when it was made a voter.
    pub label: String,
    /// Who sits there. Founding seats do not say: they were named before the
    /// nodes were known, and are bound when a node is first heard in them.
    pub node: Option<NodeId>,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// What applying an entry gave; `None` for entries that carry no command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied(pub Option<Outcome>);

/// The command as it goes into the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal(pub Command);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestId { node, session, seq } = self.0.request;
        write!(f, "request {}/{session}/{seq}", node.short())
    }
}

openraft::declare_raft_types!(
    /// How weft instantiates openraft.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = RaftId,
        Node = Seat,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

/// What the engine runs on.
#[cfg(not(test))]
pub(crate) type Runtime = openraft::TokioRuntime;
#[cfg(test)]
pub(crate) type Runtime = crate::sim::runtime::SimRuntime;

/// A running consensus engine.
pub(crate) type Engine = openraft::Raft<TypeConfig>;
/// An entry of the log.
pub(crate) type Entry = openraft::Entry<TypeConfig>;
/// Identity of an entry.
pub(crate) type LogId = openraft::LogId<RaftId>;
/// A vote of this node.
pub(crate) type Vote = openraft::Vote<RaftId>;
/// Membership as stored.
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, Seat>;
/// What describes a snapshot.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Seat>;
/// Storage failure in openraft's words.
pub(crate) type StorageError = openraft::StorageError<RaftId>;
/// What the engine tells of itself.
pub(crate) type Metrics = openraft::RaftMetrics<RaftId, Seat>;

/// Position in the ledger of a log entry: the number of entries up to and with it.
pub(crate) fn position(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

/// Longest value ever decoded, on disk or in a consensus message.
const LIMIT: u64 = weft_proto::frame::MAX_PAYLOAD as u64;

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(LIMIT).reject_trailing_bytes()
}

/// Encodes a value for the log or for a consensus message.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, bincode::Error> {
    codec().serialize(value)
}

/// Decodes what [`encode`] made.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, bincode::Error> {
    codec().deserialize(bytes)
}

/// Seat of a node that was not a founder: its own id.
pub(crate) fn seat_of_node(node: NodeId) -> RaftId {
    RaftId(node.0)
}

//! Version 1 of every message. Frozen: golden bytes in the tests hold it still.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, FoundingId, NodeId, RaftId};
use crate::ledger::{Command, Op, Outcome};
use crate::names::MESH_PORT;

/// First frame of the side that dialled, on the first stream of a connection.
///
/// `proof` = HMAC-SHA256(key, "weft hello v1" ‖ role byte ‖ TLS exporter ‖ node
/// id), where role is `c` for the dialling and `s` for the accepting side. It
/// binds knowledge of the cluster key to this very TLS connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Must be the hash of the key the TLS handshake proved.
    pub node: NodeId,
    /// Node name.
    pub name: String,
    /// Cluster, once known.
    pub cluster: Option<ClusterId>,
    /// `IPALLOC_RANGE` of this node, so that a difference is named at once.
    pub ranges: Vec<IpNet>,
    /// This life of the agent: Unix milliseconds at start.
    pub session: u64,
    /// Software version, for status.
    pub software: String,
    /// Address the sender dialled (Hello) or sees the peer at (HelloAck).
    pub observed: SocketAddr,
    /// See above.
    pub proof: [u8; 32],
}

/// Answer to [`Hello`]: the same facts of the accepting side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck(pub Hello);

/// A request was understood and cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable number: see the constants.
    pub code: u16,
    /// For people: what failed, on what, what to do.
    pub message: String,
}

impl Failure {
    /// The proof of the cluster key is wrong.
    pub const WRONG_KEY: u16 = 1;
    /// `IPALLOC_RANGE` differs.
    pub const RANGE: u16 = 2;
    /// The name belongs to another live node.
    pub const NAME: u16 = 3;
    /// Another cluster.
    pub const CLUSTER: u16 = 4;
    /// `CONN_LIMIT` reached.
    pub const BUSY: u16 = 5;
    /// The two ends have the same identity (cloned disk).
    pub const CLONE: u16 = 6;
    /// Kind of request not known to this build.
    pub const UNKNOWN_KIND: u16 = 7;
    /// No leader known, or no quorum: try again later.
    pub const NO_LEADER: u16 = 8;
    /// The request does not decode or makes no sense.
    pub const BAD_REQUEST: u16 = 9;
    /// The node was evicted.
    pub const EVICTED: u16 = 10;
    /// Something broke on the serving side.
    pub const INTERNAL: u16 = 11;
}

/// "Done", where there is nothing else to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack;

/// One packet of the membership protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swim(pub Vec<u8>);

/// What everybody may know of a node. Last writer wins by (incarnation, version);
/// only the node itself writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who.
    pub node: NodeId,
    /// Node name.
    pub name: String,
    /// Life of the agent: Unix milliseconds at start.
    pub incarnation: u64,
    /// Counts changes within a life.
    pub version: u64,
    /// Where it can be reached on the underlay, best first. VXLAN goes to the first.
    pub underlay: Vec<IpAddr>,
    /// QUIC port.
    pub mesh_port: u16,
    /// Own address in the overlay (the bridge's), if it has one.
    pub overlay: Vec<IpAddr>,
    /// Seat among the voters, if it may have one.
    pub raft_id: Option<RaftId>,
    /// Index of the last ledger entry it has applied.
    pub ledger_index: u64,
    /// Addresses it owns and does not use, IPv4 (donors are chosen by it; a hint).
    pub free4: u32,
    /// The same for IPv6.
    pub free6: u32,
    /// Addresses in use.
    pub leases: u32,
    /// Software version.
    pub software: String,
    /// Overlay MTU it uses.
    pub mtu: u32,
}

impl NodeRecord {
    /// A life that has just begun, with the usual port and MTU and nothing to tell yet.
    pub fn new(node: NodeId, name: impl Into<String>, incarnation: u64) -> Self {
        Self {
            node,
            name: name.into(),
            incarnation,
            version: 1,
            underlay: Vec::new(),
            mesh_port: MESH_PORT,
            overlay: Vec::new(),
            raft_id: None,
            ledger_index: 0,
            free4: 0,
            free6: 0,
            leases: 0,
            software: String::new(),
            mtu: 1450,
        }
    }
}

/// "This is what I have": version of every record, and the ledger's position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDigest {
    /// (node, incarnation, version) of every record.
    pub records: Vec<(NodeId, u64, u64)>,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// Records the asker lacks, and those the answerer would like to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReply {
    /// Newer here.
    pub records: Vec<NodeRecord>,
    /// Newer there.
    pub wanted: Vec<NodeId>,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// Fresh records, pushed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rumor {
    /// The records.
    pub records: Vec<NodeRecord>,
}

/// "Do we have the same?" Two sums instead of a digest: what is asked most of the
/// time costs the same in every size of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSummary {
    /// Exclusive or of the sums of all leaves.
    pub root: u64,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// Answer to [`SyncSummary`]: the answerer's leaves, none if the roots are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLeaves {
    /// A power of two of sums, at most 256: nodes are divided by the first bits of their id.
    pub leaves: Vec<u64>,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// What membership holds of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Standing {
    /// Who.
    pub node: NodeId,
    /// Which life of it.
    pub session: u64,
    /// How often it came back within that life.
    pub rejoins: u32,
    /// How often it refuted a suspicion since.
    pub incarnation: u16,
    /// Declared dead.
    pub down: bool,
}

/// What the asker has in the leaves that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPart {
    /// How many leaves there are: a power of two, at most 256.
    pub of: u16,
    /// Numbers of those that differ.
    pub leaves: Vec<u16>,
    /// (node, incarnation, version) of every record in them.
    pub records: Vec<(NodeId, u64, u64)>,
    /// Membership in them, of nodes that have a record.
    pub standings: Vec<Standing>,
    /// How many members the asker takes for alive.
    pub alive: u32,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// Answer to [`SyncPart`], about the same leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPartReply {
    /// Newer here.
    pub records: Vec<NodeRecord>,
    /// Newer there.
    pub wanted: Vec<NodeId>,
    /// Membership where it differs from the asker's.
    pub standings: Vec<Standing>,
    /// How many members the answerer takes for alive.
    pub alive: u32,
    /// Last ledger entry applied.
    pub ledger: LedgerHead,
}

/// Position of a ledger replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LedgerHead {
    /// Cluster, once founded.
    pub cluster: Option<ClusterId>,
    /// Log index of the last applied entry.
    pub index: u64,
}

/// "Give me what follows `after`."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPull {
    /// The asker's position.
    pub after: LedgerHead,
}

/// Entries in order, without a gap. Entries of the log that carry no command
/// (elections, membership) are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerDelta {
    /// The cluster they belong to.
    pub cluster: Option<ClusterId>,
    /// Index of the first entry.
    pub first: u64,
    /// The entries, at most [`LedgerDelta::MOST`].
    #[serde(deserialize_with = "few_entries")]
    pub entries: Vec<Option<Command>>,
}

impl LedgerDelta {
    /// Most entries that are read. An entry may be a single byte on the wire, and a
    /// hundred in memory: without this, a frame could grow a hundredfold.
    pub const MOST: usize = 1 << 16;
}

fn few_entries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Option<Command>>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Option<Command>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {} entries", LedgerDelta::MOST)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = from.next_element()? {
                if entries.len() == LedgerDelta::MOST {
                    return Err(A::Error::custom(format_args!(
                        "more than {} entries",
                        LedgerDelta::MOST
                    )));
                }
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    from.deserialize_seq(Few)
}

/// The whole ledger, for who is too far behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSnapshot {
    /// Position.
    pub head: LedgerHead,
    /// Encoded by `weft-ipam`.
    pub state: Vec<u8>,
}

/// A consensus message. The body is openraft's own type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raft {
    /// Guards against mixing two foundings.
    pub founding: FoundingId,
    /// Sender's seat.
    pub from: RaftId,
    /// Seat it is meant for.
    pub to: RaftId,
    /// 1 append-entries, 2 vote, 3 install-snapshot.
    pub kind: u8,
    /// bincode of openraft 0.9's request.
    pub body: Vec<u8>,
}

/// Answer to [`Raft`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftReply {
    /// bincode of openraft 0.9's response.
    pub body: Vec<u8>,
}

/// "Who are you, and is there a cluster already?" asked before founding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingAsk {
    /// The asker's idea.
    pub founding: FoundingId,
    /// The founding members the asker derives it from, for the error text.
    pub members: Vec<String>,
}

/// Answer to [`FoundingAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingState {
    /// The cluster this node is part of, if any.
    pub cluster: Option<ClusterId>,
    /// True if its consensus log has been initialised (a founding may be under way).
    pub initialised: bool,
    /// Its idea of the founding.
    pub founding: FoundingId,
    /// The members it derives it from.
    pub members: Vec<String>,
    /// Its seat, if it has one. An initialised node keeps it from whom it knows no reason to
    /// let in: who does not hear all seats does not sit down.
    pub raft_id: Option<RaftId>,
}

/// "Put this into the log." Any voter forwards it to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propose {
    /// Request id for idempotence.
    pub request: crate::id::RequestId,
    /// What is asked; the leader adds the time.
    pub op: Op,
    /// How often it has been forwarded (at most 3).
    pub hops: u8,
}

/// Committed and applied, with the ledger's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposeReply {
    /// Where in the log.
    pub index: u64,
    /// The answer.
    pub outcome: Outcome,
}

/// "The ledger has no free block: hand me some of yours."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donate {
    /// True for IPv6.
    pub ipv6: bool,
    /// One given address, or any.
    pub address: Option<IpAddr>,
}

/// Answer to [`Donate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DonateReply {
    /// Committed at this index of the log.
    Given {
        /// What.
        prefix: IpNet,
        /// Where in the log.
        index: u64,
    },
    /// Nothing to give.
    Nothing {
        /// Why.
        why: String,
    },
}

/// Round-trip probe; the answer is the same frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo(pub Vec<u8>);

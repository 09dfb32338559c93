//! What goes over the simulated wire, and what it costs.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::frame::{Frame, HEADER, Message};
use weft_proto::wire::v1::{NodeRecord, Rumor, Standing, Swim, SyncLeaves, SyncPart, SyncSummary};

/// One way between any two nodes.
pub(super) const LATENCY: Duration = Duration::from_micros(500);
/// Every node's uplink, bytes per microsecond: 1 Gbit/s.
pub(super) const UPLINK: u64 = 125;
/// Around the payload of a packet: IPv4, UDP, QUIC's short header, frame and tag.
pub(super) const PACKET: u64 = 28 + 30;
/// Payload of a full packet of a stream.
const FULL: u64 = 1150;
/// What the dialling and the accepting side send until a connection is in use: both flights
/// of TLS 1.3 in QUIC, the two Hellos. A test compares with real connections.
pub(in crate::mesh) const DIAL: u64 = 4000;
pub(in crate::mesh) const ACCEPT: u64 = 3200;
/// What a handshake costs the accepting side in time of its one thread.
pub(super) const HANDSHAKE: Duration = Duration::from_micros(700);
/// Keep-alives: each side of a connection sends a packet every three seconds.
pub(super) const KEEP_ALIVE: u64 = PACKET / 3;

/// A message on its way.
#[derive(Clone)]
pub(super) enum Msg {
    Swim(Vec<u8>),
    Rumor(Vec<Arc<NodeRecord>>),
    Summary(SyncSummary),
    Leaves(SyncLeaves),
    Part(SyncPart),
    Reply {
        records: Vec<Arc<NodeRecord>>,
        wanted: Vec<weft_proto::id::NodeId>,
        standings: Vec<Standing>,
        alive: u32,
        bytes: u64,
    },
}

pub(super) fn length<M: Message>(message: &M) -> u64 {
    Frame::new(message).map_or(0, |frame| (frame.payload.len() + HEADER) as u64)
}

impl Msg {
    fn payload(&self) -> u64 {
        match self {
            Self::Swim(packet) => length(&Swim(packet.clone())),
            Self::Rumor(records) => {
                length(&Rumor { records: records.iter().map(|r| NodeRecord::clone(r)).collect() })
            }
            Self::Summary(summary) => length(summary),
            Self::Leaves(leaves) => length(leaves),
            Self::Part(part) => length(part),
            Self::Reply { bytes, .. } => *bytes,
        }
    }

    /// Bytes on the wire of the message, and of what acknowledges it.
    pub(super) fn cost(&self) -> (u64, u64) {
        let payload = self.payload();
        let packets = payload.div_ceil(FULL).max(1);
        // One that comes alone is acknowledged alone, else every second is.
        (payload + packets * PACKET, packets.div_ceil(2) * PACKET)
    }
}

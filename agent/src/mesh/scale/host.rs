//! One simulated node: the state of `mesh::state`, without locks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use weft_proto::id::NodeId;
use weft_proto::wire::v1::{LedgerHead, NodeRecord};

use super::super::digest::mix;
use super::super::records::Records;
use super::super::swim::Swim;
use super::wire::Msg;

pub(super) struct Conn {
    pub(super) used: Duration,
    pub(super) silent: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Dial {
    pub(super) running: bool,
    pub(super) failures: u32,
    pub(super) not_before: Duration,
    pub(super) waiting: Vec<Msg>,
}

pub(super) struct Host {
    pub(super) me: NodeId,
    pub(super) session: u64,
    pub(super) swim: Swim,
    pub(super) records: Records,
    pub(super) conns: BTreeMap<NodeId, Conn>,
    pub(super) dials: BTreeMap<NodeId, Dial>,
    pub(super) fresh: BTreeMap<NodeId, Option<NodeId>>,
    pub(super) rumor_due: bool,
    /// When membership is looked after next.
    pub(super) wake: Duration,
    /// The fingerprint for which `records` knows the standings.
    pub(super) seen: u64,
    pub(super) complete: Option<(u64, u64)>,
    pub(super) exchanging: BTreeSet<NodeId>,
    pub(super) queued: Vec<NodeId>,
    pub(super) targets: Vec<usize>,
    pub(super) up: bool,
    pub(super) side: bool,
    pub(super) uplink_free: Duration,
    pub(super) cpu_free: Duration,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) handshakes: u64,
}

/// Ids are spread evenly, as hashes of keys are.
pub(super) fn id_of(index: usize) -> NodeId {
    let half = |n: u64| mix(n ^ mix(index as u64 + 1)).to_be_bytes();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&half(1));
    id[8..].copy_from_slice(&half(2));
    NodeId(id)
}

/// A record as a node of a real cluster has it.
pub(super) fn record_of(index: usize, session: u64) -> NodeRecord {
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    let address = |base: u32| IpAddr::V4(Ipv4Addr::from(base + number));
    NodeRecord {
        underlay: vec![address(0x0a00_0001)],
        overlay: vec![address(0x0a20_0001)],
        ledger_index: u64::from(number),
        free4: 40,
        leases: 30,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeRecord::new(
            id_of(index),
            format!("ip-10-0-{}-{}.compute.internal", number >> 8, number & 255),
            session,
        )
    }
}

impl Host {
    pub(super) fn new(index: usize, session: u64) -> Self {
        let me = id_of(index);
        Self {
            me,
            session,
            swim: Swim::new(me, session, mix(session ^ index as u64)),
            records: Records::new(record_of(index, session)),
            conns: BTreeMap::new(),
            dials: BTreeMap::new(),
            fresh: BTreeMap::new(),
            rumor_due: false,
            wake: Duration::MAX,
            seen: 0,
            complete: None,
            exchanging: BTreeSet::new(),
            queued: Vec::new(),
            targets: Vec::new(),
            up: true,
            side: false,
            uplink_free: Duration::ZERO,
            cpu_free: Duration::ZERO,
            sent: 0,
            received: 0,
            handshakes: 0,
        }
    }

    /// Membership as `records` compares it; made when needed, not at every change.
    pub(super) fn stand(&mut self) -> &mut Records {
        let fingerprint = self.swim.fingerprint();
        if fingerprint != self.seen {
            self.seen = fingerprint;
            self.records.stand(self.swim.standings());
        }
        &mut self.records
    }

    /// Members that are alive here and can be sent packets: this node routes to them.
    pub(super) fn knows(&self) -> usize {
        self.swim.living().filter(|node| self.records.get(*node).is_some()).count()
    }

    /// What it takes this node for.
    pub(super) fn takes_for_alive(&self, node: NodeId) -> bool {
        self.records.get(node).is_some() && self.swim.living().any(|n| n == node)
    }

    pub(super) fn summary(&mut self) -> Msg {
        Msg::Summary(self.stand().summary(LedgerHead::default()))
    }

    pub(super) fn deadline(&self, start: Instant) -> Option<Duration> {
        self.swim.deadline().map(|at| at.saturating_duration_since(start))
    }
}

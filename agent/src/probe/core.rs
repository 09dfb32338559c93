//! Whom to probe when, and what to think of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use weft_proto::id::NodeId;

/// In a small cluster everybody is probed this often.
const ROUND: u32 = 5;
/// No answer within this time counts as a loss.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// So many losses in a row make a verdict: over five seconds with the pauses
/// between, longer than the mesh needs to see that a peer itself is gone.
const LOSSES: u32 = 4;
/// A peer that never answered yet may still be starting.
const GRACE: Duration = Duration::from_secs(10);

/// Where a peer's echo is, and what it must be able to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its own overlay address.
    pub address: IpAddr,
    /// Largest IP packet both sides send.
    pub mtu: u32,
    /// The life of its agent: a new one starts with a clean slate.
    pub life: u64,
    /// The mesh has no doubt about it. A suspect is not asked, and not judged anew.
    pub sure: bool,
}

/// One probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// To whom.
    pub node: NodeId,
    /// Where.
    pub address: IpAddr,
    /// What it will answer with.
    pub nonce: u64,
    /// Size of the IP packet if it shall be a large one.
    pub large: Option<u32>,
}

/// What dies on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Everything.
    All,
    /// Packets of the overlay's full MTU.
    Large,
}

/// What is thought of the path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Fine, not fine, not known yet.
    pub ok: Option<bool>,
    /// What dies, and since when.
    pub fault: Option<(Fault, Duration)>,
    /// Last round-trip time.
    pub rtt: Option<Duration>,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Probes sent, small and large.
    pub sent: u64,
    /// Answers in time.
    pub answered: u64,
    /// Probes without an answer.
    pub lost: u64,
    /// Answers nobody waits for: late, forged, from elsewhere.
    pub strange: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    losses: u32,
    since: Duration,
    heard: bool,
}

impl Lane {
    fn lose(&mut self, asked: Duration) {
        if self.losses == 0 {
            self.since = asked;
        }
        self.losses = self.losses.saturating_add(1);
    }

    fn lost(&self) -> bool {
        self.losses >= LOSSES
    }
}

#[derive(Debug, Clone)]
struct Entry {
    peer: Peer,
    known: Duration,
    small: Lane,
    large: Lane,
    rtt: Option<Duration>,
    in_flight: u8,
}

impl Entry {
    fn verdict(&self) -> Verdict {
        let fault = if self.small.lost() {
            Some((Fault::All, self.small.since))
        } else if self.small.losses == 0 && self.large.lost() {
            Some((Fault::Large, self.large.since))
        } else {
            None
        };
        let known = self.small.heard && self.large.heard;
        let ok = if fault.is_some() { Some(false) } else { known.then_some(true) };
        Verdict { ok, fault, rtt: self.rtt }
    }
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    node: NodeId,
    address: IpAddr,
    at: Duration,
    large: bool,
}

/// The scheduler and judge. Call [`Prober::tick`] about once a second.
#[derive(Debug, Default)]
pub struct Prober {
    peers: BTreeMap<NodeId, Entry>,
    flights: BTreeMap<u64, Flight>,
    /// Peers to ask again at once: a probe was lost, and no verdict is made yet.
    urgent: BTreeSet<NodeId>,
    cursor: Option<NodeId>,
    counters: Counters,
}

impl Prober {
    /// Peers that live, with their addresses. Who is not named is forgotten.
    pub fn set_peers(&mut self, now: Duration, peers: BTreeMap<NodeId, Peer>) {
        self.peers.retain(|node, _| peers.contains_key(node));
        for (node, peer) in peers {
            match self.peers.get_mut(&node) {
                Some(old) if old.peer.address == peer.address && old.peer.life == peer.life => {
                    old.peer = peer;
                }
                _ => {
                    let (small, large) = (Lane::default(), Lane::default());
                    let entry = Entry { peer, known: now, small, large, rtt: None, in_flight: 0 };
                    self.peers.insert(node, entry);
                    self.flights.retain(|_, flight| flight.node != node);
                }
            }
        }
        // What is on its way to somebody in doubt says nothing of the path.
        let entries = &mut self.peers;
        self.flights.retain(|_, f| entries.get(&f.node).is_some_and(|e| e.peer.sure));
        for entry in entries.values_mut().filter(|e| !e.peer.sure) {
            entry.in_flight = 0;
            if !entry.small.lost() {
                entry.small.losses = 0;
            }
            if !entry.large.lost() {
                entry.large.losses = 0;
            }
        }
        self.urgent.retain(|node| entries.get(node).is_some_and(|e| e.peer.sure));
    }

    /// Peers asked in turn within a tick: everybody within [`ROUND`] ticks, but
    /// never more than about the logarithm of the cluster's size.
    pub fn budget(peers: usize) -> usize {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        let most = peers.checked_ilog2().map_or(1, |log| log + 2);
        peers.div_ceil(ROUND).clamp(1, most) as usize
    }

    /// Gives up what took too long, and says what to send now.
    pub fn tick(&mut self, now: Duration, mut nonce: impl FnMut() -> u64) -> Vec<Ask> {
        self.expire(now);
        let budget = Self::budget(self.peers.len());
        let mut chosen: Vec<NodeId> =
            self.urgent.iter().filter(|n| self.idle(n)).take(budget).copied().collect();
        let after = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let turn = self.peers.range((after, Bound::Unbounded)).chain(self.peers.iter());
        let turn: Vec<NodeId> =
            turn.take(budget.min(self.peers.len())).map(|(node, _)| *node).collect();
        self.cursor = turn.last().copied();
        for node in turn {
            if !chosen.contains(&node) && self.idle(&node) {
                chosen.push(node);
            }
        }
        let mut asks = Vec::new();
        for node in chosen {
            let Some(entry) = self.peers.get_mut(&node) else { continue };
            let address = entry.peer.address;
            // While small ones die, large ones would tell nothing more.
            let sizes = [Some(None), (entry.small.losses == 0).then_some(Some(entry.peer.mtu))];
            for large in sizes.into_iter().flatten() {
                let nonce = nonce();
                let flight = Flight { node, address, at: now, large: large.is_some() };
                self.flights.insert(nonce, flight);
                entry.in_flight += 1;
                self.counters.sent += 1;
                asks.push(Ask { node, address, nonce, large });
            }
        }
        asks
    }

    fn idle(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|e| e.peer.sure && e.in_flight == 0)
    }

    fn expire(&mut self, now: Duration) {
        let late = |f: &Flight| now.saturating_sub(f.at) >= TIMEOUT;
        let gone: Vec<Flight> = self.flights.values().filter(|f| late(f)).copied().collect();
        self.flights.retain(|_, f| !late(f));
        for flight in gone {
            self.counters.lost += 1;
            let Some(entry) = self.peers.get_mut(&flight.node) else { continue };
            entry.in_flight = entry.in_flight.saturating_sub(1);
            let starting = now.saturating_sub(entry.known) < GRACE;
            let lane = if flight.large { &mut entry.large } else { &mut entry.small };
            if starting && !lane.heard {
                continue;
            }
            lane.lose(flight.at);
            if lane.lost() {
                self.urgent.remove(&flight.node);
            } else {
                self.urgent.insert(flight.node);
            }
        }
    }

    /// An answer came in. True if it was waited for.
    pub fn answer(&mut self, now: Duration, from: IpAddr, nonce: u64) -> bool {
        let expected = self.flights.get(&nonce).copied().filter(|f| f.address == from);
        let Some(flight) = expected else {
            self.counters.strange += 1;
            return false;
        };
        self.flights.remove(&nonce);
        self.counters.answered += 1;
        let Some(entry) = self.peers.get_mut(&flight.node) else { return true };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        if flight.large {
            entry.large = Lane { heard: true, ..Lane::default() };
        } else {
            if entry.small.losses > 0 {
                // Large ones may have died of the same cause: judged afresh.
                entry.large.losses = 0;
            }
            entry.small = Lane { heard: true, ..Lane::default() };
            entry.rtt = Some(now.saturating_sub(flight.at));
        }
        if entry.small.losses == 0 && entry.large.losses == 0 {
            self.urgent.remove(&flight.node);
        }
        true
    }

    /// What is thought of a peer; `None` for one that is not probed.
    pub fn verdict(&self, node: NodeId) -> Option<Verdict> {
        self.peers.get(&node).map(Entry::verdict)
    }

    /// Of all peers.
    pub fn verdicts(&self) -> impl Iterator<Item = (NodeId, Verdict)> + '_ {
        self.peers.iter().map(|(node, entry)| (*node, entry.verdict()))
    }

    /// What happened since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

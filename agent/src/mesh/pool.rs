//! The open connections: one per peer, and never more than the limit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weft_proto::id::NodeId;

use super::state::lock;

/// Two connections made within this time of each other are a simultaneous
/// open; after it, a peer that dials again has lost the older one.
const SIMULTANEOUS: Duration = Duration::from_secs(8);
/// A connection unused for so long may be closed for another one.
const EVICTABLE: Duration = Duration::from_secs(20);

/// Both ends keep a connection alive with a packet every three seconds, and repeat one that
/// is not answered: after this long, with the round of one second, the other end is suspect.
const SILENT: Duration = Duration::from_millis(4500);

/// An authenticated connection.
pub(super) struct Conn {
    pub(super) id: u64,
    pub(super) node: NodeId,
    pub(super) name: String,
    pub(super) session: u64,
    pub(super) remote: SocketAddr,
    pub(super) outbound: bool,
    pub(super) since: Instant,
    pub(super) quic: quinn::Connection,
    pub(super) busy: AtomicUsize,
    used_ms: AtomicU64,
    /// Packets received when last looked at, and since when that is so.
    heard: Mutex<(u64, Instant)>,
}

impl Conn {
    #[allow(clippy::too_many_arguments, reason = "plain facts, set once, named at the one call")]
    pub(super) fn new(
        id: u64,
        node: NodeId,
        name: String,
        session: u64,
        remote: SocketAddr,
        outbound: bool,
        quic: quinn::Connection,
    ) -> Self {
        Self {
            id,
            node,
            name,
            session,
            remote,
            outbound,
            since: Instant::now(),
            quic,
            busy: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
            heard: Mutex::new((0, Instant::now())),
        }
    }

    /// Notes that it was of use.
    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(ms, Ordering::Relaxed);
    }

    /// How long it has been of no use; zero while something is under way.
    pub(super) fn idle(&self) -> Duration {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let used = Duration::from_millis(self.used_ms.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(used)
    }

    /// True if nothing has come for longer than keep-alives allow. Asked once a second.
    pub(super) fn is_silent(&self) -> bool {
        let packets = self.quic.stats().udp_rx.datagrams;
        let mut heard = lock(&self.heard);
        if heard.0 != packets {
            *heard = (packets, Instant::now());
        }
        heard.1.elapsed() > SILENT
    }

    pub(super) fn alive(&self) -> bool {
        self.quic.close_reason().is_none()
    }
}

/// Which of two connections to one peer stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Old,
    New,
}

/// Both sides decide alike: of a simultaneous open, the connection dialled by
/// the smaller id stays; otherwise the newer one, for who dials again has lost
/// the older.
pub(super) fn tie_break(
    me: NodeId,
    peer: NodeId,
    old_outbound: bool,
    new_outbound: bool,
    simultaneous: bool,
) -> Keep {
    if old_outbound == new_outbound || !simultaneous {
        return Keep::New;
    }
    let mine_stays = me < peer;
    if old_outbound == mine_stays { Keep::Old } else { Keep::New }
}

/// What became of a new connection.
pub(super) enum Admit {
    /// It is in use; these were pushed out by it.
    In { replaced: Option<Arc<Conn>>, evicted: Option<Arc<Conn>> },
    /// There is a better one to the same peer.
    Duplicate,
    /// The limit is reached and none is idle.
    Busy,
}

/// The connections in use, by peer.
#[derive(Default)]
pub(super) struct Pool {
    conns: BTreeMap<NodeId, Arc<Conn>>,
}

impl Pool {
    pub(super) fn get(&self, node: NodeId) -> Option<Arc<Conn>> {
        self.conns.get(&node).filter(|c| c.alive()).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Conn>> {
        self.conns.values().filter(|c| c.alive()).cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.conns.values().filter(|c| c.alive()).count()
    }

    /// The connection that may be closed to make room, if room must be made.
    fn victim(&self, limit: usize) -> Result<Option<Arc<Conn>>, ()> {
        if limit == 0 || self.len() < limit {
            return Ok(None);
        }
        self.conns
            .values()
            .filter(|c| c.alive() && c.idle() >= EVICTABLE)
            .max_by_key(|c| c.idle())
            .map(|c| Some(Arc::clone(c)))
            .ok_or(())
    }

    /// True if a connection to a new peer would be let in.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        self.victim(limit).is_ok()
    }

    /// Puts a connection in use, unless another is better or there is no room.
    pub(super) fn admit(&mut self, me: NodeId, conn: &Arc<Conn>, limit: usize) -> Admit {
        if let Some(old) = self.get(conn.node) {
            let simultaneous = old.session == conn.session && old.since.elapsed() < SIMULTANEOUS;
            return match tie_break(me, conn.node, old.outbound, conn.outbound, simultaneous) {
                Keep::Old => Admit::Duplicate,
                Keep::New => {
                    conn.touch();
                    self.conns.insert(conn.node, Arc::clone(conn));
                    Admit::In { replaced: Some(old), evicted: None }
                }
            };
        }
        match self.victim(limit) {
            Err(()) => Admit::Busy,
            Ok(evicted) => {
                if let Some(victim) = &evicted {
                    self.conns.remove(&victim.node);
                }
                conn.touch();
                self.conns.insert(conn.node, Arc::clone(conn));
                Admit::In { replaced: None, evicted }
            }
        }
    }

    /// Takes a closed connection out; true if it was the one in use.
    pub(super) fn remove(&mut self, conn: &Conn) -> bool {
        let current = self.conns.get(&conn.node).is_some_and(|c| c.id == conn.id);
        if current {
            self.conns.remove(&conn.node);
        }
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_keep_the_same_connection() {
        let (a, b) = (NodeId([1; 16]), NodeId([2; 16]));
        // Connection 1 was dialled by a, connection 2 by b; either may come first.
        for one_first_at_a in [true, false] {
            for one_first_at_b in [true, false] {
                let kept = |me, peer, one_is_mine: bool, one_first: bool| {
                    let (old, new) = if one_first {
                        (one_is_mine, !one_is_mine)
                    } else {
                        (!one_is_mine, one_is_mine)
                    };
                    let keep = tie_break(me, peer, old, new, true);
                    (keep == Keep::Old) == one_first // true: connection 1 is kept
                };
                assert!(kept(a, b, true, one_first_at_a));
                assert!(kept(b, a, false, one_first_at_b));
            }
        }
    }

    #[test]
    fn who_dials_again_has_lost_the_older() {
        let (a, b) = (NodeId([1; 16]), NodeId([2; 16]));
        assert_eq!(tie_break(a, b, true, false, false), Keep::New);
        assert_eq!(tie_break(a, b, true, true, true), Keep::New);
    }
}

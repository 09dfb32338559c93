//! How dense the mesh is kept: which connections are made and which are closed. Pure.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use weft_proto::id::NodeId;

/// Up to so many members, everybody is connected to everybody.
pub(super) const FULL_MESH: usize = 16;
/// Beyond that, so many random connections are kept.
pub(super) const ACTIVE: usize = 8;
/// Only beyond that are connections closed. Were it the same number, what one end closes
/// as its ninth would be missed at the other as its eighth, and be made again for ever.
pub(super) const SPARE: usize = 2 * ACTIVE;
/// Connections unused for so long may be closed.
const IDLE_OUT: Duration = Duration::from_secs(20);
/// Dials of one round of maintenance: paced, so that a restart is no storm.
pub(super) const PER_ROUND: usize = 4;

/// Whom to dial now, of `missing`: living members without a connection.
pub(super) fn dials(
    me: NodeId,
    missing: &[NodeId],
    have: usize,
    dense: bool,
    room: usize,
    rng: &mut impl Rng,
) -> Vec<NodeId> {
    let wanted = if dense { missing.len() } else { ACTIVE.saturating_sub(have) };
    let count = wanted.min(room).min(PER_ROUND);
    let chosen: Vec<_> = missing.choose_multiple(rng, count).copied().collect();
    // In a full mesh the smaller id dials; the other one helps out now and then, for the
    // smaller may be unable to (NAT). Chosen among many, hardly anybody is chosen back.
    chosen.into_iter().filter(|node| !dense || me < *node || rng.random_ratio(1, 4)).collect()
}

/// Which of these connections (with how long they have been idle) to close.
pub(super) fn closes(conns: &[(NodeId, Duration)], kept: &[NodeId]) -> Vec<NodeId> {
    let mut idle: Vec<_> =
        conns.iter().filter(|(node, idle)| *idle >= IDLE_OUT && !kept.contains(node)).collect();
    idle.sort_by_key(|(_, idle)| std::cmp::Reverse(*idle));
    idle.iter().take(conns.len().saturating_sub(SPARE)).map(|(node, _)| *node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    #[test]
    fn dials_what_is_missing_and_no_more() {
        let mut rng = rand::rng();
        let missing: Vec<_> = (2..100).map(id).collect();
        let mut count =
            |have, dense, room| dials(id(1), &missing, have, dense, room, &mut rng).len();
        assert_eq!(count(0, false, usize::MAX), PER_ROUND);
        assert_eq!(count(ACTIVE - 1, false, usize::MAX), 1);
        assert_eq!(count(ACTIVE, false, usize::MAX), 0);
        assert_eq!(count(0, false, 2), 2);
        assert_eq!(count(30, true, usize::MAX), PER_ROUND);
    }

    #[test]
    fn closes_only_idle_ones_beyond_the_spare() {
        let idle = |n: u8| if n.is_multiple_of(2) { IDLE_OUT } else { Duration::ZERO };
        let conns = |count: u8| (0..count).map(|n| (id(n), idle(n))).collect::<Vec<_>>();
        assert!(closes(&conns(16), &[]).is_empty());
        let closed = closes(&conns(19), &[id(0)]);
        assert_eq!(closed.len(), 3);
        assert!(closed.iter().all(|node| node.0[0] % 2 == 0 && node.0[0] != 0));
        assert_eq!(closes(&conns(60), &[]).len(), 30, "busy ones stay");
    }
}

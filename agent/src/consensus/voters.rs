//! Who should be a voter: pure. One change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_proto::id::{NodeId, RaftId};

use super::types::seat_of_node;

/// A seat of the present membership, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeatView {
    /// True for a voter, false for a learner.
    pub voter: bool,
    /// Who sits there, if ever somebody was heard in it.
    pub node: Option<NodeId>,
    /// How long the node has not been alive (or the seat has been vacant);
    /// `None` while alive.
    pub dead_for: Option<Duration>,
    /// It has (nearly) all of the log.
    pub caught_up: bool,
}

/// Everything the decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Situation {
    /// The leader's own seat; it is never removed by itself.
    pub me: RaftId,
    /// Members of the ledger, and whether they are alive.
    pub joined: BTreeMap<NodeId, bool>,
    /// Present membership.
    pub seats: BTreeMap<RaftId, SeatView>,
    /// A membership change is under way.
    pub changing: bool,
}

/// One change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Starts to send the log to a node.
    AddLearner(NodeId),
    /// Stops it, before it became a voter.
    RemoveLearner(RaftId),
    /// Replaces the set of voters: at most one in, at most one out.
    SetVoters(BTreeSet<RaftId>),
}

/// When a seat counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// A voter that was there.
    pub dead: Duration,
    /// A founding seat nobody ever came to.
    pub vacant: Duration,
}

/// A seat that a node says to have, in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who.
    pub node: NodeId,
    /// Which.
    pub seat: RaftId,
    /// How long the node has been dead; `None` while it is not.
    pub dead_for: Option<Duration>,
}

/// Voters for so many joined nodes.
pub(crate) fn desired(joined: usize) -> usize {
    match joined {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

fn lost(seat: &SeatView, patience: Patience) -> bool {
    let limit = if seat.node.is_some() { patience.dead } else { patience.vacant };
    seat.dead_for.is_some_and(|for_| for_ >= limit)
}

/// What a node without a seat makes of who says to have one. The dead may no longer
/// have theirs: whoever was removed from the ledger has none, and of more claims
/// than there are voters for so many members those that are dead longest are old.
/// `members` is empty where the ledger is not known.
pub(crate) fn believed(mut claims: Vec<Claim>, members: &BTreeSet<NodeId>) -> Vec<Claim> {
    if members.is_empty() {
        return claims;
    }
    claims.retain(|claim| claim.dead_for.is_none() || members.contains(&claim.node));
    claims.sort_by_key(|claim| (claim.dead_for, claim.node));
    while claims.len() > desired(members.len())
        && claims.last().is_some_and(|claim| claim.dead_for.is_some())
    {
        claims.pop();
    }
    claims
}

/// The next change, if one is due.
pub(crate) fn next_change(s: &Situation, patience: Patience) -> Option<Change> {
    if s.changing {
        return None;
    }
    let voters: BTreeSet<RaftId> =
        s.seats.iter().filter(|(_, v)| v.voter).map(|(id, _)| *id).collect();
    let evicted = |v: &SeatView| v.node.is_some_and(|n| !s.joined.contains_key(&n));
    // Nothing is decided while the leader itself is not a member of the ledger.
    if s.seats.get(&s.me).is_none_or(&evicted) {
        return None;
    }
    let learners = || s.seats.iter().filter(|(_, v)| !v.voter);
    if let Some((id, _)) = learners().find(|(_, v)| evicted(v) || lost(v, patience)) {
        return Some(Change::RemoveLearner(*id));
    }

    // Present voters, worst first: the one to give up, if one must go.
    let replaceable = voters
        .iter()
        .filter(|id| **id != s.me)
        .filter_map(|id| s.seats.get(id).map(|v| (*id, v)))
        .filter(|(_, v)| evicted(v) || lost(v, patience))
        .min_by_key(|(_, v)| !evicted(v))
        .map(|(id, v)| (id, evicted(v)));
    let want = desired(s.joined.len());
    let grow = voters.len() < want;
    let with = |add: Option<RaftId>, remove: Option<RaftId>| {
        let mut next = voters.clone();
        next.extend(add);
        remove.map(|id| next.remove(&id));
        // A change that the new voters could not agree on would never end, and
        // nothing after it would either.
        let alive = next.iter().filter(|id| s.seats.get(id).is_some_and(|v| v.dead_for.is_none()));
        (alive.count() * 2 > next.len()).then_some(Change::SetVoters(next))
    };

    // Too many (the cluster shrank in the ledger): a lost seat first, then one
    // that is silent, else any other.
    if voters.len() > want {
        let silent = |id: &RaftId| s.seats.get(id).is_some_and(|v| v.dead_for.is_some());
        let others = || voters.iter().rev().copied().filter(|id| *id != s.me);
        let first = replaceable.map(|(id, _)| id).into_iter();
        let mut out = first.chain(others().filter(silent)).chain(others());
        return out.find_map(|id| with(None, Some(id)));
    }
    if !grow && replaceable.is_none() {
        return None;
    }
    let out = if grow && replaceable.is_none_or(|(_, gone)| !gone) {
        None
    } else {
        replaceable.map(|(id, _)| id)
    };
    if let Some((id, _)) = learners().find(|(_, v)| v.caught_up && v.dead_for.is_none()) {
        return with(Some(*id), out);
    }
    if learners().next().is_some() {
        return None;
    }
    // Whoever is alive and does not come to its seat may have one of its own.
    let seated: BTreeSet<NodeId> =
        s.seats.values().filter(|v| !lost(v, patience)).filter_map(|v| v.node).collect();
    let spare = s
        .joined
        .iter()
        .find(|(node, alive)| {
            **alive && !seated.contains(*node) && !s.seats.contains_key(&seat_of_node(**node))
        })
        .map(|(node, _)| *node);
    match (spare, replaceable) {
        (Some(node), _) => Some(Change::AddLearner(node)),
        // Nobody to take its place: an evicted node goes all the same, as long
        // as at least one voter stays.
        (None, Some((id, true))) if voters.len() > 1 => with(None, Some(id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Patience =
        Patience { dead: Duration::from_secs(60), vacant: Duration::from_secs(5) };

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn seat(n: u8) -> (RaftId, SeatView) {
        let view = SeatView { voter: true, node: Some(node(n)), dead_for: None, caught_up: true };
        (seat_of_node(node(n)), view)
    }

    fn situation(joined: &[u8], voters: &[u8]) -> Situation {
        Situation {
            me: seat_of_node(node(voters[0])),
            joined: joined.iter().map(|n| (node(*n), true)).collect(),
            seats: voters.iter().map(|n| seat(*n)).collect(),
            changing: false,
        }
    }

    #[test]
    fn grows_by_way_of_a_learner() {
        let mut s = situation(&[1, 2, 3], &[1]);
        assert_eq!(next_change(&s, PATIENCE), Some(Change::AddLearner(node(2))));
        let (id, mut view) = seat(2);
        view.voter = false;
        view.caught_up = false;
        s.seats.insert(id, view.clone());
        assert_eq!(next_change(&s, PATIENCE), None);
        view.caught_up = true;
        s.seats.insert(id, view);
        let both = BTreeSet::from([seat_of_node(node(1)), id]);
        assert_eq!(next_change(&s, PATIENCE), Some(Change::SetVoters(both)));
        s.changing = true;
        assert_eq!(next_change(&s, PATIENCE), None);
    }

    #[test]
    fn death_alone_never_shrinks() {
        let mut s = situation(&[1, 2, 3], &[1, 2, 3]);
        for n in [2, 3] {
            let id = seat_of_node(node(n));
            s.joined.insert(node(n), false);
            s.seats.get_mut(&id).unwrap().dead_for = Some(Duration::from_secs(3600));
        }
        assert_eq!(next_change(&s, PATIENCE), None);
        s.joined.insert(node(4), true);
        assert_eq!(next_change(&s, PATIENCE), Some(Change::AddLearner(node(4))));
    }

    #[test]
    fn an_evicted_voter_goes() {
        let s = situation(&[1, 2], &[1, 2, 3]);
        let left = BTreeSet::from([seat_of_node(node(1)), seat_of_node(node(2))]);
        assert_eq!(next_change(&s, PATIENCE), Some(Change::SetVoters(left)));
    }

    #[test]
    fn a_shrinking_cluster_keeps_those_who_answer() {
        // Five founding seats, three nodes came: the silent seats go first,
        // though nobody has given them up yet.
        let mut s = situation(&[1, 2, 5], &[1, 2, 3, 4, 5]);
        for n in [3, 4] {
            let view = s.seats.get_mut(&seat_of_node(node(n))).unwrap();
            (view.node, view.dead_for) = (None, Some(Duration::from_secs(1)));
        }
        let left = [1, 2, 3, 5].map(|n| seat_of_node(node(n))).into();
        assert_eq!(next_change(&s, PATIENCE), Some(Change::SetVoters(left)));
    }

    #[test]
    fn nothing_is_begun_that_the_new_voters_cannot_end() {
        let mut s = situation(&[1, 3], &[1, 2, 3]);
        s.seats.get_mut(&seat_of_node(node(3))).unwrap().dead_for = Some(Duration::from_secs(1));
        // Without the evicted voter 2 there would be one of two.
        s.joined.insert(node(4), false);
        assert_eq!(next_change(&s, PATIENCE), None);
    }

    #[test]
    fn a_vacant_founding_seat_is_filled_soon() {
        let mut s = situation(&[1, 2, 3], &[1, 2]);
        s.seats.insert(
            RaftId([99; 16]),
            SeatView {
                voter: true,
                node: None,
                dead_for: Some(Duration::from_secs(6)),
                caught_up: false,
            },
        );
        assert_eq!(next_change(&s, PATIENCE), Some(Change::AddLearner(node(3))));
    }

    fn claims(alive: &[u8], dead: &[(u8, u64)]) -> Vec<Claim> {
        let claim = |n: u8, dead_for| Claim { node: node(n), seat: seat(n).0, dead_for };
        let alive = alive.iter().map(|n| claim(*n, None));
        let dead = dead.iter().map(|(n, s)| claim(*n, Some(Duration::from_secs(*s))));
        dead.chain(alive).collect()
    }

    fn nodes(all: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
        all.into_iter().map(node).collect()
    }

    #[test]
    fn claims_of_the_dead_may_be_old() {
        // Evicted: one voter is left of three.
        assert_eq!(believed(claims(&[1], &[(3, 20)]), &nodes([1, 2])), claims(&[1], &[]));
        // Replaced while dead, by others that have died since.
        let found = believed(claims(&[1, 2], &[(3, 10), (9, 900), (4, 12), (5, 5)]), &nodes(1..=9));
        assert_eq!(found.len(), 5);
        assert!(!found.iter().any(|claim| claim.node == node(9)), "{found:?}");
        // Dead all the same, and missed.
        assert_eq!(believed(claims(&[1], &[(2, 70), (3, 90)]), &nodes(1..=4)).len(), 3);
        // Alive ones know best, and who knows no ledger knows nothing better.
        assert_eq!(believed(claims(&[1, 2, 3], &[]), &nodes([1])).len(), 3);
        assert_eq!(believed(claims(&[1], &[(2, 5)]), &nodes([])).len(), 2);
    }

    proptest! {
        /// One in and one out at most, never empty, never without the leader;
        /// more alive voters than before unless somebody was evicted or the
        /// ledger shrank; and it comes to rest.
        #[test]
        fn changes_are_small_and_end(
            joined in prop::collection::btree_map(0u8..10, any::<bool>(), 1..9),
            voters in prop::collection::btree_set(0u8..12, 1..6),
            learners in prop::collection::btree_set(0u8..12, 0..3),
            dead in prop::collection::btree_map(0u8..12, 0u64..200, 0..8),
        ) {
            let me = *voters.iter().next().unwrap();
            let mut s = situation(&[], &[me]);
            s.joined = joined.iter().map(|(n, alive)| (node(*n), *alive)).collect();
            s.joined.insert(node(me), true);
            for n in voters.iter().chain(learners.difference(&voters)) {
                let (id, mut view) = seat(*n);
                view.voter = voters.contains(n);
                view.dead_for = dead.get(n).filter(|_| *n != me).map(|d| Duration::from_secs(*d));
                if view.dead_for.is_some() {
                    s.joined.entry(node(*n)).and_modify(|alive| *alive = false);
                }
                s.seats.insert(id, view);
            }
            let mut steps = 0;
            while let Some(change) = next_change(&s, PATIENCE) {
                steps += 1;
                prop_assert!(steps < 60, "never comes to rest: {:?}", change);
                match change {
                    Change::AddLearner(n) => {
                        prop_assert!(s.joined[&n]);
                        let view = SeatView { voter: false, node: Some(n), dead_for: None, caught_up: true };
                        prop_assert!(s.seats.insert(seat_of_node(n), view).is_none());
                    }
                    Change::RemoveLearner(id) => {
                        prop_assert!(!s.seats.remove(&id).unwrap().voter);
                    }
                    Change::SetVoters(next) => {
                        let before: BTreeSet<RaftId> = s.seats.iter().filter(|(_, v)| v.voter).map(|(i, _)| *i).collect();
                        prop_assert!(next.contains(&s.me));
                        prop_assert!(next.difference(&before).count() <= 1);
                        prop_assert!(before.difference(&next).count() <= 1);
                        if next.len() < before.len() {
                            let gone = before.difference(&next).next().unwrap();
                            let evicted = s.seats[gone].node.is_some_and(|n| !s.joined.contains_key(&n));
                            prop_assert!(evicted || before.len() > desired(s.joined.len()));
                        }
                        for id in before.difference(&next) { s.seats.remove(id); }
                        for id in &next { s.seats.get_mut(id).unwrap().voter = true; }
                    }
                }
            }
        }
    }
}

//! Finding and exchanging what differs between two nodes, in three steps: one sum of
//! everything; sums of its leaves; what is in the leaves that differ. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::id::NodeId;
use weft_proto::wire::v1::{
    LedgerHead, NodeRecord, Standing, SyncLeaves, SyncPart, SyncPartReply, SyncSummary,
};

use super::digest;
use super::records::{MAX_BATCH, MAX_RECORDS, Records, stamp};

/// Two standings of one life of a node mean the same, but for refuted suspicions.
fn same(a: &Standing, b: &Standing) -> bool {
    (a.session, a.rejoins, a.down) == (b.session, b.rejoins, b.down)
}

impl Records {
    /// The question.
    pub(super) fn summary(&mut self, ledger: LedgerHead) -> SyncSummary {
        SyncSummary { root: digest::root(self.sums()), ledger }
    }

    /// Answers it: nothing if all is the same.
    pub(super) fn leaves(&mut self, asked: &SyncSummary, ledger: LedgerHead) -> SyncLeaves {
        let of = digest::leaves_for(self.len());
        let sums = self.sums();
        let same = digest::root(sums) == asked.root;
        let leaves = if same { Vec::new() } else { digest::fold(sums, of) };
        SyncLeaves { leaves, ledger }
    }

    /// What is here in the leaves that differ; `None` if none does, or if the answer makes
    /// no sense.
    pub(super) fn part(&mut self, theirs: &SyncLeaves, ledger: LedgerHead) -> Option<SyncPart> {
        let of = theirs.leaves.len();
        if !digest::valid(of) {
            return None;
        }
        let mine = digest::fold(self.sums(), of);
        let differ: BTreeSet<usize> = (0..of).filter(|i| mine[*i] != theirs.leaves[*i]).collect();
        if differ.is_empty() {
            return None;
        }
        let here = self.within(&differ, of);
        Some(SyncPart {
            of: u16::try_from(of).ok()?,
            leaves: differ.iter().filter_map(|i| u16::try_from(*i).ok()).collect(),
            records: here.iter().map(|r| (r.node, r.incarnation, r.version)).collect(),
            standings: here.iter().filter_map(|r| self.standing(r.node).copied()).collect(),
            alive: self.alive,
            ledger,
        })
    }

    fn within(&self, leaves: &BTreeSet<usize>, of: usize) -> Vec<&Arc<NodeRecord>> {
        self.iter().filter(|r| leaves.contains(&digest::leaf(r.node, of))).collect()
    }

    /// Compares with what the asker has: its answer, or `None` if it makes no sense.
    pub(super) fn compare_part(
        &self,
        theirs: &SyncPart,
        ledger: LedgerHead,
    ) -> Option<SyncPartReply> {
        let of = usize::from(theirs.of);
        if !digest::valid(of) {
            return None;
        }
        let leaves: BTreeSet<usize> = theirs.leaves.iter().map(|i| usize::from(*i)).collect();
        let most = theirs.records.iter().take(2 * MAX_RECORDS);
        let known: BTreeMap<NodeId, (u64, u64)> =
            most.map(|(node, i, v)| (*node, (*i, *v))).collect();
        let stands: BTreeMap<NodeId, &Standing> =
            theirs.standings.iter().take(2 * MAX_RECORDS).map(|s| (s.node, s)).collect();
        let here = self.within(&leaves, of);
        let newer = |r: &NodeRecord| {
            known.get(&r.node).is_none_or(|other| {
                // Who believes something else of us is told by ourselves.
                if self.is_me(r.node) { *other != stamp(r) } else { *other < stamp(r) }
            })
        };
        let records: Vec<NodeRecord> = here
            .iter()
            .filter(|r| newer(r))
            .take(MAX_BATCH)
            .map(|r| NodeRecord::clone(r))
            .collect();
        let standings = here
            .iter()
            .filter_map(|r| self.standing(r.node))
            .filter(|mine| stands.get(&mine.node).is_none_or(|other| !same(mine, other)))
            .copied()
            .collect();
        let wanted = known
            .iter()
            .filter(|(node, (incarnation, _))| {
                self.tombstones.get(node).is_none_or(|limit| incarnation > limit)
            })
            .filter(|(node, other)| self.get(**node).is_none_or(|r| stamp(r) < **other))
            .map(|(node, _)| *node)
            .take(MAX_BATCH)
            .collect();
        Some(SyncPartReply { records, wanted, standings, alive: self.alive, ledger })
    }

    fn is_me(&self, node: NodeId) -> bool {
        self.own().is_some_and(|own| own.node == node)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(node: u8, incarnation: u64, version: u64) -> NodeRecord {
        NodeRecord {
            version,
            ..NodeRecord::new(NodeId([node; 16]), format!("n{node}"), incarnation)
        }
    }

    fn standing(node: u8, session: u64, down: bool) -> Standing {
        Standing { node: NodeId([node; 16]), session, rejoins: 0, incarnation: 0, down }
    }

    /// As the tasks do it; false if nothing differed.
    fn exchange(a: &mut Records, b: &mut Records) -> bool {
        let head = LedgerHead::default();
        let leaves = b.leaves(&a.summary(head), head);
        let Some(part) = a.part(&leaves, head) else { return false };
        let reply = b.compare_part(&part, head).unwrap();
        let back: Vec<_> = reply.wanted.iter().filter_map(|n| a.get(*n).cloned()).collect();
        for record in reply.records {
            a.offer(record);
        }
        for record in back {
            b.offer(record);
        }
        true
    }

    proptest! {
        #[test]
        fn one_exchange_makes_two_stores_the_same(
            a in proptest::collection::vec((3..200u8, 1..4u64, 0..5u64), 0..200),
            b in proptest::collection::vec((3..200u8, 1..4u64, 0..5u64), 0..200),
        ) {
            let mut left = Records::new(record(1, 1, 0));
            let mut right = Records::new(record(2, 1, 0));
            for (store, list) in [(&mut left, &a), (&mut right, &b)] {
                for (n, i, v) in list {
                    store.offer(record(*n, *i, *v));
                }
            }
            prop_assert!(exchange(&mut left, &mut right));
            prop_assert!(left.iter().eq(right.iter()));
            prop_assert!(!exchange(&mut left, &mut right), "nothing is left to say");
        }
    }

    #[test]
    fn only_what_differs_is_sent() {
        let mut left = Records::new(record(1, 1, 0));
        let mut right = Records::new(record(2, 1, 0));
        for n in 3..=250 {
            left.offer(record(n, 1, 1));
            right.offer(record(n, 1, 1));
        }
        left.offer(record(2, 1, 0));
        right.offer(record(1, 1, 0));
        let head = LedgerHead::default();
        assert!(right.leaves(&left.summary(head), head).leaves.is_empty());
        right.offer(record(99, 1, 2));
        right.stand((3..=250).map(|n| standing(n, 1, n == 99)).collect());
        left.stand((3..=250).map(|n| standing(n, 1, false)).collect());
        let leaves = right.leaves(&left.summary(head), head);
        let part = left.part(&leaves, head).unwrap();
        assert_eq!(part.leaves.len(), 1);
        assert!(part.records.len() < 20, "{}", part.records.len());
        let reply = right.compare_part(&part, head).unwrap();
        assert_eq!(reply.records.iter().map(stamp).collect::<Vec<_>>(), [(1, 2)]);
        assert_eq!(reply.standings, [standing(99, 1, true)]);
        assert!(reply.wanted.is_empty());
        assert_eq!((part.alive, reply.alive), (248, 247));
    }

    #[test]
    fn nonsense_is_not_answered() {
        let mut store = Records::new(record(1, 1, 0));
        let head = LedgerHead::default();
        for leaves in [vec![], vec![1; 3], vec![1; 512]] {
            assert!(store.part(&SyncLeaves { leaves, ledger: head }, head).is_none());
        }
        let part = SyncPart {
            of: 3,
            leaves: vec![9999],
            records: vec![],
            standings: vec![],
            alive: 0,
            ledger: head,
        };
        assert!(store.compare_part(&part, head).is_none());
        let reply = store.compare_part(&SyncPart { of: 1, ..part }, head).unwrap();
        assert!(reply.records.is_empty(), "leaves that do not exist hold nothing");
    }
}

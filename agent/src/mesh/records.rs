//! Node records: a bounded last-writer-wins map. Pure.

use std::collections::BTreeMap;

use weft_proto::id::NodeId;
use weft_proto::wire::v1::{NodeRecord, SyncDigest};

/// Most records kept.
const MAX_RECORDS: usize = 10_000;
/// Most tombstones kept.
const MAX_TOMBSTONES: usize = 10_000;
/// Most records in one answer; at about 100 bytes each far below its limit.
const MAX_BATCH: usize = 4_000;
/// A removed node is let back in when its life began this much after the one removed.
const RETURN_AFTER_MS: u64 = 600_000;

/// What became of an offered record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// Newer than what was here: tell others.
    Fresh,
    /// Known, or older than what is here.
    Old,
    /// Somebody else claims to know this node better than it does itself: a
    /// former life with a clock that ran ahead. The own record must overtake it.
    Overtaken,
    /// Makes no sense, or is of a removed node.
    Refused(&'static str),
}

/// All records known here.
#[derive(Debug)]
pub(super) struct Records {
    me: NodeId,
    records: BTreeMap<NodeId, NodeRecord>,
    /// Incarnations up to this one are refused.
    tombstones: BTreeMap<NodeId, u64>,
}

fn stamp(record: &NodeRecord) -> (u64, u64) {
    (record.incarnation, record.version)
}

/// Checks what can be checked of a record without asking anybody.
fn validate(record: &NodeRecord) -> Result<(), &'static str> {
    let text = |text: &str, longest| text.len() <= longest && !text.contains(char::is_control);
    if record.name.is_empty() || !text(&record.name, 253) {
        return Err("name");
    }
    if !text(&record.software, 64) {
        return Err("software version");
    }
    if record.underlay.len() > 8 || record.overlay.len() > 8 {
        return Err("too many addresses");
    }
    if record.underlay.iter().any(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err("underlay address");
    }
    if record.mesh_port == 0 {
        return Err("port 0");
    }
    Ok(())
}

impl Records {
    /// Just this node.
    pub(super) fn new(own: NodeRecord) -> Self {
        Self {
            me: own.node,
            records: BTreeMap::from([(own.node, own)]),
            tombstones: BTreeMap::new(),
        }
    }

    /// This node's record.
    pub(super) fn own(&self) -> Option<&NodeRecord> {
        self.records.get(&self.me)
    }

    /// One record.
    pub(super) fn get(&self, node: NodeId) -> Option<&NodeRecord> {
        self.records.get(&node)
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = &NodeRecord> {
        self.records.values()
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Changes the own record; true if it differs now. Who it is cannot be changed.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut NodeRecord)) -> bool {
        let Some(own) = self.records.get_mut(&self.me) else { return false };
        let before = own.clone();
        change(own);
        (own.node, own.incarnation, own.version) =
            (before.node, before.incarnation, before.version);
        if validate(own).is_err() {
            *own = before;
            return false;
        }
        if *own == before {
            return false;
        }
        own.version += 1;
        true
    }

    /// Takes a record in if it is valid and newer.
    pub(super) fn offer(&mut self, record: NodeRecord) -> Offer {
        if let Err(why) = validate(&record) {
            return Offer::Refused(why);
        }
        if self.tombstones.get(&record.node).is_some_and(|limit| record.incarnation <= *limit) {
            return Offer::Refused("removed node");
        }
        let full = self.records.len() >= MAX_RECORDS;
        match self.records.get_mut(&record.node) {
            Some(mine) if stamp(mine) >= stamp(&record) => Offer::Old,
            Some(mine) if record.node == self.me => {
                mine.incarnation = record.incarnation.saturating_add(1);
                mine.version += 1;
                Offer::Overtaken
            }
            Some(mine) => {
                *mine = record;
                Offer::Fresh
            }
            None if full => Offer::Refused("too many nodes"),
            None => {
                self.tombstones.remove(&record.node);
                self.records.insert(record.node, record);
                Offer::Fresh
            }
        }
    }

    /// Forgets an evicted node; its record is refused until a life that began
    /// clearly later, or [`Records::unremove`].
    pub(super) fn remove(&mut self, node: NodeId, now_ms: u64) {
        if node == self.me {
            return;
        }
        let incarnation = self.records.remove(&node).map_or(now_ms, |r| r.incarnation);
        self.bury(node, incarnation.saturating_add(RETURN_AFTER_MS));
    }

    /// Forgets a node that has long been dead; any new life of it is welcome.
    pub(super) fn expire(&mut self, node: NodeId) {
        if node == self.me {
            return;
        }
        if let Some(record) = self.records.remove(&node) {
            self.bury(node, record.incarnation);
        }
    }

    fn bury(&mut self, node: NodeId, limit: u64) {
        if self.tombstones.len() >= MAX_TOMBSTONES {
            self.tombstones.pop_first();
        }
        self.tombstones.insert(node, limit);
    }

    /// Lets a removed node back in.
    pub(super) fn unremove(&mut self, node: NodeId) {
        self.tombstones.remove(&node);
    }

    /// True if records of this life of the node are refused.
    pub(super) fn removed(&self, node: NodeId) -> bool {
        self.tombstones.contains_key(&node) && !self.records.contains_key(&node)
    }

    /// "This is what I have."
    pub(super) fn digest(&self) -> Vec<(NodeId, u64, u64)> {
        self.records.values().map(|r| (r.node, r.incarnation, r.version)).collect()
    }

    /// Compares with a digest: records the other lacks, nodes we lack.
    pub(super) fn compare(&self, theirs: &SyncDigest) -> (Vec<NodeRecord>, Vec<NodeId>) {
        let known: BTreeMap<NodeId, (u64, u64)> =
            theirs.records.iter().take(2 * MAX_RECORDS).map(|(n, i, v)| (*n, (*i, *v))).collect();
        let newer = self
            .records
            .values()
            .filter(|r| known.get(&r.node).is_none_or(|other| *other < stamp(r)))
            .take(MAX_BATCH)
            .cloned()
            .collect();
        let wanted = known
            .iter()
            .filter(|(node, (incarnation, _))| {
                self.tombstones.get(node).is_none_or(|limit| incarnation > limit)
            })
            .filter(|(node, other)| self.records.get(node).is_none_or(|r| stamp(r) < **other))
            .map(|(node, _)| *node)
            .take(MAX_BATCH)
            .collect();
        (newer, wanted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::wire::v1::LedgerHead;

    use super::*;

    fn record(node: u8, incarnation: u64, version: u64) -> NodeRecord {
        NodeRecord {
            node: NodeId([node; 16]),
            name: format!("n{node}"),
            incarnation,
            version,
            underlay: vec![],
            mesh_port: 6783,
            overlay: vec![],
            raft_id: None,
            // Same stamp, same content: only the node itself writes.
            ledger_index: incarnation * 100 + version,
            free4: 0,
            free6: 0,
            leases: 0,
            software: String::new(),
            mtu: 1450,
        }
    }

    fn exchange(a: &mut Records, b: &mut Records) {
        let digest = SyncDigest { records: a.digest(), ledger: LedgerHead::default() };
        let (newer, wanted) = b.compare(&digest);
        let back: Vec<_> = wanted.iter().filter_map(|n| a.get(*n).cloned()).collect();
        newer.into_iter().for_each(|r| {
            a.offer(r);
        });
        back.into_iter().for_each(|r| {
            b.offer(r);
        });
    }

    proptest! {
        /// Whatever order records come in, and however often, all stores that
        /// have talked hold the newest of each.
        #[test]
        fn stores_converge(
            a in proptest::collection::vec((3..12u8, 1..4u64, 0..5u64), 0..40),
            b in proptest::collection::vec((3..12u8, 1..4u64, 0..5u64), 0..40),
        ) {
            let mut left = Records::new(record(1, 1, 0));
            let mut right = Records::new(record(2, 1, 0));
            let mut newest = BTreeMap::new();
            for (to, list) in [(&mut left, &a), (&mut right, &b)] {
                for (n, i, v) in list {
                    to.offer(record(*n, *i, *v));
                    let best = newest.entry(NodeId([*n; 16])).or_insert((0, 0));
                    *best = (*best).max((*i, *v));
                }
            }
            exchange(&mut left, &mut right);
            prop_assert_eq!(left.digest(), right.digest());
            prop_assert!(left.iter().eq(right.iter()));
            for (node, best) in newest {
                prop_assert_eq!(left.get(node).map(stamp), Some(best));
            }
            let digest = SyncDigest { records: left.digest(), ledger: LedgerHead::default() };
            prop_assert_eq!(right.compare(&digest), (vec![], vec![]));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut store = Records::new(record(1, 1, 0));
        let broken: [fn(&mut NodeRecord); 6] = [
            |r| r.name.clear(),
            |r| r.name = "x".repeat(254),
            |r| r.name = "a\nb".to_owned(),
            |r| r.underlay = vec!["10.0.0.1".parse().unwrap(); 9],
            |r| r.underlay = vec!["0.0.0.0".parse().unwrap()],
            |r| r.mesh_port = 0,
        ];
        for spoil in broken {
            let mut bad = record(2, 1, 1);
            spoil(&mut bad);
            assert!(matches!(store.offer(bad), Offer::Refused(_)));
            assert!(!store.update(spoil));
        }
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_removed_node_stays_away_until_a_later_life() {
        let mut store = Records::new(record(1, 1, 0));
        let two = NodeId([2; 16]);
        assert_eq!(store.offer(record(2, 5, 1)), Offer::Fresh);
        store.remove(two, 0);
        assert!(store.removed(two));
        assert!(matches!(store.offer(record(2, 5, 9)), Offer::Refused(_)));
        let digest = SyncDigest { records: vec![(two, 5, 9)], ledger: LedgerHead::default() };
        assert!(store.compare(&digest).1.is_empty());
        assert_eq!(store.offer(record(2, 5 + RETURN_AFTER_MS + 1, 0)), Offer::Fresh);
        store.remove(two, 0);
        store.unremove(two);
        assert_eq!(store.offer(record(2, 5, 1)), Offer::Fresh);
        store.expire(two);
        assert!(matches!(store.offer(record(2, 5, 2)), Offer::Refused(_)));
        assert_eq!(store.offer(record(2, 6, 0)), Offer::Fresh);
        store.remove(NodeId([1; 16]), 0);
        assert!(store.own().is_some());
    }

    #[test]
    fn the_own_record_overtakes_a_former_life() {
        let mut store = Records::new(record(1, 10, 3));
        assert_eq!(store.offer(record(1, 10, 2)), Offer::Old);
        assert_eq!(store.offer(record(1, 99, 0)), Offer::Overtaken);
        assert_eq!(store.own().map(|r| r.incarnation), Some(100));
        assert!(store.update(|r| r.leases = 4));
        assert!(!store.update(|r| r.leases = 4));
        assert!(!store.update(|r| r.node = NodeId([9; 16])));
    }
}

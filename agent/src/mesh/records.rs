//! Node records: a bounded last-writer-wins map. Pure.
//!
//! Records are passed on by others, who could change them. What a node says of itself
//! over its own connection stands against all hearsay while that connection lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::id::NodeId;
use weft_proto::wire::v1::{NodeRecord, Standing, SyncDigest};

use super::digest::{self, LEAVES};

/// Most records kept.
pub(super) const MAX_RECORDS: usize = 10_000;
/// Most tombstones kept.
const MAX_TOMBSTONES: usize = 10_000;
/// Most records in one answer; at about 100 bytes each far below its limit.
pub(super) const MAX_BATCH: usize = 4_000;
/// Stamps from here on are of no clock and no counter: nothing could overtake them.
const NO_STAMP: u64 = 1 << 53;
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
    pub(super) records: BTreeMap<NodeId, Arc<NodeRecord>>,
    /// What membership says, for comparing it with others.
    standings: Vec<Standing>,
    /// How many of these are alive.
    pub(super) alive: u32,
    /// Counts changes.
    generation: u64,
    /// The sums of all that is known, once asked for.
    sums: Option<Box<[u64; LEAVES]>>,
    /// Incarnations up to this one are refused.
    pub(super) tombstones: BTreeMap<NodeId, u64>,
    /// Whose record is what it said itself, over its present connection.
    first_hand: BTreeSet<NodeId>,
}

pub(super) fn stamp(record: &NodeRecord) -> (u64, u64) {
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
    if record.incarnation >= NO_STAMP || record.version >= NO_STAMP {
        return Err("stamp");
    }
    Ok(())
}

impl Records {
    /// Just this node.
    pub(super) fn new(own: NodeRecord) -> Self {
        Self {
            me: own.node,
            records: BTreeMap::from([(own.node, Arc::new(own))]),
            standings: Vec::new(),
            alive: 0,
            generation: 0,
            sums: None,
            tombstones: BTreeMap::new(),
            first_hand: BTreeSet::new(),
        }
    }

    /// This node's record.
    pub(super) fn own(&self) -> Option<&NodeRecord> {
        self.get(self.me)
    }

    /// One record.
    pub(super) fn get(&self, node: NodeId) -> Option<&NodeRecord> {
        self.records.get(&node).map(Arc::as_ref)
    }

    /// One record, to be shared.
    pub(super) fn shared(&self, node: NodeId) -> Option<&Arc<NodeRecord>> {
        self.records.get(&node)
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.records.values()
    }

    /// Another number whenever something may have changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn touch(&mut self) {
        self.generation += 1;
        self.sums = None;
    }

    /// What membership says now.
    pub(super) fn stand(&mut self, mut standings: Vec<Standing>) {
        standings.sort_unstable_by_key(|s| s.node);
        self.alive = u32::try_from(standings.iter().filter(|s| !s.down).count()).unwrap_or(0);
        self.standings = standings;
        self.touch();
    }

    /// What membership says of a node.
    pub(super) fn standing(&self, node: NodeId) -> Option<&Standing> {
        let place = self.standings.binary_search_by_key(&node, |s| s.node).ok()?;
        self.standings.get(place)
    }

    /// The sums of all records, and of what membership says of their nodes.
    pub(super) fn sums(&mut self) -> &[u64; LEAVES] {
        let (records, standings) = (&self.records, &self.standings);
        self.sums.get_or_insert_with(|| {
            let mut sums = Box::new([0; LEAVES]);
            for (node, record) in records {
                sums[digest::leaf(*node, LEAVES)] ^=
                    digest::of_record(*node, record.incarnation, record.version);
            }
            for standing in standings.iter().filter(|s| records.contains_key(&s.node)) {
                sums[digest::leaf(standing.node, LEAVES)] ^= digest::of_standing(standing);
            }
            sums
        })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Changes the own record; true if it differs now. Who it is cannot be changed.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut NodeRecord)) -> bool {
        let Some(own) = self.records.get_mut(&self.me).map(Arc::make_mut) else { return false };
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
        self.touch();
        true
    }

    /// Takes a record in if it is valid and newer.
    pub(super) fn offer(&mut self, record: impl Into<Arc<NodeRecord>>) -> Offer {
        let offer = self.judge(record.into());
        if matches!(offer, Offer::Fresh | Offer::Overtaken) {
            self.touch();
        }
        offer
    }

    fn judge(&mut self, record: Arc<NodeRecord>) -> Offer {
        if let Err(why) = validate(&record) {
            return Offer::Refused(why);
        }
        if self.tombstones.get(&record.node).is_some_and(|limit| record.incarnation <= *limit) {
            return Offer::Refused("removed node");
        }
        let full = self.records.len() >= MAX_RECORDS;
        match self.records.get_mut(&record.node) {
            Some(mine) if stamp(mine) >= stamp(&record) => Offer::Old,
            Some(_) if record.node == self.me && record.incarnation + 1 >= NO_STAMP => {
                Offer::Refused("a life of this node that no clock can have begun")
            }
            Some(mine) if record.node == self.me => {
                let mine = Arc::make_mut(mine);
                mine.incarnation = record.incarnation + 1;
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

    /// Takes in what a node says of itself. The first time on a connection it stands
    /// even against a later stamp: that was hearsay, or of another life.
    pub(super) fn told_by_itself(&mut self, record: impl Into<Arc<NodeRecord>>) -> Offer {
        let record = record.into();
        let node = record.node;
        if node == self.me {
            return Offer::Refused("somebody else speaks as this node");
        }
        let known = self.records.get(&node).filter(|_| !self.first_hand.contains(&node)).cloned();
        let doubted = known.as_ref().is_some_and(|known| stamp(known) > stamp(&record));
        if doubted {
            self.records.remove(&node);
        }
        let offer = self.offer(record);
        match (offer, known) {
            (Offer::Refused(_), Some(known)) if doubted => drop(self.records.insert(node, known)),
            (Offer::Refused(_), _) => {}
            _ => drop(self.first_hand.insert(node)),
        }
        offer
    }

    /// A connection to the node begins: what it says of itself then stands, whatever is
    /// known.
    pub(super) fn connected(&mut self, node: NodeId) {
        self.first_hand.remove(&node);
    }

    /// True if others say something newer of a known node. While it is connected, it is
    /// asked instead: if what is known is the truth it has nothing to add, if not it
    /// says so.
    pub(super) fn is_hearsay(&self, record: &NodeRecord) -> bool {
        self.records.get(&record.node).is_some_and(|known| stamp(known) < stamp(record))
    }

    /// Forgets an evicted node; its record is refused until a life that began
    /// clearly later, or [`Records::unremove`].
    pub(super) fn remove(&mut self, node: NodeId, now_ms: u64) {
        if node == self.me {
            return;
        }
        self.touch();
        let incarnation = self.records.remove(&node).map_or(now_ms, |r| r.incarnation);
        self.bury(node, incarnation.saturating_add(RETURN_AFTER_MS));
    }

    /// Forgets a node that has long been dead; any new life of it is welcome.
    pub(super) fn expire(&mut self, node: NodeId) {
        if node == self.me {
            return;
        }
        if let Some(record) = self.records.remove(&node) {
            self.touch();
            self.bury(node, record.incarnation);
        }
    }

    fn bury(&mut self, node: NodeId, limit: u64) {
        self.first_hand.remove(&node);
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
            .filter(|r| {
                known.get(&r.node).is_none_or(|other| {
                    // Who believes something else of us is told by ourselves.
                    if r.node == self.me { *other != stamp(r) } else { *other < stamp(r) }
                })
            })
            .take(MAX_BATCH)
            .map(|r| NodeRecord::clone(r))
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
            version,
            // Same stamp, same content: only the node itself writes.
            ledger_index: incarnation * 100 + version,
            ..NodeRecord::new(NodeId([node; 16]), format!("n{node}"), incarnation)
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
    fn what_a_node_says_itself_stands_against_hearsay() {
        let mut store = Records::new(record(1, 1, 0));
        let two = NodeId([2; 16]);
        // A lie came first, of a stamp that nothing can overtake but itself.
        assert_eq!(store.offer(record(2, NO_STAMP - 1, NO_STAMP - 1)), Offer::Fresh);
        assert_eq!(store.told_by_itself(record(2, 5, 1)), Offer::Fresh);
        assert_eq!(store.get(two).map(stamp), Some((5, 1)));
        assert!(store.is_hearsay(&record(2, 6, 0)) && !store.is_hearsay(&record(2, 5, 0)));
        // On one connection, what comes late does not turn time back.
        assert_eq!(store.told_by_itself(record(2, 5, 3)), Offer::Fresh);
        assert_eq!(store.told_by_itself(record(2, 5, 2)), Offer::Old);
        // A new connection may be of a life whose clock is behind.
        store.connected(two);
        assert_eq!(store.told_by_itself(record(2, 4, 9)), Offer::Fresh);
        // What makes no sense changes nothing, and a removed node stays removed.
        store.connected(two);
        let bad = NodeRecord { mesh_port: 0, ..record(2, 1, 1) };
        assert!(matches!(store.told_by_itself(bad), Offer::Refused(_)));
        assert_eq!(store.get(two).map(stamp), Some((4, 9)));
        store.remove(two, 0);
        assert!(matches!(store.told_by_itself(record(2, 4, 10)), Offer::Refused(_)));
        assert!(matches!(store.told_by_itself(record(1, 9, 9)), Offer::Refused(_)));
    }

    #[test]
    fn stamps_that_nothing_could_overtake_are_refused() {
        let mut store = Records::new(record(1, 10, 3));
        for (i, v) in [(u64::MAX, 0), (0, u64::MAX), (NO_STAMP, 1), (1, NO_STAMP)] {
            let lie = NodeRecord { ledger_index: 0, ..record(2, 0, 0) };
            let lie = NodeRecord { incarnation: i, version: v, ..lie };
            assert_eq!(store.offer(lie), Offer::Refused("stamp"));
        }
        let last = NodeRecord { incarnation: NO_STAMP - 1, ..record(1, 1, 1) };
        assert!(matches!(store.offer(last), Offer::Refused(_)));
        assert_eq!(store.own().map(stamp), Some((10, 3)));
        // Whoever believes otherwise is told.
        let me = NodeId([1; 16]);
        let records = vec![(me, NO_STAMP - 1, 1)];
        let digest = SyncDigest { records, ledger: LedgerHead::default() };
        assert_eq!(store.compare(&digest).0, [record(1, 10, 3)]);
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

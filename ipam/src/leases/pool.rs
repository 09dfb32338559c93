//! The free addresses of the own blocks: never used ones as intervals, used
//! ones in the order they were freed. Memory grows with use, not with blocks.

use std::collections::BTreeMap;

use crate::net::Span;

/// Family and number of an address.
pub(super) type Key = (bool, u128);
/// When an address was freed, and its place among those freed at once.
pub(super) type Stamp = (u64, u64);

/// Disjoint intervals, first address to last.
#[derive(Debug, Clone, Default)]
struct Intervals {
    by_first: BTreeMap<Key, u128>,
    /// Addresses held, IPv4 and IPv6.
    count: [u128; 2],
}

impl Intervals {
    fn insert(&mut self, v6: bool, first: u128, last: u128) {
        if first <= last {
            self.by_first.insert((v6, first), last);
            let size = (last - first).saturating_add(1);
            self.count[usize::from(v6)] = self.count[usize::from(v6)].saturating_add(size);
        }
    }

    /// Takes `first..=last` out; returns what of it was in.
    fn cut(&mut self, v6: bool, first: u128, last: u128) -> Vec<(u128, u128)> {
        let start = match self.by_first.range(..=(v6, first)).next_back() {
            Some((&(family, start), &end)) if family == v6 && end >= first => start,
            _ => first,
        };
        let hit: Vec<_> =
            self.by_first.range((v6, start)..=(v6, last)).map(|(key, end)| (key.1, *end)).collect();
        let mut taken = Vec::with_capacity(hit.len());
        for (from, to) in hit {
            self.by_first.remove(&(v6, from));
            let size = (to - from).saturating_add(1);
            self.count[usize::from(v6)] = self.count[usize::from(v6)].saturating_sub(size);
            if from < first {
                self.insert(v6, from, first - 1);
            }
            if to > last {
                self.insert(v6, last + 1, to);
            }
            taken.push((from.max(first), to.min(last)));
        }
        taken
    }

    /// The lowest address of a family in `first..=last`.
    fn first_within(&self, v6: bool, first: u128, last: u128) -> Option<u128> {
        if let Some((key, &end)) = self.by_first.range(..=(v6, first)).next_back()
            && key.0 == v6
            && end >= first
        {
            return Some(first);
        }
        self.by_first.range((v6, first)..=(v6, last)).next().map(|(key, _)| key.1)
    }
}

/// The free addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    fresh: Intervals,
    freed: BTreeMap<(bool, Stamp), u128>,
    stamps: BTreeMap<Key, Stamp>,
    /// Addresses in `stamps`, IPv4 and IPv6.
    count: [u128; 2],
    serial: u64,
}

impl Pool {
    /// Adds addresses never used before.
    pub(super) fn add_fresh(&mut self, v6: bool, first: u128, last: u128) {
        self.fresh.insert(v6, first, last);
    }

    /// A stamp later than all others of the same time.
    pub(super) fn stamp(&mut self, now_ms: u64) -> Stamp {
        self.serial += 1;
        (now_ms, self.serial)
    }

    /// Adds a used address; it was not free before.
    pub(super) fn add_freed(&mut self, (v6, number): Key, stamp: Stamp) {
        self.freed.insert((v6, stamp), number);
        self.stamps.insert((v6, number), stamp);
        self.count[usize::from(v6)] += 1;
    }

    fn take_freed(&mut self, (v6, number): Key) -> bool {
        let Some(stamp) = self.stamps.remove(&(v6, number)) else { return false };
        self.freed.remove(&(v6, stamp));
        self.count[usize::from(v6)] -= 1;
        true
    }

    /// Takes one address out; false if it was not free.
    pub(super) fn take(&mut self, (v6, number): Key) -> bool {
        self.take_freed((v6, number)) || !self.fresh.cut(v6, number, number).is_empty()
    }

    /// Takes a whole prefix out; returns the freed ones in it.
    pub(super) fn take_span(&mut self, span: Span) -> Vec<(Key, Stamp)> {
        self.fresh.cut(span.v6, span.start, span.last());
        let freed = self.freed_in(span);
        for (key, _) in &freed {
            self.take_freed(*key);
        }
        freed
    }

    /// The address to use next: the lowest never used one, else the one freed
    /// longest ago. Among all of a family, or in `first..=last` only.
    pub(super) fn next(&self, v6: bool, first: u128, last: u128) -> Option<u128> {
        self.fresh.first_within(v6, first, last).or_else(|| {
            self.freed
                .range((v6, (0, 0))..=(v6, (u64::MAX, u64::MAX)))
                .map(|(_, number)| *number)
                .find(|number| (first..=last).contains(number))
        })
    }

    /// Everything freed, for building a new pool.
    pub(super) fn all_freed(&self) -> impl Iterator<Item = (Key, Stamp)> + '_ {
        self.stamps.iter().map(|(key, stamp)| (*key, *stamp))
    }

    /// What was freed in a prefix and not used since.
    pub(super) fn freed_in(&self, span: Span) -> Vec<(Key, Stamp)> {
        self.stamps
            .range((span.v6, span.start)..=(span.v6, span.last()))
            .map(|(key, stamp)| (*key, *stamp))
            .collect()
    }

    /// True if something in the prefix was used and freed since `since_ms`.
    pub(super) fn any_freed_in(&self, span: Span, since_ms: u64) -> bool {
        self.stamps
            .range((span.v6, span.start)..=(span.v6, span.last()))
            .any(|(_, stamp)| stamp.0 >= since_ms)
    }

    pub(super) fn free(&self, v6: bool) -> u128 {
        self.fresh.count[usize::from(v6)].saturating_add(self.count[usize::from(v6)])
    }

    /// Addresses that need not cool down any more at `now_ms`.
    pub(super) fn ready(&self, v6: bool, cooldown_ms: u64, now_ms: u64) -> u128 {
        let cooled = self
            .freed
            .range((v6, (0, 0))..=(v6, (u64::MAX, u64::MAX)))
            .take_while(|((_, stamp), _)| now_ms.saturating_sub(stamp.0) >= cooldown_ms)
            .count() as u128;
        self.fresh.count[usize::from(v6)].saturating_add(cooled)
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    pub(super) fn with_serial(serial: u64) -> Self {
        Self { serial, ..Self::default() }
    }
}

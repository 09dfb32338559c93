//! Who holds which prefix. What nobody holds is free, so neighbouring free
//! space is always one piece.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use weft_proto::id::NodeId;

use crate::net::{Span, block_bits, usable_span};

/// A new block is taken next to own ones if a container of this many blocks
/// (as a power of two) around one of them still has room.
const NEIGHBOURHOOD: u8 = 4;

/// Why a prefix is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A node may allocate from it.
    Owned { owner: NodeId, epoch: u64 },
    /// Its owner was evicted; nobody may use it yet.
    Resting { former: NodeId, until_ms: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    bits: u8,
    by: Holder,
}

/// A prefix is not wholly held by the node that should hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Free, or another node's.
    Owner(Option<NodeId>),
    /// In quarantine.
    Resting(u64),
}

type Key = (bool, u128);

/// The held prefixes and two indexes over them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Space {
    held: BTreeMap<Key, Held>,
    by_owner: BTreeSet<(NodeId, Key)>,
    by_end: BTreeSet<(u64, Key)>,
}

impl Space {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Span, Holder)> + '_ {
        self.held.iter().map(|(&(v6, start), held)| (Span { v6, start, bits: held.bits }, held.by))
    }

    pub(super) fn owned_by(&self, node: NodeId) -> impl Iterator<Item = (Span, u64)> + '_ {
        let all = (node, (false, 0))..=(node, (true, u128::MAX));
        self.by_owner.range(all).filter_map(|(_, key)| match self.held.get(key) {
            Some(Held { bits, by: Holder::Owned { epoch, .. } }) => {
                Some((Span { v6: key.0, start: key.1, bits: *bits }, *epoch))
            }
            _ => None,
        })
    }

    /// The held prefix around an address.
    pub(super) fn at(&self, v6: bool, number: u128) -> Option<(Span, Holder)> {
        let (&(family, start), held) = self.held.range(..=(v6, number)).next_back()?;
        let span = Span { v6: family, start, bits: held.bits };
        span.has(v6, number).then_some((span, held.by))
    }

    pub(super) fn is_free(&self, span: Span) -> bool {
        self.gaps(span).next() == Some((span.start, span.last()))
    }

    /// Adds a holding. The caller has checked that the span is free.
    pub(super) fn insert(&mut self, span: Span, by: Holder) {
        let key = (span.v6, span.start);
        match by {
            Holder::Owned { owner, .. } => drop(self.by_owner.insert((owner, key))),
            Holder::Resting { until_ms, .. } => drop(self.by_end.insert((until_ms, key))),
        }
        self.held.insert(key, Held { bits: span.bits, by });
    }

    fn remove(&mut self, key: Key) {
        match self.held.remove(&key).map(|held| held.by) {
            Some(Holder::Owned { owner, .. }) => drop(self.by_owner.remove(&(owner, key))),
            Some(Holder::Resting { until_ms, .. }) => drop(self.by_end.remove(&(until_ms, key))),
            None => {}
        }
    }

    /// Frees a prefix; what its holders keep is split into aligned parts of
    /// unchanged epoch.
    pub(super) fn carve(&mut self, part: Span) {
        let first = self.at(part.v6, part.start).map_or(part.start, |(span, _)| span.start);
        let touched: Vec<_> = self
            .held
            .range((part.v6, first)..=(part.v6, part.last()))
            .map(|(&key, &held)| (key, held))
            .collect();
        for (key, held) in touched {
            self.remove(key);
            let whole = Span { v6: key.0, start: key.1, bits: held.bits };
            if whole.bits > part.bits {
                for rest in whole.without(part) {
                    self.insert(rest, held.by);
                }
            }
        }
    }

    /// How many entries [`Self::carve`] may add.
    pub(super) fn splits(&self, part: Span) -> usize {
        self.at(part.v6, part.start)
            .map_or(0, |(span, _)| usize::from(span.bits.saturating_sub(part.bits)))
    }

    /// Checks that `node` owns all of a prefix, in one block or several.
    pub(super) fn check_owned(&self, node: NodeId, part: Span) -> Result<(), Conflict> {
        let mut next = part.start;
        loop {
            let block = match self.at(part.v6, next) {
                Some((block, Holder::Owned { owner, .. })) if owner == node => block,
                Some((_, Holder::Owned { owner, .. })) => {
                    return Err(Conflict::Owner(Some(owner)));
                }
                Some((_, Holder::Resting { until_ms, .. })) => {
                    return Err(Conflict::Resting(until_ms));
                }
                None => return Err(Conflict::Owner(None)),
            };
            if block.last() >= part.last() {
                return Ok(());
            }
            next = block.last().saturating_add(1);
        }
    }

    /// Puts all blocks of a node to rest, or frees them if they need no rest.
    pub(super) fn evict(&mut self, node: NodeId, clock_ms: u64, until_ms: u64) {
        let blocks: Vec<_> = self.owned_by(node).map(|(span, _)| span).collect();
        for span in blocks {
            self.remove((span.v6, span.start));
            if until_ms > clock_ms {
                self.insert(span, Holder::Resting { former: node, until_ms });
            }
        }
    }

    /// Frees what has rested long enough.
    pub(super) fn expire(&mut self, clock_ms: u64) {
        while let Some(&(until_ms, key)) = self.by_end.first() {
            if until_ms > clock_ms {
                return;
            }
            self.remove(key);
        }
    }

    /// The free stretches of a prefix, as first and last address.
    fn gaps(&self, within: Span) -> impl Iterator<Item = (u128, u128)> + '_ {
        let v6 = within.v6;
        // First address not looked at yet; none when the end has been reached.
        let mut next = match self.at(v6, within.start) {
            Some((span, _)) => span.last().checked_add(1),
            None => Some(within.start),
        };
        let mut held = self.held.range((v6, within.start)..=(v6, within.last()));
        std::iter::from_fn(move || {
            loop {
                let first = next.filter(|&first| first <= within.last())?;
                let Some((&(_, start), entry)) = held.next() else {
                    next = None;
                    return Some((first, within.last()));
                };
                next = Span { v6, start, bits: entry.bits }.last().checked_add(1);
                if start > first {
                    return Some((first, start - 1));
                }
            }
        })
    }

    /// The best free block for a node: next to its own ones if possible, else
    /// at the start of the largest free prefix, which leaves room to grow. If
    /// no whole block is free, the largest smaller prefix. Never a prefix
    /// without a single usable address.
    pub(super) fn pick(&self, ranges: &[IpNet], node: NodeId, v6: bool) -> Option<Span> {
        self.pick_near(ranges, node, v6).or_else(|| self.pick_apart(ranges, v6))
    }

    fn pick_near(&self, ranges: &[IpNet], node: NodeId, v6: bool) -> Option<Span> {
        let own: Vec<_> = self
            .owned_by(node)
            .map(|(span, _)| span)
            .filter(|span| span.v6 == v6)
            .filter_map(|span| Some((span, range_of(ranges, v6, span.start)?)))
            .collect();
        for level in 1..=NEIGHBOURHOOD {
            for &(span, range) in &own {
                let bits = block_bits(range);
                let around = Span::around(v6, span.start, (bits + level).min(range.bits));
                let found = self.gaps(around).find_map(|gap| first_useful(ranges, v6, gap, bits));
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn pick_apart(&self, ranges: &[IpNet], v6: bool) -> Option<Span> {
        // (is a whole block, size of the free prefix it comes from, block)
        let mut best: Option<(bool, u8, Span)> = None;
        for range in ranges.iter().map(Span::of).filter(|range| range.v6 == v6) {
            let block = block_bits(range);
            for (first, last) in self.gaps(range) {
                let Some(room) = Span::largest_in(v6, first, last) else { continue };
                let whole = room.bits >= block;
                if best.is_some_and(|(w, bits, _)| (w, bits) >= (whole, room.bits)) {
                    continue;
                }
                let from = if room.bits == 0 { (first, last) } else { (room.start, room.last()) };
                if let Some(span) = first_useful(ranges, v6, from, block.min(room.bits)) {
                    best = Some((whole, room.bits, span));
                }
            }
        }
        best.map(|(_, _, span)| span)
    }

    /// The standard block around an address, or the largest part of it that is
    /// free and holds the address. The address itself must be free.
    pub(super) fn free_around(&self, range: Span, v6: bool, number: u128) -> Option<Span> {
        (0..=block_bits(range))
            .rev()
            .map(|bits| Span::around(v6, number, bits))
            .find(|span| self.is_free(*span))
    }
}

/// The range an address lies in.
pub(super) fn range_of(ranges: &[IpNet], v6: bool, number: u128) -> Option<Span> {
    ranges.iter().map(Span::of).find(|range| range.has(v6, number))
}

/// The first aligned prefix in a gap that has a usable address. Only single
/// addresses can have none, and at most the two ends of ranges that touch
/// follow each other, so three tries are enough.
fn first_useful(ranges: &[IpNet], v6: bool, gap: (u128, u128), bits: u8) -> Option<Span> {
    let (mut first, last) = gap;
    for _ in 0..3 {
        let span = Span::first_in(v6, first, last, bits)?;
        if usable_span(ranges, span) > 0 {
            return Some(span);
        }
        first = span.last().checked_add(1)?;
    }
    None
}

//! What this node can give away: to another node, or back to the ledger.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{InUse, LeaseTable};
use crate::net::{Span, address, is_reserved, number, usable_span};

impl LeaseTable {
    /// The part of the own blocks to hand to a node that ran dry.
    ///
    /// Any address asked for: the largest aligned part without lease that
    /// takes at most half of what is free, but at least one address; among
    /// equal ones a part never used, then the highest, as allocation starts
    /// from below. One address asked for: that address, if it is free.
    pub fn donation(&self, ipv6: bool, wanted: Option<IpAddr>) -> Option<IpNet> {
        if let Some(wanted) = wanted {
            let at = number(wanted);
            let free = at.0 == ipv6
                && self.block_of(at).is_some()
                && !self.holders.contains_key(&at)
                && self.withheld_around(at).is_none()
                && !is_reserved(&self.ranges, wanted);
            return free.then(|| IpNet::from(wanted));
        }
        let limit = (self.pool.free(ipv6) / 2).max(1);
        let gaps: Vec<_> =
            self.blocks.iter().filter(|b| b.v6 == ipv6).flat_map(|b| self.gaps(*b)).collect();
        // One more than fits: an end of the range in it does not count.
        let most = limit.saturating_add(2).ilog2() as u8;
        (0..=most).rev().find_map(|bits| self.best_part(ipv6, &gaps, bits, limit)).map(Span::net)
    }

    fn best_part(&self, v6: bool, gaps: &[(u128, u128)], bits: u8, limit: u128) -> Option<Span> {
        let candidates = gaps.iter().flat_map(|&(first, last)| {
            let ends = [
                (first, last),
                (first.saturating_add(1), last),
                (first, last - u128::from(last > 0)),
            ];
            ends.into_iter().flat_map(move |(first, last)| {
                [Span::first_in(v6, first, last, bits), Span::last_in(v6, first, last, bits)]
            })
        });
        candidates
            .flatten()
            .filter(|span| (1..=limit).contains(&usable_span(&self.ranges, *span)))
            .max_by_key(|span| (!self.pool.any_freed_in(*span, 0), span.start))
    }

    /// Stretches of a block without lease, not withheld.
    fn gaps(&self, block: Span) -> Vec<(u128, u128)> {
        let v6 = block.v6;
        let leased = self
            .holders
            .range((v6, block.start)..=(v6, block.last()))
            .map(|(key, _)| (key.1, key.1));
        let withheld = self.withheld.keys().filter(|span| span.overlaps(block));
        let mut taken: Vec<_> =
            leased.chain(withheld.map(|span| (span.start, span.last()))).collect();
        taken.sort_unstable();
        let mut gaps = Vec::new();
        let mut next = Some(block.start);
        for (first, last) in taken {
            let Some(start) = next else { break };
            if start < first {
                gaps.push((start, first - 1));
            }
            if last >= start {
                next = last.checked_add(1);
            }
        }
        if let Some(start) = next
            && start <= block.last()
        {
            gaps.push((start, block.last()));
        }
        gaps
    }

    /// Keeps a prefix from being allocated while it changes hands. It may not
    /// hold a lease, nor overlap another withheld prefix.
    pub fn withhold(&mut self, prefix: IpNet) -> Result<(), InUse> {
        let span = Span::of(&prefix);
        if self.withheld.contains_key(&span) {
            return Ok(());
        }
        let leased = self.holders.range((span.v6, span.start)..=(span.v6, span.last()));
        if leased.count() > 0 || self.withheld.keys().any(|other| other.overlaps(span)) {
            return Err(InUse { prefix });
        }
        let freed = self.pool.take_span(span);
        self.withheld.insert(span, freed);
        Ok(())
    }

    /// Ends [`Self::withhold`]: what is still own is free again. A prefix that
    /// is not withheld is left alone.
    pub fn unwithhold(&mut self, prefix: IpNet) {
        let span = Span::of(&prefix);
        let Some(freed) = self.withheld.remove(&span) else { return };
        let parts: Vec<_> = self
            .blocks
            .iter()
            .filter(|block| block.overlaps(span))
            .map(|block| if block.contains(span) { span } else { *block })
            .collect();
        for part in parts {
            self.fill(part, &freed);
        }
        for (at, stamp) in freed {
            if is_reserved(&self.ranges, address(at.0, at.1)) || self.holders.contains_key(&at) {
                continue;
            }
            if self.block_of(at).is_some() {
                self.pool.add_freed(at, stamp);
            } else {
                self.remember(at, stamp);
            }
        }
    }

    /// The withheld prefixes, sorted.
    pub fn withheld(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.withheld.keys().map(|span| span.net())
    }

    /// Own blocks without any lease or withheld part. Some may still hold
    /// addresses that cool down: see [`Self::cooling`].
    pub fn idle_blocks(&self) -> Vec<IpNet> {
        let idle = |block: &&Span| self.gaps(**block) == [(block.start, block.last())];
        self.blocks.iter().filter(idle).map(|block| block.net()).collect()
    }

    /// True if an address in the prefix was freed less than the cool-down ago.
    pub fn cooling(&self, prefix: IpNet, now_ms: u64) -> bool {
        let now_ms = now_ms.max(self.clock_ms);
        let since = now_ms.saturating_sub(self.cooldown_ms).saturating_add(1);
        self.pool.any_freed_in(Span::of(&prefix), since)
    }
}

//! The leases of one node: which attachment uses which address.
//!
//! Every usable address of the own blocks is in exactly one place: leased,
//! withheld, or free. Allocation takes the lowest address never used, then the
//! one freed longest ago, so a freed address is always the last to come back;
//! if nothing else is left it comes back even before its cool-down is over.
//! [`LeaseTable::ready`] tells how many addresses need no such haste.
//!
//! Leases may lie outside the own blocks (taken over from a store or from the
//! kernel after the blocks were lost): they stay until released, and their
//! addresses are never handed out again from here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::attachment::AttachmentKey;

mod donate;
mod pool;

use crate::net::{Span, address, is_reserved, number, usable_span};
use pool::{Key, Pool, Stamp};

/// No address to allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Every usable address of the own blocks (or of the part asked for) is
    /// leased or about to be handed to another node.
    #[error("no free address in the blocks of this node")]
    Full,
    /// The part asked for has nothing to do with the cluster's ranges.
    #[error("{within} lies outside the cluster's ranges")]
    OutOfRange {
        /// What was asked for.
        within: IpNet,
    },
}

/// An address cannot be leased to the one who asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Another attachment has it.
    #[error("the address is in use by {by}")]
    Held {
        /// Who.
        by: AttachmentKey,
    },
    /// It is in a range, but not in a block of this node.
    #[error("the address is in no block of this node")]
    NotOwned,
    /// First or last address of a range.
    #[error("the first and last address of a range are never given out")]
    Reserved,
    /// It is in no range.
    #[error("the address lies outside the cluster's ranges")]
    OutOfRange,
    /// It is about to be handed to another node.
    #[error("the address is being handed to another node: try again")]
    Withheld,
}

/// Another attachment has the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address is in use by {by}")]
pub struct Held {
    /// Who.
    pub by: AttachmentKey,
}

/// A prefix cannot be withheld: part of it is leased or withheld already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{prefix} is in use")]
pub struct InUse {
    /// The prefix.
    pub prefix: IpNet,
}

/// The lease table of a node.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    cooldown_ms: u64,
    /// Latest time seen: a clock that jumps back must not reorder what was freed.
    clock_ms: u64,
    ranges: Vec<IpNet>,
    blocks: BTreeSet<Span>,
    pool: Pool,
    leases: BTreeMap<AttachmentKey, Vec<IpAddr>>,
    holders: BTreeMap<Key, AttachmentKey>,
    /// Withheld prefixes, each with what was freed in it.
    withheld: BTreeMap<Span, Vec<(Key, Stamp)>>,
    /// It was known once which blocks are own.
    settled: bool,
    /// What was freed before that; and what was freed a moment ago and lies outside the own
    /// blocks, which may become own (again) before it has cooled down.
    remembered: Vec<(Key, Stamp)>,
}

impl LeaseTable {
    /// A table without blocks.
    pub fn new(cooldown_ms: u64) -> Self {
        Self { cooldown_ms, ..Self::default() }
    }

    /// Replaces ranges and own blocks. Returns the leases that now lie outside
    /// the own blocks; they stay until released.
    pub fn set_blocks(
        &mut self,
        ranges: &[IpNet],
        blocks: &[IpNet],
    ) -> Vec<(AttachmentKey, IpAddr)> {
        self.ranges = ranges.to_vec();
        self.blocks = disjoint(blocks.iter().map(Span::of).collect());
        let freed: Vec<_> = self.pool.all_freed().collect();
        self.pool = Pool::with_serial(self.pool.serial());
        for span in self.blocks.clone() {
            self.fill(span, &[]);
        }
        let withheld: Vec<_> = self.withheld.keys().copied().collect();
        for span in withheld {
            self.pool.take_span(span);
        }
        self.settled |= !self.blocks.is_empty();
        let remembered = std::mem::take(&mut self.remembered);
        for (key, stamp) in freed.into_iter().chain(remembered) {
            if self.settled && self.pool.take(key) {
                self.pool.add_freed(key, stamp);
            } else {
                self.remember(key, stamp);
            }
        }
        self.foreign()
    }

    /// Notes an address that was freed before this table was made, so that it is not
    /// taken for one never used. Call it in the order of freeing.
    pub fn remember_freed(&mut self, freed: IpAddr, at_ms: u64) {
        self.tick(at_ms);
        let stamp = self.pool.stamp(at_ms);
        self.remembered.push((number(freed), stamp));
    }

    /// Keeps in mind what was freed and is not free here: until the own blocks are known, or
    /// else until it has cooled down.
    fn remember(&mut self, at: Key, stamp: Stamp) {
        if let Some(span) = self.withheld_around(at)
            && let Some(freed) = self.withheld.get_mut(&span)
        {
            if freed.iter().all(|(known, _)| *known != at) && !self.holders.contains_key(&at) {
                freed.push((at, stamp));
            }
            return;
        }
        let (settled, now, cooldown) = (self.settled, self.clock_ms, self.cooldown_ms);
        let warm = |stamp: &Stamp| !settled || now.saturating_sub(stamp.0) < cooldown;
        self.remembered.retain(|(known, stamp)| *known != at && warm(stamp));
        if warm(&stamp) && !self.holders.contains_key(&at) {
            self.remembered.push((at, stamp));
        }
    }

    /// Free addresses that were used before, with the time they were freed, longest ago
    /// first.
    pub fn freed(&self) -> Vec<(IpAddr, u64)> {
        let withheld = self.withheld.values().flatten().copied();
        let remembered =
            self.remembered.iter().filter(|(key, _)| !self.holders.contains_key(key)).copied();
        let mut freed: Vec<_> = self.pool.all_freed().chain(withheld).chain(remembered).collect();
        freed.sort_unstable_by_key(|(_, stamp)| *stamp);
        freed.into_iter().map(|((v6, number), (at, _))| (address(v6, number), at)).collect()
    }

    /// Leases outside the own blocks.
    pub fn foreign(&self) -> Vec<(AttachmentKey, IpAddr)> {
        self.holders
            .iter()
            .filter(|(key, _)| self.block_of(**key).is_none())
            .map(|((v6, number), holder)| (holder.clone(), address(*v6, *number)))
            .collect()
    }

    /// An address for an attachment: the one it already has in that family
    /// (and prefix), or a new one. In an IPv4 prefix asked for, its network
    /// and broadcast address are not used either.
    pub fn allocate(
        &mut self,
        key: &AttachmentKey,
        ipv6: bool,
        within: Option<IpNet>,
        now_ms: u64,
    ) -> Result<IpAddr, AllocError> {
        self.tick(now_ms);
        let fits = |a: &&IpAddr| a.is_ipv6() == ipv6 && within.is_none_or(|net| net.contains(*a));
        if let Some(known) = self.addresses(key).iter().find(fits) {
            return Ok(*known);
        }
        let (mut first, mut last) = (0, u128::MAX);
        if let Some(within) = within {
            let span = Span::of(&within);
            let fits = self.ranges.iter().any(|range| Span::of(range).overlaps(span));
            if span.v6 != ipv6 || !fits {
                return Err(AllocError::OutOfRange { within });
            }
            (first, last) = (span.start, span.last());
            if !ipv6 && span.bits > 1 {
                (first, last) = (first + 1, last - 1);
            }
        }
        let number = self.pool.next(ipv6, first, last).ok_or(AllocError::Full)?;
        self.pool.take((ipv6, number));
        self.hold(key, (ipv6, number));
        Ok(address(ipv6, number))
    }

    /// Leases one given address of an own block.
    pub fn claim(
        &mut self,
        key: &AttachmentKey,
        wanted: IpAddr,
        now_ms: u64,
    ) -> Result<(), ClaimError> {
        self.tick(now_ms);
        match self.holder(wanted) {
            Some(by) if by == key => return Ok(()),
            Some(by) => return Err(ClaimError::Held { by: by.clone() }),
            None => {}
        }
        let at = number(wanted);
        if !self.ranges.iter().any(|range| range.contains(&wanted)) {
            return Err(ClaimError::OutOfRange);
        }
        if is_reserved(&self.ranges, wanted) {
            return Err(ClaimError::Reserved);
        }
        if self.withheld_around(at).is_some() {
            return Err(ClaimError::Withheld);
        }
        if !self.pool.take(at) {
            return Err(ClaimError::NotOwned);
        }
        self.hold(key, at);
        Ok(())
    }

    /// Takes over a lease that exists already, wherever its address lies.
    pub fn adopt(&mut self, key: &AttachmentKey, known: IpAddr) -> Result<(), Held> {
        match self.holder(known) {
            Some(by) if by == key => return Ok(()),
            Some(by) => return Err(Held { by: by.clone() }),
            None => {}
        }
        let at = number(known);
        self.pool.take(at);
        if let Some(span) = self.withheld_around(at)
            && let Some(freed) = self.withheld.get_mut(&span)
        {
            freed.retain(|(key, _)| *key != at);
        }
        self.hold(key, at);
        Ok(())
    }

    /// Ends all leases of an attachment; returns their addresses.
    pub fn release(&mut self, key: &AttachmentKey, now_ms: u64) -> Vec<IpAddr> {
        self.tick(now_ms);
        let addresses = self.leases.remove(key).unwrap_or_default();
        for address in &addresses {
            self.free_one(number(*address));
        }
        addresses
    }

    /// Ends one lease of an attachment; false if it had none on that address.
    pub fn release_one(&mut self, key: &AttachmentKey, address: IpAddr, now_ms: u64) -> bool {
        self.tick(now_ms);
        let Some(addresses) = self.leases.get_mut(key) else { return false };
        let Some(place) = addresses.iter().position(|a| *a == address) else { return false };
        addresses.remove(place);
        if addresses.is_empty() {
            self.leases.remove(key);
        }
        self.free_one(number(address));
        true
    }

    /// The addresses of an attachment, in the order it got them.
    pub fn addresses(&self, key: &AttachmentKey) -> &[IpAddr] {
        self.leases.get(key).map_or(&[], Vec::as_slice)
    }

    /// Who has an address.
    pub fn holder(&self, address: IpAddr) -> Option<&AttachmentKey> {
        self.holders.get(&number(address))
    }

    /// All attachments with their addresses, sorted by attachment.
    pub fn iter(&self) -> impl Iterator<Item = (&AttachmentKey, &[IpAddr])> + '_ {
        self.leases.iter().map(|(key, addresses)| (key, addresses.as_slice()))
    }

    /// Attachments that have an address.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// True if nothing is leased.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Addresses that could be allocated now.
    pub fn free(&self, ipv6: bool) -> u64 {
        clamp(self.pool.free(ipv6))
    }

    /// Those of them that were never used or have cooled down.
    pub fn ready(&self, ipv6: bool, now_ms: u64) -> u64 {
        clamp(self.pool.ready(ipv6, self.cooldown_ms, now_ms.max(self.clock_ms)))
    }

    /// Usable addresses of the own blocks: free, leased or withheld.
    pub fn owned(&self, ipv6: bool) -> u64 {
        let own = self.blocks.iter().filter(|span| span.v6 == ipv6);
        clamp(own.map(|span| usable_span(&self.ranges, *span)).sum())
    }

    /// The ranges.
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// The own blocks, sorted.
    pub fn blocks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.blocks.iter().map(|span| span.net())
    }

    fn tick(&mut self, now_ms: u64) {
        self.clock_ms = self.clock_ms.max(now_ms);
    }

    fn hold(&mut self, key: &AttachmentKey, at: Key) {
        self.holders.insert(at, key.clone());
        self.leases.entry(key.clone()).or_default().push(address(at.0, at.1));
    }

    /// Ends the holding of an address; it is free again if it is still ours.
    fn free_one(&mut self, at: Key) {
        self.holders.remove(&at);
        if self.settled && is_reserved(&self.ranges, address(at.0, at.1)) {
            return;
        }
        let stamp = self.pool.stamp(self.clock_ms);
        if !self.settled || self.block_of(at).is_none() {
            self.remember(at, stamp);
            return;
        }
        let around = self.withheld_around(at);
        match around.and_then(|span| self.withheld.get_mut(&span)) {
            Some(freed) => freed.push((at, stamp)),
            None => self.pool.add_freed(at, stamp),
        }
    }

    fn block_of(&self, (v6, number): Key) -> Option<Span> {
        around(
            self.blocks.range(..=Span { v6, start: number, bits: u8::MAX }).next_back(),
            v6,
            number,
        )
    }

    fn withheld_around(&self, (v6, number): Key) -> Option<Span> {
        let below = self.withheld.range(..=Span { v6, start: number, bits: u8::MAX }).next_back();
        around(below.map(|(span, _)| span), v6, number)
    }

    /// Makes what is own, usable and not leased in `part` of a block free.
    fn fill(&mut self, part: Span, freed: &[(Key, Stamp)]) {
        let v6 = part.v6;
        let mut next = Some(part.start);
        let ends = [part.start, part.last()]
            .into_iter()
            .filter(|end| is_reserved(&self.ranges, address(v6, *end)));
        let mut taken: BTreeSet<u128> = ends.collect();
        taken.extend(self.holders.range((v6, part.start)..=(v6, part.last())).map(|(k, _)| k.1));
        taken.extend(freed.iter().map(|(key, _)| key.1).filter(|n| part.has(v6, *n)));
        for number in taken {
            if let Some(first) = next
                && first < number
            {
                self.pool.add_fresh(v6, first, number - 1);
            }
            next = number.checked_add(1);
        }
        if let Some(first) = next {
            self.pool.add_fresh(v6, first, part.last());
        }
    }
}

fn around(below: Option<&Span>, v6: bool, number: u128) -> Option<Span> {
    below.copied().filter(|span| span.has(v6, number))
}

/// Drops what lies inside another span of the set.
fn disjoint(mut spans: Vec<Span>) -> BTreeSet<Span> {
    // Of two spans with one start the larger must come first.
    spans.sort_by_key(|span| (span.v6, span.start, u8::MAX - span.bits));
    let mut kept: BTreeSet<Span> = BTreeSet::new();
    let mut last: Option<Span> = None;
    for span in spans {
        if last.is_none_or(|last| !last.contains(span)) {
            kept.insert(span);
            last = Some(span);
        }
    }
    kept
}

fn clamp(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

//! The meaning of every command. Each either changes the ledger and says what
//! was done, or changes nothing and says why.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::ledger::{Block, Op, Outcome, Refusal};

use super::space::{Conflict, Holder, range_of};
use super::{Ledger, MAX_ACQUIRE, MAX_MEMBERS, MAX_NAME, MAX_PREFIXES, MAX_RANGES, MemberInfo};
use crate::net::{Span, is_aligned, is_reserved, number};

type Answer = Result<Outcome, Refusal>;

/// Earlier sets of ranges remembered.
pub(super) const MAX_FORMER: usize = 16;

impl Ledger {
    pub(super) fn execute(&mut self, op: &Op) -> Answer {
        if let Op::Found { cluster, ranges, quarantine_ms } = op {
            return self.found(*cluster, ranges, *quarantine_ms);
        }
        let cluster = self.cluster.ok_or(Refusal::NotFounded)?;
        match op {
            Op::Found { .. } => Ok(Outcome::Done),
            Op::Join { node, name, ranges, replace } => {
                self.join(cluster, *node, name, ranges, *replace)
            }
            Op::Acquire { node, ipv6, count } => self.acquire(*node, *ipv6, *count),
            Op::Claim { node, address } => self.claim(*node, *address),
            Op::Release { node, prefixes } => self.release(*node, prefixes),
            Op::Transfer { from, to, prefix } => self.transfer(*from, *to, prefix),
            Op::Evict { node } => {
                self.known(*node)?;
                self.evict(*node);
                Ok(Outcome::Done)
            }
            Op::Grow { range } => self.grow(range),
        }
    }

    fn found(&mut self, cluster: ClusterId, ranges: &[IpNet], quarantine_ms: u64) -> Answer {
        if let Some(known) = self.cluster {
            // The same cluster founded again is a retry under a new number.
            return if known == cluster {
                Ok(Outcome::Done)
            } else {
                Err(Refusal::AlreadyFounded { cluster: known })
            };
        }
        let mut ranges = ranges.to_vec();
        ranges.sort();
        check_ranges(&ranges).map_err(Refusal::Bad)?;
        self.cluster = Some(cluster);
        self.ranges = ranges;
        self.quarantine_ms = quarantine_ms;
        Ok(Outcome::Done)
    }

    fn join(
        &mut self,
        cluster: ClusterId,
        node: NodeId,
        name: &str,
        ranges: &[IpNet],
        replace: bool,
    ) -> Answer {
        check_name(name).map_err(Refusal::Bad)?;
        if ranges.len() > MAX_RANGES {
            return Err(Refusal::Bad(format!(
                "{} ranges, at most {MAX_RANGES} are possible",
                ranges.len()
            )));
        }
        let mut given: Vec<_> = ranges.iter().map(IpNet::trunc).collect();
        given.sort();
        given.dedup();
        if given != self.ranges && !self.former_ranges.contains(&given) {
            return Err(Refusal::RangeDiffers { cluster: self.ranges.clone(), given });
        }
        let holder = self.node_by_name(name).filter(|holder| *holder != node);
        if let Some(holder) = holder
            && !replace
        {
            return Err(Refusal::NameTaken { name: name.to_owned(), holder });
        }
        if holder.is_none()
            && !self.members.contains_key(&node)
            && self.members.len() >= MAX_MEMBERS
        {
            return Err(Refusal::Bad(format!("the cluster is full: {MAX_MEMBERS} members")));
        }
        if let Some(holder) = holder {
            self.evict(holder);
        }
        let joined_at = self.index;
        let member = self
            .members
            .entry(node)
            .or_insert_with(|| MemberInfo { name: name.to_owned(), joined_at });
        if member.name != name {
            self.by_name.remove(&member.name);
            name.clone_into(&mut member.name);
        }
        self.by_name.insert(name.to_owned(), node);
        Ok(Outcome::Joined { cluster })
    }

    fn acquire(&mut self, node: NodeId, ipv6: bool, count: u32) -> Answer {
        self.known(node)?;
        if !(1..=MAX_ACQUIRE).contains(&count) {
            return Err(Refusal::Bad(format!("{count} blocks asked for, 1 to {MAX_ACQUIRE} go")));
        }
        let family: Vec<_> =
            self.ranges.iter().copied().filter(|r| Span::of(r).v6 == ipv6).collect();
        if family.is_empty() {
            let name = if ipv6 { "IPv6" } else { "IPv4" };
            return Err(Refusal::Bad(format!("the cluster has no {name} range")));
        }
        self.room(1)?;
        let mut blocks: Vec<Block> = Vec::new();
        while blocks.len() < count as usize && self.space.len() < MAX_PREFIXES {
            let Some(span) = self.space.pick(&self.ranges, node, ipv6) else { break };
            // A fragment helps who would get nothing, not who has whole blocks.
            let whole = range_of(&self.ranges, span.v6, span.start)
                .is_some_and(|range| span.bits >= crate::net::block_bits(range));
            if !whole && !blocks.is_empty() {
                break;
            }
            blocks.push(self.give(node, span));
            if !whole {
                break;
            }
        }
        if blocks.is_empty() {
            return Err(Refusal::Exhausted { ranges: family });
        }
        Ok(Outcome::Granted(blocks))
    }

    fn claim(&mut self, node: NodeId, address: IpAddr) -> Answer {
        self.known(node)?;
        let prefix = IpNet::from(address);
        let (v6, number) = number(address);
        let misfit = |why: &str| Refusal::OutOfRange {
            prefix,
            ranges: self.ranges.clone(),
            why: why.to_owned(),
        };
        let range =
            range_of(&self.ranges, v6, number).ok_or_else(|| misfit("the address lies outside"))?;
        if is_reserved(&self.ranges, address) {
            return Err(misfit("the first and last address of a range are never given out"));
        }
        match self.space.at(v6, number) {
            Some((span, Holder::Owned { owner, epoch })) if owner == node => {
                Ok(Outcome::Granted(vec![Block { prefix: span.net(), owner, epoch }]))
            }
            Some((_, Holder::Owned { owner, .. })) => {
                Err(Refusal::NotOwner { prefix, owner: Some(owner) })
            }
            // Rest protects what the evicted node may still use from others,
            // not from that node itself.
            Some((span, Holder::Resting { former, .. })) if former == node => {
                self.space.carve(span);
                Ok(Outcome::Granted(vec![self.give(node, span)]))
            }
            Some((_, Holder::Resting { until_ms, .. })) => {
                Err(Refusal::Quarantined { prefix, until_ms })
            }
            None => {
                self.room(1)?;
                let span = self
                    .space
                    .free_around(range, v6, number)
                    .ok_or(Refusal::NotOwner { prefix, owner: None })?;
                Ok(Outcome::Granted(vec![self.give(node, span)]))
            }
        }
    }

    fn release(&mut self, node: NodeId, prefixes: &[IpNet]) -> Answer {
        self.known(node)?;
        let mut parts = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            parts.push(self.own_part(node, prefix)?);
        }
        parts.sort();
        if let Some((a, b)) = parts.iter().zip(parts.iter().skip(1)).find(|(a, b)| a.overlaps(**b))
        {
            return Err(Refusal::Bad(format!("{} and {} overlap", a.net(), b.net())));
        }
        let splits: usize = parts.iter().map(|part| self.space.splits(*part)).sum();
        if splits > 0 {
            self.room(splits)?;
        }
        for part in parts {
            self.space.carve(part);
        }
        Ok(Outcome::Done)
    }

    fn transfer(&mut self, from: NodeId, to: NodeId, prefix: &IpNet) -> Answer {
        self.known(from)?;
        self.known(to)?;
        if from == to {
            return Err(Refusal::Bad(format!("node {from} gives {prefix} to itself")));
        }
        let part = self.own_part(from, prefix)?;
        let splits = self.space.splits(part);
        if splits > 0 {
            self.room(splits)?;
        }
        self.space.carve(part);
        Ok(Outcome::Granted(vec![self.give(to, part)]))
    }

    fn evict(&mut self, node: NodeId) {
        if let Some(member) = self.members.remove(&node) {
            self.by_name.remove(&member.name);
        }
        let until_ms = self.clock_ms.saturating_add(self.quarantine_ms);
        self.space.evict(node, self.clock_ms, until_ms);
        self.requests.evicted(node);
    }

    fn grow(&mut self, range: &IpNet) -> Answer {
        let misfit =
            |why: String| Refusal::OutOfRange { prefix: *range, ranges: self.ranges.clone(), why };
        check_range(range).map_err(misfit)?;
        if self.ranges.contains(range) {
            return Ok(Outcome::Done);
        }
        if let Some(wider) = self.ranges.iter().find(|known| known.contains(range)) {
            return Err(misfit(format!("it is already a part of {wider}")));
        }
        let mut ranges: Vec<_> =
            self.ranges.iter().copied().filter(|known| !range.contains(known)).collect();
        ranges.push(*range);
        ranges.sort();
        check_ranges(&ranges).map_err(misfit)?;
        let former = std::mem::replace(&mut self.ranges, ranges);
        self.former_ranges.push(former);
        if self.former_ranges.len() > MAX_FORMER {
            self.former_ranges.remove(0);
        }
        Ok(Outcome::Done)
    }

    fn known(&self, node: NodeId) -> Result<(), Refusal> {
        if self.members.contains_key(&node) { Ok(()) } else { Err(Refusal::UnknownNode { node }) }
    }

    /// Checks that the ledger can hold `more` prefixes.
    fn room(&self, more: usize) -> Result<(), Refusal> {
        if self.space.len().saturating_add(more) > MAX_PREFIXES {
            return Err(Refusal::Bad(format!(
                "the ledger is full: {MAX_PREFIXES} prefixes; release some, or use a smaller range"
            )));
        }
        Ok(())
    }

    /// Checks that a prefix is aligned and wholly owned by a node.
    fn own_part(&self, node: NodeId, prefix: &IpNet) -> Result<Span, Refusal> {
        if !is_aligned(prefix) {
            return Err(Refusal::Bad(format!("{prefix} is not aligned")));
        }
        let part = Span::of(prefix);
        match self.space.check_owned(node, part) {
            Ok(()) => Ok(part),
            Err(Conflict::Owner(owner)) => Err(Refusal::NotOwner { prefix: *prefix, owner }),
            Err(Conflict::Resting(until_ms)) => {
                Err(Refusal::Quarantined { prefix: *prefix, until_ms })
            }
        }
    }

    fn give(&mut self, owner: NodeId, span: Span) -> Block {
        let epoch = self.index;
        self.space.insert(span, Holder::Owned { owner, epoch });
        Block { prefix: span.net(), owner, epoch }
    }
}

/// What is wrong with a node name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("a node name has 1 to {MAX_NAME} bytes, this one {}", name.len()));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("the node name {name:?} holds blanks or control characters"));
    }
    Ok(())
}

/// What is wrong with a range.
fn check_range(range: &IpNet) -> Result<(), String> {
    if !is_aligned(range) {
        return Err(format!("{range} is not aligned: did you mean {}?", range.trunc()));
    }
    let (widest, narrowest) = if Span::of(range).v6 { (16, 126) } else { (4, 30) };
    if !(widest..=narrowest).contains(&range.prefix_len()) {
        return Err(format!("{range} is not between /{widest} and /{narrowest}"));
    }
    Ok(())
}

/// What is wrong with a sorted set of ranges.
pub(super) fn check_ranges(ranges: &[IpNet]) -> Result<(), String> {
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(format!("a cluster has 1 to {MAX_RANGES} ranges, not {}", ranges.len()));
    }
    ranges.iter().try_for_each(check_range)?;
    let spans: Vec<_> = ranges.iter().map(Span::of).collect();
    match spans.iter().zip(spans.iter().skip(1)).find(|(a, b)| a >= b || a.overlaps(**b)) {
        Some((a, b)) => Err(format!("{} and {} overlap", a.net(), b.net())),
        None => Ok(()),
    }
}

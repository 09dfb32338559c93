//! Arithmetic on prefixes, the same for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Host bits of a block are three eighths of the range's, at most this many.
const MAX_BLOCK_BITS: u8 = 6;

/// An aligned prefix as numbers: family, first address, host bits.
///
/// Ordered by family, then address, then size, as [`IpNet`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    pub(crate) v6: bool,
    pub(crate) start: u128,
    /// Host bits: the span holds `1 << bits` addresses.
    pub(crate) bits: u8,
}

/// The low `bits` bits set.
fn low(bits: u8) -> u128 {
    match bits {
        0 => 0,
        1..=127 => (1 << bits) - 1,
        _ => u128::MAX,
    }
}

/// Family and number of an address.
pub(crate) fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(a) => (false, u128::from(a.to_bits())),
        IpAddr::V6(a) => (true, a.to_bits()),
    }
}

/// The address of a number. IPv4 numbers never exceed 32 bits here.
pub(crate) fn address(v6: bool, number: u128) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits((number & low(32)) as u32))
    }
}

impl Span {
    /// The span of a prefix; host bits of the address are dropped.
    pub(crate) fn of(net: &IpNet) -> Self {
        let (v6, start) = number(net.network());
        Self { v6, start, bits: net.max_prefix_len() - net.prefix_len() }
    }

    /// The aligned span of `bits` host bits around an address.
    pub(crate) fn around(v6: bool, number: u128, bits: u8) -> Self {
        Self { v6, start: number & !low(bits), bits }
    }

    pub(crate) fn net(self) -> IpNet {
        let width = if self.v6 { 128 } else { 32 };
        let length = width - self.bits.min(width);
        let address = address(self.v6, self.start);
        IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address))
    }

    pub(crate) fn last(self) -> u128 {
        self.start | low(self.bits)
    }

    /// Number of addresses; a whole IPv6 Internet counts one short.
    pub(crate) fn size(self) -> u128 {
        low(self.bits).saturating_add(1)
    }

    pub(crate) fn has(self, v6: bool, number: u128) -> bool {
        self.v6 == v6 && self.start <= number && number <= self.last()
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.bits >= other.bits && self.has(other.v6, other.start)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// What is left of `self` when `part`, which it contains, is taken out.
    pub(crate) fn without(self, part: Self) -> Vec<Self> {
        let mut rest = Vec::new();
        let mut current = self;
        while current.bits > part.bits {
            let bits = current.bits - 1;
            let low_half = Self { bits, ..current };
            let high_half = Self { start: current.start | (1 << bits), ..low_half };
            let (inside, outside) =
                if low_half.contains(part) { (low_half, high_half) } else { (high_half, low_half) };
            rest.push(outside);
            current = inside;
        }
        rest
    }

    /// The first aligned span of `bits` host bits inside `first..=last`.
    pub(crate) fn first_in(v6: bool, first: u128, last: u128, bits: u8) -> Option<Self> {
        let start = first.checked_add(low(bits))? & !low(bits);
        let span = Self { v6, start, bits };
        (start >= first && span.last() <= last).then_some(span)
    }

    /// The last aligned span of `bits` host bits inside `first..=last`.
    pub(crate) fn last_in(v6: bool, first: u128, last: u128, bits: u8) -> Option<Self> {
        let start = last.checked_sub(low(bits))? & !low(bits);
        let span = Self { v6, start, bits };
        (start >= first && span.last() <= last).then_some(span)
    }

    /// The largest aligned span inside `first..=last`, the lowest of several.
    pub(crate) fn largest_in(v6: bool, first: u128, last: u128) -> Option<Self> {
        let length = last.checked_sub(first)?.saturating_add(1);
        let mut bits = length.ilog2() as u8;
        loop {
            if let Some(span) = Self::first_in(v6, first, last, bits) {
                return Some(span);
            }
            bits = bits.checked_sub(1)?;
        }
    }
}

/// True if the address part of the prefix has no bits beyond the prefix.
pub(crate) fn is_aligned(net: &IpNet) -> bool {
    net.addr() == net.network()
}

/// Prefix length of the standard block of a range: /26 in a /16 or wider,
/// /28 in a /20, /29 in a /24, /31 in a /28.
pub fn block_len(range: &IpNet) -> u8 {
    range.max_prefix_len() - block_bits(Span::of(range))
}

/// Host bits of the standard block of a range.
pub(crate) fn block_bits(range: Span) -> u8 {
    (u16::from(range.bits) * 3 / 8).min(u16::from(MAX_BLOCK_BITS)) as u8
}

/// True if `address` can never be leased: network and broadcast address of an
/// IPv4 range, first address (subnet-router anycast) of an IPv6 range.
pub fn is_reserved(ranges: &[IpNet], address: IpAddr) -> bool {
    let (v6, number) = number(address);
    ranges.iter().map(Span::of).any(|range| reserves(range, v6, number))
}

fn reserves(range: Span, v6: bool, number: u128) -> bool {
    range.v6 == v6 && range.bits > 1 && (number == range.start || (!v6 && number == range.last()))
}

/// Addresses of a range that can be leased.
pub fn usable(range: &IpNet) -> u128 {
    usable_in(std::slice::from_ref(range), range)
}

/// Addresses of `part` that can be leased in a cluster with these ranges.
pub fn usable_in(ranges: &[IpNet], part: &IpNet) -> u128 {
    usable_span(ranges, Span::of(part))
}

pub(crate) fn usable_span(ranges: &[IpNet], part: Span) -> u128 {
    let mut ends = Vec::new();
    for range in ranges.iter().map(Span::of) {
        for end in [range.start, range.last()] {
            if reserves(range, range.v6, end) && part.has(range.v6, end) && !ends.contains(&end) {
                ends.push(end);
            }
        }
    }
    part.size().saturating_sub(ends.len() as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn block_sizes() {
        for (range, length) in [
            ("10.32.0.0/12", 26),
            ("10.32.0.0/16", 26),
            ("10.32.0.0/20", 28),
            ("10.32.0.0/24", 29),
            ("10.32.0.0/28", 31),
            ("10.32.0.0/30", 32),
            ("fd00::/48", 122),
            ("fd00::/120", 125),
        ] {
            assert_eq!(block_len(&net(range)), length, "{range}");
        }
    }

    #[test]
    fn reserved_and_usable() {
        let ranges = [net("10.32.1.0/28"), net("fd00::/120")];
        let reserved = |text: &str| is_reserved(&ranges, text.parse().unwrap());
        assert!(reserved("10.32.1.0") && reserved("10.32.1.15") && reserved("fd00::"));
        assert!(!reserved("10.32.1.1") && !reserved("fd00::ff") && !reserved("10.32.2.0"));
        assert_eq!((usable(&ranges[0]), usable(&ranges[1])), (14, 255));
        assert_eq!(usable_in(&ranges, &net("10.32.1.0/32")), 0);
        assert_eq!(usable_in(&ranges, &net("10.32.1.14/31")), 1);
    }

    #[test]
    fn spans() {
        let whole = Span::of(&net("10.0.0.0/29"));
        let part = Span::of(&net("10.0.0.5/32"));
        let rest: Vec<_> = whole.without(part).into_iter().map(Span::net).collect();
        assert_eq!(rest, [net("10.0.0.0/30"), net("10.0.0.6/31"), net("10.0.0.4/32")]);
        assert_eq!(Span::largest_in(false, 3, 14), Some(Span { v6: false, start: 4, bits: 2 }));
        assert_eq!(Span::largest_in(true, 0, u128::MAX).map(|s| s.bits), Some(127));
        assert_eq!(Span::first_in(true, u128::MAX, u128::MAX, 4), None);
        assert_eq!(Span::last_in(false, 0, 14, 3), Some(Span { v6: false, start: 0, bits: 3 }));
        assert_eq!(Span::of(&net("::/0")).last(), u128::MAX);
    }
}

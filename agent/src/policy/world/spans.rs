//! Disjoint spans of numbers: port lists and address blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::policy::state::Protocol;

/// Sorted, disjoint, not adjacent; both ends belong to a span.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spans(Vec<(u128, u128)>);

impl Spans {
    pub(super) fn of(mut spans: Vec<(u128, u128)>) -> Self {
        spans.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (low, high) in spans {
            match merged.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut holes = other.0.iter().peekable();
        for &(mut low, high) in &self.0 {
            // A hole may reach into the next span too: it is passed only once it ends before it.
            while holes.next_if(|hole| hole.1 < low).is_some() {}
            let mut rest = true;
            for hole in holes.clone() {
                if hole.0 > high {
                    break;
                }
                if hole.0 > low {
                    left.push((low, hole.0 - 1));
                }
                if hole.1 >= high {
                    rest = false;
                    break;
                }
                low = low.max(hole.1 + 1);
            }
            if rest {
                left.push((low, high));
            }
        }
        Self(left)
    }
}

/// Ports of protocols.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortSpans(Spans);

/// Room between the protocols, so that spans of two of them are never adjacent.
const PER_PROTOCOL: u128 = 1 << 20;

impl PortSpans {
    pub(super) fn of(ranges: impl IntoIterator<Item = (Protocol, u16, u16)>) -> Self {
        let at = |protocol: Protocol, port: u16| {
            u128::from(protocol as u8) * PER_PROTOCOL + u128::from(port)
        };
        let spans = ranges.into_iter().map(|(p, low, high)| (at(p, low), at(p, high)));
        Self(Spans::of(spans.collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0))
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self(self.0.minus(&other.0))
    }

    pub(super) fn listed(&self) -> Vec<(Protocol, u16, u16)> {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let mut list = Vec::with_capacity(self.0.0.len());
        for protocol in all {
            let base = u128::from(protocol as u8) * PER_PROTOCOL;
            for &(low, high) in &self.0.0 {
                let port = |n: u128| n.checked_sub(base).and_then(|n| u16::try_from(n).ok());
                if let (Some(low), Some(high)) = (port(low), port(high)) {
                    list.push((protocol, low, high));
                }
            }
        }
        list
    }
}

/// Addresses of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressSpans {
    v4: Spans,
    v6: Spans,
}

impl AddressSpans {
    pub(super) fn of<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((
                    u128::from(u32::from(net.network())),
                    u128::from(u32::from(net.broadcast())),
                )),
                IpNet::V6(net) => {
                    v6.push((u128::from(net.network()), u128::from(net.broadcast())));
                }
            }
        }
        Self { v4: Spans::of(v4), v6: Spans::of(v6) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self { v4: self.v4.union(&other.v4), v6: self.v6.union(&other.v6) }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self { v4: self.v4.minus(&other.v4), v6: self.v6.minus(&other.v6) }
    }

    pub(super) fn ranges(&self) -> Vec<(IpAddr, IpAddr)> {
        let v4 = |n: u128| IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX)));
        let v6 = |n: u128| IpAddr::V6(Ipv6Addr::from(n));
        let low = self.v4.0.iter().map(|&(low, high)| (v4(low), v4(high)));
        low.chain(self.v6.0.iter().map(|&(low, high)| (v6(low), v6(high)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(spans: &Spans) -> Vec<u128> {
        spans.0.iter().flat_map(|&(low, high)| low..=high).collect()
    }

    fn spans() -> impl Strategy<Value = Spans> {
        let one = (0_u128..60, 0_u128..8).prop_map(|(low, len)| (low, low + len));
        proptest::collection::vec(one, 0..8).prop_map(Spans::of)
    }

    proptest! {
        #[test]
        fn same_as_sets_of_numbers(a in spans(), b in spans()) {
            let (x, y) = (numbers(&a), numbers(&b));
            let less: Vec<u128> = x.iter().copied().filter(|n| !y.contains(n)).collect();
            let mut both: Vec<u128> = x.iter().chain(&y).copied().collect();
            both.sort_unstable();
            both.dedup();
            prop_assert_eq!(numbers(&a.minus(&b)), less);
            prop_assert_eq!(numbers(&a.union(&b)), both);
            let result = a.minus(&b);
            prop_assert!(result.0.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }

    #[test]
    fn the_ends_of_the_families_hold() {
        let all: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let ends = ["0.0.0.0/32", "255.255.255.255/32", "::/128"].map(|n| n.parse().unwrap());
        let left = AddressSpans::of(&all).minus(&AddressSpans::of(&ends)).ranges();
        let expected =
            [("0.0.0.1", "255.255.255.254"), ("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")];
        let expected: Vec<(IpAddr, IpAddr)> =
            expected.map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap())).into();
        assert_eq!(left, expected);
    }

    #[test]
    fn protocols_stay_apart() {
        let ports = PortSpans::of([
            (Protocol::Tcp, 0, 65535),
            (Protocol::Udp, 0, 80),
            (Protocol::Udp, 81, 81),
        ]);
        assert_eq!(ports.listed(), [(Protocol::Tcp, 0, 65535), (Protocol::Udp, 0, 81)]);
    }
}

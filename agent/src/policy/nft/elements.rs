//! Elements and names of sets as the kernel has them.

use std::net::IpAddr;

use super::model::{Key, Shape};
use crate::dataplane::nft::expr::octets;
use crate::dataplane::nft::ruleset::{IPV4, IPV6, PORT, PROTO, concat};
use crate::policy::state::{ChainId, Direction, Element, SetId, SetKind};

pub(crate) const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const DYNAMIC: u32 = 32;
/// Ports that are counted one by one; the rest is counted together.
pub(crate) const PORTS_COUNTED: u32 = 256;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fam {
    V4,
    V6,
}

impl Fam {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::V6 } else { Self::V4 }
    }

    pub(crate) fn is_v6(self) -> bool {
        self == Self::V6
    }

    pub(crate) fn digit(self) -> char {
        if self.is_v6() { '6' } else { '4' }
    }

    /// Bytes of an address.
    fn len(self) -> u32 {
        if self.is_v6() { 16 } else { 4 }
    }

    fn kind(self) -> u32 {
        if self.is_v6() { IPV6 } else { IPV4 }
    }

    /// `base4` or `base6`.
    pub(crate) fn name(self, base: &str) -> String {
        format!("{base}{}", self.digit())
    }
}

/// The kernel's name of a set of the policy in a family.
pub(crate) fn set_name(kind: SetKind, fam: Fam, id: &SetId) -> String {
    let base = match kind {
        SetKind::Addresses => "pods",
        SetKind::Ranges => "blocks",
        SetKind::Ports => "ports",
    };
    format!("{base}{}-{}", fam.digit(), id.0)
}

/// `in` or `out`.
pub(crate) fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// The kernel's name of a chain of the policy in a family.
pub(crate) fn chain_name(direction: Direction, fam: Fam, id: &ChainId) -> String {
    format!("{}{}-{}", way(direction), fam.digit(), id.0)
}

/// Form of a set of the policy.
pub(crate) fn shape(kind: SetKind, fam: Fam) -> Shape {
    let plain = Shape {
        flags: 0,
        key_type: fam.kind(),
        key: fam.len(),
        verdicts: false,
        counted: false,
        size: 0,
    };
    match kind {
        SetKind::Addresses => plain,
        SetKind::Ranges => Shape { flags: INTERVAL, ..plain },
        SetKind::Ports => {
            Shape { key_type: concat(&[fam.kind(), PROTO, PORT]), key: fam.len() + 8, ..plain }
        }
    }
}

/// Local address to chain.
pub(crate) fn verdicts(fam: Fam) -> Shape {
    Shape { flags: MAP, verdicts: true, ..shape(SetKind::Addresses, fam) }
}

/// Local addresses that count what is refused.
pub(crate) fn counted(fam: Fam) -> Shape {
    Shape { counted: true, ..shape(SetKind::Addresses, fam) }
}

/// Pairs of addresses.
pub(crate) fn pairs(fam: Fam) -> Shape {
    let key_type = concat(&[fam.kind(), fam.kind()]);
    Shape { key_type, key: fam.len() * 2, ..shape(SetKind::Addresses, fam) }
}

/// Refused packets by protocol and port, filled by the kernel.
pub(crate) fn refused_ports() -> Shape {
    Shape {
        flags: DYNAMIC,
        key_type: concat(&[PROTO, PORT]),
        key: 8,
        verdicts: false,
        counted: false,
        size: PORTS_COUNTED,
    }
}

/// Protocol numbers.
pub(crate) fn protocols() -> Shape {
    Shape { flags: 0, key_type: PROTO, key: 1, verdicts: false, counted: false, size: 0 }
}

fn key(bytes: Vec<u8>) -> Key {
    Key { bytes: bytes.into(), end: false }
}

/// Key of an address.
pub(crate) fn address_key(ip: IpAddr) -> Key {
    key(octets(ip))
}

/// Key of an address paired with itself.
pub(crate) fn pair_key(ip: IpAddr) -> Key {
    key(octets(ip).repeat(2))
}

/// The address a key begins with, in sets that are no intervals.
pub(crate) fn holder(key: &Key) -> Option<IpAddr> {
    // An address; one with protocol and port; one with itself.
    let length = match key.bytes.len() {
        4 | 12 => 4,
        // Twice an IPv4 address is as long as protocol and port.
        8 if key.bytes[..4] == key.bytes[4..] => 4,
        16 | 24 | 32 => 16,
        _ => return None,
    };
    crate::dataplane::netlink::codec::ip(&key.bytes[..length])
}

/// Key of a protocol.
pub(crate) fn protocol_key(proto: u8) -> Key {
    key(vec![proto])
}

/// The keys of an element of the policy, one or, for a range, two.
pub(crate) fn keys(element: &Element) -> (Fam, Vec<Key>) {
    match element {
        Element::Address(ip) => (Fam::of(*ip), vec![address_key(*ip)]),
        Element::Port(ip, proto, port) => {
            let mut bytes = octets(*ip);
            bytes.extend([*proto as u8, 0, 0, 0]);
            bytes.extend(port.to_be_bytes());
            bytes.extend([0; 2]);
            (Fam::of(*ip), vec![key(bytes)])
        }
        Element::Range(first, last) => {
            let mut keys = vec![address_key(*first)];
            // The last address of all has none after it: open to the end.
            keys.extend(after(*last).map(|bytes| Key { bytes: bytes.into(), end: true }));
            (Fam::of(*first), keys)
        }
    }
}

fn after(ip: IpAddr) -> Option<Vec<u8>> {
    match ip {
        IpAddr::V4(ip) => Some(u32::from(ip).checked_add(1)?.to_be_bytes().to_vec()),
        IpAddr::V6(ip) => Some(u128::from(ip).checked_add(1)?.to_be_bytes().to_vec()),
    }
}

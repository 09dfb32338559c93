//! Reading what the kernel says. Only the attributes needed are looked at, so
//! that a newer kernel's cannot confuse us.

use std::net::IpAddr;

/// Type and value of each attribute; ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits say "nested" and "network byte order".
        Some((kind & 0x3fff, value))
    })
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkView {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// IFF_UP.
    pub up: bool,
    /// `veth`, `bridge`; empty for hardware.
    pub kind: String,
    /// MAC.
    pub mac: [u8; 6],
    /// MTU.
    pub mtu: u32,
    /// Index of the other end, in its own namespace.
    pub peer: Option<u32>,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Alias.
    pub alias: String,
}

impl LinkView {
    /// From RTM_NEWLINK.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        const HEADER: usize = 16;
        const IFF_UP: u32 = 1;
        let mut link = Self {
            index: number(payload.get(4..8)?)?,
            up: number(payload.get(8..12)?)? & IFF_UP != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(payload.get(HEADER..)?) {
            match kind {
                1 => link.mac = value.try_into().unwrap_or_default(),
                3 => link.name = text(value),
                4 => link.mtu = number(value).unwrap_or(0),
                5 => link.peer = number(value),
                10 => link.master = number(value),
                18 => {
                    link.kind = attributes(value)
                        .find_map(|(kind, value)| (kind == 1).then(|| text(value)))
                        .unwrap_or_default();
                }
                20 => link.alias = text(value),
                _ => {}
            }
        }
        Some(link)
    }
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressView {
    /// Link.
    pub link: u32,
    /// Address.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
}

impl AddressView {
    /// From RTM_NEWADDR.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (prefix, link) = (*payload.get(1)?, number(payload.get(4..8)?)?);
        let mut found = None;
        for (kind, value) in attributes(payload.get(8..)?) {
            // IFA_LOCAL is the address itself; without it IFA_ADDRESS is.
            match kind {
                1 if found.is_none() => found = address(value),
                2 => found = address(value),
                _ => {}
            }
        }
        Some(Self { link, address: found?, prefix })
    }
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteView {
    /// Destination; `None` for the default route.
    pub dst: Option<IpAddr>,
    /// Prefix length.
    pub prefix: u8,
    /// Table.
    pub table: u32,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Link.
    pub link: Option<u32>,
}

impl RouteView {
    /// From RTM_NEWROUTE.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut route = Self {
            dst: None,
            prefix: *payload.get(1)?,
            table: u32::from(*payload.get(4)?),
            gateway: None,
            link: None,
        };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => route.dst = address(value),
                4 => route.link = number(value),
                5 => route.gateway = address(value),
                15 => route.table = number(value).unwrap_or(route.table),
                _ => {}
            }
        }
        Some(route)
    }
}

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourView {
    /// Link.
    pub link: u32,
    /// NUD_PERMANENT.
    pub permanent: bool,
    /// Address.
    pub address: IpAddr,
    /// MAC.
    pub mac: [u8; 6],
}

impl NeighbourView {
    /// From RTM_NEWNEIGH; `None` for forwarding entries of bridges.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        const NUD_PERMANENT: u16 = 0x80;
        let link = number(payload.get(4..8)?)?;
        let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
        let (mut found, mut mac) = (None, [0; 6]);
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => found = address(value),
                2 => mac = value.try_into().unwrap_or_default(),
                _ => {}
            }
        }
        Some(Self { link, permanent: state & NUD_PERMANENT != 0, address: found?, mac })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120)) {
            let _ = attributes(&bytes).count();
            let _ = LinkView::parse(&bytes);
            let _ = AddressView::parse(&bytes);
            let _ = RouteView::parse(&bytes);
            let _ = NeighbourView::parse(&bytes);
        }
    }

    #[test]
    fn loopback_is_understood() {
        let mut socket = super::super::Socket::open().unwrap();
        let mut batch = super::super::Batch::default();
        batch.add(super::super::get_link("lo"), 0, "look at lo");
        let replies = socket.run(&batch).unwrap();
        let lo = LinkView::parse(&replies[0][0].payload).unwrap();
        assert_eq!((lo.index, lo.name.as_str()), (1, "lo"));
    }
}

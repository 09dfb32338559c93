//! Reading the kernel: everything at once; links, neighbours, FDB and nexthops
//! here, addresses and routes in [`inet`](super::inet).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use weft_proto::attachment::Alias;
use weft_proto::names::{BRIDGE, RT_PROTOCOL, VXLAN};

use super::inet;
use super::model::{HostFacts, Kind, Link, Mac, Nexthop, Observed, PortFlags, Via};
use super::netlink::Kernel;
use super::netlink::codec::{Writer, attr, attrs, ip, text, u16_at, u32_at};
use super::netlink::socket::{Refused, Requests};

const RTM_GETLINK: u16 = 18;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETNEXTHOP: u16 = 106;

const IFLA_EXT_MASK: u16 = 29;
/// Counters are more than half of what a link has to say, and nothing to us.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;

/// Everything of interest, except sysctls. Asked between two lists whether to give up;
/// nothing, if so.
pub(crate) fn observe(
    kernel: &mut Kernel,
    give_up: impl Fn() -> bool,
) -> Result<Option<Observed>, Refused> {
    retried(|| observe_once(kernel, &give_up))
}

fn observe_once(
    kernel: &mut Kernel,
    give_up: &impl Fn() -> bool,
) -> Result<Option<Observed>, Refused> {
    let Kernel { raw, rtnl } = kernel;
    let links = links(raw)?;
    let names = names(&links);
    let mut out = Observed::default();
    inet::addresses(rtnl, &names, &mut out)?;
    neighbours(raw, &names, &links, &mut out)?;
    if give_up() {
        return Ok(None);
    }
    nexthops(raw, &names, &mut out)?;
    if give_up() {
        return Ok(None);
    }
    inet::routes(raw, &names, &mut out)?;
    out.links = links;
    Ok((!give_up()).then_some(out))
}

/// What the host says apart from anything of ours.
pub(crate) fn host(kernel: &mut Kernel) -> Result<HostFacts, Refused> {
    retried(|| {
        let links = links(&mut kernel.raw)?;
        inet::host(&mut kernel.rtnl, &names(&links))
    })
}

fn names(links: &BTreeMap<String, Link>) -> BTreeMap<u32, &str> {
    links.iter().map(|(name, link)| (link.index, name.as_str())).collect()
}

/// A list that changes while it is read is read again, but not for ever.
fn retried<T>(mut read: impl FnMut() -> Result<T, Refused>) -> Result<T, Refused> {
    let mut left = 5;
    loop {
        match read() {
            Err(e) if e.errno == nix::libc::EAGAIN && left > 0 => left -= 1,
            other => return other,
        }
    }
}

/// All links by name.
pub(crate) fn links(route: &mut Requests) -> Result<BTreeMap<String, Link>, Refused> {
    let mut found = Vec::new();
    let ask = |w: &mut Writer| {
        w.raw(&[0; 16]);
        w.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    route.dump(RTM_GETLINK, ask, |_, payload| found.extend(parse_link(payload)))?;
    let names: BTreeMap<u32, String> =
        found.iter().map(|(name, _, link)| (link.index, name.clone())).collect();
    let named = |(name, master, mut link): (String, Option<u32>, Link)| {
        link.master = master.and_then(|index| names.get(&index).cloned());
        (name, link)
    };
    Ok(found.into_iter().map(named).collect())
}

pub(super) fn parse_link(payload: &[u8]) -> Option<(String, Option<u32>, Link)> {
    let index = u32_at(payload, 4)?;
    let up = u32_at(payload, 8)? & 1 != 0;
    let mut name = None;
    let mut master = None;
    let mut link = Link {
        index,
        kind: Kind::Other(String::new()),
        mac: [0; 6],
        mtu: 0,
        up,
        alias: None,
        master: None,
        port: None,
    };
    for (kind, value) in attrs(payload.get(16..)?) {
        match kind {
            1 => link.mac = value.try_into().unwrap_or_default(),
            3 => name = Some(text(value)),
            4 => link.mtu = u32_at(value, 0)?,
            10 => master = u32_at(value, 0),
            18 => {
                let data = attr(value, 2).unwrap_or_default();
                link.kind = match attr(value, 1).map(text).unwrap_or_default().as_str() {
                    "bridge" => Kind::Bridge,
                    "vxlan" => Kind::Vxlan {
                        port: attr(data, 15).and_then(be16).unwrap_or_default(),
                        external: attr(data, 25) == Some(&[1]),
                    },
                    other => Kind::Other(other.to_owned()),
                };
                if attr(value, 4).map(text).as_deref() == Some("bridge") {
                    link.port = attr(value, 5).map(port_flags);
                }
            }
            20 => link.alias = Alias::parse(&text(value)),
            _ => {}
        }
    }
    Some((name?, master, link))
}

fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

fn port_flags(data: &[u8]) -> PortFlags {
    let flag = |kind| attr(data, kind).is_some_and(|v| v.first() == Some(&1));
    PortFlags {
        isolated: flag(33),
        learning: flag(8),
        flood: flag(9),
        mcast_flood: flag(27),
        bcast_flood: flag(30),
        hairpin: flag(4),
    }
}

fn neighbours(
    route: &mut Requests,
    names: &BTreeMap<u32, &str>,
    links: &BTreeMap<String, Link>,
    out: &mut Observed,
) -> Result<(), Refused> {
    for family in [AF_INET, AF_INET6, AF_BRIDGE] {
        let mut header = [0; 12];
        header[0] = family;
        route.dump(
            RTM_GETNEIGH,
            |w| w.raw(&header),
            |_, payload| {
                let Some((dev, state, ip, mac)) = parse_neigh(payload, names) else { return };
                if family == AF_BRIDGE {
                    let port = links.get(dev).and_then(|l| l.master.as_deref()) == Some(BRIDGE);
                    // A port's own address is permanent, ours are static.
                    if port && state & NUD_NOARP != 0 {
                        out.fdb.insert((dev.to_owned(), mac));
                    }
                } else if (dev == BRIDGE || dev == VXLAN)
                    && state & NUD_PERMANENT != 0
                    && let Some(ip) = ip
                {
                    out.neighs.insert((dev.to_owned(), ip), mac);
                }
            },
        )?;
    }
    Ok(())
}

pub(super) fn parse_neigh<'a>(
    payload: &[u8],
    names: &BTreeMap<u32, &'a str>,
) -> Option<(&'a str, u16, Option<IpAddr>, Mac)> {
    let dev = names.get(&u32_at(payload, 4)?)?;
    let state = u16_at(payload, 8)?;
    let body = payload.get(12..)?;
    let mac = attr(body, 2)?.try_into().ok()?;
    Some((dev, state, attr(body, 1).and_then(ip), mac))
}

fn nexthops(
    route: &mut Requests,
    names: &BTreeMap<u32, &str>,
    out: &mut Observed,
) -> Result<(), Refused> {
    route.dump(
        RTM_GETNEXTHOP,
        |w| w.raw(&[0; 8]),
        |_, payload| {
            let body = payload.get(8..).unwrap_or_default();
            let Some(id) = attr(body, 1).and_then(|v| u32_at(v, 0)) else { return };
            if payload.get(2) != Some(&RT_PROTOCOL) {
                out.foreign_nexthops.insert(id);
            } else if let Some(nexthop) = parse_nexthop(payload, names) {
                out.nexthops.insert(id, nexthop);
            } else {
                // Ours by its number, but not as we write it: to be replaced.
                let via = Via::Tunnel { dst: Ipv4Addr::UNSPECIFIED.into() };
                out.nexthops.insert(id, Nexthop { ipv6: false, via });
            }
        },
    )
}

pub(super) fn parse_nexthop(payload: &[u8], names: &BTreeMap<u32, &str>) -> Option<Nexthop> {
    let ipv6 = *payload.first()? == AF_INET6;
    let body = payload.get(8..)?;
    let dev = *names.get(&u32_at(attr(body, 5)?, 0)?)?;
    let gateway = ip(attr(body, 6)?)?;
    let via = match attr(body, 8) {
        Some(encap) if dev == VXLAN => Via::Tunnel { dst: ip(attr(encap, 2)?)? },
        Some(_) => return None,
        None => Via::Direct { dev: dev.to_owned(), gateway },
    };
    Some(Nexthop { ipv6, via })
}

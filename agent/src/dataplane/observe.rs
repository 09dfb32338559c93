//! Reading the kernel: links, addresses, neighbours, FDB, nexthops, routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use weft_proto::attachment::Alias;
use weft_proto::names::{BRIDGE, RT_PROTOCOL, VXLAN};

use super::facts::is_ours;
use super::model::{HostFacts, Kind, Link, Mac, Nexthop, Observed, PortFlags, Route, Target, Via};
use super::netlink::codec::{attr, attrs, ip, text, u16_at, u32_at};
use super::netlink::socket::{Refused, Requests};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETNEXTHOP: u16 = 106;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;
const TABLE_MAIN: u32 = 254;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTN_UNICAST: u8 = 1;
const RTN_BLACKHOLE: u8 = 6;

/// Everything of interest, except sysctls.
pub(crate) fn observe(route: &mut Requests) -> Result<Observed, Refused> {
    // A list that changes while it is read is read again, but not for ever.
    let mut left = 5;
    loop {
        match observe_once(route) {
            Err(e) if e.errno == nix::libc::EAGAIN && left > 0 => left -= 1,
            other => return other,
        }
    }
}

fn observe_once(route: &mut Requests) -> Result<Observed, Refused> {
    let links = links(route)?;
    let names: BTreeMap<u32, &str> =
        links.iter().map(|(name, link)| (link.index, name.as_str())).collect();
    let mut out = Observed::default();
    addresses(route, &names, &mut out)?;
    neighbours(route, &names, &links, &mut out)?;
    nexthops(route, &names, &mut out)?;
    for family in [AF_INET, AF_INET6] {
        routes(route, family, &names, &mut out)?;
    }
    out.links = links;
    Ok(out)
}

/// All links by name.
pub(crate) fn links(route: &mut Requests) -> Result<BTreeMap<String, Link>, Refused> {
    let mut found = Vec::new();
    route.dump(RTM_GETLINK, |w| w.raw(&[0; 16]), |_, payload| found.extend(parse_link(payload)))?;
    let names: BTreeMap<u32, String> =
        found.iter().map(|(name, _, link)| (link.index, name.clone())).collect();
    let named = |(name, master, mut link): (String, Option<u32>, Link)| {
        link.master = master.and_then(|index| names.get(&index).cloned());
        (name, link)
    };
    Ok(found.into_iter().map(named).collect())
}

fn parse_link(payload: &[u8]) -> Option<(String, Option<u32>, Link)> {
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

fn addresses(
    route: &mut Requests,
    names: &BTreeMap<u32, &str>,
    out: &mut Observed,
) -> Result<(), Refused> {
    route.dump(
        RTM_GETADDR,
        |w| w.raw(&[0; 8]),
        |_, payload| {
            let Some((dev, net, flags, scope)) = parse_addr(payload, names) else { return };
            let global = scope == 0;
            if dev == BRIDGE && global {
                out.addrs.insert(net, flags & IFA_F_NOPREFIXROUTE != 0);
            } else if !is_ours(dev) && scope < 254 {
                out.host.addrs.push((dev.to_owned(), net, global));
            }
        },
    )
}

fn parse_addr<'a>(
    payload: &[u8],
    names: &BTreeMap<u32, &'a str>,
) -> Option<(&'a str, IpNet, u32, u8)> {
    let prefix = *payload.get(1)?;
    let scope = *payload.get(3)?;
    let dev = names.get(&u32_at(payload, 4)?)?;
    let body = payload.get(8..)?;
    let address = attr(body, 2).or_else(|| attr(body, 1)).and_then(ip)?;
    let flags = attr(body, 8).and_then(|v| u32_at(v, 0)).unwrap_or_default();
    Some((dev, IpNet::new(address, prefix).ok()?, flags, scope))
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

fn parse_neigh<'a>(
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

fn parse_nexthop(payload: &[u8], names: &BTreeMap<u32, &str>) -> Option<Nexthop> {
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

fn routes(
    route: &mut Requests,
    family: u8,
    names: &BTreeMap<u32, &str>,
    out: &mut Observed,
) -> Result<(), Refused> {
    let mut header = [0; 12];
    header[0] = family;
    let mut host = std::mem::take(&mut out.host);
    let done = route.dump(
        RTM_GETROUTE,
        |w| w.raw(&header),
        |_, payload| {
            let Some(found) = RouteSeen::parse(payload) else { return };
            if found.table != TABLE_MAIN || found.cloned {
                return;
            }
            if found.protocol == RT_PROTOCOL {
                found.ours(names, out);
            } else {
                found.foreign(names, &mut host);
            }
        },
    );
    out.host = host;
    done
}

struct RouteSeen {
    table: u32,
    protocol: u8,
    kind: u8,
    cloned: bool,
    dst: IpNet,
    metric: u32,
    oif: Option<u32>,
    gateway: bool,
    src: Option<IpAddr>,
    nexthop: Option<u32>,
}

impl RouteSeen {
    fn parse(payload: &[u8]) -> Option<Self> {
        let header = payload.get(..12)?;
        let any: IpAddr = if header[0] == AF_INET6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let mut dst = any;
        let mut out = Self {
            table: header[4].into(),
            protocol: header[5],
            kind: header[7],
            cloned: u32_at(header, 8)? & 0x200 != 0,
            dst: IpNet::from(any),
            metric: 0,
            oif: None,
            gateway: false,
            src: None,
            nexthop: None,
        };
        for (kind, value) in attrs(payload.get(12..)?) {
            match kind {
                1 => dst = ip(value)?,
                4 => out.oif = u32_at(value, 0),
                5 | 18 => out.gateway = true,
                6 => out.metric = u32_at(value, 0)?,
                7 => out.src = ip(value),
                15 => out.table = u32_at(value, 0)?,
                30 => out.nexthop = u32_at(value, 0),
                _ => {}
            }
        }
        out.dst = IpNet::new(dst, header[1]).ok()?;
        Some(out)
    }

    fn ours(&self, names: &BTreeMap<u32, &str>, out: &mut Observed) {
        let dev = self.oif.and_then(|index| names.get(&index).copied());
        let plain = self.kind == RTN_UNICAST && self.nexthop.is_none() && !self.gateway;
        let own_metric = super::desired::metric(&self.dst);
        if plain && dev == Some(BRIDGE) && self.metric == own_metric {
            out.pod_routes.insert(self.dst);
            return;
        }
        let to = match (self.kind, self.nexthop) {
            (RTN_BLACKHOLE, _) => Target::Blackhole,
            (RTN_UNICAST, Some(id)) => Target::Nexthop(id),
            _ => Target::Unknown,
        };
        out.routes.insert((self.dst, self.metric), Route { to, src: self.src });
    }

    fn foreign(&self, names: &BTreeMap<u32, &str>, host: &mut HostFacts) {
        let dev = self.oif.and_then(|index| names.get(&index).copied()).unwrap_or("-");
        let ipv6 = self.dst.addr().is_ipv6();
        if self.dst.prefix_len() == 0 {
            if self.kind == RTN_UNICAST && !is_ours(dev) {
                host.defaults.push((ipv6, self.metric, dev.to_owned(), self.src));
            }
        } else if !is_ours(dev) || self.protocol != 2 {
            // Routes the kernel itself makes for our devices are ours, in a way.
            let text = format!("route {} dev {dev} proto {}", self.dst, self.protocol);
            host.routes.push((self.dst, self.metric, text));
        }
    }
}

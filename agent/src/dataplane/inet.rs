//! Addresses and routes, ours and the host's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use weft_proto::names::{BRIDGE, RT_PROTOCOL, VXLAN};

use super::facts::is_ours;
use super::model::{HostFacts, Observed, Route, Target};
use super::netlink::codec::{Writer, attrs, ip, u32_at};
use super::netlink::rtnl::Rtnl;
use super::netlink::socket::{Refused, Requests};

const RTM_GETROUTE: u16 = 26;
const TABLE_MAIN: u32 = 254;
const SCOPE_HOST: u8 = 254;

type Names<'a> = BTreeMap<u32, &'a str>;

/// Addresses of the bridge, and of the devices that are not ours.
pub(crate) fn addresses(
    rtnl: &mut Rtnl,
    names: &Names<'_>,
    out: &mut Observed,
) -> Result<(), Refused> {
    for message in rtnl.addresses()? {
        let scope = u8::from(message.header.scope);
        let Some((dev, net, plain)) = parse_addr(&message, names) else { continue };
        // The kernel gives the tunnel an IPv6 link-local address: not global.
        if [BRIDGE, VXLAN].contains(&dev) && scope == 0 {
            out.addrs.insert((dev.to_owned(), net), plain);
        } else if !is_ours(dev) && scope < SCOPE_HOST {
            out.host.addrs.push((dev.to_owned(), net, scope == 0));
        }
    }
    Ok(())
}

fn parse_addr<'a>(message: &AddressMessage, names: &Names<'a>) -> Option<(&'a str, IpNet, bool)> {
    let dev = names.get(&message.header.index)?;
    let mut address = None;
    let mut plain = false;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link "address" is the other end.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
            AddressAttribute::Flags(flags) => plain = flags.contains(AddressFlags::Noprefixroute),
            _ => {}
        }
    }
    Some((dev, IpNet::new(address?, message.header.prefix_len).ok()?, plain))
}

/// What the host's addresses and routes say, without anything of ours.
pub(crate) fn host(rtnl: &mut Rtnl, names: &Names<'_>) -> Result<HostFacts, Refused> {
    let mut out = Observed::default();
    addresses(rtnl, names, &mut out)?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let found = rtnl.routes(family)?;
        for route in found.iter().filter_map(RouteSeen::from_message) {
            if route.protocol != RT_PROTOCOL {
                route.foreign(names, &mut out.host);
            }
        }
    }
    Ok(out.host)
}

/// Routes of the main table: ours, and what the host's say about it. Read
/// attribute by attribute: this comes with every look, and of 5,000 routes
/// typed messages take 10 ms where this takes 3.
pub(crate) fn routes(
    raw: &mut Requests,
    names: &Names<'_>,
    out: &mut Observed,
) -> Result<(), Refused> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let header = [family.into(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let body = |w: &mut Writer| w.raw(&header);
        raw.dump(RTM_GETROUTE, body, |_, payload| match RouteSeen::from_bytes(payload) {
            Some(found) if found.protocol == RT_PROTOCOL => found.ours(names, out),
            Some(found) => found.foreign(names, &mut out.host),
            None => {}
        })?;
    }
    Ok(())
}

struct RouteSeen {
    protocol: u8,
    kind: RouteType,
    dst: IpNet,
    metric: u32,
    oif: Option<u32>,
    gateway: bool,
    src: Option<IpAddr>,
    nexthop: Option<u32>,
}

impl RouteSeen {
    fn new(ipv6: bool, protocol: u8, kind: RouteType) -> Self {
        let any: IpAddr =
            if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self {
            protocol,
            kind,
            dst: IpNet::from(any),
            metric: 0,
            oif: None,
            gateway: false,
            src: None,
            nexthop: None,
        }
    }

    /// `None` for other tables and for cached routes.
    fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let ipv6 = header.address_family == AddressFamily::Inet6;
        let mut out = Self::new(ipv6, header.protocol.into(), header.kind);
        let mut dst = out.dst.addr();
        let mut table = u32::from(header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => dst = address(to)?,
                RouteAttribute::Oif(index) => out.oif = Some(*index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => out.gateway = true,
                RouteAttribute::Priority(metric) => out.metric = *metric,
                RouteAttribute::PrefSource(src) => out.src = address(src),
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::NhId(id) => out.nexthop = Some(*id),
                _ => {}
            }
        }
        out.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
        (table == TABLE_MAIN && !header.flags.contains(RouteFlags::Cloned)).then_some(out)
    }

    /// The same from the message's bytes.
    fn from_bytes(payload: &[u8]) -> Option<Self> {
        let header = payload.get(..12)?;
        let ipv6 = header[0] == u8::from(AddressFamily::Inet6);
        let mut out = Self::new(ipv6, header[5], header[7].into());
        let mut dst = out.dst.addr();
        let mut table = u32::from(header[4]);
        let cloned = u32_at(header, 8)? & RouteFlags::Cloned.bits() != 0;
        for (kind, value) in attrs(payload.get(12..)?) {
            match kind {
                1 => dst = ip(value)?,
                4 => out.oif = u32_at(value, 0),
                5 | 18 => out.gateway = true,
                6 => out.metric = u32_at(value, 0)?,
                7 => out.src = ip(value),
                15 => table = u32_at(value, 0)?,
                30 => out.nexthop = u32_at(value, 0),
                _ => {}
            }
        }
        out.dst = IpNet::new(dst, header[1]).ok()?;
        (table == TABLE_MAIN && !cloned).then_some(out)
    }

    fn ours(&self, names: &Names<'_>, out: &mut Observed) {
        let dev = self.oif.and_then(|index| names.get(&index).copied());
        let plain = self.kind == RouteType::Unicast && self.nexthop.is_none() && !self.gateway;
        let own_metric = super::desired::metric(&self.dst);
        if plain && dev == Some(BRIDGE) && self.metric == own_metric {
            out.pod_routes.insert(self.dst);
            return;
        }
        let to = match (self.kind, self.nexthop) {
            (RouteType::BlackHole, _) => Target::Blackhole,
            (RouteType::Unicast, Some(id)) => Target::Nexthop(id),
            _ => Target::Unknown,
        };
        out.routes.insert((self.dst, self.metric), Route { to, src: self.src });
    }

    fn foreign(&self, names: &Names<'_>, host: &mut HostFacts) {
        let dev = self.oif.and_then(|index| names.get(&index).copied()).unwrap_or("-");
        let ipv6 = self.dst.addr().is_ipv6();
        if self.dst.prefix_len() == 0 {
            if self.kind == RouteType::Unicast && !is_ours(dev) {
                host.defaults.push((ipv6, self.metric, dev.to_owned(), self.src));
            }
        } else if !is_ours(dev) || self.protocol != u8::from(RouteProtocol::Kernel) {
            // Routes the kernel itself makes for our devices are ours, in a way.
            let text = format!("route {} dev {dev} proto {}", self.dst, self.protocol);
            host.routes.push((self.dst, self.metric, text));
        }
    }
}

fn address(from: &RouteAddress) -> Option<IpAddr> {
    match from {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

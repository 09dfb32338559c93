//! Addresses and routes, ours and the host's, read through rtnetlink.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use weft_proto::names::{BRIDGE, RT_PROTOCOL};

use super::facts::is_ours;
use super::model::{HostFacts, Observed, Route, Target};
use super::netlink::rtnl::Rtnl;
use super::netlink::socket::Refused;

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
        if dev == BRIDGE && scope == 0 {
            out.addrs.insert(net, plain);
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

/// Routes of the main table: ours, and what the host's say about it.
pub(crate) fn routes(
    rtnl: &mut Rtnl,
    names: &Names<'_>,
    out: &mut Observed,
) -> Result<(), Refused> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in rtnl.routes(family)? {
            let Some(found) = RouteSeen::parse(&message) else { continue };
            if found.protocol == RT_PROTOCOL {
                found.ours(names, out);
            } else {
                found.foreign(names, &mut out.host);
            }
        }
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
    /// `None` for other tables and for cached routes.
    fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut table = u32::from(header.table);
        let mut dst: IpAddr = match header.address_family {
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let mut out = Self {
            protocol: header.protocol.into(),
            kind: header.kind,
            dst: IpNet::from(dst),
            metric: 0,
            oif: None,
            gateway: false,
            src: None,
            nexthop: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => dst = ip(to)?,
                RouteAttribute::Oif(index) => out.oif = Some(*index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => out.gateway = true,
                RouteAttribute::Priority(metric) => out.metric = *metric,
                RouteAttribute::PrefSource(src) => out.src = ip(src),
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::NhId(id) => out.nexthop = Some(*id),
                _ => {}
            }
        }
        out.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
        (table == TABLE_MAIN && !header.flags.contains(RouteFlags::Cloned)).then_some(out)
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

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

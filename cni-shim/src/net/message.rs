//! The messages sent, as typed values.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::os::fd::RawFd;
use weft_proto::names::RT_PROTOCOL;

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Looks a link up by name.
pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(link(vec![LinkAttribute::IfName(name.to_owned())]))
}

/// Looks a link up by index.
pub(crate) fn get_link_at(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::GetLink(message)
}

/// All links (a dump).
pub(crate) fn get_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// All addresses (a dump).
pub(crate) fn get_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// All routes of a family (a dump).
pub(crate) fn get_routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    RouteNetlinkMessage::GetRoute(message)
}

/// The route that packets to `address` take, as it stands in the table.
pub(crate) fn get_route(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = host_prefix(address);
    message.header.flags = RouteFlags::FibMatch;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// All neighbours (a dump).
pub(crate) fn get_neighbours() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())
}

/// One neighbour.
pub(crate) fn get_neighbour(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// The pair: host end a port of the bridge, its peer born where it will live.
pub(crate) fn new_pair(
    host: &str,
    bridge: u32,
    mtu: u32,
    peer: &str,
    peer_mac: [u8; 6],
    namespace: RawFd,
) -> RouteNetlinkMessage {
    // The peer cannot be created up (ENOTCONN: it has no other end yet).
    let peer = link(vec![
        LinkAttribute::IfName(peer.to_owned()),
        LinkAttribute::Address(peer_mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(namespace),
    ]);
    RouteNetlinkMessage::NewLink(link(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]))
}

/// Puts a host end (back) on the bridge.
pub(crate) fn set_master(host: &str, bridge: u32, mtu: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(link(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge),
    ]))
}

/// The host end as a port: known by its alias, isolated, nothing learned or
/// flooded, up.
pub(crate) fn set_port(host: &str, alias: &str, hairpin: bool) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(up(link(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Isolated(true),
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(false),
                InfoBridgePort::MulticastFlood(false),
                InfoBridgePort::BroadcastFlood(false),
                InfoBridgePort::HairpinMode(hairpin),
            ])),
        ]),
    ])))
}

/// Brings a link up.
pub(crate) fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = up(LinkMessage::default());
    message.header.index = index;
    RouteNetlinkMessage::SetLink(message)
}

/// MAC, MTU and state of the container's end, made anew on an existing one.
pub(crate) fn set_pod_link(index: u32, mac: [u8; 6], mtu: u32) -> RouteNetlinkMessage {
    let mut message = up(link(vec![LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(mtu)]));
    message.header.index = index;
    RouteNetlinkMessage::SetLink(message)
}

/// Deletes a link.
pub(crate) fn del_link(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// The forwarding entry of a MAC on a port of the bridge.
pub(crate) fn new_fdb(port: u32, mac: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    // "noarp" is static here; "permanent" would mean the bridge's own.
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

fn neighbour(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// A permanent neighbour, marked as ours.
pub(crate) fn new_neighbour(link: u32, address: IpAddr, mac: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = neighbour(link, address);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(RT_PROTOCOL)));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Deletes a neighbour.
pub(crate) fn del_neighbour(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(neighbour(link, address))
}

/// A container's address on its interface. No duplicate address detection:
/// nobody else can have it, and it would take a second.
pub(crate) fn new_address(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = host_prefix(address);
    message.header.index = link;
    if address.is_ipv4() {
        message.attributes.push(AddressAttribute::Local(address));
    } else {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Address(address));
    RouteNetlinkMessage::NewAddress(message)
}

fn host_route(link: u32, address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = host_prefix(address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(RT_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    // IPv6 has no scopes here.
    if address.is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

/// One address, straight on a link.
pub(crate) fn new_host_route(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(host_route(link, address))
}

/// Deletes the former, only if it is ours.
pub(crate) fn del_host_route(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelRoute(host_route(link, address))
}

/// A route of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodRoute {
    /// Destination.
    pub dst: IpNet,
    /// The gateway of its family.
    pub gateway: IpAddr,
    /// Table, if not the main one.
    pub table: Option<u32>,
}

impl PodRoute {
    /// As a message. "onlink": the gateway answers on this link, whatever the
    /// routes to it say (another interface may have one to the same address).
    pub(crate) fn message(&self, link: u32) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.gateway);
        message.header.destination_prefix_length = self.dst.prefix_len();
        message.header.protocol = RouteProtocol::from(RT_PROTOCOL);
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        if self.dst.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(self.dst.network().into()));
        }
        message.attributes.push(RouteAttribute::Gateway(self.gateway.into()));
        message.attributes.push(RouteAttribute::Oif(link));
        match self.table {
            Some(table) => message.attributes.push(RouteAttribute::Table(table)),
            None => message.header.table = RouteHeader::RT_TABLE_MAIN,
        }
        RouteNetlinkMessage::NewRoute(message)
    }
}

/// "What has this source address looks in that table."
pub(crate) fn new_source_rule(source: IpAddr, table: u32, priority: u32) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(source);
    message.header.src_len = host_prefix(source);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Source(source));
    message.attributes.push(RuleAttribute::Table(table));
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(RT_PROTOCOL)));
    RouteNetlinkMessage::NewRule(message)
}

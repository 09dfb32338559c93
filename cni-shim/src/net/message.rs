//! The messages sent. Encoded here, since the typed packet crate would be an
//! eighth of the binary for twenty kinds of message.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;
use weft_proto::names::RT_PROTOCOL;

pub(crate) const CREATE: u16 = 0x400;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const DUMP: u16 = 0x300;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;

const AF_UNSPEC: u8 = 0;
pub(super) const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_FIB_MATCH: u32 = 0x2000;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_MASTER: u8 = 4;

const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;

/// A message without its netlink header.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Type.
    pub kind: u16,
    /// Fixed part and attributes.
    pub payload: Vec<u8>,
}

impl Message {
    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.payload, kind, value);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn address(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    /// The attributes of `nested` as one.
    fn nested(self, kind: u16, nested: Self) -> Self {
        let Self { payload, .. } = nested;
        self.attribute(kind, &payload)
    }
}

/// Appends an attribute, padded as the next one needs it.
pub(super) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Attributes only, to be nested.
fn nest() -> Message {
    Message { kind: 0, payload: Vec::new() }
}

pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// struct ifinfomsg.
fn link(kind: u16, index: u32, up: bool) -> Message {
    let flags = if up { IFF_UP } else { 0 };
    let mut payload = vec![AF_UNSPEC, 0, 0, 0];
    for word in [index, flags, flags] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    Message { kind, payload }
}

/// Looks a link up by name.
pub(crate) fn get_link(name: &str) -> Message {
    link(RTM_GETLINK, 0, false).text(IFLA_IFNAME, name)
}

/// Looks a link up by index.
pub(crate) fn get_link_at(index: u32) -> Message {
    link(RTM_GETLINK, index, false)
}

/// All links (a dump).
pub(crate) fn get_links() -> Message {
    link(RTM_GETLINK, 0, false)
}

/// All addresses (a dump).
pub(crate) fn get_addresses() -> Message {
    Message { kind: RTM_GETADDR, payload: vec![0; 8] }
}

/// All routes of a family (a dump).
pub(crate) fn get_routes(family: u8) -> Message {
    route(RTM_GETROUTE, family, 0, 0, 0, 0)
}

/// The route that packets to `address` take, as it stands in the table.
pub(crate) fn get_route(address: IpAddr) -> Message {
    let (family, prefix) = (family(address), host_prefix(address));
    route(RTM_GETROUTE, family, prefix, 0, 0, RTM_F_FIB_MATCH).address(RTA_DST, address)
}

/// All neighbours (a dump).
pub(crate) fn get_neighbours() -> Message {
    neighbour(RTM_GETNEIGH, AF_UNSPEC, 0, 0, 0)
}

/// One neighbour.
pub(crate) fn get_neighbour(link: u32, address: IpAddr) -> Message {
    neighbour(RTM_GETNEIGH, family(address), link, 0, 0).address(NDA_DST, address)
}

/// One queue each way, which is what a pair uses anyhow. Unasked the kernel makes one per
/// processor, with its entries in sysfs, and takes all but one away again: two RCU grace
/// periods, and the more work the more processors.
fn one_queue(link: Message) -> Message {
    link.number(IFLA_NUM_TX_QUEUES, 1).number(IFLA_NUM_RX_QUEUES, 1)
}

/// The pair: host end a port of the bridge, its peer born where it will live.
pub(crate) fn new_pair(
    host: &str,
    bridge: u32,
    mtu: u32,
    peer: &str,
    peer_mac: [u8; 6],
    namespace: RawFd,
) -> Message {
    // The peer cannot be created up (ENOTCONN: it has no other end yet).
    let peer = one_queue(link(0, 0, false))
        .text(IFLA_IFNAME, peer)
        .attribute(IFLA_ADDRESS, &peer_mac)
        .number(IFLA_MTU, mtu)
        .attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
    let info = nest()
        .text(IFLA_INFO_KIND, "veth")
        .nested(IFLA_INFO_DATA, nest().nested(VETH_INFO_PEER, peer));
    one_queue(link(RTM_NEWLINK, 0, false))
        .text(IFLA_IFNAME, host)
        .number(IFLA_MTU, mtu)
        .number(IFLA_MASTER, bridge)
        .nested(IFLA_LINKINFO, info)
}

/// Puts a host end (back) on the bridge.
pub(crate) fn set_master(host: &str, bridge: u32, mtu: u32) -> Message {
    link(RTM_SETLINK, 0, false)
        .text(IFLA_IFNAME, host)
        .number(IFLA_MTU, mtu)
        .number(IFLA_MASTER, bridge)
}

/// No IPv6 link-local address for the host end: nobody speaks to it, its neighbour is the
/// bridge. With one, every pod costs the host three routes, a multicast group and an
/// address, and the kernel goes through all pods' whenever a device changes its state.
pub(crate) fn no_link_local(host: &str) -> Message {
    let mode = nest().attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    link(RTM_SETLINK, 0, false)
        .text(IFLA_IFNAME, host)
        .nested(IFLA_AF_SPEC, nest().nested(u16::from(AF_INET6), mode))
}

/// The host end as a port: known by its alias, isolated, nothing learned or
/// flooded. Not up yet: on a device that is up, each of these would be a change of its
/// state, and told to all that listen.
pub(crate) fn set_port(host: &str, alias: &str, hairpin: bool) -> Message {
    let mut port = nest();
    for (flag, value) in [
        (IFLA_BRPORT_ISOLATED, true),
        (IFLA_BRPORT_LEARNING, false),
        (IFLA_BRPORT_UNICAST_FLOOD, false),
        (IFLA_BRPORT_MCAST_FLOOD, false),
        (IFLA_BRPORT_BCAST_FLOOD, false),
        (IFLA_BRPORT_MODE, hairpin),
    ] {
        port = port.attribute(flag, &[u8::from(value)]);
    }
    let info = nest().text(IFLA_INFO_SLAVE_KIND, "bridge").nested(IFLA_INFO_SLAVE_DATA, port);
    link(RTM_NEWLINK, 0, false)
        .text(IFLA_IFNAME, host)
        // Its bytes are kept as they come: no end mark.
        .attribute(IFLA_IFALIAS, alias.as_bytes())
        .nested(IFLA_LINKINFO, info)
}

/// Brings a link up.
pub(crate) fn set_up(index: u32) -> Message {
    link(RTM_SETLINK, index, true)
}

/// MAC, MTU and state of the container's end, made anew on an existing one.
pub(crate) fn set_pod_link(index: u32, mac: [u8; 6], mtu: u32) -> Message {
    link(RTM_SETLINK, index, true).attribute(IFLA_ADDRESS, &mac).number(IFLA_MTU, mtu)
}

/// Deletes a link.
pub(crate) fn del_link(index: u32) -> Message {
    link(RTM_DELLINK, index, false)
}

/// struct ndmsg.
fn neighbour(kind: u16, family: u8, link: u32, state: u16, flags: u8) -> Message {
    let mut payload = vec![family, 0, 0, 0];
    payload.extend_from_slice(&link.to_ne_bytes());
    payload.extend_from_slice(&state.to_ne_bytes());
    payload.extend_from_slice(&[flags, 0]);
    Message { kind, payload }
}

/// The forwarding entry of a MAC on a port of the bridge.
pub(crate) fn new_fdb(port: u32, mac: [u8; 6]) -> Message {
    // "noarp" is static here; "permanent" would mean the bridge's own.
    neighbour(RTM_NEWNEIGH, AF_BRIDGE, port, NUD_NOARP, NTF_MASTER).attribute(NDA_LLADDR, &mac)
}

/// A permanent neighbour, marked as ours.
pub(crate) fn new_neighbour(link: u32, address: IpAddr, mac: [u8; 6]) -> Message {
    neighbour(RTM_NEWNEIGH, family(address), link, NUD_PERMANENT, 0)
        .address(NDA_DST, address)
        .attribute(NDA_LLADDR, &mac)
        .attribute(NDA_PROTOCOL, &[RT_PROTOCOL])
}

/// Deletes a neighbour.
pub(crate) fn del_neighbour(link: u32, address: IpAddr) -> Message {
    neighbour(RTM_DELNEIGH, family(address), link, 0, 0).address(NDA_DST, address)
}

/// A container's address on its interface. No duplicate address detection:
/// nobody else can have it, and it would take a second.
pub(crate) fn new_address(link: u32, address: IpAddr) -> Message {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let flags = if address.is_ipv4() { 0 } else { IFA_F_NODAD };
    let mut payload = vec![family(address), host_prefix(address), flags, 0];
    payload.extend_from_slice(&link.to_ne_bytes());
    let message = Message { kind: RTM_NEWADDR, payload };
    message.address(IFA_LOCAL, address).address(IFA_ADDRESS, address)
}

/// struct rtmsg.
fn route(kind: u16, family: u8, prefix: u8, table: u8, scope: u8, flags: u32) -> Message {
    let ours = if kind == RTM_GETROUTE { [0, scope, 0] } else { [RT_PROTOCOL, scope, RTN_UNICAST] };
    let mut payload = vec![family, prefix, 0, 0, table];
    payload.extend_from_slice(&ours);
    payload.extend_from_slice(&flags.to_ne_bytes());
    Message { kind, payload }
}

fn host_route(kind: u16, link: u32, address: IpAddr) -> Message {
    // IPv6 has no scopes here.
    let scope = if address.is_ipv4() { RT_SCOPE_LINK } else { 0 };
    route(kind, family(address), host_prefix(address), RT_TABLE_MAIN, scope, 0)
        .address(RTA_DST, address)
        .number(RTA_OIF, link)
}

/// One address, straight on a link.
pub(crate) fn new_host_route(link: u32, address: IpAddr) -> Message {
    host_route(RTM_NEWROUTE, link, address)
}

/// Deletes the former, only if it is ours.
pub(crate) fn del_host_route(link: u32, address: IpAddr) -> Message {
    host_route(RTM_DELROUTE, link, address)
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
    pub(crate) fn message(&self, link: u32) -> Message {
        let prefix = self.dst.prefix_len();
        let table = if self.table.is_some() { 0 } else { RT_TABLE_MAIN };
        let mut message =
            route(RTM_NEWROUTE, family(self.gateway), prefix, table, 0, RTNH_F_ONLINK);
        if prefix > 0 {
            message = message.address(RTA_DST, self.dst.network());
        }
        message = message.address(RTA_GATEWAY, self.gateway).number(RTA_OIF, link);
        match self.table {
            Some(table) => message.number(RTA_TABLE, table),
            None => message,
        }
    }
}

/// "What has this source address looks in that table."
pub(crate) fn new_source_rule(source: IpAddr, table: u32, priority: u32) -> Message {
    // struct fib_rule_hdr: family, dst_len, src_len, tos, table, res, res, action, flags.
    let mut payload = vec![family(source), 0, host_prefix(source), 0, 0, 0, 0, FR_ACT_TO_TBL];
    payload.extend_from_slice(&0_u32.to_ne_bytes());
    Message { kind: RTM_NEWRULE, payload }
        .address(FRA_SRC, source)
        .number(FRA_TABLE, table)
        .number(FRA_PRIORITY, priority)
        .attribute(FRA_PROTOCOL, &[RT_PROTOCOL])
}

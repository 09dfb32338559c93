//! Writing to the kernel: every [`Op`], most of them in batches.
//!
//! Routes to remote blocks name a nexthop object. `ip route flush proto 117`
//! stops at the first of them with EINVAL: it sends each route back as it was
//! listed, the object's id together with what the kernel spelled out of the
//! object, and the kernel takes only one of the two. No attribute of ours
//! changes that; `net.ipv4.nexthop_compat_mode=0` does, for the whole host and
//! at the price of an `ip route` that shows bare ids, so it stays as it is.
//! `ip nexthop flush proto 117` removes the objects and their routes at once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::names::{BRIDGE, RT_PROTOCOL, VNI, VXLAN, is_host_ifname, vxlan_gateway};

use super::model::{Mac, Nexthop, Op, PortFlags, Route, RouteKey, Target, Via};
use super::netlink::Kernel;
use super::netlink::codec::{F_ACK, F_CREATE, F_REPLACE, Writer};
use super::netlink::rtnl::Rtnl;
use super::netlink::socket::{Refused, Requests};
use super::sysctl;

const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_SETLINK: u16 = 19;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;
const TABLE_MAIN: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const NTF_MASTER: u8 = 0x04;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const RTNH_F_ONLINK: u32 = 4;
const HOP_LIMIT: u8 = 64;

/// Messages per datagram: their acknowledgements must fit the receive buffer.
const BATCH: usize = 256;

/// A change that failed.
#[derive(Debug, Clone)]
pub(crate) struct OpError {
    pub(crate) op: Op,
    pub(crate) why: Refused,
}

impl std::fmt::Display for OpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.op, self.why)
    }
}

impl OpError {
    /// The pod's device that is not there any more, if that is why.
    pub(crate) fn gone_port(&self) -> Option<&str> {
        let name = self.op.port()?;
        let gone = [nix::libc::ENODEV, nix::libc::ENOENT].contains(&self.why.errno);
        (gone && is_host_ifname(name)).then_some(name)
    }
}

/// Device indexes by name.
pub(crate) type Indexes = BTreeMap<String, u32>;

/// Applies `ops` in order, in batches; goes on after a failure. `done` hears
/// of every change that took effect.
pub(crate) fn apply(
    kernel: &mut Kernel,
    indexes: &mut Indexes,
    ops: &[Op],
    mut done: impl FnMut(&Op),
) -> Vec<OpError> {
    let mut errors = Vec::new();
    let mut rest = ops;
    while let Some(first) = rest.first() {
        if let Some(result) = alone(&kernel.rtnl, indexes, first) {
            rest = &rest[1..];
            match result {
                Err(why) if !is_done_already(first, why.errno) => {
                    errors.push(OpError { op: first.clone(), why });
                }
                _ => done(first),
            }
            continue;
        }
        let count = rest.iter().take(BATCH).take_while(|op| is_batched(op)).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        batch(&mut kernel.raw, indexes, now, &mut done, &mut errors);
    }
    errors
}

/// The few that rtnetlink has types for, or that are no netlink messages.
fn alone(rtnl: &Rtnl, indexes: &mut Indexes, op: &Op) -> Option<Result<(), Refused>> {
    let index = |name: &str| indexes.get(name).copied().unwrap_or(0);
    Some(match op {
        Op::AddLink(name, spec) => {
            let made = rtnl.add_link(name, spec);
            if let Ok(index) = nix::net::if_::if_nametoindex(name.as_str()) {
                indexes.insert(name.clone(), index);
            }
            made
        }
        Op::SetLink(name, spec) => rtnl.set_link(index(name), spec),
        Op::DelLink(name) => rtnl.del_link(index(name)),
        Op::AddAddr(dev, net) => rtnl.add_addr(index(dev), *net),
        Op::DelAddr(dev, net) => rtnl.del_addr(index(dev), *net),
        Op::SetSysctl(path, value) => sysctl::write(path, value),
        _ => return None,
    })
}

fn is_batched(op: &Op) -> bool {
    !matches!(
        op,
        Op::AddLink(..)
            | Op::SetLink(..)
            | Op::DelLink(_)
            | Op::AddAddr(..)
            | Op::DelAddr(..)
            | Op::SetSysctl(..)
    )
}

fn batch(
    route: &mut Requests,
    indexes: &Indexes,
    ops: &[Op],
    done: &mut impl FnMut(&Op),
    errors: &mut Vec<OpError>,
) {
    let mut writer = Writer::default();
    let seqs: Vec<u32> = ops
        .iter()
        .map(|op| {
            let seq = route.next_seq();
            write_op(&mut writer, seq, op, indexes);
            seq
        })
        .collect();
    let refused = match route.send(&writer) {
        Ok(refused) => refused,
        Err(e) => {
            let why = Refused::from(e);
            errors.extend(ops.iter().map(|op| OpError { op: op.clone(), why: why.clone() }));
            return;
        }
    };
    for (op, seq) in ops.iter().zip(seqs) {
        match refused.iter().find(|r| r.seq == seq) {
            Some(why) if !is_done_already(op, why.errno) => {
                errors.push(OpError { op: op.clone(), why: why.clone() });
            }
            _ => done(op),
        }
    }
}

/// Removing what is gone, or making what is there, is no failure.
fn is_done_already(op: &Op, errno: i32) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH};
    match op {
        Op::DelLink(_)
        | Op::DelAddr(..)
        | Op::DelNeigh(..)
        | Op::DelFdb(..)
        | Op::DelNexthop(_)
        | Op::DelRoute(_)
        | Op::DelPodRoute(_) => matches!(errno, ENODEV | EADDRNOTAVAIL | ENOENT | ESRCH),
        Op::AddAddr(..) => errno == EEXIST,
        _ => false,
    }
}

fn write_op(w: &mut Writer, seq: u32, op: &Op, indexes: &Indexes) {
    let index = |name: &str| indexes.get(name).copied().unwrap_or(0);
    let set = F_CREATE | F_REPLACE | F_ACK;
    match op {
        Op::SetPort(name, flags) => {
            // The kernel ignores port attributes of a device that is not a port yet.
            w.message(RTM_SETLINK, F_ACK, seq, |w| {
                link_header(w, index(name), 1, 1);
                w.attr_u32(10, index(BRIDGE));
            });
            w.message(RTM_NEWLINK, F_ACK, seq, |w| {
                link_header(w, index(name), 0, 0);
                w.nest(18, |w| {
                    w.attr_str(4, "bridge");
                    w.nest(5, |w| port(w, *flags));
                });
            });
        }
        Op::DelNeigh(dev, ip) => w.message(RTM_DELNEIGH, F_ACK, seq, |w| {
            neigh_header(w, family(*ip), index(dev), NUD_PERMANENT, 0);
            w.attr_ip(1, *ip);
        }),
        Op::SetNeigh(dev, ip, mac) => w.message(RTM_NEWNEIGH, set, seq, |w| {
            neigh_header(w, family(*ip), index(dev), NUD_PERMANENT, 0);
            w.attr_ip(1, *ip);
            w.attr(2, mac);
            w.attr_u8(12, RT_PROTOCOL);
        }),
        Op::DelFdb(dev, mac) => w.message(RTM_DELNEIGH, F_ACK, seq, |w| {
            fdb(w, index(dev), mac);
        }),
        Op::SetFdb(dev, mac) => w.message(RTM_NEWNEIGH, set, seq, |w| fdb(w, index(dev), mac)),
        Op::DelNexthop(id) => w.message(RTM_DELNEXTHOP, F_ACK, seq, |w| {
            w.raw(&[0; 8]);
            w.attr_u32(1, *id);
        }),
        Op::SetNexthop(id, nexthop) => w.message(RTM_NEWNEXTHOP, set, seq, |w| {
            let dev = match &nexthop.via {
                Via::Tunnel { .. } => VXLAN,
                Via::Direct { dev, .. } => dev.as_str(),
            };
            write_nexthop(w, *id, index(dev), nexthop);
        }),
        Op::DelRoute(key) => w.message(RTM_DELROUTE, F_ACK, seq, |w| {
            route_header(w, key.0, 0, SCOPE_NOWHERE);
            w.attr_u32(6, key.1);
        }),
        Op::SetRoute(key, route) => w.message(RTM_NEWROUTE, set, seq, |w| {
            write_route(w, *key, route);
        }),
        Op::DelPodRoute(net) => w.message(RTM_DELROUTE, F_ACK, seq, |w| {
            route_header(w, *net, 0, SCOPE_NOWHERE);
            w.attr_u32(4, index(BRIDGE));
        }),
        Op::SetPodRoute(net) => w.message(RTM_NEWROUTE, set, seq, |w| {
            route_header(w, *net, 1, SCOPE_LINK);
            w.attr_u32(4, index(BRIDGE));
        }),
        // Never part of a batch.
        _ => {}
    }
}

const SCOPE_NOWHERE: u8 = 255;

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv6() { AF_INET6 } else { AF_INET }
}

/// `struct ifinfomsg`.
pub(crate) fn link_header(w: &mut Writer, index: u32, flags: u32, change: u32) {
    w.raw(&[0; 4]);
    w.raw(&index.to_ne_bytes());
    w.raw(&flags.to_ne_bytes());
    w.raw(&change.to_ne_bytes());
}

fn port(w: &mut Writer, flags: PortFlags) {
    w.attr_u8(4, u8::from(flags.hairpin));
    w.attr_u8(8, u8::from(flags.learning));
    w.attr_u8(9, u8::from(flags.flood));
    w.attr_u8(27, u8::from(flags.mcast_flood));
    w.attr_u8(30, u8::from(flags.bcast_flood));
    w.attr_u8(33, u8::from(flags.isolated));
}

/// `struct ndmsg`.
fn neigh_header(w: &mut Writer, family: u8, index: u32, state: u16, flags: u8) {
    w.raw(&[family, 0, 0, 0]);
    w.raw(&index.to_ne_bytes());
    w.raw(&state.to_ne_bytes());
    w.raw(&[flags, 0]);
}

fn fdb(w: &mut Writer, index: u32, mac: &Mac) {
    neigh_header(w, AF_BRIDGE, index, NUD_NOARP, NTF_MASTER);
    w.attr(2, mac);
}

fn write_nexthop(w: &mut Writer, id: u32, index: u32, nexthop: &Nexthop) {
    let family = if nexthop.ipv6 { AF_INET6 } else { AF_INET };
    w.raw(&[family, SCOPE_UNIVERSE, RT_PROTOCOL, 0]);
    w.raw(&RTNH_F_ONLINK.to_ne_bytes());
    w.attr_u32(1, id);
    w.attr_u32(5, index);
    match &nexthop.via {
        Via::Direct { gateway, .. } => w.attr_ip(6, *gateway),
        Via::Tunnel { dst } => {
            w.attr_ip(6, vxlan_gateway(*dst, nexthop.ipv6));
            w.attr_u16(7, if dst.is_ipv6() { 4 } else { 2 });
            w.nest(8, |w| {
                w.attr(1, &u64::from(VNI).to_be_bytes());
                w.attr_ip(2, *dst);
                w.attr_u8(4, HOP_LIMIT);
            });
        }
    }
}

/// `struct rtmsg`; for a removal, kind 0 and scope "nowhere" match any.
fn route_header(w: &mut Writer, dst: IpNet, kind: u8, scope: u8) {
    let family = family(dst.addr());
    w.raw(&[family, dst.prefix_len(), 0, 0, TABLE_MAIN, RT_PROTOCOL, scope, kind]);
    w.raw(&[0; 4]);
    w.attr_ip(1, dst.network());
    if family == AF_INET6 && kind == 1 && scope == SCOPE_LINK {
        w.attr_u32(6, 1024);
    }
}

fn write_route(w: &mut Writer, (dst, metric): RouteKey, route: &Route) {
    match route.to {
        Target::Blackhole => route_header(w, dst, 6, SCOPE_UNIVERSE),
        _ => route_header(w, dst, 1, SCOPE_UNIVERSE),
    }
    w.attr_u32(6, metric);
    if let Some(src) = route.src {
        w.attr_ip(7, src);
    }
    if let Target::Nexthop(id) = route.to {
        w.attr_u32(30, id);
    }
}

//! What the kernel holds for us, as values, and what each change does to it.
//!
//! [`Observed::apply`] is the one description of an operation's effect: the
//! driver uses it to keep its picture current between looks, the property
//! tests use it as the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::attachment::Alias;
use weft_proto::names::{BRIDGE, VXLAN};

/// A MAC address.
pub type Mac = [u8; 6];

/// What a link is, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan {
        /// UDP port.
        port: u16,
        /// Collect-metadata mode.
        external: bool,
    },
    /// Anything else, by the kernel's word for it (empty for hardware).
    Other(String),
}

/// How a port of the bridge behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlags {
    /// Cannot reach other isolated ports: same-node traffic is routed.
    pub isolated: bool,
    /// Learns source addresses.
    pub learning: bool,
    /// Gets unknown unicast.
    pub flood: bool,
    /// Gets unknown multicast.
    pub mcast_flood: bool,
    /// Gets broadcast.
    pub bcast_flood: bool,
    /// Gets its own frames back.
    pub hairpin: bool,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index, 0 if not known yet.
    pub index: u32,
    /// Kind.
    pub kind: Kind,
    /// Address.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Parsed alias, if it is one of ours.
    pub alias: Option<Alias>,
    /// Name of the bridge it is a port of.
    pub master: Option<String>,
    /// Port behaviour, if it is a bridge port.
    pub port: Option<PortFlags>,
}

/// Where a nexthop object leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// Encapsulated, to this VTEP.
    Tunnel {
        /// Outer destination.
        dst: IpAddr,
    },
    /// Plain, to an on-link node.
    Direct {
        /// Device of the underlay.
        dev: String,
        /// The node.
        gateway: IpAddr,
    },
}

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nexthop {
    /// Its gateway is an IPv6 address.
    pub ipv6: bool,
    /// Where to.
    pub via: Via,
}

/// What makes a route distinct: destination and metric.
pub type RouteKey = (IpNet, u32);

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A nexthop object.
    Nexthop(u32),
    /// Nowhere.
    Blackhole,
    /// Something we never write; found only if somebody edited our route.
    Unknown,
}

/// A route, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Target,
    /// Preferred source address.
    pub src: Option<IpAddr>,
}

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Removes a link of ours.
    DelLink(String),
    /// Makes a link, and brings it up.
    AddLink(String, LinkSpec),
    /// Sets address and MTU, and brings it up.
    SetLink(String, LinkSpec),
    /// Enslaves a pod's host end to the bridge, sets its flags, brings it up.
    SetPort(String, PortFlags),
    /// Removes an address from a device.
    DelAddr(String, IpNet),
    /// Adds an address to a device, without a prefix route.
    AddAddr(String, IpNet),
    /// Removes a neighbour.
    DelNeigh(String, IpAddr),
    /// Sets a permanent neighbour.
    SetNeigh(String, IpAddr, Mac),
    /// Removes a static FDB entry from a port.
    DelFdb(String, Mac),
    /// Sets a static FDB entry on a port.
    SetFdb(String, Mac),
    /// Removes a nexthop object.
    DelNexthop(u32),
    /// Makes or replaces a nexthop object.
    SetNexthop(u32, Nexthop),
    /// Removes a route.
    DelRoute(RouteKey),
    /// Makes or replaces a route.
    SetRoute(RouteKey, Route),
    /// Removes the route to a pod of this node.
    DelPodRoute(IpNet),
    /// Makes the route to a pod of this node.
    SetPodRoute(IpNet),
    /// Writes a sysctl (path below `/proc/sys/`).
    SetSysctl(String, String),
}

/// A link we want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Kind: immutable.
    pub kind: Kind,
    /// Address.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
}

/// Facts about the host that are not ours, but decide what ours should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Devices of the default routes: (IPv6, metric, device, preferred source).
    pub defaults: Vec<(bool, u32, String, Option<IpAddr>)>,
    /// Addresses of devices that are not ours: (device, address, global scope).
    pub addrs: Vec<(String, IpNet, bool)>,
    /// Routes that are not ours: destination and a description.
    pub routes: Vec<(IpNet, u32, String)>,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links, by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses of our two devices, and whether they come without a prefix route.
    pub addrs: BTreeMap<(String, IpNet), bool>,
    /// Permanent neighbours on our devices.
    pub neighs: BTreeMap<(String, IpAddr), Mac>,
    /// Static FDB entries on ports of the bridge.
    pub fdb: BTreeSet<(String, Mac)>,
    /// Our nexthop objects.
    pub nexthops: BTreeMap<u32, Nexthop>,
    /// Our routes, without those to pods of this node.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Our routes straight onto the bridge.
    pub pod_routes: BTreeSet<IpNet>,
    /// Nexthop ids somebody else uses.
    pub foreign_nexthops: BTreeSet<u32>,
    /// The sysctls of interest that exist.
    pub sysctls: BTreeMap<String, String>,
    /// The rest.
    pub host: HostFacts,
}

impl Observed {
    /// The effect of one successful change.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::DelLink(name) => self.drop_link(name),
            Op::AddLink(name, spec) => {
                let index = self.links.get(name).map_or(0, |l| l.index);
                self.links.insert(name.clone(), Link::new(index, spec));
            }
            Op::SetLink(name, spec) => {
                if let Some(link) = self.links.get_mut(name) {
                    (link.mac, link.mtu, link.up) = (spec.mac, spec.mtu, true);
                }
            }
            Op::SetPort(name, flags) => {
                if let Some(link) = self.links.get_mut(name) {
                    link.master = Some(BRIDGE.to_owned());
                    (link.port, link.up) = (Some(*flags), true);
                }
            }
            Op::DelAddr(dev, net) => self.drop_addr(dev, *net),
            Op::AddAddr(dev, net) => {
                self.addrs.insert((dev.clone(), *net), true);
            }
            Op::DelNeigh(dev, ip) => {
                self.neighs.remove(&(dev.clone(), *ip));
            }
            Op::SetNeigh(dev, ip, mac) => {
                self.neighs.insert((dev.clone(), *ip), *mac);
            }
            Op::DelFdb(dev, mac) => {
                self.fdb.remove(&(dev.clone(), *mac));
            }
            Op::SetFdb(dev, mac) => {
                self.fdb.insert((dev.clone(), *mac));
            }
            Op::DelNexthop(id) => {
                self.nexthops.remove(id);
                self.routes.retain(|_, route| route.to != Target::Nexthop(*id));
            }
            Op::SetNexthop(id, nexthop) => {
                self.nexthops.insert(*id, nexthop.clone());
            }
            Op::DelRoute(key) => {
                self.routes.remove(key);
            }
            Op::SetRoute(key, route) => {
                self.routes.insert(*key, route.clone());
            }
            Op::DelPodRoute(net) => {
                self.pod_routes.remove(net);
            }
            Op::SetPodRoute(net) => {
                self.pod_routes.insert(*net);
            }
            Op::SetSysctl(path, value) => {
                self.sysctls.insert(path.clone(), value.clone());
            }
        }
    }

    /// The kernel takes everything on a link with it.
    fn drop_link(&mut self, name: &str) {
        self.links.remove(name);
        self.neighs.retain(|(dev, _), _| dev != name);
        self.fdb.retain(|(dev, _)| dev != name);
        if name == VXLAN {
            let gone: Vec<u32> = self
                .nexthops
                .iter()
                .filter(|(_, n)| matches!(n.via, Via::Tunnel { .. }))
                .map(|(id, _)| *id)
                .collect();
            for id in gone {
                self.apply(&Op::DelNexthop(id));
            }
        }
        for (dev, net) in self.addrs.keys().cloned().collect::<Vec<_>>() {
            if dev == name {
                self.drop_addr(&dev, net);
            }
        }
        if name == BRIDGE {
            self.pod_routes.clear();
            self.fdb.clear();
            for link in self.links.values_mut() {
                if link.master.as_deref() == Some(BRIDGE) {
                    (link.master, link.port) = (None, None);
                }
            }
        }
    }

    /// Routes that prefer an address go with it.
    fn drop_addr(&mut self, dev: &str, net: IpNet) {
        self.addrs.remove(&(dev.to_owned(), net));
        self.routes.retain(|_, route| route.src != Some(net.addr()));
    }
}

impl Link {
    fn new(index: u32, spec: &LinkSpec) -> Self {
        Self {
            index,
            kind: spec.kind.clone(),
            mac: spec.mac,
            mtu: spec.mtu,
            up: true,
            alias: None,
            master: None,
            port: None,
        }
    }
}

impl Op {
    /// The port of the bridge it is about, if it is about one.
    pub(crate) fn port(&self) -> Option<&str> {
        match self {
            Self::SetPort(name, _) | Self::SetFdb(name, _) | Self::DelFdb(name, _) => Some(name),
            _ => None,
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DelLink(name) => write!(f, "delete link {name}"),
            Self::AddLink(name, _) => write!(f, "create link {name}"),
            Self::SetLink(name, spec) => write!(f, "set link {name} up, mtu {}", spec.mtu),
            Self::SetPort(name, _) => write!(f, "set port {name} of {BRIDGE}"),
            Self::DelAddr(dev, net) => write!(f, "delete address {net} from {dev}"),
            Self::AddAddr(dev, net) => write!(f, "add address {net} to {dev}"),
            Self::DelNeigh(dev, ip) => write!(f, "delete neighbour {ip} on {dev}"),
            Self::SetNeigh(dev, ip, _) => write!(f, "set neighbour {ip} on {dev}"),
            Self::DelFdb(dev, _) => write!(f, "delete FDB entry on {dev}"),
            Self::SetFdb(dev, _) => write!(f, "set FDB entry on {dev}"),
            Self::DelNexthop(id) => write!(f, "delete nexthop {id}"),
            Self::SetNexthop(id, nexthop) => match &nexthop.via {
                Via::Tunnel { dst } => write!(f, "set nexthop {id} to VTEP {dst}"),
                Via::Direct { dev, gateway } => {
                    write!(f, "set nexthop {id} via {gateway} dev {dev}")
                }
            },
            Self::DelRoute((net, _)) => write!(f, "delete route {net}"),
            Self::SetRoute((net, _), Route { to: Target::Blackhole, .. }) => {
                write!(f, "set blackhole route {net}")
            }
            Self::SetRoute((net, _), _) => write!(f, "set route {net}"),
            Self::DelPodRoute(net) => write!(f, "delete pod route {net}"),
            Self::SetPodRoute(net) => write!(f, "set pod route {net}"),
            Self::SetSysctl(path, value) => write!(f, "write {value} to /proc/sys/{path}"),
        }
    }
}

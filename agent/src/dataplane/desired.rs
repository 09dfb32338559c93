//! From the agent's intent to kernel objects: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::api::{Condition, Health};
use weft_proto::id::NodeId;
use weft_proto::names::{BRIDGE, VXLAN, bridge_mac, vxlan_mac};

use super::intent::{Intent, PodIntent};
use super::model::{Kind, LinkSpec, Mac, Nexthop, PortFlags, Route, RouteKey, Target};
use super::peers;

/// Metric of the blackhole: after every other route.
pub const BLACKHOLE_METRIC: u32 = 65_535;

/// What a node knows besides the intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Node name: the bridge's MAC comes from it.
    pub name: String,
    /// Identity: the VXLAN device's MAC comes from it.
    pub id: NodeId,
    /// Underlay device, if one was found.
    pub device: Option<String>,
    /// Own underlay addresses with their on-link prefixes, preferred first.
    pub underlay: Vec<IpNet>,
    /// Overlay MTU.
    pub mtu: u32,
    /// VXLAN port.
    pub vxlan_port: u16,
    /// Plain routes to on-link peers.
    pub direct_routing: bool,
    /// Hairpin on pod ports.
    pub hairpin: bool,
    /// `net.ipv4.conf.all.rp_filter`: what counts is the larger of it and the device's.
    pub rp_filter_all: u8,
    /// The underlay device takes router advertisements (accept_ra is 1).
    pub accepts_ra: bool,
}

/// A pod's wiring on the host side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodWiring {
    /// MAC of the pod's interface.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What should be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Bridge and VXLAN device; empty until there is a range to serve.
    pub links: BTreeMap<String, LinkSpec>,
    /// Addresses of the bridge.
    pub addrs: BTreeSet<(String, IpNet)>,
    /// Ranges of the pod network.
    pub ranges: Vec<IpNet>,
    /// Peers' gateways on the VXLAN device.
    pub neighs: BTreeMap<IpAddr, Mac>,
    /// One per peer and family.
    pub nexthops: BTreeMap<u32, Nexthop>,
    /// One per remote block, and the blackholes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Path below `/proc/sys/` and value.
    pub sysctls: BTreeMap<String, String>,
    /// What is wrong with the intent itself.
    pub conditions: Vec<Condition>,
    /// Two peers want the same neighbour, nexthop object or route: who gets it depends on
    /// their order.
    pub contended: bool,
}

/// The pods' share of what should be there: changes often, apart from the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredPods {
    /// By host interface name.
    pub pods: BTreeMap<String, PodWiring>,
    /// Behaviour of every pod port.
    pub port: Option<PortFlags>,
}

/// Everything but the pods.
pub fn desired(intent: &Intent, facts: &NodeFacts) -> Desired {
    if intent.ranges.is_empty() {
        return Desired::default();
    }
    let vxlan = Kind::Vxlan { port: facts.vxlan_port, external: true };
    let mut out = Desired {
        links: BTreeMap::from([
            (BRIDGE.to_owned(), spec(Kind::Bridge, bridge_mac(&facts.name), facts.mtu)),
            (VXLAN.to_owned(), spec(vxlan, vxlan_mac(&facts.id.0), facts.mtu)),
        ]),
        addrs: own_addresses(intent),
        ranges: intent.ranges.clone(),
        sysctls: sysctls(intent, facts),
        ..Desired::default()
    };
    for range in &intent.ranges {
        let blackhole = Route { to: Target::Blackhole, src: None };
        out.routes.insert((range.trunc(), BLACKHOLE_METRIC), blackhole);
    }
    peers::add(intent.peers.iter(), facts, &mut out);
    out
}

/// The pods.
pub fn desired_pods(intent: &Intent, hairpin: bool) -> DesiredPods {
    let pods = intent.pods.values().map(desired_pod).collect();
    DesiredPods { pods, port: Some(port_flags(hairpin)) }
}

/// One pod: its host interface, and what belongs to it.
pub fn desired_pod(pod: &PodIntent) -> (String, PodWiring) {
    (pod.host_ifname.clone(), PodWiring { mac: pod.mac, addresses: pod.addresses.clone() })
}

/// The host route of one address.
pub fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Metric of our ordinary routes: what the kernel itself takes for "none".
pub fn metric(net: &IpNet) -> u32 {
    if net.addr().is_ipv6() { 1024 } else { 0 }
}

fn spec(kind: Kind, mac: Mac, mtu: u32) -> LinkSpec {
    LinkSpec { kind, mac, mtu }
}

fn port_flags(hairpin: bool) -> PortFlags {
    PortFlags {
        isolated: true,
        learning: false,
        flood: false,
        mcast_flood: false,
        bcast_flood: false,
        hairpin,
    }
}

fn has_v6(intent: &Intent) -> bool {
    intent.ranges.iter().any(|range| range.addr().is_ipv6())
}

/// Own addresses carry the length of the range they are from, so that looking
/// at the bridge tells the range.
///
/// The tunnel has the IPv4 one too: masquerading (kube-proxy's, of node ports)
/// takes an address of the device a packet leaves by. Without one it would take
/// the underlay's, and the answer would come outside the tunnel. IPv6 chooses
/// by the destination, and finds the one on the bridge.
fn own_addresses(intent: &Intent) -> BTreeSet<(String, IpNet)> {
    let mut out = BTreeSet::new();
    for own in &intent.own {
        let Some(range) = intent.ranges.iter().find(|range| range.contains(own)) else { continue };
        out.extend(IpNet::new(*own, range.prefix_len()).ok().map(|net| (BRIDGE.to_owned(), net)));
        if own.is_ipv4() {
            out.insert((VXLAN.to_owned(), host_net(*own)));
        }
    }
    out
}

fn sysctls(intent: &Intent, facts: &NodeFacts) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut set = |path: String, value: &str| {
        out.insert(path, value.to_owned());
    };
    set("net/ipv4/ip_forward".to_owned(), "1");
    // The larger of "all" and the device's own counts: strict for all can only
    // be softened by loose here.
    let rp_filter = if facts.rp_filter_all == 1 { "2" } else { "0" };
    for dev in [BRIDGE, VXLAN] {
        set(format!("net/ipv4/conf/{dev}/rp_filter"), rp_filter);
        set(format!("net/ipv6/conf/{dev}/accept_ra"), "0");
    }
    // br_netfilter rewrites destinations while a frame is still on the bridge and
    // then bridges it, which isolated ports refuse. All pod traffic is routed
    // here, so the ordinary hooks see it without that.
    set("net/bridge/bridge-nf-call-iptables".to_owned(), "0");
    set("net/bridge/bridge-nf-call-ip6tables".to_owned(), "0");
    // Same-node traffic is routed back out of the bridge: that is meant so. "all"
    // counts as well as the device's own, and asking costs every packet a second
    // route lookup; other devices keep their own.
    set("net/ipv4/conf/all/send_redirects".to_owned(), "0");
    set(format!("net/ipv4/conf/{BRIDGE}/send_redirects"), "0");
    if has_ports(intent) {
        // For host ports on 127.0.0.1; the rule set keeps pods out of it.
        set(format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1");
    }
    if has_v6(intent) {
        set("net/ipv6/conf/all/forwarding".to_owned(), "1");
        for dev in [BRIDGE, VXLAN] {
            set(format!("net/ipv6/conf/{dev}/disable_ipv6"), "0");
        }
        if let Some(dev) = facts.device.as_ref().filter(|_| facts.accepts_ra) {
            // A forwarding host ignores router advertisements at 1.
            set(format!("net/ipv6/conf/{dev}/accept_ra"), "2");
        }
    }
    out
}

/// Some pod has a host port.
pub(crate) fn has_ports(intent: &Intent) -> bool {
    intent.pods.values().any(|pod| !pod.port_mappings.is_empty())
}

/// A degraded condition.
pub(crate) fn condition(reason: &str, message: String, hint: &str) -> Condition {
    Condition {
        health: Health::Degraded,
        reason: reason.to_owned(),
        message,
        hint: hint.to_owned(),
    }
}

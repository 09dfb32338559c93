//! What the host tells: underlay address and MTU, overlaps. Pure functions of
//! an observation.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::names::{BRIDGE, OVERHEAD4, OVERHEAD6, VXLAN, is_host_ifname};

use super::DataplaneConfig;
use super::desired::NodeFacts;
use super::model::{HostFacts, Observed};

/// Underlay MTU assumed when no underlay device is found.
const ETHERNET_MTU: u32 = 1500;

/// Where an MTU comes from, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mtu {
    /// Of the overlay.
    pub value: u32,
    /// In words.
    pub source: String,
}

/// Own underlay addresses, preferred first: the configured one, else those of
/// the devices of the default routes, IPv4 first; else any global address.
pub fn underlay(host: &HostFacts, configured: Option<IpAddr>) -> Vec<(String, IpNet)> {
    let global = || host.addrs.iter().filter(|(_, _, global)| *global);
    if let Some(address) = configured {
        let found = host.addrs.iter().find(|(_, net, _)| net.addr() == address);
        return found.map(|(dev, net, _)| (dev.clone(), *net)).into_iter().collect();
    }
    let mut out: Vec<(String, IpNet)> = Vec::new();
    let mut defaults: Vec<_> = host.defaults.iter().collect();
    defaults.sort_by_key(|(ipv6, metric, ..)| (*ipv6, *metric));
    for ipv6 in [false, true] {
        let Some((_, _, dev, src)) = defaults.iter().find(|(six, ..)| *six == ipv6) else {
            continue;
        };
        let on_dev =
            || global().filter(|(name, net, _)| name == dev && net.addr().is_ipv6() == ipv6);
        let preferred = on_dev().find(|(_, net, _)| Some(net.addr()) == *src);
        if let Some((name, net, _)) = preferred.or_else(|| on_dev().next()) {
            out.push((name.clone(), *net));
        }
    }
    if out.is_empty() {
        let first = global().find(|(_, net, _)| net.addr().is_ipv4()).or_else(|| global().next());
        out.extend(first.map(|(dev, net, _)| (dev.clone(), *net)));
    }
    out
}

/// The overlay MTU for an underlay device and the families of the tunnels.
pub fn mtu(observed: &Observed, device: Option<&str>, ipv6: bool, fixed: Option<u32>) -> Mtu {
    if let Some(value) = fixed {
        return Mtu { value, source: "MTU".to_owned() };
    }
    let overhead = if ipv6 { OVERHEAD6 } else { OVERHEAD4 };
    match device.and_then(|dev| observed.links.get(dev).map(|link| (dev, link.mtu))) {
        Some((dev, mtu)) => Mtu {
            value: mtu.saturating_sub(overhead),
            source: format!("{dev} ({mtu}) - {overhead}"),
        },
        None => Mtu {
            value: ETHERNET_MTU - overhead,
            source: format!("no underlay device found, assumed {ETHERNET_MTU} - {overhead}"),
        },
    }
}

/// All facts of the node, and where the MTU comes from.
pub fn node_facts(
    config: &DataplaneConfig,
    observed: &Observed,
    peers_ipv6: bool,
) -> (NodeFacts, Mtu) {
    let own = underlay(&observed.host, config.underlay);
    let device = own.first().map(|(dev, _)| dev.clone());
    let ipv6 = peers_ipv6 || own.first().is_some_and(|(_, net)| net.addr().is_ipv6());
    let mtu = mtu(observed, device.as_deref(), ipv6, config.mtu);
    let sysctl = |path: &str| observed.sysctls.get(path).map(String::as_str);
    let accept_ra = device.as_ref().map(|dev| format!("net/ipv6/conf/{dev}/accept_ra"));
    let facts = NodeFacts {
        name: config.node_name.clone(),
        id: config.node_id,
        underlay: own.iter().map(|(_, net)| *net).collect(),
        mtu: mtu.value,
        vxlan_port: config.vxlan_port,
        direct_routing: config.direct_routing,
        hairpin: config.hairpin,
        rp_filter_all: sysctl("net/ipv4/conf/all/rp_filter")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0),
        accepts_ra: accept_ra.is_some_and(|path| sysctl(&path) == Some("1")),
        device,
    };
    (facts, mtu)
}

/// Host routes and addresses that overlap one of `ranges`, with a description.
pub fn overlaps(host: &HostFacts, ranges: &[IpNet]) -> Vec<(IpNet, String)> {
    let clash = |net: &IpNet| ranges.iter().any(|range| range.contains(net) || net.contains(range));
    let routes = host.routes.iter().map(|(net, _, text)| (*net, text.clone()));
    let addrs = host
        .addrs
        .iter()
        .map(|(dev, net, _)| (IpNet::from(net.addr()), format!("address {net} of {dev}")));
    routes.chain(addrs).filter(|(net, _)| net.prefix_len() > 0 && clash(net)).collect()
}

/// True for a device that we or the shim made.
pub(crate) fn is_ours(name: &str) -> bool {
    name == BRIDGE || name == VXLAN || is_host_ifname(name)
}

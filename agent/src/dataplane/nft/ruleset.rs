//! The rule set as a value, from configuration and intent: a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::api::{Condition, PortMapping};
use weft_proto::names::{BRIDGE, VETH_PREFIX, VXLAN, fnv64};

use super::expr::{
    ACCEPT, DROP, ETHERTYPE_IP, ETHERTYPE_IPV6, GOTO, JUMP, REG, RETURN, Rule, ifname, octets,
};
use crate::dataplane::desired::condition;
use crate::dataplane::intent::{Intent, PodIntent};

/// Family of a table, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames on a bridge.
    Bridge = 7,
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: String,
    /// Number of the hook.
    pub hook: u32,
    /// Priority.
    pub priority: i32,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Set for base chains. Their policy is always accept.
    pub hook: Option<Hook>,
    /// Marks of the rules, in order (see [`RuleSpec::mark`]).
    pub rules: Vec<String>,
}

/// A rule: its expressions, and the mark by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Chain.
    pub chain: &'static str,
    /// Encoded expressions.
    pub expressions: Vec<u8>,
}

/// Type of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetType {
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value, 0 for a set.
    pub data: u32,
}

/// What the kernel holds of one table, or should hold. Rules are compared by
/// mark, everything else by value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, SetType>,
}

/// All tables.
pub type Tables = BTreeMap<Family, Table>;

/// Where an element belongs: table family, set, key.
pub type ElementKey = (Family, &'static str, Vec<u8>);

/// Elements of all sets; the value is empty for sets that are no maps.
pub type Elements = BTreeMap<ElementKey, Vec<u8>>;

/// The part that does not change with pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains and sets.
    pub tables: Tables,
    /// Rules, in order.
    pub rules: Vec<(Family, RuleSpec)>,
}

/// A set that we use: (family, name, key type as userspace numbers it, key
/// lengths, value type, value length).
pub(crate) struct SetSpec {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    pub(crate) key_type: u32,
    pub(crate) fields: &'static [u32],
    pub(crate) data_type: u32,
    pub(crate) data: u32,
}

impl SetSpec {
    pub(crate) fn key(&self) -> u32 {
        self.fields.iter().sum()
    }
}

/// Field types of userspace `nft`, six bits each in a concatenation.
pub(crate) const fn concat(fields: &[u32]) -> u32 {
    let mut out = 0;
    let mut at = 0;
    while at < fields.len() {
        out = (out << 6) | fields[at];
        at += 1;
    }
    out
}
pub(crate) const IPV4: u32 = 7;
pub(crate) const IPV6: u32 = 8;
const ETHER: u32 = 9;
pub(crate) const PROTO: u32 = 12;
pub(crate) const PORT: u32 = 13;
const IFNAME: u32 = 41;

/// All our sets and maps. Keys are padded to four bytes per field.
pub(crate) const SETS: &[SetSpec] = &[
    set(Family::Bridge, "pods4", concat(&[IFNAME, ETHER, IPV4]), &[16, 8, 4]),
    set(Family::Bridge, "pods6", concat(&[IFNAME, ETHER, IPV6]), &[16, 8, 16]),
    set(Family::Inet, "hairpin4", concat(&[IPV4, IPV4]), &[4, 4]),
    set(Family::Inet, "hairpin6", concat(&[IPV6, IPV6]), &[16, 16]),
    map("ports4", concat(&[PROTO, PORT]), &[4, 4], concat(&[IPV4, PORT]), 8),
    map("ports6", concat(&[PROTO, PORT]), &[4, 4], concat(&[IPV6, PORT]), 20),
    map("ports4_on", concat(&[IPV4, PROTO, PORT]), &[4, 4, 4], concat(&[IPV4, PORT]), 8),
    map("ports6_on", concat(&[IPV6, PROTO, PORT]), &[16, 4, 4], concat(&[IPV6, PORT]), 20),
];

const fn set(family: Family, name: &'static str, key_type: u32, fields: &'static [u32]) -> SetSpec {
    SetSpec { family, name, key_type, fields, data_type: 0, data: 0 }
}

const fn map(
    name: &'static str,
    key_type: u32,
    fields: &'static [u32],
    data_type: u32,
    data: u32,
) -> SetSpec {
    SetSpec { family: Family::Inet, name, key_type, fields, data_type, data }
}

impl RuleSpec {
    /// A mark made of the expressions: an edited or foreign rule has another or none.
    pub fn mark(&self) -> String {
        format!("weft:{:016x}", fnv64(&[&self.expressions]))
    }
}

/// Chains: family, name, (type, hook, priority) of base chains.
type ChainSpec = (Family, &'static str, Option<(&'static str, u32, i32)>);
/// Before connections are tracked.
const RAW: i32 = -300;
const CHAINS: &[ChainSpec] = &[
    (Family::Bridge, "prerouting", Some(("filter", 0, RAW))),
    (Family::Inet, "guard", Some(("filter", 0, RAW))),
    (Family::Inet, "local", Some(("filter", 3, RAW))),
    (Family::Inet, "forward", Some(("filter", 2, 0))),
    (Family::Inet, "clamp", None),
];
/// Only where there is something for them: every packet passes all base chains
/// of its hook.
const HOST_PORTS: &[ChainSpec] = &[
    (Family::Inet, "prerouting", Some(("nat", 0, -100))),
    (Family::Inet, "output", Some(("nat", 3, -100))),
    (Family::Inet, "hostports", None),
];
const POSTROUTING: &[ChainSpec] = &[(Family::Inet, "postrouting", Some(("nat", 4, 100)))];
const OUTSIDE: &[ChainSpec] = &[(Family::Inet, "outside", None)];

/// What the rule set follows from, apart from the pods.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Ranges of the pod network.
    pub ranges: &'a [IpNet],
    /// Pods reach the outside by the node's address.
    pub masquerade: bool,
    /// Some pod has a host port.
    pub host_ports: bool,
    /// Own underlay addresses: where the packets of tunnels go.
    pub underlay: &'a [IpAddr],
    /// UDP port of the tunnels.
    pub vxlan_port: u16,
}

/// The rule set for all this.
///
/// Rules begin with what most packets fail and what costs least: bytes of a
/// header, then numbers, then names of devices.
pub fn ruleset(wanted: Wanted<'_>) -> Ruleset {
    let Wanted { ranges, masquerade, host_ports, .. } = wanted;
    let mut out = Ruleset::default();
    let chains = [
        (CHAINS, true),
        (HOST_PORTS, host_ports),
        (POSTROUTING, host_ports || masquerade),
        (OUTSIDE, masquerade),
    ];
    for (family, name, hook) in chains.iter().filter(|(_, needed)| *needed).flat_map(|(c, _)| *c) {
        let hook =
            hook.map(|(kind, hook, priority)| Hook { kind: kind.to_owned(), hook, priority });
        let chain = Chain { hook, rules: Vec::new() };
        out.tables.entry(*family).or_default().chains.insert((*name).to_owned(), chain);
    }
    for spec in SETS {
        let kind = SetType { key: spec.key(), data: spec.data };
        out.tables.entry(spec.family).or_default().sets.insert(spec.name.to_owned(), kind);
    }
    let mut add = |family, chain, rule: Rule| {
        let spec = RuleSpec { chain, expressions: rule.build() };
        if let Some(chain) = out.tables.entry(family).or_default().chains.get_mut(chain) {
            chain.rules.push(spec.mark());
        }
        out.rules.push((family, spec));
    };
    spoofing(&mut add);
    untracked(wanted, &mut add);
    filters(&mut add);
    if host_ports {
        dnat(&mut add);
    }
    if masquerade {
        outside(ranges, &mut add);
    }
    out
}

type Add<'a> = dyn FnMut(Family, &'static str, Rule) + 'a;

/// From a pod only what it may send: its own MAC and address. No ARP and
/// nothing else: its gateway is a permanent neighbour.
fn spoofing(add: &mut Add<'_>) {
    for (ethertype, set, ipv6) in [(ETHERTYPE_IP, "pods4", false), (ETHERTYPE_IPV6, "pods6", true)]
    {
        let rule = Rule::default()
            .ethertype(ethertype)
            .load_iif(REG)
            .begins_with(REG, VETH_PREFIX)
            .load_ether_source(REG + 4)
            .load_address(true, ipv6, REG + 6)
            .lookup(set, REG, None)
            .verdict(ACCEPT, None);
        add(Family::Bridge, "prerouting", rule);
    }
    let rest = Rule::default().iif_prefix(VETH_PREFIX).verdict(DROP, None);
    add(Family::Bridge, "prerouting", rest);
}

/// Packets of tunnels are not tracked: nothing asks for their connections, and
/// each connection within a tunnel would be one outside as well.
fn untracked(wanted: Wanted<'_>, add: &mut Add<'_>) {
    let tunnel = |rule: Rule| {
        rule.l4proto(17).dport(wanted.vxlan_port, wanted.vxlan_port).notrack().verdict(ACCEPT, None)
    };
    for own in wanted.underlay {
        let to = Rule::default().address(false, IpNet::from(*own)).family(own.is_ipv6());
        add(Family::Inet, "guard", tunnel(to));
    }
    add(Family::Inet, "local", tunnel(Rule::default()));
}

fn filters(add: &mut Add<'_>) {
    // route_localnet is on for host ports on 127.0.0.1; that must not open
    // the node's own loopback services to pods or peers.
    let loopback = net([127, 0, 0, 0], 8);
    for dev in [BRIDGE, VXLAN] {
        let rule = Rule::default().address(false, loopback).family(false).iif(true, dev);
        add(Family::Inet, "guard", rule.verdict(DROP, None));
    }
    // What came through a tunnel ends here: while two nodes disagree about a
    // block, packets must not circle.
    let circle = Rule::default().iif(true, VXLAN).oif(true, VXLAN).verdict(DROP, None);
    add(Family::Inet, "forward", circle);
    add(Family::Inet, "forward", Rule::default().tcp_syn().verdict(GOTO, Some("clamp")));
    for rule in [Rule::default().oif(true, VXLAN), Rule::default().iif(true, VXLAN)] {
        add(Family::Inet, "clamp", rule.clamp_mss());
    }
    // Same-node traffic goes out where it came in: on purpose, so no redirects.
    let redirect = Rule::default().family(false).l4proto(1).icmp_type(5).oif(true, BRIDGE);
    add(Family::Inet, "local", redirect.verdict(DROP, None));
    let redirect = Rule::default().family(true).l4proto(58).icmp_type(137).oif(true, BRIDGE);
    add(Family::Inet, "local", redirect.verdict(DROP, None));
}

fn dnat(add: &mut Add<'_>) {
    for chain in ["prerouting", "output"] {
        let jump = Rule::default().destination_local().verdict(JUMP, Some("hostports"));
        add(Family::Inet, chain, jump);
    }
    for (ipv6, on, any, words) in
        [(false, "ports4_on", "ports4", 1), (true, "ports6_on", "ports6", 4)]
    {
        let on_address = Rule::default()
            .family(ipv6)
            .load_address(false, ipv6, REG)
            .load_l4proto(REG + words)
            .load_dport(REG + words + 1)
            .lookup(on, REG, Some(REG))
            .dnat(ipv6, REG, REG + words);
        add(Family::Inet, "hostports", on_address);
        let on_any = Rule::default()
            .family(ipv6)
            .load_l4proto(REG)
            .load_dport(REG + 1)
            .lookup(any, REG, Some(REG))
            .dnat(ipv6, REG, REG + words);
        add(Family::Inet, "hostports", on_any);
        // A pod that reaches itself through its host port, and a host port
        // reached over loopback, need an answer that comes back through us.
        let itself = Rule::default()
            .oif(true, BRIDGE)
            .was_dnat()
            .family(ipv6)
            .load_address(true, ipv6, REG)
            .load_address(false, ipv6, REG + words)
            .lookup(if ipv6 { "hairpin6" } else { "hairpin4" }, REG, None)
            .masquerade();
        add(Family::Inet, "postrouting", itself);
    }
    let loopback = Rule::default()
        .oif(true, BRIDGE)
        .was_dnat()
        .family(false)
        .address(true, net([127, 0, 0, 0], 8));
    add(Family::Inet, "postrouting", loopback.masquerade());
}

fn outside(ranges: &[IpNet], add: &mut Add<'_>) {
    for range in ranges {
        let rule = Rule::default()
            .family(range.addr().is_ipv6())
            .address(true, *range)
            .oif(false, BRIDGE)
            .oif(false, VXLAN);
        add(Family::Inet, "postrouting", rule.verdict(JUMP, Some("outside")));
    }
    let multicast6 =
        IpNet::new(IpAddr::from([0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 8);
    let inside = ranges.iter().copied().chain([net([224, 0, 0, 0], 4)]).chain(multicast6.ok());
    for range in inside {
        let rule = Rule::default().family(range.addr().is_ipv6()).address(false, range);
        add(Family::Inet, "outside", rule.verdict(RETURN, None));
    }
    add(Family::Inet, "outside", Rule::default().masquerade());
}

fn net(octets: [u8; 4], prefix: u8) -> IpNet {
    let ip = IpAddr::from(octets);
    IpNet::new(ip, prefix).unwrap_or_else(|_| IpNet::from(ip))
}

/// The elements for these pods, and the host ports that two pods want.
pub fn elements(intent: &Intent) -> (Elements, Vec<Condition>) {
    let mut out = Elements::new();
    let mut conditions = Vec::new();
    for (key, pod) in &intent.pods {
        for (element, value) in pod_elements(pod) {
            match out.get(&element) {
                Some(other) if *other != value => conditions.push(condition(
                    "HostPortConflict",
                    format!("a host port of {key} is taken by another pod of this node"),
                    "give one of the two pods another hostPort",
                )),
                _ => {
                    out.insert(element, value);
                }
            }
        }
    }
    (out, conditions)
}

/// The elements of one pod, those of its host ports last.
pub fn pod_elements(pod: &PodIntent) -> impl Iterator<Item = (ElementKey, Vec<u8>)> + '_ {
    let with_ports = pod.addresses.iter().filter(|_| !pod.port_mappings.is_empty());
    let hairpins = with_ports.map(|address| {
        let set = if address.is_ipv6() { "hairpin6" } else { "hairpin4" };
        (Family::Inet, set, octets(*address).repeat(2))
    });
    sources(pod).chain(hairpins).map(|key| (key, Vec::new())).chain(port_elements(pod))
}

/// What a pod may send.
fn sources(pod: &PodIntent) -> impl Iterator<Item = ElementKey> + '_ {
    pod.addresses.iter().map(|address| {
        let set = if address.is_ipv6() { "pods6" } else { "pods4" };
        let mut bytes = ifname(&pod.host_ifname).to_vec();
        bytes.extend(pod.mac);
        bytes.extend([0; 2]);
        bytes.extend(octets(*address));
        (Family::Bridge, set, bytes)
    })
}

fn port_elements(pod: &PodIntent) -> Vec<(ElementKey, Vec<u8>)> {
    let mut out = Vec::new();
    for mapping in &pod.port_mappings {
        for address in &pod.addresses {
            out.extend(port_element(mapping, *address));
        }
    }
    out
}

fn port_element(mapping: &PortMapping, address: IpAddr) -> Option<(ElementKey, Vec<u8>)> {
    let proto = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => return None,
    };
    let ipv6 = address.is_ipv6();
    let on = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    if mapping.host_ip.is_some_and(|ip| ip.is_ipv6() != ipv6) {
        return None;
    }
    let set = match (ipv6, on) {
        (false, None) => "ports4",
        (true, None) => "ports6",
        (false, Some(_)) => "ports4_on",
        (true, Some(_)) => "ports6_on",
    };
    let mut key = on.map(octets).unwrap_or_default();
    key.extend([proto, 0, 0, 0]);
    key.extend(mapping.host_port.to_be_bytes());
    key.extend([0; 2]);
    let mut value = octets(address);
    value.extend(mapping.container_port.to_be_bytes());
    value.extend([0; 2]);
    Some(((Family::Inet, set, key), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base_chains(masquerade: bool, host_ports: bool) -> Vec<(Family, String)> {
        let ranges = ["10.32.0.0/12".parse().unwrap()];
        let underlay = ["192.0.2.1".parse().unwrap()];
        let wanted =
            Wanted { ranges: &ranges, masquerade, host_ports, underlay: &underlay, vxlan_port: 1 };
        let tables = ruleset(wanted).tables;
        let chains = tables.iter().flat_map(|(family, t)| t.chains.iter().map(|c| (*family, c)));
        chains.filter(|(_, (_, c))| c.hook.is_some()).map(|(f, (n, _))| (f, n.clone())).collect()
    }

    #[test]
    fn packets_pass_only_the_chains_that_something_needs() {
        let inet = |names: &[&str]| -> Vec<(Family, String)> {
            let all = names.iter().map(|name| (Family::Inet, (*name).to_owned()));
            all.chain([(Family::Bridge, "prerouting".to_owned())]).collect()
        };
        assert_eq!(base_chains(false, false), inet(&["forward", "guard", "local"]));
        assert_eq!(base_chains(true, false), inet(&["forward", "guard", "local", "postrouting"]));
        let all = ["forward", "guard", "local", "output", "postrouting", "prerouting"];
        assert_eq!(base_chains(false, true), inet(&all));
        assert_eq!(base_chains(true, true), inet(&all));
    }
}

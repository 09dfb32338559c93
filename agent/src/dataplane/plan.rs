//! The difference between what should be and what is: pure and total.
//!
//! Order: links, sysctls, addresses, neighbours and FDB, nexthops, routes;
//! what is to go goes first, in reverse. Applying the plan leaves nothing to
//! plan (the property test below says so).

use std::borrow::Cow;
use std::collections::BTreeSet;

use ipnet::IpNet;
use weft_proto::api::Condition;
use weft_proto::names::{BRIDGE, VXLAN};

use super::desired::{Desired, DesiredPods, condition, host_net};
use super::model::{Kind, Observed, Op, Target};

/// What to do, and what stands in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub ops: Vec<Op>,
    /// Foreign objects where ours should be.
    pub conditions: Vec<Condition>,
}

/// Everything. With `settling`, nothing is removed that nothing replaces.
pub fn plan(desired: &Desired, pods: &DesiredPods, observed: &Observed, settling: bool) -> Plan {
    let mut out = Plan::default();
    if desired.links.is_empty() {
        return out;
    }
    let foreign = foreign_links(observed, &mut out.conditions);
    let usable = |name: &str| !foreign.contains(name);
    let mut now = Cow::Borrowed(observed);
    links(desired, &usable, &mut now, &mut out.ops);
    let now = now.as_ref();
    sysctls(desired, observed, now, &usable, &mut out.ops);
    let host = pod_host_nets(pods, now);
    if !settling {
        stale_peers(desired, &host, now, &mut out.ops);
    }
    if usable(BRIDGE) {
        addresses(desired, now, settling, &mut out.ops);
        wire_pods(pods, now, settling, &mut out.ops);
    }
    if usable(VXLAN) {
        peers(desired, &host, now, &mut out);
    }
    out
}

/// Only what concerns pods: the quick way after an attach or a release.
pub fn plan_pods(
    desired: &Desired,
    pods: &DesiredPods,
    observed: &Observed,
    settling: bool,
) -> Plan {
    let mut out = Plan::default();
    if !desired.links.is_empty() && foreign_links(observed, &mut Vec::new()).is_empty() {
        wire_pods(pods, observed, settling, &mut out.ops);
    }
    out
}

/// Only what concerns peers, none of whose blocks is a pod's address: the quick way
/// after a few of them changed.
pub fn plan_peers(desired: &Desired, observed: &Observed, settling: bool) -> Plan {
    let mut out = Plan::default();
    if desired.links.is_empty() || !foreign_links(observed, &mut out.conditions).is_empty() {
        return out;
    }
    let no_pods = BTreeSet::new();
    if !settling {
        stale_peers(desired, &no_pods, observed, &mut out.ops);
    }
    peers(desired, &no_pods, observed, &mut out);
    out
}

fn foreign_links(observed: &Observed, conditions: &mut Vec<Condition>) -> BTreeSet<&'static str> {
    let mut foreign = BTreeSet::new();
    for name in [BRIDGE, VXLAN] {
        let Some(link) = observed.links.get(name) else { continue };
        let ours = match link.kind {
            Kind::Bridge => name == BRIDGE,
            Kind::Vxlan { .. } => name == VXLAN,
            Kind::Other(_) => false,
        };
        if !ours {
            foreign.insert(name);
            conditions.push(condition(
                "ForeignDevice",
                format!("device {name} exists and is not ours ({:?})", link.kind),
                &format!("rename or delete it: `ip link del {name}`"),
            ));
        }
    }
    foreign
}

fn links(
    desired: &Desired,
    usable: &impl Fn(&str) -> bool,
    now: &mut Cow<'_, Observed>,
    ops: &mut Vec<Op>,
) {
    for (name, spec) in desired.links.iter().filter(|(name, _)| usable(name)) {
        let found = now.links.get(name).map(|l| (l.kind == spec.kind, l.mac, l.mtu, l.up));
        match found {
            Some((true, mac, mtu, true)) if (mac, mtu) == (spec.mac, spec.mtu) => {}
            Some((true, ..)) => ops.push(Op::SetLink(name.clone(), spec.clone())),
            other => {
                if other.is_some() {
                    // The rest of the plan starts from what this leaves.
                    let delete = Op::DelLink(name.clone());
                    now.to_mut().apply(&delete);
                    ops.push(delete);
                }
                ops.push(Op::AddLink(name.clone(), spec.clone()));
            }
        }
    }
}

fn sysctls(
    desired: &Desired,
    before: &Observed,
    now: &Observed,
    usable: &impl Fn(&str) -> bool,
    ops: &mut Vec<Op>,
) {
    let is_new = |path: &str| {
        [BRIDGE, VXLAN].iter().any(|dev| {
            let made = !before.links.contains_key(*dev) || !now.links.contains_key(*dev);
            made && usable(dev) && path.contains(&format!("/{dev}/"))
        })
    };
    for (path, value) in &desired.sysctls {
        // A file that is not there (no IPv6 in this kernel) is not to be written.
        if is_new(path) || now.sysctls.get(path).is_some_and(|found| found != value) {
            ops.push(Op::SetSysctl(path.clone(), value.clone()));
        }
    }
}

/// Host routes of the pods that are wired. A remote block must not replace one.
fn pod_host_nets(pods: &DesiredPods, now: &Observed) -> BTreeSet<IpNet> {
    pods.pods
        .iter()
        .filter(|(name, _)| now.links.contains_key(*name))
        .flat_map(|(_, pod)| pod.addresses.iter().copied().map(host_net))
        .collect()
}

fn stale_peers(desired: &Desired, host: &BTreeSet<IpNet>, now: &Observed, ops: &mut Vec<Op>) {
    let wanted = |key| desired.routes.contains_key(key) && !is_pod(key, desired, host);
    ops.extend(now.routes.keys().filter(|key| !wanted(key)).map(|key| Op::DelRoute(*key)));
    let unused = now.nexthops.keys().filter(|id| !desired.nexthops.contains_key(id));
    ops.extend(unused.map(|id| Op::DelNexthop(*id)));
    for (dev, ip) in now.neighs.keys() {
        if dev == VXLAN && !desired.neighs.contains_key(ip) {
            ops.push(Op::DelNeigh(dev.clone(), *ip));
        }
    }
}

fn is_pod(key: &(IpNet, u32), desired: &Desired, host: &BTreeSet<IpNet>) -> bool {
    host.contains(&key.0)
        && desired.routes.get(key).is_some_and(|route| route.to != Target::Blackhole)
}

fn addresses(desired: &Desired, now: &Observed, settling: bool, ops: &mut Vec<Op>) {
    let mut last = Vec::new();
    for (key, without_prefix) in &now.addrs {
        let wanted = desired.addrs.contains(key);
        let ours = desired.ranges.iter().any(|range| range.contains(&key.1.addr()));
        if wanted && !without_prefix {
            ops.push(Op::DelAddr(key.0.clone(), key.1));
        } else if !wanted && ours && !settling {
            // With the last address of this value the kernel removes every route that has
            // it as source: the one with another prefix has to be there before. IPv6 knows
            // an address but once, and forgets no route over it.
            let when = if key.1.addr().is_ipv4() { &mut last } else { &mut *ops };
            when.push(Op::DelAddr(key.0.clone(), key.1));
        }
    }
    for key in &desired.addrs {
        if now.addrs.get(key) != Some(&true) {
            ops.push(Op::AddAddr(key.0.clone(), key.1));
        }
    }
    ops.append(&mut last);
}

fn set_neigh(
    dev: &str,
    ip: std::net::IpAddr,
    mac: super::model::Mac,
    now: &Observed,
    ops: &mut Vec<Op>,
) {
    let key = (dev.to_owned(), ip);
    if now.neighs.get(&key) != Some(&mac) {
        ops.push(Op::SetNeigh(key.0, ip, mac));
    }
}

/// Pods are wired by the shim; this adopts what is right and repairs what is
/// not. A pod without its host end gets nothing: the shim has yet to come, or
/// the pod is gone.
fn wire_pods(pods: &DesiredPods, now: &Observed, settling: bool, ops: &mut Vec<Op>) {
    let wired: Vec<_> =
        pods.pods.iter().filter(|(name, _)| now.links.contains_key(*name)).collect();
    let nets: BTreeSet<IpNet> =
        wired.iter().flat_map(|(_, pod)| pod.addresses.iter().copied().map(host_net)).collect();
    // Stale is only what no pod wants at all: a look may see the shim's work half
    // done, its route but not yet its device.
    let known: BTreeSet<IpNet> =
        pods.pods.values().flat_map(|pod| pod.addresses.iter().copied().map(host_net)).collect();
    if !settling {
        ops.extend(now.pod_routes.difference(&known).map(|net| Op::DelPodRoute(*net)));
        for (dev, mac) in &now.fdb {
            let pod = pods.pods.get(dev);
            if pod.is_none_or(|pod| pod.mac != *mac) {
                ops.push(Op::DelFdb(dev.clone(), *mac));
            }
        }
        for (dev, ip) in now.neighs.keys() {
            if dev == BRIDGE && !known.contains(&host_net(*ip)) {
                ops.push(Op::DelNeigh(dev.clone(), *ip));
            }
        }
    }
    for (name, pod) in &wired {
        let Some(link) = now.links.get(*name) else { continue };
        if let Some(flags) = pods.port {
            let right = link.master.as_deref() == Some(BRIDGE) && link.port == Some(flags);
            if !right || !link.up {
                ops.push(Op::SetPort((*name).clone(), flags));
            }
        }
        let key = ((*name).clone(), pod.mac);
        if !now.fdb.contains(&key) {
            ops.push(Op::SetFdb(key.0, key.1));
        }
    }
    for (_, pod) in &wired {
        for address in &pod.addresses {
            set_neigh(BRIDGE, *address, pod.mac, now, ops);
        }
    }
    ops.extend(nets.difference(&now.pod_routes).map(|net| Op::SetPodRoute(*net)));
}

/// Neighbours, nexthops, and the routes through them.
fn peers(desired: &Desired, host: &BTreeSet<IpNet>, now: &Observed, out: &mut Plan) {
    for (ip, mac) in &desired.neighs {
        set_neigh(VXLAN, *ip, *mac, now, &mut out.ops);
    }
    for (id, nexthop) in &desired.nexthops {
        if now.foreign_nexthops.contains(id) {
            out.conditions.push(condition(
                "ForeignNexthop",
                format!("nexthop object {id} belongs to another program"),
                &format!("remove it: `ip nexthop del id {id}`"),
            ));
        } else if now.nexthops.get(id) != Some(nexthop) {
            out.ops.push(Op::SetNexthop(*id, nexthop.clone()));
        }
    }
    // A source address must be there before a route may prefer it. Removing
    // one (to set it anew) takes the routes that prefer it along.
    let lost: BTreeSet<_> = out
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::DelAddr(_, net) => Some(net.addr()),
            _ => None,
        })
        .collect();
    let inside = |net: &IpNet| desired.ranges.iter().any(|range| range.contains(net));
    let foreign: Vec<_> = now.host.routes.iter().filter(|(net, ..)| inside(net)).collect();
    for (key, route) in desired.routes.iter().filter(|(key, _)| !is_pod(key, desired, host)) {
        if let Target::Nexthop(id) = route.to
            && now.foreign_nexthops.contains(&id)
        {
            continue;
        }
        if foreign.iter().any(|(net, metric, _)| (*net, *metric) == *key) {
            continue;
        }
        let gone = route.src.is_some_and(|src| lost.contains(&src));
        if gone || now.routes.get(key) != Some(route) {
            out.ops.push(Op::SetRoute(*key, route.clone()));
        }
    }
    for (net, _, text) in foreign {
        out.conditions.push(condition(
            "RouteOverlap",
            format!("{text} is inside the pod network: its packets do not reach pods"),
            &format!("remove it (`ip route del {net}`), or move IPALLOC_RANGE"),
        ));
    }
}

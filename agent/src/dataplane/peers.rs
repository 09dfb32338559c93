//! What peers add to what should be there, and what a few of them change of it.
//!
//! No two peers share a neighbour, a nexthop object or a route, unless something
//! is wrong: then [`Desired::contended`] is set, and who has what depends on all
//! of them. As long as it is not, what one peer adds can be taken out or put in
//! with no regard to the others, which costs the same however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_proto::id::NodeId;
use weft_proto::names::{BRIDGE, VXLAN, vxlan_gateway, vxlan_mac};

use super::desired::{Desired, NodeFacts, condition, metric};
use super::intent::PeerIntent;
use super::model::{Nexthop, Observed, Route, Target, Via};
use super::plan::{Plan, plan_peers};

/// More than so many at once are no few: all is computed anew.
const FEW: usize = 64;

/// Peers by name.
pub type Peers = BTreeMap<NodeId, PeerIntent>;

/// A peer that differs, before and after; nothing when it was not there, or is gone.
pub type Change<'a> = (&'a NodeId, Option<&'a PeerIntent>, Option<&'a PeerIntent>);

/// Adds what these want, which come in the order of their names.
pub(super) fn add<'a>(
    peers: impl IntoIterator<Item = (&'a NodeId, &'a PeerIntent)>,
    facts: &NodeFacts,
    out: &mut Desired,
) {
    // Of the peer at hand: blocks of one family have them in common.
    let (mut gateways, mut ids) = (Vec::new(), Vec::new());
    for (node, peer) in peers {
        gateways.clear();
        ids.clear();
        if facts.underlay.iter().any(|own| own.addr() == peer.underlay) {
            out.conditions.push(condition(
                "PeerIsSelf",
                format!("peer {node} says its address is {}, which is this node's", peer.underlay),
                "give every node its own underlay address (Node InternalIP)",
            ));
            continue;
        }
        for block in &peer.blocks {
            if !out.ranges.iter().any(|range| range.contains(block)) {
                out.conditions.push(condition(
                    "BlockOutsideRange",
                    format!("block {block} of peer {node} is outside the pod network"),
                    "set the same IPALLOC_RANGE on every node",
                ));
                continue;
            }
            let ipv6 = block.addr().is_ipv6();
            let via = via(peer.underlay, ipv6, facts);
            let gateway = vxlan_gateway(peer.underlay, ipv6);
            if let Via::Tunnel { .. } = via
                && !gateways.contains(&gateway)
            {
                gateways.push(gateway);
                out.contended |= out.neighs.insert(gateway, vxlan_mac(&node.0)).is_some();
            }
            // IPv4 blocks may go through an IPv6 gateway.
            let nexthop = Nexthop { ipv6: gateway.is_ipv6(), via };
            let first = nexthop_hash(&node.0, nexthop.ipv6);
            let id = nexthop_id(first, &nexthop, &out.nexthops);
            out.contended |= id != first;
            if !ids.contains(&id) {
                ids.push(id);
                out.contended |= out.nexthops.insert(id, nexthop).is_some();
            }
            let src = out.addrs.iter().map(|(_, net)| net.addr()).find(|own| own.is_ipv6() == ipv6);
            let route = Route { to: Target::Nexthop(id), src };
            let before = out.routes.insert((block.trunc(), metric(block)), route);
            out.contended |= before.is_some();
        }
    }
}

fn via(underlay: IpAddr, ipv6: bool, facts: &NodeFacts) -> Via {
    let on_link = facts.underlay.iter().any(|own| own.contains(&underlay));
    match &facts.device {
        Some(dev) if facts.direct_routing && on_link && underlay.is_ipv6() == ipv6 => {
            Via::Direct { dev: dev.clone(), gateway: underlay }
        }
        _ => Via::Tunnel { dst: underlay },
    }
}

const BASE: u32 = 0x4000_0000;

/// An id that stays with the peer: a hash of who and which family, in a range of ours.
fn nexthop_hash(node: &[u8; 16], ipv6: bool) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in node.iter().chain(&[u8::from(ipv6)]) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    BASE | (hash & 0x3fff_ffff)
}

/// The next free id in the rare case that two peers share one. Peers come in the
/// order of their names, so everyone walks the same way.
fn nexthop_id(first: u32, nexthop: &Nexthop, taken: &BTreeMap<u32, Nexthop>) -> u32 {
    let mut id = first;
    while taken.get(&id).is_some_and(|other| other != nexthop) {
        id = BASE | (id.wrapping_add(1) & 0x3fff_ffff);
    }
    id
}

/// The peers in which two lists differ; `None` if those are not few.
pub fn differing<'a>(old: &'a Peers, new: &'a Peers) -> Option<Vec<Change<'a>>> {
    let mut changes = Vec::new();
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let change = match (before.peek(), after.peek()) {
            (None, None) => return Some(changes),
            (Some((gone, _)), there) if there.is_none_or(|(node, _)| gone < node) => {
                before.next().map(|(node, peer)| (node, Some(peer), None))
            }
            (there, Some((new, _))) if there.is_none_or(|(node, _)| new < node) => {
                after.next().map(|(node, peer)| (node, None, Some(peer)))
            }
            _ => {
                let both = before.next().zip(after.next());
                both.filter(|((_, old), (_, new))| old != new)
                    .map(|((node, old), (_, new))| (node, Some(old), Some(new)))
            }
        };
        changes.extend(change);
        if changes.len() > FEW {
            return None;
        }
    }
}

/// The difference that a few peers make: `desired` becomes what `desired()` of all
/// peers would be, and the plan is what `plan()` would find if, but for these
/// peers, all that is desired was there. `None` if something about them is unusual:
/// then `desired` is to be computed anew.
pub fn change(
    changes: &[Change<'_>],
    facts: &NodeFacts,
    desired: &mut Desired,
    observed: &Observed,
    settling: bool,
) -> Option<Plan> {
    if desired.contended || desired.links.is_empty() {
        return None;
    }
    // The same way as for all, only alone.
    let alone = |peers: Vec<(&NodeId, &PeerIntent)>| {
        let mut part = Desired {
            ranges: desired.ranges.clone(),
            addrs: desired.addrs.clone(),
            ..Desired::default()
        };
        add(peers, facts, &mut part);
        // A block of one address may be that of a pod of this node.
        let host = part.routes.keys().any(|(net, _)| net.prefix_len() == net.max_prefix_len());
        (!part.contended && part.conditions.is_empty() && !host).then_some(part)
    };
    let before = changes.iter().filter_map(|(node, old, _)| Some((*node, (*old)?)));
    let before = alone(before.collect())?;
    let after = changes.iter().filter_map(|(node, _, new)| Some((*node, (*new)?)));
    let mut after = alone(after.collect())?;
    let replaced = replace(&mut desired.neighs, &before.neighs, &after.neighs)
        && replace(&mut desired.nexthops, &before.nexthops, &after.nexthops)
        && replace(&mut desired.routes, &before.routes, &after.routes);
    let seen = seen(observed, &before, &after);
    if !replaced || !seen.foreign_nexthops.is_empty() {
        return None;
    }
    after.links.clone_from(&desired.links);
    let plan = plan_peers(&after, &seen, settling);
    plan.conditions.is_empty().then_some(plan)
}

/// Takes some entries out, and puts others in where nothing is; false if the first were
/// not there, or others have taken the place.
fn replace<K: Ord + Clone, V: Eq + Clone>(
    all: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> bool {
    before.iter().all(|(key, value)| all.remove(key).as_ref() == Some(value))
        && after.iter().all(|(key, value)| all.insert(key.clone(), value.clone()).is_none())
}

/// What was last seen of all that these want, or wanted.
fn seen(all: &Observed, before: &Desired, after: &Desired) -> Observed {
    let link = |name: &str| all.links.get(name).map(|link| (name.to_owned(), link.clone()));
    let ids: BTreeSet<_> = before.nexthops.keys().chain(after.nexthops.keys()).collect();
    let routes: BTreeSet<_> = before.routes.keys().chain(after.routes.keys()).collect();
    let gateways = before.neighs.keys().chain(after.neighs.keys());
    let neigh = |ip: &IpAddr| {
        let key = (VXLAN.to_owned(), *ip);
        all.neighs.get(&key).map(|mac| (key, *mac))
    };
    Observed {
        links: [BRIDGE, VXLAN].into_iter().filter_map(link).collect(),
        neighs: gateways.filter_map(neigh).collect(),
        foreign_nexthops: ids
            .iter()
            .copied()
            .filter(|id| all.foreign_nexthops.contains(id))
            .copied()
            .collect(),
        nexthops: ids
            .into_iter()
            .filter_map(|id| Some((*id, all.nexthops.get(id)?.clone())))
            .collect(),
        routes: routes
            .into_iter()
            .filter_map(|key| Some((*key, all.routes.get(key)?.clone())))
            .collect(),
        ..Observed::default()
    }
}

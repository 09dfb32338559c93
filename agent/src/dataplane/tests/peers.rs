//! A few peers that change: the quick way does what the full one would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use weft_proto::id::NodeId;
use weft_proto::names::VXLAN;

use super::node::{intent as two_peers, node};
use super::ns::{eventually, pod, settle};
use super::pure::facts;
use crate::dataplane::DataplaneConfig;
use crate::dataplane::desired::{desired, desired_pods};
use crate::dataplane::intent::{Intent, PeerIntent};
use crate::dataplane::model::{Kind, LinkSpec, Observed, Op};
use crate::dataplane::peers::{Peers, change, differing};
use crate::dataplane::plan::plan;

/// Names of peers, in no order of note.
fn name(number: u8) -> NodeId {
    NodeId([number.wrapping_mul(97); 16])
}

fn v4_block(number: u8, len: u8) -> IpNet {
    IpNet::new(Ipv4Addr::new(10, 32, 1 + number / 4, number % 4 * 64).into(), len).unwrap()
}

fn v6_block(number: u8) -> IpNet {
    IpNet::new(Ipv6Addr::new(0xfd00, 0x32, 0, 0, 0, 1, number.into(), 0).into(), 112).unwrap()
}

/// A peer with an address, and blocks, that no other has.
fn sound(number: u8, address: u8, blocks: &[u8]) -> PeerIntent {
    let underlay = match address {
        // On-link, behind a router, of the other family.
        0 => Ipv4Addr::new(192, 0, 2, 10 + number).into(),
        1 => Ipv4Addr::new(198, 51, 100, 10 + number).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    };
    let block = |n: &u8| match n {
        0..4 => v4_block(number * 4 + n, 26),
        n => v6_block(number * 4 + n - 4),
    };
    PeerIntent { underlay, blocks: blocks.iter().map(block).collect() }
}

/// A peer that may want what another has, what a pod has, or what is nobody's.
fn odd(number: u8, address: u8, blocks: &[u8]) -> PeerIntent {
    let underlay: IpAddr = match address {
        // One of the last is this node's.
        0 => Ipv4Addr::new(192, 0, 2, 1 + number % 3).into(),
        1 => Ipv4Addr::new(198, 51, 100, number % 2).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (number % 2).into()).into(),
    };
    let block = |n: &u8| match n {
        0..3 => v4_block(*n, 26),
        3 => v4_block(1, 25),
        // A pod's address, and what is outside the range.
        4 => "10.32.0.5/32".parse().unwrap(),
        5 => "10.200.0.0/24".parse().unwrap(),
        // As it may be written.
        6 => "10.32.1.7/26".parse().unwrap(),
        n => v6_block(*n),
    };
    PeerIntent { underlay, blocks: blocks.iter().map(block).collect() }
}

/// Number, whether it is odd, and address and blocks; none when it goes.
type Edit = (u8, bool, Option<(u8, Vec<u8>)>);

fn edits(most_odd: f64) -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let blocks = prop::collection::btree_set(0_u8..8, 0..4)
        .prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let peer = prop::option::weighted(0.75, (0_u8..3, blocks));
    let edit = (1_u8..8, prop::bool::weighted(most_odd), peer);
    prop::collection::vec(prop::collection::vec(edit, 0..4), 1..10)
}

fn apply(peers: &mut Peers, edits: &[Edit]) {
    for (number, is_odd, peer) in edits {
        match peer {
            None => drop(peers.remove(&name(*number))),
            Some((address, blocks)) => {
                let make = if *is_odd { odd } else { sound };
                peers.insert(name(*number), make(*number, *address, blocks));
            }
        }
    }
}

/// A node with a pod, what an earlier life left of two peers, and an id somebody else has.
fn world(foreign: bool) -> (Intent, Observed) {
    let (key, pod) = pod("c1", "10.32.0.5");
    let intent = Intent {
        ranges: vec!["10.32.0.0/12".parse().unwrap(), "fd00:32::/64".parse().unwrap()],
        own: vec!["10.32.0.1".parse().unwrap(), "fd00:32::1".parse().unwrap()],
        pods: BTreeMap::from([(key, pod.clone())]),
        ..Intent::default()
    };
    let mut kernel = Observed::default();
    let mut earlier = intent.clone();
    let left = [(1, sound(1, 1, &[0, 4])), (2, odd(2, 1, &[1, 2]))];
    earlier.peers = Arc::new(left.map(|(n, peer)| (name(n), peer)).into());
    let left = desired(&earlier, &facts(false));
    for op in plan(&left, &desired_pods(&Intent::default(), true), &kernel, false).ops {
        kernel.apply(&op);
    }
    let veth = LinkSpec { kind: Kind::Other("veth".to_owned()), mac: [2; 6], mtu: 1450 };
    kernel.apply(&Op::AddLink(pod.host_ifname, veth));
    if foreign {
        let mut one = intent.clone();
        one.peers = Arc::new(BTreeMap::from([(name(3), sound(3, 0, &[0]))]));
        kernel.foreign_nexthops.extend(desired(&one, &facts(false)).nexthops.keys());
    }
    (intent, kernel)
}

/// Walks a world through `steps`; how many of them went the quick way.
fn walk(steps: &[Vec<Edit>], direct: bool, settling: bool, foreign: bool) -> usize {
    let facts = facts(direct);
    let (mut intent, mut kernel) = world(foreign);
    intent.settling = settling;
    let pods = desired_pods(&intent, true);
    let mut wanted = desired(&intent, &facts);
    let first = plan(&wanted, &pods, &kernel, settling);
    first.ops.iter().for_each(|op| kernel.apply(op));
    let mut clean = first.conditions.is_empty();
    let mut quick = 0;
    for step in steps {
        let before = Arc::clone(&intent.peers);
        apply(Arc::make_mut(&mut intent.peers), step);
        let all = desired(&intent, &facts);
        let full = plan(&all, &pods, &kernel, settling);
        let few = differing(&before, &intent.peers).unwrap();
        match change(&few, &facts, &mut wanted, &kernel, settling).filter(|_| clean) {
            Some(plan) => {
                quick += 1;
                assert_eq!(wanted, all);
                assert_eq!(plan, full);
            }
            None => {
                wanted = all;
                clean = full.conditions.is_empty();
            }
        }
        full.ops.iter().for_each(|op| kernel.apply(op));
        assert_eq!(plan(&wanted, &pods, &kernel, settling).ops, vec![]);
    }
    quick
}

proptest! {
    #[test]
    fn sound_peers_go_the_quick_way(
        steps in edits(0.0), direct in any::<bool>(), settling in any::<bool>(),
    ) {
        prop_assert_eq!(walk(&steps, direct, settling, false), steps.len());
    }

    #[test]
    fn whatever_peers_want_it_is_what_the_full_way_finds(
        steps in edits(0.4), direct in any::<bool>(), settling in any::<bool>(),
        foreign in any::<bool>(),
    ) {
        walk(&steps, direct, settling, foreign);
    }

    #[test]
    fn what_differs_is_what_was_changed(steps in edits(0.5)) {
        let mut peers = Peers::new();
        for step in &steps {
            let before = peers.clone();
            apply(&mut peers, step);
            let found = differing(&before, &peers).unwrap();
            prop_assert!(found.iter().all(|(_, old, new)| old != new));
            let mut made = before.clone();
            for (node, old, new) in found {
                prop_assert_eq!(before.get(node), old);
                match new {
                    Some(peer) => drop(made.insert(*node, peer.clone())),
                    None => drop(made.remove(node)),
                }
            }
            prop_assert_eq!(&made, &peers);
        }
    }
}

#[test]
fn many_are_not_few() {
    let peers: Peers = (0..200).map(|n| (NodeId([n; 16]), sound(1, 0, &[]))).collect();
    assert!(differing(&Peers::new(), &peers).is_none());
    assert!(differing(&peers, &Peers::new()).is_none());
    assert_eq!(differing(&peers, &peers), Some(vec![]));
}

#[test]
fn the_kernel_holds_what_it_would_after_a_start() {
    let config = || DataplaneConfig::new("n1", NodeId([1; 16]));
    let peer = |underlay: &str, blocks: &[&str]| PeerIntent {
        underlay: underlay.parse().unwrap(),
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
    };
    let ns = node("few");
    let handle = ns.start(config());
    let mut now = two_peers();
    settle(&handle, &now);
    type Change = (u8, Option<PeerIntent>);
    let steps: [&[Change]; 6] = [
        &[(4, Some(peer("192.0.2.4", &["10.32.4.0/26", "fd00:32::4:0/112"])))],
        &[(2, Some(peer("192.0.2.22", &["10.32.2.0/26", "fd00:32::2:0/112"])))],
        &[(4, Some(peer("192.0.2.4", &["10.32.4.0/26", "10.32.4.64/26"])))],
        // A block goes from one to another, and an address to a newcomer.
        &[
            (4, Some(peer("192.0.2.4", &["10.32.4.0/26"]))),
            (5, Some(peer("192.0.2.2", &["10.32.4.64/26"]))),
        ],
        &[(3, None)],
        &[(2, None), (6, Some(peer("2001:db8::6", &["10.32.6.0/26"])))],
    ];
    for step in steps {
        for (number, peer) in step {
            let peers = Arc::make_mut(&mut now.peers);
            match peer {
                Some(peer) => drop(peers.insert(NodeId([*number; 16]), peer.clone())),
                None => drop(peers.remove(&NodeId([*number; 16]))),
            }
        }
        settle(&handle, &now);
        assert_eq!(handle.status().errors, Vec::<String>::new());
        let fresh = node("fresh");
        let other = fresh.start(config());
        settle(&other, &now);
        let all = format!(
            "ip nexthop; ip route show proto 117; ip -6 route show proto 117;
             ip neigh show dev {VXLAN} nud permanent | sort"
        );
        // With the first address of IPv6 comes another MTU, and with that the device's MAC is
        // set again, at which the kernel forgets its neighbours: a look brings them back.
        eventually(&format!("the same as after a start: {step:?}"), || {
            ns.sh(&all) == fresh.sh(&all)
        });
        if handle.mtu() == 1450 {
            assert_eq!(handle.status().repairs, 0, "{:?}", handle.status());
        }
    }
    // What was made the quick way is mended like anything else.
    let routes = || ns.sh("ip route show proto 117");
    let before = routes();
    assert!(before.contains("10.32.4.0/26"), "{before}");
    ns.sh("ip route del 10.32.4.0/26");
    eventually("the route is back", || routes() == before);
}

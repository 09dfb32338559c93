//! Properties of the pure part.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;
use weft_proto::names::{BRIDGE, VXLAN, pod_mac};

use crate::dataplane::desired::{Desired, DesiredPods, NodeFacts, desired, desired_pods};
use crate::dataplane::intent::{Intent, PeerIntent, PodIntent};
use crate::dataplane::model::{Kind, Link, Nexthop, Observed, Op, Route, Target, Via};
use crate::dataplane::plan::plan;

pub(crate) fn facts(direct: bool) -> NodeFacts {
    NodeFacts {
        name: "n1".into(),
        id: NodeId([1; 16]),
        device: Some("eth0".into()),
        underlay: vec!["192.0.2.1/24".parse().unwrap()],
        mtu: 1450,
        vxlan_port: 6784,
        direct_routing: direct,
        hairpin: true,
        rp_filter_all: 1,
        accepts_ra: true,
    }
}

fn overlay(n: u16) -> IpAddr {
    Ipv4Addr::from(0x0a20_0000 | u32::from(n)).into()
}

prop_compose! {
    fn any_intent()(
        peers in prop::collection::btree_map(
            any::<u8>(), (2_u8..60, prop::collection::vec((0_u16..2000, 26_u8..=32), 0..4)), 0..6),
        pods in prop::collection::btree_map(0_u8..8, 0_u16..2000, 0..6),
        own in prop::option::of(0_u16..2000),
    ) -> Intent {
        let net = |(n, len)| IpNet::V4(Ipv4Net::new_assert(
            match overlay(n) { IpAddr::V4(v4) => v4, IpAddr::V6(_) => unreachable!() }, len).trunc());
        Intent {
            ranges: vec!["10.32.0.0/12".parse().unwrap()],
            own: own.map(overlay).into_iter().collect(),
            peers: peers.into_iter().map(|(id, (host, blocks))| (NodeId([id; 16]), PeerIntent {
                underlay: Ipv4Addr::new(192, 0, 2, host).into(),
                blocks: blocks.into_iter().map(net).collect(),
            })).collect::<BTreeMap<_, _>>().into(),
            pods: pods.into_iter().map(|(id, n)| (
                AttachmentKey { container_id: format!("c{id}"), ifname: "eth0".into() },
                PodIntent {
                    host_ifname: format!("wefthost{id}"),
                    mac: pod_mac(overlay(n)),
                    addresses: vec![overlay(n)],
                    port_mappings: Vec::new(),
                })).collect(),
            settling: false,
        }
    }
}

/// Links of pods, some missing; any state of the rest that a kernel may be in.
fn kernel(intent: &Intent, other: &Intent, noise: u64) -> Observed {
    let mut out = Observed::default();
    let bit = |n: u32| noise & (1 << (n % 64)) != 0;
    for (n, pod) in (0_u32..).zip(intent.pods.values()) {
        if bit(n) {
            out.links.insert(pod.host_ifname.clone(), link(Kind::Other("veth".into())));
        }
    }
    // What an earlier life with another intent left behind.
    let old = desired(other, &facts(bit(20)));
    let pods = desired_pods(other, bit(21));
    for op in plan(&old, &pods, &out.clone(), false).ops {
        out.apply(&op);
    }
    // And harm done to it.
    if bit(22) {
        out.apply(&Op::DelLink(VXLAN.into()));
    }
    if bit(23) {
        out.apply(&Op::DelLink(BRIDGE.into()));
    }
    if bit(24) {
        out.links.insert(VXLAN.into(), link(Kind::Vxlan { port: 1, external: bit(25) }));
    }
    if bit(26) {
        out.addrs.values_mut().for_each(|without| *without = false);
    }
    if bit(27) {
        out.nexthops.clear();
        out.routes.clear();
    }
    if bit(28) {
        let via = Via::Tunnel { dst: Ipv4Addr::LOCALHOST.into() };
        out.nexthops.values_mut().for_each(|n| *n = Nexthop { ipv6: false, via: via.clone() });
        out.routes.values_mut().for_each(|r| *r = Route { to: Target::Unknown, src: None });
    }
    if bit(29) {
        out.fdb.insert(("wefthost0".into(), [2; 6]));
        out.neighs.insert((BRIDGE.into(), overlay(9)), [2; 6]);
        out.pod_routes.insert(IpNet::from(overlay(9)));
    }
    out
}

fn link(kind: Kind) -> Link {
    Link { index: 1, kind, mac: [0; 6], mtu: 1, up: false, alias: None, master: None, port: None }
}

fn run(desired: &Desired, pods: &DesiredPods, kernel: &mut Observed) {
    for op in plan(desired, pods, kernel, false).ops {
        kernel.apply(&op);
    }
}

proptest! {
    #[test]
    fn one_pass_is_enough(now in any_intent(), before in any_intent(), noise in any::<u64>()) {
        let mut kernel = kernel(&now, &before, noise);
        let (want, pods) = (desired(&now, &facts(noise & 1 != 0)), desired_pods(&now, true));
        run(&want, &pods, &mut kernel);
        let left = plan(&want, &pods, &kernel, false);
        prop_assert_eq!(left.ops, vec![]);
        prop_assert_eq!(kernel.addrs.keys().cloned().collect::<Vec<_>>(),
                        want.addrs.iter().cloned().collect::<Vec<_>>());
        prop_assert_eq!(&kernel.nexthops, &want.nexthops);
    }

    #[test]
    fn settling_removes_nothing(now in any_intent(), before in any_intent(), noise in any::<u64>()) {
        let kernel = kernel(&now, &before, noise & !(0xf << 22) & !(1 << 26));
        let (want, pods) = (desired(&now, &facts(false)), desired_pods(&now, true));
        for op in plan(&want, &pods, &kernel, true).ops {
            prop_assert!(!op.to_string().starts_with("delete"), "{}", op);
        }
    }

    #[test]
    fn nexthop_ids_stay(intent in any_intent(), gone in any::<prop::sample::Index>()) {
        let all = desired(&intent, &facts(false)).nexthops;
        let mut fewer = intent.clone();
        if !fewer.peers.is_empty() {
            let key = *fewer.peers.keys().nth(gone.index(fewer.peers.len())).unwrap();
            Arc::make_mut(&mut fewer.peers).remove(&key);
        }
        for (id, nexthop) in desired(&fewer, &facts(false)).nexthops {
            prop_assert_eq!(all.get(&id), Some(&nexthop));
        }
    }
}

#[test]
fn a_peer_cannot_take_what_is_not_of_the_network() {
    let peer = PeerIntent {
        underlay: "192.0.2.7".parse().unwrap(),
        blocks: vec!["0.0.0.0/0".parse().unwrap(), "192.0.2.0/24".parse().unwrap()],
    };
    let intent = Intent {
        ranges: vec!["10.32.0.0/12".parse().unwrap()],
        peers: Arc::new(BTreeMap::from([(NodeId([7; 16]), peer)])),
        ..Intent::default()
    };
    let want = desired(&intent, &facts(true));
    assert_eq!(want.routes.len(), 1, "only the blackhole: {:?}", want.routes);
    assert_eq!(want.conditions.len(), 2);
}

#[test]
fn an_address_gets_its_new_prefix_before_it_loses_the_old_one() {
    let range = |range: &str| {
        let intent = Intent {
            ranges: vec![range.parse().unwrap()],
            own: vec!["10.32.0.1".parse().unwrap()],
            ..Intent::default()
        };
        desired(&intent, &facts(true))
    };
    let (before, after) = (range("10.32.0.0/16"), range("10.32.0.0/12"));
    let mut kernel = Observed::default();
    run(&before, &DesiredPods::default(), &mut kernel);
    let ops: Vec<_> = plan(&after, &DesiredPods::default(), &kernel, false)
        .ops
        .into_iter()
        .filter(|op| matches!(op, Op::AddAddr(..) | Op::DelAddr(..)))
        .collect();
    assert!(matches!(ops[..], [Op::AddAddr(..), Op::DelAddr(..)]), "{ops:?}");
}

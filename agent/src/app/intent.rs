//! From ledger, mesh and leases to what the data plane shall do: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_ipam::ledger::Ledger;
use weft_proto::api::LeaseInfo;
use weft_proto::id::NodeId;
use weft_proto::names::pod_mac;

use super::peers::PeerBook;
use crate::dataplane::intent::{Intent, PeerIntent, PodIntent};

/// Peers and their blocks, and the owners whose address is not known.
pub(crate) fn peers(
    ledger: &Ledger,
    book: &PeerBook,
    me: NodeId,
    underlay_is_v6: bool,
) -> (BTreeMap<NodeId, PeerIntent>, BTreeSet<NodeId>) {
    let mut peers: BTreeMap<NodeId, PeerIntent> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for block in ledger.blocks().filter(|b| b.owner != me) {
        if let Some(peer) = peers.get_mut(&block.owner) {
            peer.blocks.push(block.prefix);
            continue;
        }
        match book.address(block.owner, underlay_is_v6) {
            Some(underlay) => {
                peers.insert(block.owner, PeerIntent { underlay, blocks: vec![block.prefix] });
            }
            None => {
                unknown.insert(block.owner);
            }
        }
    }
    (peers, unknown)
}

/// What the data plane shall do for a lease; nothing for one without an interface.
pub(crate) fn pod(lease: &LeaseInfo) -> Option<PodIntent> {
    let mac = pod_mac(*lease.addresses.first()?);
    (!lease.host_ifname.is_empty()).then(|| PodIntent {
        host_ifname: lease.host_ifname.clone(),
        mac,
        addresses: lease.addresses.clone(),
        port_mappings: lease.port_mappings.clone(),
    })
}

/// The whole intent.
pub(crate) fn intent<'a>(
    ledger: &Ledger,
    peers: impl Into<Arc<BTreeMap<NodeId, PeerIntent>>>,
    own: Vec<IpAddr>,
    leases: impl Iterator<Item = &'a LeaseInfo>,
    settling: bool,
) -> Intent {
    let pods = leases.filter_map(|lease| Some((lease.key.clone(), pod(lease)?))).collect();
    Intent { ranges: ledger.ranges().to_vec(), own, peers: peers.into(), pods, settling }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::attachment::AttachmentKey;
    use weft_proto::id::{ClusterId, RequestId};
    use weft_proto::ledger::{Command, Op};

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn ledger(blocks: &[u8]) -> Ledger {
        let mut ledger = Ledger::new();
        let ranges = vec!["10.32.0.0/24".parse().unwrap()];
        let mut ops = vec![Op::Found {
            cluster: ClusterId([7; 16]),
            ranges: ranges.clone(),
            quarantine_ms: 1,
        }];
        for n in 1..=3 {
            let (name, ranges) = (format!("n{n}"), ranges.clone());
            ops.push(Op::Join { node: node(n), name, ranges, replace: false });
        }
        let acquire = |n: &u8| Op::Acquire { node: node(*n), ipv6: false, count: 1 };
        ops.extend(blocks.iter().map(acquire));
        for (op, seq) in ops.into_iter().zip(1..) {
            let request = RequestId { node: node(9), session: 1, seq };
            ledger.apply(seq, Some(&Command { request, at_ms: seq, op })).unwrap();
        }
        ledger
    }

    #[test]
    fn peers_are_the_others_whose_address_is_known() {
        let ledger = ledger(&[1, 2, 2, 3]);
        let two: IpAddr = "192.0.2.2".parse().unwrap();
        let book = PeerBook::of([(node(2), vec!["2001:db8::2".parse().unwrap(), two])]);
        let (found, unknown) = peers(&ledger, &book, node(1), false);
        assert_eq!(unknown, BTreeSet::from([node(3)]), "the address of node 3 is not known");
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [node(2)]);
        assert_eq!(found[&node(2)].underlay, two);
        let blocks: Vec<_> = ledger.blocks_of(node(2)).map(|b| b.prefix).collect();
        assert_eq!(found[&node(2)].blocks, blocks);
        // Of the other family only one is known.
        let (found, unknown) = peers(&ledger, &book, node(3), true);
        assert_eq!((found.len(), unknown.is_empty()), (1, false));
        // Who owns nothing needs no route.
        let (found, unknown) = peers(&self::ledger(&[1, 2]), &book, node(1), false);
        assert_eq!((found.len(), unknown.is_empty()), (1, true));
    }

    /// Prints figures: what a change costs before the data plane hears of it.
    #[test]
    #[ignore = "a measurement: cargo test -- --ignored --nocapture of_five_thousand"]
    fn the_list_of_five_thousand() {
        let node = |n: u32| {
            let mut id = [7; 16];
            id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
            NodeId(id)
        };
        let mut ledger = Ledger::new();
        let ranges: Vec<ipnet::IpNet> = vec!["10.32.0.0/12".parse().unwrap()];
        let cluster = ClusterId([7; 16]);
        let mut ops =
            vec![(node(0), Op::Found { cluster, ranges: ranges.clone(), quarantine_ms: 1 })];
        for n in 0..5000 {
            let (name, ranges) = (format!("node-{n}.compute.internal"), ranges.clone());
            ops.push((node(n), Op::Join { node: node(n), name, ranges, replace: false }));
            ops.push((node(n), Op::Acquire { node: node(n), ipv6: false, count: 1 }));
        }
        for ((who, op), seq) in ops.into_iter().zip(1..) {
            let request = RequestId { node: who, session: 1, seq };
            ledger.apply(seq, Some(&Command { request, at_ms: seq, op })).unwrap();
        }
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0xc612_0000 + n));
        let book = PeerBook::of((0..5000).map(|n| (node(n), vec![address(n)])));
        let median = |what: &str, run: &dyn Fn()| {
            let mut times: Vec<_> = (0..21)
                .map(|_| {
                    let begun = std::time::Instant::now();
                    run();
                    begun.elapsed()
                })
                .collect();
            times.sort();
            println!("{what}: {:?}, at least {:?}", times[10], times[0]);
        };
        median("the ledger copied", &|| drop(std::hint::black_box(ledger.clone())));
        median("the list of peers", &|| {
            let (found, unknown) = peers(&ledger, &book, node(0), false);
            assert_eq!((found.len(), unknown.len()), (4999, 0));
        });
    }

    #[test]
    fn pods_are_the_leases_with_an_interface() {
        let lease = |id: &str, host: &str, address: &str| LeaseInfo {
            key: AttachmentKey { container_id: id.into(), ifname: "eth0".into() },
            addresses: vec![address.parse().unwrap()],
            pod: None,
            uid: None,
            since_ms: 0,
            host_ifname: host.into(),
            port_mappings: vec![],
        };
        let leases = [lease("a", "wefta", "10.32.0.2"), lease("weave:expose", "", "10.32.0.3")];
        let own = vec!["10.32.0.3".parse().unwrap()];
        let made = intent(&ledger(&[1]), BTreeMap::new(), own.clone(), leases.iter(), true);
        assert_eq!(made.pods.len(), 1);
        let pod = &made.pods[&leases[0].key];
        assert_eq!((pod.mac, pod.host_ifname.as_str()), (pod_mac(leases[0].addresses[0]), "wefta"));
        assert_eq!((made.own, made.settling, made.ranges.len()), (own, true, 1));
    }
}

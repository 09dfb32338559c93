//! From ledger, mesh and leases to what the data plane shall do: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_ipam::ledger::Ledger;
use weft_proto::api::LeaseInfo;
use weft_proto::id::NodeId;
use weft_proto::names::pod_mac;

use super::peers::PeerBook;
use crate::dataplane::intent::{Intent, PeerIntent, PodIntent};

/// Peers and their blocks. Also tells whether the address of every owner is known.
pub(super) fn peers(
    ledger: &Ledger,
    book: &PeerBook,
    me: NodeId,
    underlay_is_v6: bool,
) -> (BTreeMap<NodeId, PeerIntent>, bool) {
    let mut peers: BTreeMap<NodeId, PeerIntent> = BTreeMap::new();
    let mut all_known = true;
    for block in ledger.blocks().filter(|b| b.owner != me) {
        if let Some(peer) = peers.get_mut(&block.owner) {
            peer.blocks.push(block.prefix);
            continue;
        }
        match book.address(block.owner, underlay_is_v6) {
            Some(underlay) => {
                peers.insert(block.owner, PeerIntent { underlay, blocks: vec![block.prefix] });
            }
            None => all_known = false,
        }
    }
    (peers, all_known)
}

/// The whole intent.
pub(super) fn intent<'a>(
    ledger: &Ledger,
    peers: BTreeMap<NodeId, PeerIntent>,
    own: Vec<IpAddr>,
    leases: impl Iterator<Item = &'a LeaseInfo>,
    settling: bool,
) -> Intent {
    let pods = leases
        .filter(|lease| !lease.host_ifname.is_empty())
        .filter_map(|lease| {
            let mac = pod_mac(*lease.addresses.first()?);
            let pod = PodIntent {
                host_ifname: lease.host_ifname.clone(),
                mac,
                addresses: lease.addresses.clone(),
                port_mappings: lease.port_mappings.clone(),
            };
            Some((lease.key.clone(), pod))
        })
        .collect();
    Intent { ranges: ledger.ranges().to_vec(), own, peers, pods, settling }
}

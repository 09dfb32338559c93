//! Doors for `tests/fuzz`: what the kernel says, and what other programs have put
//! into it for the kernel to say.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_proto::names::{BRIDGE, NFT_TABLE, VXLAN};

use super::netlink::codec::{F_ACK, Writer, attrs, messages};
use super::nft::batch::{comment, parse_chain, parse_comment};
use super::nft::forward;
use super::{events, legacy, observe};

/// A datagram of netlink: messages, attributes nested to any depth, links,
/// neighbours, nexthops, and whether a notification concerns us.
pub fn netlink(bytes: &[u8]) {
    let names = BTreeMap::from([(1, "lo"), (2, BRIDGE), (3, VXLAN)]);
    let ranges: Vec<IpNet> = "10.32.0.0/12".parse().into_iter().collect();
    let mut seen = 0;
    for message in messages(bytes) {
        seen += super::netlink::codec::HEADER;
        assert!(seen <= bytes.len(), "every message takes room");
        let _ = observe::parse_link(message.payload);
        let _ = observe::parse_neigh(message.payload, &names);
        let _ = observe::parse_nexthop(message.payload, &names);
        let _ = events::route_matters(message.kind, message.payload, &[2, 3], &ranges);
        let _ = events::nft_matters(message.kind, message.payload, NFT_TABLE);
        nested(message.payload, 0);
        // What is read is written the same.
        let mut writer = Writer::default();
        writer.message(message.kind, message.flags | F_ACK, message.seq, |w| {
            w.raw(message.payload);
        });
        let again = messages(writer.bytes()).next().map(|m| (m.kind, m.seq, m.payload.to_vec()));
        assert_eq!(again, Some((message.kind, message.seq, message.payload.to_vec())));
    }
}

fn nested(bytes: &[u8], depth: usize) {
    let room: usize = attrs(bytes).map(|(_, value)| value.len() + 4).sum();
    // Padding after the last one is not there.
    assert!(room <= bytes.len(), "attributes take room");
    if depth < 4 {
        attrs(bytes).for_each(|(_, value)| nested(value, depth + 1));
    }
}

/// A message of nftables: chains, comments, and what others' rules do to packets.
pub fn nftables(bytes: &[u8]) {
    let ranges: Vec<IpNet> =
        ["10.32.0.0/12", "fd00::/48"].iter().filter_map(|text| text.parse().ok()).collect();
    if let Some((name, _)) = bytes.get(4..).and_then(parse_chain) {
        assert!(name.len() <= 3 * bytes.len());
    }
    if let Some(mark) = parse_comment(bytes) {
        let short = !mark.contains('\u{fffd}') && mark.len() < 255;
        assert!(!short || parse_comment(&comment(&mark)) == Some(mark));
    }
    if let Some(chain) = forward::base_chain(bytes) {
        let chains = [chain];
        let _ = forward::edits(&chains, &ranges, true);
        let _ = forward::conditions(forward::blockers(&chains, &ranges));
    }
    for kind in 0..16 {
        let _ = forward::matters(kind, bytes);
    }
    let (drops, passes) = (forward::drops_everything(bytes), forward::lets_pass(bytes, &ranges));
    assert!(!(drops && passes), "who drops everything lets nothing pass");
}

/// The table of iptables-legacy: entries, then where the policy is.
pub fn legacy_table(bytes: &[u8]) {
    if let Some((policy, entries)) = bytes.split_first_chunk::<2>() {
        let _ = legacy::drops(entries, usize::from(u16::from_be_bytes(*policy)));
    }
}

/// Inputs to start from: the links, a neighbour and a nexthop of a node.
pub fn links() -> Vec<Vec<u8>> {
    let mut links = Writer::default();
    links.message(16, 0, 1, |w| {
        w.raw(&[0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        w.attr_str(3, VXLAN);
        w.attr_u32(4, 1450);
        w.attr(1, &[2; 6]);
        w.attr_str(20, "weft1 abc eth0 10.32.0.5 default/web u-1");
        w.nest(18, |w| {
            w.attr_str(1, "vxlan");
            w.nest(2, |w| {
                w.attr_u8(25, 1);
                w.attr(15, &6784_u16.to_be_bytes());
            });
            w.attr_str(4, "bridge");
            w.nest(5, |w| w.attr_u8(33, 1));
        });
    });
    let mut others = Writer::default();
    others.message(28, 0, 2, |w| {
        w.raw(&[2, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 0, 0]);
        w.attr_ip(1, [10, 32, 0, 5].into());
        w.attr(2, &[2; 6]);
    });
    others.message(104, 0, 3, |w| {
        w.raw(&[2, 0, weft_proto::names::RT_PROTOCOL, 0, 0, 0, 0, 0]);
        w.attr_u32(1, 7);
        w.attr_u32(5, 3);
        w.attr_ip(6, [10, 32, 0, 5].into());
        w.attr_u16(7, 8);
        w.nest(8, |w| w.attr_ip(2, [192, 0, 2, 2].into()));
    });
    others.message(24, 0, 4, |w| {
        w.raw(&[2, 26, 0, 0, 254, weft_proto::names::RT_PROTOCOL, 0, 1, 0, 0, 0, 0]);
        w.attr_ip(1, [10, 32, 0, 0].into());
        w.attr_u32(4, 2);
    });
    vec![links.bytes().to_vec(), others.bytes().to_vec()]
}

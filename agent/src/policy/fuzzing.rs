//! Doors for `tests/fuzz`: objects of the API server, and what the kernel tells of
//! packets, connections and sets.

use serde_json::Value;

use super::objects::{ClusterPolicy, LocalPod, Namespace, NetworkPolicy, Node, Pod, PodRef};
use super::world::{Change, Settings, Unknown, World};
use super::{conntrack, nflog, nft};

/// Most problems told of one policy.
const PROBLEMS: usize = 17;

/// A message of the log group, and the packet in it.
pub fn logged_packet(bytes: &[u8]) {
    if let Some(packet) = nflog::decode(bytes) {
        assert_eq!(packet.from.is_ipv4(), packet.to.is_ipv4());
        assert!(packet.ports.is_none() || matches!(packet.protocol, 6 | 17 | 132));
        assert!(!nflog::protocol_name(packet.protocol).is_empty());
    }
    // What the packet itself says, whatever is around it.
    let _ = nflog::packet(nflog::Cause::Stray, bytes);
}

/// An entry of the connection table.
pub fn connection(bytes: &[u8]) {
    if let Some(entry) = conntrack::parse(bytes) {
        assert!(entry.flow.protocol.is_some() || !format!("{entry:?}").is_empty());
    }
}

/// Sets and elements of our own table.
pub fn sets(bytes: &[u8]) {
    if let Some((name, _)) = nft::kernel::parse_set(bytes) {
        assert!(name.len() <= 3 * bytes.len());
    }
    if let Some((key, _)) = nft::kernel::parse_element(bytes) {
        assert!(key.bytes.len() <= bytes.len());
    }
    let _ = nft::kernel::counter(bytes);
}

/// Objects of the API server, one JSON object a line, of any kind: all of them are
/// put into a world. Whatever they say, the world compiles, and the order in which
/// they came makes no difference.
pub fn objects(bytes: &[u8]) {
    let lines = || bytes.split(|b| *b == b'\n').take(32);
    let changes = |line: &[u8]| -> Vec<Change> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return Vec::new() };
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "Pod" => serde_json::from_value(value).map(|o: Pod| vec![Change::Pod(o)]),
            "Namespace" => {
                serde_json::from_value(value).map(|o: Namespace| vec![Change::Namespace(o)])
            }
            "Node" => serde_json::from_value(value).map(|o: Node| vec![Change::Node(o)]),
            "NetworkPolicy" => serde_json::from_value(value).map(|o: NetworkPolicy| {
                assert!(o.problems.len() <= PROBLEMS, "problems are bounded");
                vec![Change::Policy(o)]
            }),
            "ClusterNetworkPolicy" => serde_json::from_value(value).map(|o: ClusterPolicy| {
                assert!(o.problems.len() <= PROBLEMS, "problems are bounded");
                vec![Change::ClusterPolicy(o)]
            }),
            _ => Ok(Vec::new()),
        }
        .unwrap_or_default()
    };
    let local = || {
        Change::Local(LocalPod {
            id: "a".into(),
            addresses: Box::from([[10, 32, 0, 5].into()]),
            pod: Some(PodRef::new("shop", "web-0")),
            uid: None,
        })
    };
    let settings = Settings { unknown: Unknown::Deny, ipv4: true, ipv6: true };
    let mut world = World::new(settings);
    world.apply(local());
    for line in lines() {
        for change in changes(line) {
            world.apply(change);
        }
    }
    let at_once = std::iter::once(local()).chain(lines().flat_map(changes));
    let mut other = World::new(settings);
    other.apply_all(at_once.collect());
    assert!(world.state() == other.state(), "one by one or at once, the state is the same");
    assert!(world.locals().len() <= 1);
    let _ = world.problems();
}

//! What the agent itself has written, and a disk or somebody's hand has changed.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weft_agent::ipam_service::intents::Promise;
use weft_agent::ipam_service::journal::{Found, text};
use weft_agent::kube::cache::Cache;
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;

fn lease(id: &str) -> LeaseInfo {
    LeaseInfo {
        key: AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() },
        addresses: vec![[10, 32, 0, 5].into(), IpAddr::from([0xfd; 16])],
        pod: Some("default/web".to_owned()),
        uid: Some("u-1".to_owned()),
        since_ms: 1,
        host_ifname: "weft0123".to_owned(),
        port_mappings: Vec::new(),
    }
}

pub(super) fn journals() -> Vec<Vec<u8>> {
    let leases = [lease("a"), lease("b")];
    let gone = VecDeque::from([lease("c").key]);
    let freed = [([10, 32, 0, 9].into(), 5)];
    let mut whole = text(&gone, leases.iter(), &freed, false).unwrap_or_default();
    let rebuilding = text(&gone, leases.iter(), &[], true).unwrap_or_default();
    whole.extend(b"{\"del\":{\"container_id\":\"a\",\"ifname\":\"eth0\"}}\n");
    vec![whole, rebuilding]
}

/// The lease journal: what is found is written again and found again, and a line
/// that is damaged takes no other with it.
pub(super) fn journal(bytes: &[u8]) {
    let found = Found::parse(bytes);
    assert!(found.intact || found.damaged > 0 || bytes.windows(10).any(|w| w == b"rebuilding"));
    assert!(found.leases.len() <= bytes.len());
    for (key, lease) in &found.leases {
        assert_eq!(key, &lease.key);
    }
    let short = text(&found.gone, found.leases.values(), &found.freed, false).unwrap_or_default();
    let again = Found::parse(&short);
    assert!(again.intact && again.leases == found.leases && again.freed == found.freed);
    assert_eq!(again.gone, found.gone);
    // A lease after a damaged line is not lost.
    let mut more = bytes.to_vec();
    more.extend(b"\n{\n");
    let last = lease("the last");
    more.extend(text(&VecDeque::new(), std::iter::once(&last), &[], false).unwrap_or_default());
    let more = Found::parse(&more);
    assert!(!more.intact && more.leases.get(&last.key) == Some(&last));
}

type Peers = BTreeMap<NodeId, Vec<IpAddr>>;

fn again<T: Serialize + DeserializeOwned + PartialEq>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&value).unwrap_or_default();
        assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == value));
    }
}

pub(super) fn states() -> Vec<Vec<u8>> {
    let node = NodeId([1; 16]);
    let prefix = "10.32.0.0/29".parse();
    let promises: Vec<_> = prefix.into_iter().map(|prefix| Promise { prefix, to: node }).collect();
    let peers: Peers = BTreeMap::from([(node, vec![IpAddr::from([192, 0, 2, 1])])]);
    let cache = Cache {
        keys: vec!["secret".to_owned()],
        founder: Some("n1".to_owned()),
        contacts: vec!["192.0.2.1:6783".to_owned()],
        addresses: vec![IpAddr::from([192, 0, 2, 1])],
        had_node: [node].into(),
        ..Cache::default()
    };
    let json = |bytes: serde_json::Result<Vec<u8>>| bytes.unwrap_or_default();
    vec![
        json(serde_json::to_vec(&promises)),
        json(serde_json::to_vec(&peers)),
        json(serde_json::to_vec(&cache)),
    ]
}

/// `promises.json`, `peers.json`, `kubernetes.json`.
pub(super) fn state(bytes: &[u8]) {
    again::<Vec<Promise>>(bytes);
    again::<Peers>(bytes);
    again::<Cache>(bytes);
}

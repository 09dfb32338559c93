//! Doors for `tests/fuzz`: bytes of other nodes go in, what must hold is asserted.

use std::time::{Duration, Instant};

use foca::Codec;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{Hello, LedgerHead, NodeRecord, Rumor, SyncDigest};

use super::auth::{ClusterKeys, Facts, Role, judge, printable};
use super::net::Liveness;
use super::records::{Offer, Records};
use super::swim::{Input, Swim};
use super::swim_codec::SwimCodec;
use super::tls::raw_key;

const ME: NodeId = NodeId([1; 16]);
const SESSION: u64 = 1_700_000_000_000;

fn own() -> NodeRecord {
    NodeRecord {
        underlay: vec![[192, 0, 2, 1].into()],
        software: "0".to_owned(),
        ..NodeRecord::new(ME, "n1", SESSION)
    }
}

/// One packet of the membership protocol: what is read is written the same.
pub fn swim_packet(bytes: &[u8]) {
    let mut rest = bytes;
    if let Ok(header) = SwimCodec.decode_header(&mut rest) {
        let mut again = Vec::new();
        assert!(SwimCodec.encode_header(&header, &mut again).is_ok());
        assert_eq!(again, bytes[..bytes.len() - rest.len()], "the header is canonical");
    }
    let mut rest = bytes;
    if let Ok(member) = SwimCodec.decode_member(&mut rest) {
        let mut again = Vec::new();
        assert!(SwimCodec.encode_member(&member, &mut again).is_ok());
        assert_eq!(again, bytes[..bytes.len() - rest.len()], "the member is canonical");
    }
}

/// Pieces of (length u16, big-endian, bytes).
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        Some(piece)
    })
}

/// A conversation of the membership protocol, packet after packet. A packet
/// counts as sent by whom it names, for another is refused before.
pub fn swim_machine(bytes: &[u8]) {
    let mut swim = Swim::new(ME, SESSION, 7);
    let mut now = Instant::now();
    for packet in pieces(bytes).take(64) {
        let from = SwimCodec.decode_header(packet).map_or(NodeId([2; 16]), |h| h.src.node);
        if from == ME {
            continue;
        }
        let _ = swim.handle(now, Input::Packet(from, packet.to_vec()));
        now += Duration::from_millis(300);
        swim.tick(now);
        let mut sent = 0;
        while let Some((to, data)) = swim.poll() {
            assert_ne!(to, ME, "no packet goes to oneself");
            assert!(data.len() <= 1100, "a packet fits a datagram");
            sent += 1;
        }
        assert!(sent <= 256, "{sent} packets for one");
    }
    // Another life of this node can only be a former one.
    assert!(swim.liveness().get(&ME).is_none_or(|l| *l == Liveness::Dead));
}

/// Inputs to start from: what two nodes say to each other.
pub fn swim_conversation() -> Vec<Vec<u8>> {
    let mut now = Instant::now();
    let other = NodeId([2; 16]);
    let mut nodes = [Swim::new(ME, SESSION, 1), Swim::new(other, SESSION, 2)];
    let _ = nodes[1].handle(now, Input::Connected(ME, SESSION));
    let (mut heard, mut single) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        now += Duration::from_millis(50);
        for (at, from) in [(0, ME), (1, other)] {
            nodes[at].tick(now);
            let mut mail = Vec::new();
            while let Some((_, data)) = nodes[at].poll() {
                mail.push(data);
            }
            for data in mail {
                if at == 1 {
                    heard.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
                    heard.extend(&data);
                    single.push(data.clone());
                }
                let _ = nodes[1 - at].handle(now, Input::Packet(from, data));
            }
        }
    }
    single.truncate(12);
    single.push(heard);
    single
}

/// Records of others (the payload of a rumor): whatever they say, the own
/// record stays the own, and what is kept is valid and bounded.
pub fn records(bytes: &[u8]) {
    let frame = Frame { kind: 22, version: 1, payload: bytes.to_vec() };
    let Ok(rumor) = frame.decode::<Rumor>() else { return };
    let mut store = Records::new(own());
    for record in &rumor.records {
        let before = store.own().cloned();
        let told = store.offer(record.clone());
        let kept = store.get(record.node);
        match told {
            Offer::Fresh => assert_eq!(kept, Some(record)),
            Offer::Refused(why) => assert!(!why.is_empty()),
            Offer::Old | Offer::Overtaken => {}
        }
        let own = store.own();
        assert_eq!(
            own.map(|r| (&r.name, &r.underlay)),
            before.as_ref().map(|r| (&r.name, &r.underlay))
        );
        if told == Offer::Overtaken {
            let mine = own.map(|r| (r.incarnation, r.version));
            assert!(mine > Some((record.incarnation, record.version)), "the own record overtakes");
        }
    }
    assert!(store.len() <= rumor.records.len() + 1);
    for record in store.iter() {
        assert!(!record.name.contains(char::is_control) && record.name.len() <= 253);
        assert!(record.underlay.len() <= 8 && record.overlay.len() <= 8);
    }
    // Whoever has the same records wants none and is given none.
    let digest = SyncDigest { records: store.digest(), ledger: LedgerHead::default() };
    assert_eq!(store.compare(&digest), (Vec::new(), Vec::new()));
    // The order in which they came makes no difference to what stands of whom.
    let mut other = Records::new(own());
    for record in rumor.records.iter().rev() {
        other.offer(record.clone());
    }
    let others = |store: &Records| {
        let digest = store.digest().into_iter();
        digest.filter(|(node, ..)| *node != ME).collect::<Vec<_>>()
    };
    assert_eq!(others(&store), others(&other));
    store.remove(NodeId([2; 16]), SESSION);
    store.expire(NodeId([3; 16]));
    assert!(store.update(|r| r.leases += 1));
}

/// A greeting, judged; and the key of a TLS handshake. Without the key no
/// greeting has a proof that holds, and what is said of it is short and printable.
pub fn greeting(bytes: &[u8]) {
    let _ = raw_key(bytes);
    let frame = Frame { kind: 1, version: 1, payload: bytes.to_vec() };
    let Ok(peer) = frame.decode::<Hello>() else { return };
    let keys = ClusterKeys::new(&["not in any input".to_owned()]);
    for role in [Role::Client, Role::Server] {
        assert_eq!(keys.verify(role, &[9; 32], peer.node, &peer.proof), None);
    }
    let ranges = ["10.32.0.0/12", "fd00::/48"].map(str::parse);
    let ranges: Vec<_> = ranges.into_iter().flatten().collect();
    let me = Facts {
        node: ME,
        name: "n1",
        session: SESSION,
        cluster: peer.cluster.filter(|_| peer.session % 2 == 0),
        ranges: &ranges,
        namesake: (peer.name == "n2").then_some(NodeId([2; 16])),
    };
    match judge(&me, &peer) {
        Ok(()) => assert!(peer.node != ME && peer.name != "n1"),
        Err(failure) => {
            assert!(!failure.message.is_empty() && failure.message.len() < 8 << 10);
            assert!(!printable(&failure.message, 600).contains(char::is_control));
            assert_eq!(failure.message, printable(&failure.message, usize::MAX));
        }
    }
}

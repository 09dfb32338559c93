//! The ledger as bytes: frozen, and never trusted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{CLUSTER, Log, addresses, net, node};
use proptest::collection::vec;
use proptest::prelude::*;
use weft_ipam::Ledger;
use weft_ipam::ledger::SnapshotV1;
use weft_proto::frame::{Frame, Message};
use weft_proto::id::RequestId;
use weft_proto::ledger::{Command, Op};
use weft_proto::wire::limit_of;

/// A ledger with something in every field.
fn sample() -> Ledger {
    let mut log = Log::with_nodes(&["10.0.0.0/24", "fd00::/120"], 500, 3);
    log.acquire(1, 2);
    log.claim(2, "10.0.0.77");
    log.claim(3, "fd00::9");
    let give = Op::Transfer { from: node(1), to: node(2), prefix: net("10.0.0.4/32") };
    log.run(give);
    log.run(Op::Evict { node: node(3) });
    log.run(Op::Grow { range: net("10.0.0.0/23") });
    log.claim(2, "10.9.9.9");
    let request = RequestId { node: node(1), session: 77, seq: 3 };
    log.apply(Command {
        request,
        at_ms: 1_100,
        op: Op::Acquire { node: node(1), ipv6: true, count: 1 },
    });
    log.ledger
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const GOLDEN: &str = "\
    5746002201000000000002160cfb4c040107070707070707070707070707070707fbf40102000a00\
    00001701fd000000000000000000000000000000780102000a0000001801fd000000000000000000\
    000000000000780201010101010101010101010101010101056e6f64653102020202020202020202\
    02020202020202056e6f6465320307000a0000001e0005000a000004200108000a00000520000500\
    0a0000061f0005000a0000081d0005000a0000481d010601fd000000000000000000000000000080\
    7d000c0101fd0000000000000000000000000000087d03030303030303030303030303030303fbdc\
    0502010101010101010101010101010101014d000c0103020101fd00000000000000000000000000\
    00807d0ceeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee01000b0b01000201070707070707070707070707\
    07070707030107070707070707070707070707070707040107070707070707070707070707070707\
    05030101010101010101010101010101010102000a0000001d05000a0000081d0506030202020202\
    020202020202020202020201000a0000481d060703030303030303030303030303030303030101fd\
    0000000000000000000000000000087d0708030202020202020202020202020202020201000a0000\
    04200809000a000b0408000a0909092002000a0000001701fd000000000000000000000000000000\
    78187468652061646472657373206c696573206f757473696465";

#[test]
fn the_format_is_frozen() {
    let bytes = sample().encode();
    assert_eq!(
        hex(&bytes),
        GOLDEN,
        "the ledger's bytes, or what commands make of it, changed: members of the version before \
         would disagree. A changed layout is a new version beside this one; a changed rule needs \
         a new command (ARCHITECTURE.md, Versions)"
    );
    assert_eq!(Ledger::decode(&bytes), Ok(sample()));
    assert_eq!(Ledger::decode(&Ledger::new().encode()), Ok(Ledger::new()));
}

#[test]
fn the_frame_reader_knows_the_limit() {
    assert_eq!(limit_of(SnapshotV1::KIND), SnapshotV1::LIMIT);
}

fn snapshot() -> SnapshotV1 {
    Frame::from_bytes(&sample().encode()).unwrap().decode().unwrap()
}

fn refused(change: impl FnOnce(&mut SnapshotV1)) -> String {
    let mut snapshot = snapshot();
    change(&mut snapshot);
    let bytes = Frame::new(&snapshot).unwrap().to_bytes();
    Ledger::decode(&bytes).unwrap_err().to_string()
}

#[test]
fn what_is_no_ledger_is_refused() {
    let cases = [
        ("cluster", refused(|s| s.cluster = None)),
        ("held twice", refused(|s| s.owned[1].0 = net("10.0.0.0/31"))),
        ("order", refused(|s| s.owned.reverse())),
        ("owner", refused(|s| s.owned[0].1 = 9)),
        ("position", refused(|s| s.owned[0].2 = 99)),
        ("part of a range", refused(|s| s.owned[0].0 = net("9.0.0.0/29"))),
        ("part of a range", refused(|s| s.owned[0].0 = net("10.0.0.1/31"))),
        ("held twice", refused(|s| s.resting[0].0 = s.owned[0].0)),
        ("rested", refused(|s| s.resting[0].2 = 7)),
        ("overlap", refused(|s| s.ranges.insert(0, net("10.0.0.0/16")))),
        ("between", refused(|s| s.ranges[0] = net("10.0.0.0/31"))),
        ("two members", refused(|s| s.members[1].1 = s.members[0].1.clone())),
        ("order", refused(|s| s.members.reverse())),
        ("name", refused(|s| s.members[0].1 = String::new())),
        ("order", refused(|s| s.windows.reverse())),
        ("order", refused(|s| s.windows[1].done.reverse())),
        ("order", refused(|s| s.windows[0].done.iter_mut().for_each(|d| d.0 += 500))),
    ];
    for (place, (word, message)) in cases.iter().enumerate() {
        assert!(message.contains(word) || message.contains("order"), "case {place}: {message}");
    }
}

#[test]
fn a_large_cluster_fits() {
    let mut log = Log::founded(&["10.0.0.0/8"], 0);
    let mut position = log.ledger.head().index;
    for number in 0..5_000u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let node = weft_proto::id::NodeId(id);
        let ranges = log.ledger.ranges().to_vec();
        let join =
            Op::Join { node, name: format!("node-{number}.example.org"), ranges, replace: false };
        let acquire = Op::Acquire { node, ipv6: false, count: 16 };
        // Looking for room apart from all others is the slow part: one node in four.
        let wanted = if number % 4 == 0 { 2 } else { 1 };
        for (op, seq) in [join, acquire].into_iter().take(wanted).zip(1..) {
            position += 1;
            let request = RequestId { node, session: 1, seq };
            log.ledger.apply(position, Some(&Command { request, at_ms: 1, op })).unwrap();
        }
    }
    assert_eq!(log.ledger.blocks().count(), 20_000);
    let bytes = log.ledger.encode();
    assert!(bytes.len() < 2 << 20, "{} bytes", bytes.len());
    assert_eq!(Ledger::decode(&bytes).unwrap(), log.ledger);
}

#[test]
fn stored_answers_give_way_to_the_limit() {
    let mut log = Log::with_nodes(&["10.0.0.0/8"], 0, 1);
    log.acquire(1, 3);
    let ledger = &mut log.ledger;
    let name = "a name with blanks ".repeat(13);
    for asker in 0..600u16 {
        let mut id = [9; 16];
        id[..2].copy_from_slice(&asker.to_be_bytes());
        for seq in 1..=64 {
            let request = RequestId { node: weft_proto::id::NodeId(id), session: 1, seq };
            let op = Op::Join { node: node(1), name: name.clone(), ranges: vec![], replace: false };
            let position = ledger.head().index + 1;
            ledger.apply(position, Some(&Command { request, at_ms: 1, op })).unwrap();
        }
    }
    let restored = Ledger::decode(&ledger.encode()).unwrap();
    assert_eq!(restored.blocks().collect::<Vec<_>>(), ledger.blocks().collect::<Vec<_>>());
    assert_eq!(restored.cluster(), Some(CLUSTER));
}

/// What must hold of any ledger, seen from outside.
fn sound(ledger: &Ledger) {
    let mut seen = std::collections::BTreeSet::new();
    let blocks = ledger.blocks().map(|block| {
        assert!(ledger.member(block.owner).is_some());
        assert!(block.epoch >= 1 && block.epoch <= ledger.head().index);
        block.prefix
    });
    for prefix in blocks.chain(ledger.quarantine().map(|resting| resting.prefix)) {
        assert_eq!(prefix, prefix.trunc());
        assert!(ledger.ranges().iter().any(|range| range.contains(&prefix)));
        if prefix.max_prefix_len() - prefix.prefix_len() <= 12 {
            assert!(addresses(&prefix).into_iter().all(|address| seen.insert(address)));
        }
    }
    assert_eq!(Ledger::decode(&ledger.encode()).as_ref(), Ok(ledger));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn changed_bytes_never_make_a_wrong_ledger(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample().encode();
        for (index, byte) in changes {
            let place = index.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(ledger) = Ledger::decode(&bytes) {
            sound(&ledger);
        }
    }

    #[test]
    fn garbage_is_refused(payload in vec(any::<u8>(), 0..300)) {
        prop_assert!(Ledger::decode(&payload).is_err());
        let frame = Frame { kind: SnapshotV1::KIND, version: SnapshotV1::VERSION, payload };
        if let Ok(ledger) = Ledger::decode(&frame.to_bytes()) {
            sound(&ledger);
        }
    }
}

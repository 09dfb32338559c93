//! The ledger: snapshots, and commands that peers say were agreed on.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_ipam::Ledger;
use weft_proto::frame::Frame;
use weft_proto::id::{ClusterId, NodeId, RequestId};
use weft_proto::ledger::{Command, Op};
use weft_proto::wire::v1::LedgerDelta;

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A founded ledger with some history, and the commands that made it.
fn history() -> (Ledger, Vec<Command>) {
    let net = |text: &str| text.parse::<IpNet>().ok();
    let ranges: Vec<IpNet> =
        [net("10.32.0.0/22"), net("fd00::/120")].into_iter().flatten().collect();
    let node = |n: u8| NodeId([n; 16]);
    let join = |n: u8| Op::Join {
        node: node(n),
        name: format!("n{n}"),
        ranges: ranges.clone(),
        replace: false,
    };
    let ops = vec![
        Op::Found { cluster: CLUSTER, ranges: ranges.clone(), quarantine_ms: 1000 },
        join(1),
        join(2),
        join(3),
        Op::Acquire { node: node(1), ipv6: false, count: 2 },
        Op::Acquire { node: node(2), ipv6: true, count: 1 },
        Op::Claim { node: node(3), address: [10, 32, 3, 7].into() },
        Op::Transfer {
            from: node(1),
            to: node(2),
            prefix: net("10.32.0.0/29").unwrap_or_default(),
        },
        Op::Release { node: node(2), prefixes: net("10.32.0.4/30").into_iter().collect() },
        Op::Evict { node: node(3) },
        Op::Grow { range: net("10.32.0.0/21").unwrap_or_default() },
    ];
    let mut ledger = Ledger::new();
    let commands: Vec<Command> = (1..)
        .zip(ops)
        .map(|(seq, op)| Command {
            request: RequestId { node: node(1), session: 1, seq },
            at_ms: 1000 + seq,
            op,
        })
        .collect();
    for (at, command) in (1..).zip(&commands) {
        let applied = ledger.apply(at, Some(command));
        assert!(applied.is_ok(), "{applied:?}");
    }
    (ledger, commands)
}

/// What holds of every ledger, however it came about.
fn check(ledger: &Ledger) {
    let blocks: Vec<_> = ledger.blocks().collect();
    let mut ends: BTreeMap<bool, u128> = BTreeMap::new();
    for block in &blocks {
        assert!(ledger.member(block.owner).is_some(), "{} is owned by a stranger", block.prefix);
        assert!(ledger.ranges().iter().any(|range| range.contains(&block.prefix)));
        assert!(block.epoch <= ledger.head().index, "an epoch of the future");
        let (v6, first, last) = match block.prefix {
            IpNet::V4(net) => {
                (false, net.network().to_bits().into(), net.broadcast().to_bits().into())
            }
            IpNet::V6(net) => (true, net.network().to_bits(), net.broadcast().to_bits()),
        };
        let first: u128 = first;
        let last: u128 = last;
        assert!(ends.get(&v6).is_none_or(|end| first > *end), "{} overlaps", block.prefix);
        ends.insert(v6, last);
    }
    let mut names: Vec<_> = ledger.members().map(|(_, member)| &member.name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "two members of one name");
    for v6 in [false, true] {
        let _ = (ledger.unowned(v6), ledger.quarantined(v6));
    }
    let bytes = ledger.encode();
    match Ledger::decode(&bytes) {
        Ok(again) => assert_eq!(again.encode(), bytes, "equal ledgers have equal bytes"),
        Err(e) => unreachable!("a ledger does not survive its own snapshot: {e}"),
    }
}

pub(super) fn snapshots() -> Vec<Vec<u8>> {
    let (ledger, _) = history();
    // With and without the frame: the mutator need not keep the header right.
    let bytes = ledger.encode();
    let payload = Frame::from_bytes(&bytes).map(|frame| frame.payload).unwrap_or_default();
    vec![payload, Ledger::new().encode(), bytes]
}

/// A snapshot, or the payload of one: it is refused by name, or it is a ledger in
/// good order that goes on from there.
pub(super) fn snapshot(bytes: &[u8]) {
    let framed = Frame { kind: 34, version: 1, payload: bytes.to_vec() }.to_bytes();
    for bytes in [bytes, &framed] {
        match Ledger::decode(bytes) {
            Ok(mut ledger) => {
                check(&ledger);
                let op = Op::Acquire { node: NodeId([1; 16]), ipv6: false, count: 1 };
                let request = RequestId { node: NodeId([9; 16]), session: 9, seq: 9 };
                let head = ledger.head().index;
                let command = Command { request, at_ms: 5, op };
                if head < u64::MAX && ledger.apply(head + 1, Some(&command)).is_ok() {
                    check(&ledger);
                }
            }
            Err(e) => assert!(e.to_string().starts_with("ledger snapshot")),
        }
    }
}

pub(super) fn deltas() -> Vec<Vec<u8>> {
    let (_, commands) = history();
    let entries: Vec<_> = commands.into_iter().map(Some).collect();
    let delta = |first, entries: &[Option<Command>]| {
        let delta = LedgerDelta { cluster: Some(CLUSTER), first, entries: entries.to_vec() };
        Frame::new(&delta).map(|frame| frame.payload).unwrap_or_default()
    };
    let mut out: Vec<_> = (4..entries.len()).map(|n| delta(12, &entries[n..=n])).collect();
    out.push(delta(12, &entries));
    out
}

/// Commands after a history: whatever is asked, the ledger stays in good order, and
/// a replica that is told the same is the same.
pub(super) fn delta(bytes: &[u8]) {
    let frame = Frame { kind: 32, version: 1, payload: bytes.to_vec() };
    let Ok(delta) = frame.decode::<LedgerDelta>() else { return };
    let (mut ledger, _) = history();
    let mut replica = ledger.clone();
    for entry in delta.entries.iter().take(64) {
        let at = ledger.head().index + 1;
        assert!(ledger.apply(at + 1, entry.as_ref()).is_err(), "a gap is refused");
        let (first, second) = (ledger.apply(at, entry.as_ref()), replica.apply(at, entry.as_ref()));
        assert!(first.is_ok());
        assert_eq!(first.ok(), second.ok());
    }
    check(&ledger);
    assert_eq!(ledger.encode(), replica.encode());
}

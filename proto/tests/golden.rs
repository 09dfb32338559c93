//! Golden bytes: one value of every message and every ledger type. A change
//! here is a change of the wire or of the log on disk, and breaks clusters.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Debug;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use weft_proto::frame::{Frame, FrameError, HEADER, Header, MAX_PAYLOAD, Message};
use weft_proto::id::{ClusterId, FoundingId, NodeId, RaftId, RequestId};
use weft_proto::ledger::{Block, Command, Op, Outcome, Refusal};
use weft_proto::wire::v1::*;
use weft_proto::wire::{KINDS, limit_of};

const WHAT_TO_DO: &str = "nodes of the version before send and expect the old bytes. Leave the \
    struct and its line as they are; put the changed one beside it with the next version number \
    (proto/src/wire/mod.rs), a line of its own, and a reader for both (ARCHITECTURE.md, Versions)";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets() -> Vec<IpNet> {
    vec![net("10.32.0.0/12"), net("fd00::/64")]
}

const NODE: NodeId = NodeId([0x11; 16]);
const OTHER: NodeId = NodeId([0x22; 16]);
const CLUSTER: ClusterId = ClusterId([0x33; 16]);
const FOUNDING: FoundingId = FoundingId([0x44; 16]);
const SEAT: RaftId = RaftId([0x55; 16]);
const REQUEST: RequestId = RequestId { node: NODE, session: 1_700_000_000_000, seq: 300 };

fn hello() -> Hello {
    Hello {
        node: NODE,
        name: "a".into(),
        cluster: Some(CLUSTER),
        ranges: nets(),
        session: 1_700_000_000_000,
        software: "0.1.0".into(),
        observed: "192.0.2.1:6783".parse().unwrap(),
        proof: [0x66; 32],
    }
}

fn record() -> NodeRecord {
    NodeRecord {
        node: NODE,
        name: "a".into(),
        incarnation: 1_700_000_000_000,
        version: 2,
        underlay: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        mesh_port: 6783,
        overlay: vec!["10.32.0.1".parse().unwrap()],
        raft_id: Some(SEAT),
        ledger_index: 70_000,
        free4: 3,
        free6: 251,
        leases: 7,
        software: "0.1.0".into(),
        mtu: 1450,
    }
}

fn head() -> LedgerHead {
    LedgerHead { cluster: Some(CLUSTER), index: 9 }
}

fn block() -> Block {
    Block { prefix: net("10.32.0.64/26"), owner: NODE, epoch: 12 }
}

fn ops() -> Vec<Op> {
    vec![
        Op::Found { cluster: CLUSTER, ranges: nets(), quarantine_ms: 600_000 },
        Op::Join { node: NODE, name: "a".into(), ranges: nets(), replace: true },
        Op::Acquire { node: NODE, ipv6: true, count: 2 },
        Op::Claim { node: NODE, address: "10.32.0.9".parse().unwrap() },
        Op::Release { node: NODE, prefixes: vec![net("10.32.0.64/26")] },
        Op::Transfer { from: NODE, to: OTHER, prefix: net("fd00::8/125") },
        Op::Evict { node: OTHER },
        Op::Grow { range: net("10.0.0.0/8") },
    ]
}

fn outcomes() -> Vec<Outcome> {
    let prefix = net("10.32.0.9/32");
    let refusals = [
        Refusal::AlreadyFounded { cluster: CLUSTER },
        Refusal::NotFounded,
        Refusal::RangeDiffers { cluster: nets(), given: vec![net("10.0.0.0/8")] },
        Refusal::NameTaken { name: "a".into(), holder: OTHER },
        Refusal::UnknownNode { node: OTHER },
        Refusal::Exhausted { ranges: nets() },
        Refusal::NotOwner { prefix, owner: Some(OTHER) },
        Refusal::Quarantined { prefix, until_ms: 1_700_000_000_000 },
        Refusal::OutOfRange { prefix, ranges: nets(), why: "w".into() },
        Refusal::Stale(REQUEST),
        Refusal::Bad("b".into()),
    ];
    let done =
        [Outcome::Done, Outcome::Joined { cluster: CLUSTER }, Outcome::Granted(vec![block()])];
    done.into_iter().chain(refusals.map(Outcome::Refused)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Collects (name, bytes) of messages and checks that each reads back.
#[derive(Default)]
struct Golden(Vec<(String, String)>);

impl Golden {
    fn add<M: Message + PartialEq + Debug>(&mut self, name: &str, message: &M) {
        let bytes = Frame::new(message).unwrap().to_bytes();
        let back: M = Frame::from_bytes(&bytes).unwrap().decode().unwrap();
        assert_eq!(&back, message);
        assert!(KINDS.contains(&(M::KIND, M::VERSION, M::NAME)));
        self.0.push((name.to_owned(), hex(&bytes)));
    }
}

fn all() -> Vec<(String, String)> {
    let mut golden = Golden::default();
    golden.add("hello", &hello());
    golden.add("hello_ack", &HelloAck(Hello { cluster: None, ..hello() }));
    golden.add("failure", &Failure { code: Failure::RANGE, message: "m".into() });
    golden.add("ack", &Ack);
    golden.add("swim", &Swim(vec![1, 2, 3]));
    golden.add("sync_digest", &SyncDigest { records: vec![(NODE, 5, 2)], ledger: head() });
    let reply = SyncReply { records: vec![record()], wanted: vec![OTHER], ledger: head() };
    golden.add("sync_reply", &reply);
    golden.add("rumor", &Rumor { records: vec![record()] });
    golden.add("sync_summary", &SyncSummary { root: 0x0102_0304_0506_0708, ledger: head() });
    golden.add("sync_leaves", &SyncLeaves { leaves: vec![1, u64::MAX], ledger: head() });
    let standing = Standing { node: OTHER, session: 5, rejoins: 1, incarnation: 300, down: true };
    let part = SyncPart {
        of: 16,
        leaves: vec![0, 15],
        records: vec![(NODE, 5, 2)],
        standings: vec![standing],
        alive: 3,
        ledger: head(),
    };
    golden.add("sync_part", &part);
    let reply = SyncPartReply {
        records: vec![record()],
        wanted: vec![OTHER],
        standings: vec![standing],
        alive: 4,
        ledger: head(),
    };
    golden.add("sync_part_reply", &reply);
    golden.add("ledger_head", &head());
    golden.add("ledger_pull", &LedgerPull { after: LedgerHead::default() });
    let command =
        Command { request: REQUEST, at_ms: 1_700_000_000_001, op: Op::Evict { node: OTHER } };
    let entries = vec![None, Some(command)];
    golden.add("ledger_delta", &LedgerDelta { cluster: Some(CLUSTER), first: 10, entries });
    golden.add("ledger_snapshot", &LedgerSnapshot { head: head(), state: vec![9, 8] });
    let raft =
        Raft { founding: FOUNDING, from: SEAT, to: RaftId([0x77; 16]), kind: 2, body: vec![1] };
    golden.add("raft", &raft);
    golden.add("raft_reply", &RaftReply { body: vec![4, 5] });
    golden.add("founding_ask", &FoundingAsk { founding: FOUNDING, members: vec!["n".into()] });
    let state = FoundingState {
        cluster: None,
        initialised: true,
        founding: FOUNDING,
        members: vec!["n".into()],
        raft_id: Some(SEAT),
    };
    golden.add("founding_state", &state);
    for (place, op) in ops().into_iter().enumerate() {
        golden.add(&format!("propose_{place}"), &Propose { request: REQUEST, op, hops: 1 });
    }
    for (place, outcome) in outcomes().into_iter().enumerate() {
        golden.add(&format!("propose_reply_{place}"), &ProposeReply { index: 13, outcome });
    }
    let address = Some("10.32.0.9".parse().unwrap());
    golden.add("donate", &Donate { ipv6: false, address });
    golden.add("donate_given", &DonateReply::Given { prefix: net("fd00::8/125"), index: 14 });
    golden.add("donate_nothing", &DonateReply::Nothing { why: "w".into() });
    golden.add("echo", &Echo(vec![0xff]));
    golden.0
}

#[test]
fn bytes_are_frozen() {
    let listed: Vec<_> = include_str!("golden.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, bytes)| (name.to_owned(), bytes.to_owned()))
        .collect();
    let all = all();
    for (now, then) in all.iter().zip(&listed) {
        assert_eq!(now, then, "the bytes of `{}` changed: {WHAT_TO_DO}", then.0);
    }
    let names = |list: &[(String, String)]| list.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&all), names(&listed), "a line for each, in order: {WHAT_TO_DO}");
}

#[test]
fn every_kind_has_a_golden_value() {
    let shown: BTreeSet<String> =
        all().iter().map(|(_, bytes)| bytes.get(4..10).unwrap().to_owned()).collect();
    for (kind, version, name) in KINDS {
        let head = format!("{kind:04x}{version:02x}");
        assert!(shown.contains(&head), "{name} has no golden value");
    }
}

#[test]
fn kinds_are_unique() {
    let kinds: BTreeSet<_> = KINDS.iter().map(|(kind, version, _)| (kind, version)).collect();
    assert_eq!(kinds.len(), KINDS.len());
    for (kind, _, name) in KINDS {
        // One kind, one meaning, whatever the version.
        let names: BTreeSet<_> = KINDS
            .iter()
            .filter(|(other, ..)| other == kind)
            .map(|(_, _, name)| name.rsplit("::").next())
            .collect();
        assert_eq!(names.len(), 1, "{name}");
        assert_ne!(*kind, 34, "34 is the ledger snapshot of weft-ipam");
        assert!(limit_of(*kind) <= MAX_PAYLOAD);
    }
}

#[test]
fn an_oversized_header_is_refused_before_anything_is_allocated() {
    for (kind, length) in [(1u16, 4097u32), (4, 17), (33, u32::MAX), (999, 70_000)] {
        let mut head = [0; HEADER];
        head[..2].copy_from_slice(b"WF");
        head[2..4].copy_from_slice(&kind.to_be_bytes());
        head[4] = 1;
        head[8..].copy_from_slice(&length.to_be_bytes());
        let refused = FrameError::TooLong { kind, length: length as usize, limit: limit_of(kind) };
        assert_eq!(Header::parse(&head), Err(refused.clone()));
        assert_eq!(Frame::from_bytes(&head), Err(refused));
    }
}

#[test]
fn a_claimed_length_inside_a_payload_allocates_nothing() {
    // A vector of 2^60 bytes in a payload of ten.
    let payload = vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10, 7];
    let frame = Frame { kind: Swim::KIND, version: Swim::VERSION, payload };
    assert!(matches!(frame.decode::<Swim>(), Err(FrameError::Payload { .. })));
}

/// Decodes a payload as everything there is; what is read must write back.
fn decode_all(payload: &[u8]) {
    fn one<M: Message + PartialEq + Debug>(payload: &[u8]) {
        let frame = Frame { kind: M::KIND, version: M::VERSION, payload: payload.to_vec() };
        if let Ok(message) = frame.decode::<M>() {
            let again = Frame::new(&message).unwrap();
            assert_eq!(again.decode::<M>(), Ok(message));
        }
    }
    one::<Hello>(payload);
    one::<HelloAck>(payload);
    one::<Failure>(payload);
    one::<Ack>(payload);
    one::<Swim>(payload);
    one::<SyncDigest>(payload);
    one::<SyncReply>(payload);
    one::<Rumor>(payload);
    one::<SyncSummary>(payload);
    one::<SyncLeaves>(payload);
    one::<SyncPart>(payload);
    one::<SyncPartReply>(payload);
    one::<LedgerHead>(payload);
    one::<LedgerPull>(payload);
    one::<LedgerDelta>(payload);
    one::<LedgerSnapshot>(payload);
    one::<Raft>(payload);
    one::<RaftReply>(payload);
    one::<FoundingAsk>(payload);
    one::<FoundingState>(payload);
    one::<Propose>(payload);
    one::<ProposeReply>(payload);
    one::<Donate>(payload);
    one::<DonateReply>(payload);
    one::<Echo>(payload);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Frame::from_bytes(&bytes);
        decode_all(&bytes);
        let mut framed = b"WF\0".to_vec();
        framed.extend_from_slice(&bytes);
        let _ = Frame::from_bytes(&framed);
    }

    #[test]
    fn changed_messages_never_panic(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let golden = all();
        let (_, text) = &golden[which.index(golden.len())];
        let mut bytes: Vec<u8> = (0..text.len() / 2)
            .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
            .collect();
        for (index, byte) in changes {
            let place = index.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Frame::from_bytes(&bytes);
        if bytes.len() > HEADER {
            decode_all(&bytes[HEADER..]);
        }
    }
}

#[test]
fn a_delta_of_empty_entries_does_not_fill_the_memory() {
    // No cluster, first entry 0, four million entries of one byte each.
    let mut payload = vec![0, 0, 252];
    payload.extend(4_000_000_u32.to_le_bytes());
    payload.resize(payload.len() + 4_000_000, 0);
    let frame = Frame { kind: 32, version: 1, payload };
    let error = frame.decode::<LedgerDelta>().unwrap_err();
    assert!(error.to_string().contains("65536 entries"), "{error}");
    let entries = vec![None; LedgerDelta::MOST];
    let most = LedgerDelta { cluster: None, first: 1, entries };
    assert_eq!(Frame::new(&most).unwrap().decode::<LedgerDelta>(), Ok(most));
}

//! The meaning of each command, one by one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{CLUSTER, Log, granted, ip, net, nets, node};
use weft_ipam::Ledger;
use weft_proto::id::{ClusterId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome, Refusal};

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn positions_must_follow_each_other() {
    let mut ledger = Ledger::new();
    assert_eq!(ledger.apply(1, None), Ok(Outcome::Done));
    let before = ledger.clone();
    let gap = ledger.apply(3, None).unwrap_err();
    assert_eq!((gap.expected, gap.got), (2, 3));
    assert!(ledger.apply(1, None).is_err());
    assert_eq!(ledger, before);
    assert_eq!(ledger.head().index, 1);
}

#[test]
fn founding_once() {
    let mut log = Log::founded(&["fd00::/120", "10.0.0.0/24"], 0);
    assert_eq!(log.ledger.ranges(), nets(&["10.0.0.0/24", "fd00::/120"]));
    let again = |cluster| Op::Found { cluster, ranges: nets(&["10.9.0.0/16"]), quarantine_ms: 9 };
    assert_eq!(log.run(again(CLUSTER)), Outcome::Done);
    let refusal = refused(log.run(again(ClusterId([8; 16]))));
    assert_eq!(refusal, Refusal::AlreadyFounded { cluster: CLUSTER });
    assert_eq!((log.ledger.cluster(), log.ledger.quarantine_ms()), (Some(CLUSTER), 0));
}

#[test]
fn bad_ranges_are_refused() {
    for bad in
        [&["10.0.0.1/24"][..], &[], &["10.0.0.0/31"], &["10.0.0.0/8", "10.1.0.0/16"], &["::/0"]]
    {
        let mut ledger = Ledger::new();
        let op = Op::Found { cluster: CLUSTER, ranges: nets(bad), quarantine_ms: 0 };
        let request = RequestId { node: node(1), session: 1, seq: 1 };
        let outcome = ledger.apply(1, Some(&Command { request, at_ms: 0, op })).unwrap();
        assert!(matches!(outcome, Outcome::Refused(Refusal::Bad(_))), "{bad:?}: {outcome:?}");
        assert_eq!(ledger.cluster(), None);
    }
}

#[test]
fn nothing_before_founding() {
    let mut ledger = Ledger::new();
    let request = RequestId { node: node(1), session: 1, seq: 1 };
    let op = Op::Acquire { node: node(1), ipv6: false, count: 1 };
    let outcome = ledger.apply(1, Some(&Command { request, at_ms: 5, op }));
    assert_eq!(outcome, Ok(Outcome::Refused(Refusal::NotFounded)));
}

#[test]
fn joining() {
    let mut log = Log::founded(&["10.0.0.0/24"], 0);
    let join = |number, name: &str, range: &str, replace| Op::Join {
        node: node(number),
        name: name.into(),
        ranges: nets(&[range]),
        replace,
    };
    let joined = Outcome::Joined { cluster: CLUSTER };
    assert_eq!(log.run(join(1, "a", "10.0.0.0/24", false)), joined);
    assert_eq!(log.ledger.member(node(1)).unwrap().joined_at, 2);
    assert_eq!(log.run(join(1, "a", "10.0.0.0/24", false)), joined);
    assert_eq!(log.ledger.member(node(1)).unwrap().joined_at, 2);

    let refusal = refused(log.run(join(2, "b", "10.0.0.0/16", false)));
    assert!(matches!(refusal, Refusal::RangeDiffers { .. }), "{refusal}");
    let refusal = refused(log.run(join(2, "a", "10.0.0.0/24", false)));
    assert_eq!(refusal, Refusal::NameTaken { name: "a".into(), holder: node(1) });
    assert!(matches!(refused(log.run(join(2, "", "10.0.0.0/24", false))), Refusal::Bad(_)));

    // The present holder is evicted first, and its blocks are gone.
    log.acquire(1, 1);
    assert_eq!(log.run(join(2, "a", "10.0.0.0/24", true)), joined);
    assert_eq!(log.ledger.member(node(1)), None);
    assert_eq!(log.ledger.node_by_name("a"), Some(node(2)));
    assert_eq!(log.ledger.blocks().count(), 0);

    // A node may change its name.
    assert_eq!(log.run(join(2, "c", "10.0.0.0/24", false)), joined);
    assert_eq!((log.ledger.node_by_name("a"), log.ledger.members().count()), (None, 1));
}

#[test]
fn blocks_spread_and_grow_side_by_side() {
    let mut log = Log::with_nodes(&["10.32.0.0/12"], 0, 3);
    assert_eq!(granted(&log.acquire(1, 1)), ["10.32.0.0/26"]);
    assert_eq!(granted(&log.acquire(2, 1)), ["10.40.0.0/26"]);
    assert_eq!(granted(&log.acquire(3, 1)), ["10.36.0.0/26"]);
    assert_eq!(granted(&log.acquire(1, 3)), ["10.32.0.64/26", "10.32.0.128/26", "10.32.0.192/26"]);
    let own: Vec<_> = log.ledger.blocks_of(node(1)).map(|b| b.epoch).collect();
    assert_eq!(own, [5, 8, 8, 8]);
    assert_eq!(log.ledger.owner_of(ip("10.40.0.9")).unwrap().owner, node(2));
    assert_eq!(log.ledger.unowned(false), (1 << 20) - 6 * 64);
}

#[test]
fn acquire_takes_fragments_last_and_never_useless_ones() {
    let mut log = Log::with_nodes(&["10.0.0.0/30"], 0, 2);
    // Blocks are single addresses; the first and last are of no use.
    assert_eq!(granted(&log.acquire(1, 9)), ["10.0.0.1/32", "10.0.0.2/32"]);
    assert!(matches!(refused(log.acquire(2, 1)), Refusal::Exhausted { .. }));

    let mut log = Log::with_nodes(&["10.0.0.0/28"], 0, 2);
    assert!(matches!(refused(log.acquire(1, 0)), Refusal::Bad(_)));
    assert_eq!(granted(&log.acquire(1, 256)).len(), 8);
    let prefixes = nets(&["10.0.0.5/32", "10.0.0.9/32"]);
    log.run(Op::Release { node: node(1), prefixes });
    assert_eq!(granted(&log.acquire(2, 5)), ["10.0.0.5/32"]);
}

#[test]
fn claims() {
    let mut log = Log::with_nodes(&["10.0.0.0/24"], 0, 2);
    assert_eq!(granted(&log.claim(1, "10.0.0.13")), ["10.0.0.8/29"]);
    assert_eq!(granted(&log.claim(1, "10.0.0.12")), ["10.0.0.8/29"]);
    assert_eq!(
        refused(log.claim(2, "10.0.0.12")),
        Refusal::NotOwner { prefix: net("10.0.0.12/32"), owner: Some(node(1)) }
    );
    let parts = nets(&["10.0.0.12/30", "10.0.0.10/32"]);
    assert_eq!(log.run(Op::Release { node: node(1), prefixes: parts }), Outcome::Done);
    assert_eq!(granted(&log.claim(2, "10.0.0.13")), ["10.0.0.12/30"]);
    assert_eq!(granted(&log.claim(2, "10.0.0.10")), ["10.0.0.10/32"]);
    for outside in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1"] {
        assert!(matches!(refused(log.claim(1, outside)), Refusal::OutOfRange { .. }));
    }
    assert_eq!(refused(log.claim(9, "10.0.0.99")), Refusal::UnknownNode { node: node(9) });
}

#[test]
fn transfer_splits_and_keeps_epochs() {
    let mut log = Log::with_nodes(&["10.0.0.0/24"], 0, 2);
    log.claim(1, "10.0.0.13");
    let epoch = log.ledger.head().index;
    let give = |from, to, prefix: &str| Op::Transfer {
        from: node(from),
        to: node(to),
        prefix: net(prefix),
    };
    assert_eq!(granted(&log.run(give(1, 2, "10.0.0.10/32"))), ["10.0.0.10/32"]);
    let blocks: Vec<_> =
        log.ledger.blocks().map(|b| (b.prefix.to_string(), b.owner, b.epoch)).collect();
    assert_eq!(
        blocks,
        [
            ("10.0.0.8/31".to_owned(), node(1), epoch),
            ("10.0.0.10/32".to_owned(), node(2), epoch + 1),
            ("10.0.0.11/32".to_owned(), node(1), epoch),
            ("10.0.0.12/30".to_owned(), node(1), epoch),
        ]
    );
    assert!(matches!(refused(log.run(give(1, 2, "10.0.0.8/29"))), Refusal::NotOwner { .. }));
    assert!(matches!(refused(log.run(give(1, 1, "10.0.0.8/31"))), Refusal::Bad(_)));
    assert!(matches!(refused(log.run(give(1, 2, "10.0.0.13/30"))), Refusal::Bad(_)));
    assert_eq!(refused(log.run(give(1, 9, "10.0.0.8/31"))), Refusal::UnknownNode { node: node(9) });
}

#[test]
fn release_is_all_or_nothing() {
    let mut log = Log::with_nodes(&["10.0.0.0/24"], 0, 1);
    log.acquire(1, 2);
    let before: Vec<_> = log.ledger.blocks().collect();
    let mut release = |list: &[&str]| {
        let outcome = log.run(Op::Release { node: node(1), prefixes: nets(list) });
        (outcome, log.ledger.blocks().collect::<Vec<_>>())
    };
    let (outcome, after) = release(&["10.0.0.0/29", "10.0.0.128/29"]);
    assert!(matches!(refused(outcome), Refusal::NotOwner { owner: None, .. }));
    assert_eq!(after, before);
    let (outcome, after) = release(&["10.0.0.0/29", "10.0.0.1/32"]);
    assert!(matches!(refused(outcome), Refusal::Bad(_)));
    assert_eq!(after, before);
    // Two blocks given back as the one prefix they make up.
    assert_eq!(release(&["10.0.0.0/28"]), (Outcome::Done, vec![]));
}

#[test]
fn quarantine_ends_with_time_and_only_the_former_owner_may_return() {
    let mut log = Log::with_nodes(&["10.0.0.0/24"], 500, 2);
    log.claim(1, "10.0.0.13");
    assert_eq!(log.run(Op::Evict { node: node(1) }), Outcome::Done);
    assert_eq!(
        refused(log.run(Op::Evict { node: node(1) })),
        Refusal::UnknownNode { node: node(1) }
    );
    assert_eq!((log.ledger.quarantined(false), log.ledger.unowned(false)), (8, 248));
    let resting: Vec<_> = log.ledger.quarantine().map(|r| (r.prefix, r.until_ms)).collect();
    assert_eq!(resting, [(net("10.0.0.8/29"), 1_500)]);
    assert_eq!(
        refused(log.claim(2, "10.0.0.13")),
        Refusal::Quarantined { prefix: net("10.0.0.13/32"), until_ms: 1_500 }
    );
    log.now = 1_499;
    log.join(1);
    assert_eq!(granted(&log.claim(1, "10.0.0.13")), ["10.0.0.8/29"]);
    assert_eq!(log.ledger.quarantined(false), 0);

    log.run(Op::Evict { node: node(1) });
    log.now = 1_998;
    assert!(matches!(refused(log.claim(2, "10.0.0.13")), Refusal::Quarantined { .. }));
    assert_eq!((log.ledger.rested(false, 1_998), log.ledger.rested(false, 1_999)), (0, 8));
    assert_eq!((log.ledger.rested(true, 1_999), log.ledger.quarantined(false)), (0, 8));
    log.now = 1_999;
    assert_eq!(granted(&log.claim(2, "10.0.0.13")), ["10.0.0.8/29"]);
}

#[test]
fn growing() {
    let mut log = Log::with_nodes(&["10.0.1.0/24"], 0, 1);
    log.acquire(1, 1);
    let mut grow = |range: &str| log.run(Op::Grow { range: net(range) });
    assert_eq!(grow("10.0.1.0/24"), Outcome::Done);
    for bad in ["10.0.1.0/25", "10.0.3.1/24", "10.0.3.0/31"] {
        assert!(matches!(refused(grow(bad)), Refusal::OutOfRange { .. }), "{bad}");
    }
    assert_eq!(grow("10.0.0.0/23"), Outcome::Done);
    assert_eq!(grow("fd00::/64"), Outcome::Done);
    assert_eq!(log.ledger.ranges(), nets(&["10.0.0.0/23", "fd00::/64"]));
    assert_eq!(log.ledger.unowned(false), 512 - 8);
    // A node still set to the old range may confirm itself; a third one is wrong.
    let mut join = |range: &str| {
        log.run(Op::Join {
            node: node(1),
            name: "node1".into(),
            ranges: nets(&[range]),
            replace: false,
        })
    };
    assert_eq!(join("10.0.1.0/24"), Outcome::Joined { cluster: CLUSTER });
    assert!(matches!(refused(join("10.0.2.0/24")), Refusal::RangeDiffers { .. }));
    let outcome = log.run(Op::Acquire { node: node(1), ipv6: true, count: 1 });
    assert_eq!(granted(&outcome), ["fd00::/122"]);
}

#[test]
fn late_copies_of_requests() {
    let mut log = Log::with_nodes(&["10.0.0.0/16"], 0, 2);
    let request = |session, seq| RequestId { node: node(1), session, seq };
    let acquire = |session, seq| Command {
        request: request(session, seq),
        at_ms: 0,
        op: Op::Acquire { node: node(1), ipv6: false, count: 1 },
    };
    let first = log.apply(acquire(5, 70));
    let reordered = log.apply(acquire(5, 69));
    assert_ne!(first, reordered);
    assert_eq!(log.apply(acquire(5, 70)), first);
    assert_eq!(log.apply(acquire(5, 69)), reordered);
    assert_eq!(log.apply(acquire(5, 6)), Outcome::Refused(Refusal::Stale(request(5, 6))));
    assert_eq!(log.apply(acquire(4, 99)), Outcome::Refused(Refusal::Stale(request(4, 99))));
    assert!(matches!(log.apply(acquire(6, 0)), Outcome::Refused(Refusal::Bad(_))));
    assert_eq!(log.ledger.blocks().count(), 2);
    granted(&log.apply(acquire(6, 1)));
    assert_eq!(log.apply(acquire(5, 70)), Outcome::Refused(Refusal::Stale(request(5, 70))));
}

#[test]
fn a_late_copy_of_a_join_does_not_bring_a_node_back() {
    let mut log = Log::founded(&["10.0.0.0/16"], 0);
    let join = |seq| Command {
        request: RequestId { node: node(1), session: 1, seq },
        at_ms: 0,
        op: Op::Join {
            node: node(1),
            name: "a".into(),
            ranges: nets(&["10.0.0.0/16"]),
            replace: false,
        },
    };
    log.apply(join(1));
    log.run(Op::Evict { node: node(1) });
    assert!(matches!(log.apply(join(1)), Outcome::Refused(Refusal::Stale(_))));
    assert_eq!(log.ledger.members().count(), 0);
    assert_eq!(log.apply(join(2)), Outcome::Joined { cluster: CLUSTER });
}

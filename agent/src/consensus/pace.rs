//! How far the leader lets the ledger's clock run: pure.
//!
//! The blocks of a removed node rest, so that it, or whoever it still serves, can notice.
//! The ledger counts that rest from the stamp of the removal, which is the time it was
//! *asked for*. Without a majority it may be in the log for long before it is *done*, with
//! others behind it; and a wall clock may jump. So no entry is stamped beyond the end of a
//! rest before this leader has known for the whole quarantine that the removal is done, by
//! a clock that only goes forward. A removal under way counts as one that was done just now.
//!
//! What tells one rest from another is its end, so no two removals have one stamp: the
//! last part of every rest ([`ROOM`]) is kept for them.
//!
//! Who has just become the leader, or was started again as one, knows what it found in the
//! log only once that is applied; before, it stamps nothing ([`super::propose`]).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use weft_ipam::ledger::Ledger;
use weft_proto::id::NodeId;

/// Milliseconds at the end of a rest that only removals are stamped with.
const ROOM: u64 = 1_000;

/// What a removal under way has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// Nobody knows yet.
    Asked,
    /// Nobody waits for its answer any more. It may be in the log.
    Left,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Rests, by former owner and end, with the moment this node knew of them.
    known: BTreeMap<(NodeId, u64), Instant>,
    /// Removals under way: ticket, stamp.
    removals: BTreeMap<u64, (u64, Removal)>,
    term: u64,
    /// The latest stamp of this term.
    last_ms: u64,
    next: u64,
}

/// One entry that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    number: u64,
    /// What it is stamped with, Unix milliseconds.
    pub(crate) at_ms: u64,
}

impl Pace {
    /// Notes the rests of a ledger that is in force.
    pub(crate) fn see(&mut self, ledger: &Ledger, now: Instant) {
        let rests: BTreeMap<_, ()> =
            ledger.quarantine().map(|rest| ((rest.former, rest.until_ms), ())).collect();
        self.known.retain(|rest, _| rests.contains_key(rest));
        for rest in rests.into_keys() {
            self.known.entry(rest).or_insert(now);
        }
    }

    /// The stamp of an entry that the leader of `term` writes at `wall_ms` of its wall clock.
    /// `removes`: it takes blocks from a node. `None`: too many were removed in too short a
    /// time; the next rest that ends makes room.
    pub(crate) fn begin(
        &mut self,
        term: u64,
        removes: bool,
        ledger: &Ledger,
        wall_ms: u64,
        now: Instant,
    ) -> Option<Ticket> {
        self.see(ledger, now);
        if self.term != term {
            // What an earlier leader has left is applied or gone.
            (self.term, self.removals, self.last_ms) = (term, BTreeMap::new(), 0);
        }
        let quarantine_ms = ledger.quarantine_ms();
        let quarantine = Duration::from_millis(quarantine_ms);
        let fresh = self.known.iter().filter(|(_, since)| now < **since + quarantine);
        let ends = fresh.map(|((_, until_ms), _)| *until_ms);
        let asked = self.removals.values().map(|(at_ms, _)| at_ms.saturating_add(quarantine_ms));
        let end = ends.chain(asked).min();
        // All that is in the log already has told the ledger at least this.
        let clock_ms = ledger.clock_ms().max(self.last_ms);
        let room = if removes { 1 } else { ROOM.min(quarantine_ms / 2).max(1) };
        let held = end.is_some_and(|end| wall_ms > end.saturating_sub(room));
        let mut at_ms = if held { clock_ms } else { wall_ms.max(clock_ms) };
        if removes {
            at_ms = at_ms.max(clock_ms.saturating_add(1));
            if end.is_some_and(|end| at_ms >= end) {
                return None;
            }
        }
        self.next += 1;
        self.last_ms = at_ms;
        if removes {
            self.removals.insert(self.next, (at_ms, Removal::Asked));
        }
        Some(Ticket { number: self.next, at_ms })
    }

    /// The entry is in force: whatever was written before it is as well, or never will be.
    pub(crate) fn done(&mut self, ticket: Ticket) {
        self.removals.retain(|number, (_, removal)| {
            *number != ticket.number && (*number > ticket.number || *removal == Removal::Asked)
        });
    }

    /// Nobody waits for the entry any more; it may come into force.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        if let Some((_, removal)) = self.removals.get_mut(&ticket.number) {
            *removal = Removal::Left;
        }
    }

    /// The entry was not written in this term.
    pub(crate) fn refused(&mut self, ticket: Ticket) {
        self.removals.remove(&ticket.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::id::{ClusterId, RequestId};
    use weft_proto::ledger::{Command, Op};

    use super::*;

    const QUARANTINE: u64 = 1_000;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    /// A ledger that is fed with what the leader stamps.
    struct Log {
        ledger: Ledger,
        /// Written, not in force.
        waiting: Vec<(Ticket, Op)>,
    }

    impl Log {
        fn founded() -> Self {
            let mut log = Self { ledger: Ledger::new(), waiting: Vec::new() };
            let ranges = vec!["10.32.0.0/24".parse().unwrap()];
            let cluster = ClusterId([7; 16]);
            let quarantine_ms = QUARANTINE;
            log.apply(0, Op::Found { cluster, ranges: ranges.clone(), quarantine_ms });
            for n in 1..=3 {
                log.apply(0, join(n));
                log.apply(0, Op::Acquire { node: node(n), ipv6: false, count: 1 });
            }
            log
        }

        fn apply(&mut self, at_ms: u64, op: Op) {
            let seq = self.ledger.head().index + 1;
            let request = RequestId { node: node(99), session: 1, seq };
            self.ledger.apply(seq, Some(&Command { request, at_ms, op })).unwrap();
        }
    }

    fn join(n: u8) -> Op {
        let ranges = vec!["10.32.0.0/24".parse().unwrap()];
        Op::Join { node: node(n), name: format!("n{n}"), ranges, replace: false }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Time passes; the wall clock is off by so much from now on.
        Wait(u64, i64),
        Write(u8, bool),
        /// All that is in the log comes into force.
        Commit,
        Elected,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..700u64, -5_000..5_000i64).prop_map(|(by, off)| Step::Wait(by, off)),
            (0..700u64).prop_map(|by| Step::Wait(by, 0)),
            (1..4u8, any::<bool>()).prop_map(|(n, removes)| Step::Write(n, removes)),
            Just(Step::Commit),
            Just(Step::Elected),
        ]
    }

    proptest! {
        /// Whatever the log keeps waiting and the wall clock says: no block of a removed
        /// node is free before the quarantine has passed since its removal was in force.
        #[test]
        fn a_rest_is_never_cut_short(steps in prop::collection::vec(step(), 1..60)) {
            let mut log = Log::founded();
            let mut pace = Pace::default();
            let start = Instant::now();
            let (mut passed, mut wrong, mut term) = (1_000_000u64, 0i64, 1);
            let mut in_force: BTreeMap<(NodeId, u64), u64> = BTreeMap::new();
            for step in steps {
                let now = start + Duration::from_millis(passed);
                match step {
                    Step::Wait(by, off) => (passed, wrong) = (passed + by, off),
                    Step::Write(n, removes) => {
                        let wall = passed.saturating_add_signed(wrong);
                        let op = if removes { Op::Evict { node: node(n) } } else { join(n) };
                        let ticket = pace.begin(term, removes, &log.ledger, wall, now);
                        if let Some(ticket) = ticket {
                            log.waiting.push((ticket, op));
                            // The one who asked does not wait.
                            pace.leave(ticket);
                        }
                    }
                    Step::Commit => {
                        for (ticket, op) in std::mem::take(&mut log.waiting) {
                            log.apply(ticket.at_ms, op);
                            for rest in log.ledger.quarantine() {
                                in_force.entry((rest.former, rest.until_ms)).or_insert(passed);
                            }
                            let kept: Vec<_> =
                                log.ledger.quarantine().map(|r| (r.former, r.until_ms)).collect();
                            for (rest, since) in &in_force {
                                let over = passed - since >= QUARANTINE;
                                prop_assert!(over || kept.contains(rest), "{rest:?} since {since}, now {passed}");
                            }
                            pace.done(ticket);
                        }
                        pace.see(&log.ledger, now);
                    }
                    Step::Elected => {
                        // What is in the log is applied before anything is written.
                        for (ticket, op) in std::mem::take(&mut log.waiting) {
                            log.apply(ticket.at_ms, op);
                        }
                        for rest in log.ledger.quarantine() {
                            in_force.entry((rest.former, rest.until_ms)).or_insert(passed);
                        }
                        term += 1;
                        // Half of the time it is another node, which knows less.
                        if term % 2 == 0 {
                            pace = Pace::default();
                        }
                        pace.see(&log.ledger, now);
                    }
                }
            }
        }
    }

    #[test]
    fn a_removal_that_waits_for_a_majority_holds_the_clock() {
        let mut log = Log::founded();
        let mut pace = Pace::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let removal = pace.begin(1, true, &log.ledger, 10_000, at(0)).unwrap();
        assert_eq!(removal.at_ms, 10_000);
        pace.leave(removal);
        let after = pace.begin(1, false, &log.ledger, 19_000, at(9_000)).unwrap();
        assert_eq!(after.at_ms, 10_000, "the clock stands");
        log.apply(removal.at_ms, Op::Evict { node: node(1) });
        log.apply(after.at_ms, join(2));
        pace.see(&log.ledger, at(9_500));
        pace.done(after);
        let stamp = |pace: &mut Pace, removes, wall, now| {
            pace.begin(1, removes, &log.ledger, wall, at(now)).map(|ticket| ticket.at_ms)
        };
        assert_eq!(stamp(&mut pace, false, 20_000, 10_000), Some(10_000), "within the rest");
        assert_eq!(stamp(&mut pace, false, 20_500, 10_500), Some(20_500), "the rest is over");
        // Refused removals hold nothing.
        let removal = pace.begin(1, true, &log.ledger, 20_600, at(10_600)).unwrap();
        pace.refused(removal);
        assert_eq!(stamp(&mut pace, false, 30_000, 20_000), Some(30_000));
    }

    #[test]
    fn no_two_removals_have_one_stamp() {
        let mut log = Log::founded();
        let mut pace = Pace::default();
        let now = Instant::now();
        let mut stamps = Vec::new();
        // The wall clock is far ahead of what the rests allow, and then stands.
        for wall in [5_000, 90_000] {
            while let Some(ticket) = pace.begin(1, true, &log.ledger, wall, now) {
                stamps.push(ticket.at_ms);
                log.apply(ticket.at_ms, Op::Evict { node: node(1) });
                pace.done(ticket);
                log.apply(ticket.at_ms, join(1));
                log.apply(ticket.at_ms, Op::Acquire { node: node(1), ipv6: false, count: 1 });
            }
        }
        assert!(stamps.len() as u64 >= QUARANTINE / 2, "{} removals", stamps.len());
        assert!(stamps.windows(2).all(|two| two[0] < two[1]));
        let ends = stamps[0] + QUARANTINE;
        assert!(stamps.iter().all(|at| *at < ends), "none ends another's rest");
    }
}

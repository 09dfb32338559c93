//! Who may found a cluster, and when: pure.
//!
//! A static member list names the founding seats: the first 1 of 1–2 members,
//! the first 3 of 3–4, the first 5 of 5 or more (sorted), always an odd number.
//! A founding node initialises its log only when a majority of the seats,
//! itself included, has answered, none knows a cluster, and all derive the
//! founding from the same list. A node that finds a cluster, or a founding it
//! is no part of, never founds: it follows, and may become a voter in a seat
//! of its own later.
//!
//! An initialised node answers those it counted at its own founding as if it
//! were not initialised, so that they complete it; to anybody else it says so.
//! Node ids live and die with the disk: who was not counted may have sat in
//! that seat before under another id, and must not sit in it again.
//!
//! Two nodes may begin at once, each counting others than the other does: then
//! everybody is left out by one of the two, and no majority comes together. Who
//! was left out may sit down all the same once *every* founding seat has
//! answered. Whatever an earlier holder of its seat has voted for or stored,
//! another seat has counted, and has bound the seat to it on disk: that one does
//! not tell a later holder its own seat ([`receive`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ring::digest;
use weft_proto::id::{FoundingId, NodeId, RaftId};
use weft_proto::wire::v1::FoundingState;

use super::error::ConsensusError;
use super::types::{Seat, seat_of_node};

/// How this node takes part in the founding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Founding {
    /// It founds alone (it was named founder by somebody else's rule).
    Single,
    /// A list of members, the same on every node.
    Seats {
        /// Addresses of all members.
        members: Vec<String>,
        /// Which of them is this node; `None` if none is.
        mine: Option<String>,
    },
    /// It never founds.
    Observer,
}

/// What a [`Founding`] comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Id of the founding.
    pub id: FoundingId,
    /// All members, sorted.
    pub members: Vec<String>,
    /// The seats and their labels.
    pub seats: BTreeMap<RaftId, Seat>,
    /// This node's founding seat.
    pub mine: Option<RaftId>,
}

fn hash(parts: &[&[u8]]) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 16];
    out.copy_from_slice(&context.finish().as_ref()[..16]);
    out
}

/// Seat of a founding address.
pub(crate) fn seat_of_address(address: &str) -> RaftId {
    RaftId(hash(&[b"weft seat", address.as_bytes()]))
}

/// Founding seats for so many members.
pub(crate) fn seats_for(members: usize) -> usize {
    match members {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

impl Founding {
    /// Works out seats and id.
    pub fn plan(&self, me: NodeId, name: &str) -> Result<Plan, ConsensusError> {
        match self {
            Self::Single => Ok(Plan {
                id: FoundingId(hash(&[b"weft single founder", &me.0])),
                members: vec![name.to_owned()],
                seats: BTreeMap::from([(
                    seat_of_node(me),
                    Seat { label: name.to_owned(), node: Some(me) },
                )]),
                mine: Some(seat_of_node(me)),
            }),
            Self::Observer => Ok(Plan {
                id: FoundingId::default(),
                members: Vec::new(),
                seats: BTreeMap::new(),
                mine: None,
            }),
            Self::Seats { members, mine } => {
                let sorted: BTreeSet<&String> = members.iter().collect();
                if let Some(mine) = mine.as_ref().filter(|mine| !sorted.contains(mine)) {
                    return Err(ConsensusError::Founding(format!(
                        "this node's address {mine} is not in the list {}",
                        members.join(",")
                    )));
                }
                if sorted.is_empty() || sorted.contains(&String::new()) {
                    return Err(ConsensusError::Founding(
                        "the list is empty or has an empty entry; name every member".to_owned(),
                    ));
                }
                let seats: BTreeMap<RaftId, Seat> = sorted
                    .iter()
                    .take(seats_for(sorted.len()))
                    .map(|a| (seat_of_address(a), Seat { label: (*a).clone(), node: None }))
                    .collect();
                let mut parts: Vec<&[u8]> = vec![b"weft founding"];
                for member in &sorted {
                    parts.extend([member.as_bytes(), b"\n"]);
                }
                let mine =
                    mine.as_ref().map(|a| seat_of_address(a)).filter(|s| seats.contains_key(s));
                Ok(Plan {
                    id: FoundingId(hash(&parts)),
                    members: sorted.into_iter().cloned().collect(),
                    seats,
                    mine,
                })
            }
        }
    }
}

/// An answer to a founding question, or that there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it says.
    pub state: FoundingState,
}

/// Whether a node that sits in `mine` may tell so to one it has not counted, which claims
/// the seat `claims`. `holder` says who was first heard in a seat. The error is for people.
pub(crate) fn receive(
    mine: RaftId,
    claims: Option<RaftId>,
    holder: impl Fn(RaftId) -> Option<NodeId>,
) -> Result<(), String> {
    let Some(seat) = claims else {
        return Err("it is not known yet which founding seat you claim".to_owned());
    };
    if seat == mine {
        return Err(format!("founding seat {} is this node's own", seat.short()));
    }
    match holder(seat) {
        None => Ok(()),
        Some(holder) => Err(format!(
            "founding seat {} belongs to node {}: who lost its disk joins once the cluster is founded",
            seat.short(),
            holder.short()
        )),
    }
}

/// What a founding node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Initialise the log with all seats; these nodes were counted in them.
    Initialise {
        /// Seats and who was heard in them.
        bind: Vec<(RaftId, NodeId)>,
    },
    /// Somebody knows a cluster: follow it.
    Follow,
    /// Not yet, and why.
    Wait(String),
}

/// Decides on one round of answers. `settled` is false in the first seconds of
/// a start, when the absence of an answer does not say much yet.
pub(crate) fn decide(plan: &Plan, me: NodeId, answers: &[Answer], settled: bool) -> Step {
    if answers.iter().any(|a| a.state.cluster.is_some()) {
        return Step::Follow;
    }
    let Some(mine) = plan.mine else {
        return Step::Wait(if plan.members.is_empty() {
            "no cluster found yet; this node does not found one (observer): waiting for a member that knows it".to_owned()
        } else {
            format!(
                "waiting for the founding members to form the cluster ({})",
                labels(plan.seats.values())
            )
        });
    };
    if let Some(other) =
        answers.iter().find(|a| a.state.founding != plan.id && !a.state.members.is_empty())
    {
        return Step::Wait(format!(
            "founding members differ: this node was given [{}], {} was given [{}]; set the same list on every node",
            plan.members.join(", "),
            other.name,
            other.state.members.join(", ")
        ));
    }
    let mut heard = BTreeMap::from([(mine, me)]);
    for answer in answers {
        let Some(seat) = answer.state.raft_id.filter(|seat| plan.seats.contains_key(seat)) else {
            continue;
        };
        if heard.insert(seat, answer.node).is_some_and(|before| before != answer.node) {
            return Step::Wait(format!(
                "two nodes claim the founding seat {}: {} is one of them; give every node its own address",
                plan.seats.get(&seat).map_or("?", |s| s.label.as_str()),
                answer.name
            ));
        }
    }
    let (reached, missing): (Vec<_>, Vec<_>) =
        plan.seats.iter().partition(|(seat, _)| heard.contains_key(*seat));
    if let Some(busy) = answers.iter().find(|a| a.state.initialised) {
        if !missing.is_empty() || !settled {
            return Step::Wait(format!(
                "{} has begun a founding without this node: waiting for it to complete, this node then joins; if it cannot, all founding members have to answer (missing {})",
                busy.name,
                labels(missing.into_iter().map(|(_, s)| s)),
            ));
        }
        // Who else was left out is asked to find that out by itself.
        let begun: BTreeSet<NodeId> =
            answers.iter().filter(|a| a.state.initialised).map(|a| a.node).collect();
        heard.retain(|_, node| *node == me || begun.contains(node));
        return Step::Initialise { bind: heard.into_iter().collect() };
    }
    let need = plan.seats.len() / 2 + 1;
    if heard.len() < need {
        return Step::Wait(format!(
            "waiting for a majority of the founding members ({} of {need} reached: {}; missing {})",
            heard.len(),
            labels(reached.into_iter().map(|(_, s)| s)),
            labels(missing.into_iter().map(|(_, s)| s)),
        ));
    }
    if !settled && answers.len() + 1 < plan.members.len() {
        return Step::Wait(
            "asking the other members whether there is a cluster already".to_owned(),
        );
    }
    Step::Initialise { bind: heard.into_iter().collect() }
}

fn labels<'a>(seats: impl Iterator<Item = &'a Seat>) -> String {
    let mut all: Vec<&str> = seats.map(|s| s.label.as_str()).collect();
    all.sort_unstable();
    all.join(", ")
}

/// In the first seconds of a start silence may only mean "not connected yet".
pub(crate) const SETTLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::id::ClusterId;

    use super::*;

    fn plan(members: &[&str], mine: &str) -> Plan {
        Founding::Seats {
            members: members.iter().map(|m| (*m).to_owned()).collect(),
            mine: Some(mine.to_owned()),
        }
        .plan(NodeId([0; 16]), "n")
        .unwrap()
    }

    fn answer(plan: &Plan, n: u8) -> Answer {
        Answer {
            node: NodeId([n; 16]),
            name: format!("n{n}"),
            state: FoundingState {
                cluster: None,
                initialised: false,
                founding: plan.id,
                members: plan.members.clone(),
                raft_id: plan.mine,
            },
        }
    }

    #[test]
    fn order_and_repeats_do_not_matter() {
        let a = plan(&["b", "a", "c", "a"], "a");
        let b = plan(&["a", "b", "c"], "a");
        assert_eq!(a, b);
        assert_eq!(a.seats.len(), 3);
        assert_eq!(plan(&["a", "b"], "a").seats.len(), 1);
        assert_eq!(plan(&["a", "b"], "b").mine, None);
        assert_eq!(plan(&["a", "b", "c", "d", "e", "f"], "f").mine, None);
        assert_ne!(plan(&["a", "b"], "a").id, plan(&["a", "c"], "a").id);
    }

    #[test]
    fn an_address_outside_the_list_is_named() {
        let founding =
            Founding::Seats { members: vec!["a".to_owned()], mine: Some("z".to_owned()) };
        let error = founding.plan(NodeId::default(), "n").unwrap_err().to_string();
        assert!(error.contains("z is not in the list a"), "{error}");
    }

    #[test]
    fn a_majority_is_needed_and_named() {
        let me = plan(&["a", "b", "c"], "a");
        let Step::Wait(why) = decide(&me, NodeId([1; 16]), &[], true) else { panic!() };
        assert!(why.contains("1 of 2 reached: a; missing b, c"), "{why}");
        let b = answer(&plan(&["a", "b", "c"], "b"), 2);
        assert!(matches!(
            decide(&me, NodeId([1; 16]), std::slice::from_ref(&b), true),
            Step::Initialise { .. }
        ));
        assert!(matches!(decide(&me, NodeId([1; 16]), &[b], false), Step::Wait(_)));
    }

    #[test]
    fn another_list_is_refused_with_both_lists() {
        let me = plan(&["a", "b", "c"], "a");
        let other = answer(&plan(&["b", "c", "d"], "b"), 2);
        let Step::Wait(why) = decide(&me, NodeId([1; 16]), &[other], true) else { panic!() };
        assert!(why.contains("[a, b, c]") && why.contains("[b, c, d]"), "{why}");
    }

    /// A founding: who has begun, and whom each has bound.
    struct Table {
        plans: Vec<Plan>,
        bound: Vec<Option<BTreeMap<RaftId, NodeId>>>,
    }

    impl Table {
        fn new(members: &[&str]) -> Self {
            let plans: Vec<_> = members.iter().map(|mine| plan(members, mine)).collect();
            Self { bound: vec![None; plans.len()], plans }
        }

        fn node(at: usize) -> NodeId {
            NodeId([at as u8 + 1; 16])
        }

        /// As `Core::founding_state` has it, without a cluster.
        fn ask(&self, from: usize, to: usize) -> Answer {
            let mut answer = answer(&self.plans[to], to as u8 + 1);
            let (bound, asks) = (self.bound[to].as_ref(), Self::node(from));
            if let Some(bound) = bound.filter(|bound| !bound.values().any(|node| *node == asks)) {
                let holder = |seat| bound.get(&seat).copied();
                let seat = answer.state.raft_id.unwrap();
                if receive(seat, self.plans[from].mine, holder).is_err() {
                    answer.state.raft_id = None;
                }
                answer.state.initialised = true;
            }
            answer
        }

        /// One round of questions, of which only some are answered.
        fn round(&mut self, at: usize, hears: impl Fn(usize) -> bool) -> Step {
            let others = (0..self.plans.len()).filter(|to| *to != at && hears(*to));
            let answers: Vec<_> = others.map(|to| self.ask(at, to)).collect();
            let step = decide(&self.plans[at], Self::node(at), &answers, true);
            if let Step::Initialise { bind } = &step {
                self.bound[at].get_or_insert_with(|| bind.iter().copied().collect());
            }
            step
        }

        fn begun(&self) -> usize {
            self.bound.iter().flatten().count()
        }
    }

    #[test]
    fn two_that_begin_at_once_leave_nobody_out_for_ever() {
        let mut table = Table::new(&["a", "b", "c", "d", "e"]);
        // a hears e, which does not hear a.
        assert!(matches!(table.round(0, |to| [2, 4].contains(&to)), Step::Initialise { .. }));
        assert!(matches!(table.round(4, |to| [1, 3].contains(&to)), Step::Initialise { .. }));
        // While a member is missing, nobody knows what it has seen.
        for at in 1..4 {
            let Step::Wait(why) = table.round(at, |to| to != at % 3 + 1) else { panic!() };
            assert!(why.contains("has begun a founding without this node"), "{why}");
            let missing = ["b", "c", "d"][at % 3];
            assert!(why.ends_with(&format!("(missing {missing})")), "{why}");
        }
        for at in 1..4 {
            assert!(matches!(table.round(at, |_| true), Step::Initialise { .. }));
        }
        assert_eq!(table.begun(), 5);
    }

    #[test]
    fn a_seat_that_was_counted_is_not_given_to_a_later_holder() {
        let mut table = Table::new(&["a", "b", "c", "d", "e"]);
        table.round(0, |to| [2, 4].contains(&to));
        table.round(4, |to| [1, 3].contains(&to));
        // The node a has counted in seat c has lost its disk.
        let seat = table.plans[2].mine.unwrap();
        table.bound[0].as_mut().unwrap().insert(seat, NodeId([77; 16]));
        assert!(matches!(table.round(2, |_| true), Step::Wait(_)));
        // The others found without it, and do not take it for whom a has counted.
        for at in [1, 3] {
            assert!(matches!(table.round(at, |_| true), Step::Initialise { .. }));
            assert!(!table.bound[at].as_ref().unwrap().contains_key(&seat));
        }
        assert!(matches!(table.round(2, |to| to != 0), Step::Wait(_)));
        // Not even with a majority that knows of nothing.
        let mut table = Table::new(&["a", "b", "c", "d", "e"]);
        table.round(0, |to| [2, 4].contains(&to));
        table.bound[0].as_mut().unwrap().insert(seat, NodeId([77; 16]));
        assert!(matches!(table.round(2, |_| true), Step::Wait(_)));
        assert!(receive(seat, Some(seat), |_| None).is_err());
        assert!(receive(seat, None, |_| None).is_err());
    }

    proptest! {
        /// Whatever rounds came before, of which whoever heard whom: once all hear all,
        /// a majority of the seats begins.
        #[test]
        fn a_founding_always_completes(
            count in 1usize..8,
            rounds in prop::collection::vec((0usize..7, any::<u8>()), 0..12),
        ) {
            let members = &["a", "b", "c", "d", "e", "f", "g"][..count];
            let mut table = Table::new(members);
            for (at, mask) in rounds {
                if at < count && table.bound[at].is_none() {
                    table.round(at, |to| mask & (1 << to) != 0);
                }
            }
            for at in 0..count {
                if table.bound[at].is_none() {
                    table.round(at, |_| true);
                }
            }
            prop_assert!(table.begun() * 2 > seats_for(count));
        }

        /// Never founds where anybody knows a cluster, never without a majority, and
        /// where anybody has begun without it, never without all.
        #[test]
        fn founding_is_cautious(
            states in prop::collection::vec((any::<bool>(), any::<bool>(), 0usize..5), 0..6),
        ) {
            let members = ["a", "b", "c", "d", "e"];
            let me = plan(&members, "a");
            let answers: Vec<Answer> = states.iter().zip(1u8..).map(|((cluster, init, at), n)| {
                let mut a = answer(&plan(&members, members[*at]), n);
                a.state.cluster = cluster.then_some(ClusterId([1; 16]));
                a.state.initialised = *init;
                a
            }).collect();
            if let Step::Initialise { bind } = decide(&me, NodeId([200; 16]), &answers, true) {
                prop_assert!(states.iter().all(|(cluster, ..)| !cluster));
                let seats: BTreeSet<_> = states.iter().map(|(_, _, at)| *at).chain([0]).collect();
                let begun = states.iter().any(|(_, init, _)| *init);
                let enough = if begun { seats.len() == 5 } else { bind.len() >= 3 };
                prop_assert!(enough);
            }
        }
    }
}

//! Random commands against a model that knows nothing but single addresses.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{CLUSTER, Log, addresses, nets, node};
use proptest::collection::vec;
use proptest::prelude::*;
use weft_ipam::{Ledger, is_reserved};
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome, Refusal};

const RANGES: &[&str] = &["10.0.0.0/27", "10.0.0.64/29", "fd00::/124"];
const REST: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Owned(NodeId),
    Resting(NodeId, u64),
}

/// Every address by itself; changed only by what answers say was done.
struct Model {
    space: BTreeMap<IpAddr, State>,
    members: Vec<NodeId>,
    clock: u64,
}

impl Model {
    fn new() -> Self {
        let space = nets(RANGES).iter().flat_map(addresses).map(|a| (a, State::Free)).collect();
        Self { space, members: Vec::new(), clock: 0 }
    }

    fn usable_free(&self, ipv6: bool) -> bool {
        let ranges = nets(RANGES);
        self.space.iter().any(|(a, state)| {
            a.is_ipv6() == ipv6 && *state == State::Free && !is_reserved(&ranges, *a)
        })
    }

    fn tick(&mut self, at_ms: u64) {
        self.clock = self.clock.max(at_ms);
        for state in self.space.values_mut() {
            if matches!(state, State::Resting(_, until) if *until <= self.clock) {
                *state = State::Free;
            }
        }
    }

    fn step(&mut self, op: &Op, outcome: &Outcome) {
        match (op, outcome) {
            (Op::Join { node, .. }, Outcome::Joined { .. }) => {
                if !self.members.contains(node) {
                    self.members.push(*node);
                }
            }
            (Op::Evict { node }, Outcome::Done) => {
                assert!(self.members.contains(node));
                self.members.retain(|member| member != node);
                let until = self.clock + REST;
                for state in self.space.values_mut().filter(|s| **s == State::Owned(*node)) {
                    *state = State::Resting(*node, until);
                }
            }
            (Op::Release { node, prefixes }, Outcome::Done) => {
                for address in prefixes.iter().flat_map(addresses) {
                    let old = self.space.insert(address, State::Free);
                    assert_eq!(old, Some(State::Owned(*node)));
                }
            }
            (Op::Transfer { from, to, prefix }, Outcome::Granted(blocks)) => {
                assert_eq!((blocks.len(), blocks[0].prefix), (1, *prefix));
                for address in addresses(prefix) {
                    let old = self.space.insert(address, State::Owned(*to));
                    assert_eq!(old, Some(State::Owned(*from)));
                }
            }
            (Op::Acquire { node, .. } | Op::Claim { node, .. }, Outcome::Granted(blocks)) => {
                assert!(self.members.contains(node) && !blocks.is_empty());
                for block in blocks {
                    assert_eq!(block.owner, *node);
                    for address in addresses(&block.prefix) {
                        let old = self.space.insert(address, State::Owned(*node));
                        match (op, old) {
                            (_, Some(State::Free)) => {}
                            (Op::Claim { .. }, Some(State::Owned(n) | State::Resting(n, _))) => {
                                assert_eq!(n, *node);
                            }
                            other => panic!("{address} given although {other:?}"),
                        }
                    }
                }
            }
            (Op::Acquire { ipv6, .. }, Outcome::Refused(Refusal::Exhausted { .. })) => {
                assert!(!self.usable_free(*ipv6), "refused although addresses are free");
            }
            (Op::Claim { node, address }, Outcome::Refused(refusal)) => {
                let state = self.space.get(address);
                let fair = match refusal {
                    Refusal::NotOwner { owner, .. } => {
                        matches!(state, Some(State::Owned(n)) if Some(*n) == *owner && n != node)
                    }
                    Refusal::Quarantined { until_ms, .. } => {
                        matches!(state, Some(State::Resting(n, u)) if u == until_ms && n != node)
                    }
                    Refusal::OutOfRange { .. } => {
                        state.is_none() || is_reserved(&nets(RANGES), *address)
                    }
                    Refusal::UnknownNode { .. } => !self.members.contains(node),
                    _ => false,
                };
                assert!(fair, "{address} is {state:?}, refused as {refusal}");
            }
            (_, Outcome::Refused(Refusal::Exhausted { .. } | Refusal::Stale(_))) => {
                panic!("{op:?}: {outcome:?}")
            }
            (_, Outcome::Refused(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    fn check(&self, ledger: &Ledger) {
        let mut counts = [[0u128; 2]; 2];
        let mut expected = BTreeMap::new();
        for (address, state) in &self.space {
            match state {
                State::Free => counts[0][usize::from(address.is_ipv6())] += 1,
                State::Owned(owner) => drop(expected.insert(*address, *owner)),
                State::Resting(..) => counts[1][usize::from(address.is_ipv6())] += 1,
            }
        }
        // Counted over blocks: an address in two blocks would show.
        let mut owned = Vec::new();
        for block in ledger.blocks() {
            owned.extend(addresses(&block.prefix).into_iter().map(|a| (a, block.owner)));
            assert!(ledger.blocks_of(block.owner).any(|other| other == block));
            assert!(block.epoch <= ledger.head().index);
        }
        assert_eq!(owned, expected.into_iter().collect::<Vec<_>>());
        for (address, owner) in owned {
            assert_eq!(ledger.owner_of(address).map(|block| block.owner), Some(owner));
        }
        for ipv6 in [false, true] {
            assert_eq!(ledger.unowned(ipv6), counts[0][usize::from(ipv6)]);
            assert_eq!(ledger.quarantined(ipv6), counts[1][usize::from(ipv6)]);
        }
        let mut members = self.members.clone();
        members.sort();
        assert_eq!(ledger.members().map(|(node, _)| node).collect::<Vec<_>>(), members);
    }
}

/// A choice to be made concrete against the ledger as it is then.
#[derive(Debug, Clone)]
enum Choice {
    Join(u8),
    Acquire(u8, bool, u32),
    Claim(u8, prop::sample::Index),
    Release(u8, Vec<(prop::sample::Index, u8)>),
    Transfer(u8, u8, prop::sample::Index, u8),
    Evict(u8),
}

fn choice() -> impl Strategy<Value = Choice> {
    use any_index as index;
    let who = || 1..=4u8;
    prop_oneof![
        4 => who().prop_map(Choice::Join),
        5 => (who(), any::<bool>(), 1..4u32).prop_map(|(n, f, c)| Choice::Acquire(n, f, c)),
        5 => (who(), index()).prop_map(|(n, i)| Choice::Claim(n, i)),
        3 => (who(), vec((index(), 0..4u8), 1..3)).prop_map(|(n, p)| Choice::Release(n, p)),
        5 => (who(), who(), index(), 0..4u8).prop_map(|(f, t, i, b)| Choice::Transfer(f, t, i, b)),
        1 => who().prop_map(Choice::Evict),
    ]
}

fn any_index() -> impl Strategy<Value = prop::sample::Index> {
    any::<prop::sample::Index>()
}

fn concrete(choice: &Choice) -> Op {
    let all: Vec<_> = nets(RANGES).iter().flat_map(addresses).collect();
    let part = |index: &prop::sample::Index, bits: u8| {
        let address = *index.get(&all);
        let width = if address.is_ipv6() { 128 } else { 32 };
        ipnet::IpNet::new(address, width - bits).unwrap().trunc()
    };
    match choice {
        Choice::Join(n) => {
            Op::Join { node: node(*n), name: format!("n{n}"), ranges: nets(RANGES), replace: false }
        }
        Choice::Acquire(n, ipv6, count) => {
            Op::Acquire { node: node(*n), ipv6: *ipv6, count: *count }
        }
        Choice::Claim(n, index) => Op::Claim { node: node(*n), address: *index.get(&all) },
        Choice::Release(n, parts) => Op::Release {
            node: node(*n),
            prefixes: parts.iter().map(|(index, bits)| part(index, *bits)).collect(),
        },
        Choice::Transfer(from, to, index, bits) => {
            Op::Transfer { from: node(*from), to: node(*to), prefix: part(index, *bits) }
        }
        Choice::Evict(n) => Op::Evict { node: node(*n) },
    }
}

fn commands(choices: &[(Choice, u64)]) -> Vec<Command> {
    let mut now = 1_000;
    let found = Op::Found { cluster: CLUSTER, ranges: nets(RANGES), quarantine_ms: REST };
    let joins = (1..=3).map(|n| concrete(&Choice::Join(n)));
    let ops = choices.iter().map(|(choice, pause)| (concrete(choice), *pause));
    std::iter::once(found)
        .chain(joins)
        .map(|op| (op, 0))
        .chain(ops)
        .zip(1u64..)
        .map(|((op, pause), seq)| {
            now += pause;
            // Several askers, so that several windows are in play.
            let asker = node(0xe0 + (seq % 3) as u8);
            Command { request: RequestId { node: asker, session: 1, seq }, at_ms: now, op }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_address_twice_and_none_lost(choices in vec((choice(), 0..20u64), 0..120)) {
        let mut log = Log::founded(&["10.99.0.0/24"], 0);
        log.ledger = Ledger::new();
        let mut model = Model::new();
        for command in commands(&choices) {
            let op = command.op.clone();
            model.tick(command.at_ms);
            let outcome = log.apply(command);
            if !matches!(op, Op::Found { .. }) {
                model.step(&op, &outcome);
            }
            model.check(&log.ledger);
        }
        prop_assert_eq!(Ledger::decode(&log.ledger.encode()), Ok(log.ledger.clone()));
    }

    #[test]
    fn replays_in_any_order_change_nothing(
        choices in vec((choice(), 0..20u64), 1..60),
        replays in vec(vec(any_index(), 0..4), 64),
    ) {
        let commands = commands(&choices);
        let (mut plain, mut repeated) = (Ledger::new(), Ledger::new());
        let mut outcomes = Vec::new();
        let mut position = 0;
        for (place, command) in commands.iter().enumerate() {
            position += 1;
            let outcome = plain.apply(position, Some(command)).unwrap();
            prop_assert_eq!(&repeated.apply(position, Some(command)).unwrap(), &outcome);
            outcomes.push(outcome);
            for index in replays.get(place).into_iter().flatten() {
                position += 1;
                let old = index.index(outcomes.len());
                plain.apply(position, None).unwrap();
                let answer = repeated.apply(position, Some(&commands[old])).unwrap();
                prop_assert_eq!(&answer, &outcomes[old]);
            }
            prop_assert_eq!(&plain, &repeated);
        }
    }

    #[test]
    fn a_restored_replica_goes_on_as_the_others(
        choices in vec((choice(), 0..20u64), 1..60),
        cut in any_index(),
    ) {
        let commands = commands(&choices);
        let cut = cut.index(commands.len());
        let mut ledger = Ledger::new();
        let mut restored = None;
        for (position, command) in (1u64..).zip(&commands) {
            let outcome = ledger.apply(position, Some(command)).unwrap();
            if let Some(other) = &mut restored {
                let other: &mut Ledger = other;
                prop_assert_eq!(other.apply(position, Some(command)).unwrap(), outcome);
            }
            if position as usize == cut + 1 {
                restored = Some(Ledger::decode(&ledger.encode()).unwrap());
            }
        }
        prop_assert_eq!(restored, Some(ledger));
    }
}

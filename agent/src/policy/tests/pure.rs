//! A delta leads where the whole would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::states::{Build, delta, found, ip, isolated, rule};
use crate::policy::nft::elements::holder;
use crate::policy::nft::hold::Held;
use crate::policy::nft::layout::{FORWARD, Families, layout};
use crate::policy::nft::model::{Key, Observed, diff, rebuild};
use crate::policy::nft::track::Tracker;
use crate::policy::state::{
    Action, Chain, ChainId, Direction, Element, Peers, PolicyState, Ports, Protocol, SetId,
    SetKind, Subject,
};

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)]
}

fn a_rule(pass: bool) -> impl Strategy<Value = crate::policy::state::Rule> {
    let peers = prop_oneof![
        Just(Peers::Any),
        (0..3_u8).prop_map(|n| Peers::Set(SetId(format!("a{n}").into()))),
        (0..2_u8).prop_map(|n| Peers::Set(SetId(format!("r{n}").into()))),
    ];
    let ports = prop_oneof![
        Just(Ports::Any),
        Just(Ports::Listed(vec![(Protocol::Tcp, 0, 65535), (Protocol::Udp, 5, 5)])),
        (0..2_u8).prop_map(|n| Ports::PerDestination(SetId(format!("p{n}").into()))),
    ];
    (peers, ports, action()).prop_map(move |(peers, ports, action)| {
        let action = if pass || action != Action::Pass { action } else { Action::Accept };
        rule(peers, ports, action)
    })
}

fn a_chain() -> impl Strategy<Value = Chain> {
    let rules = |pass| prop::collection::vec(a_rule(pass), 0..4);
    (rules(true), rules(false), any::<[bool; 2]>()).prop_map(|(admin, main, [ingress, open])| {
        Chain {
            direction: if ingress { Direction::Ingress } else { Direction::Egress },
            admin,
            main,
            end: if open { Action::Accept } else { Action::Deny },
        }
    })
}

fn address(n: u8) -> IpAddr {
    if n.is_multiple_of(2) { ip(&format!("10.0.0.{n}")) } else { ip(&format!("fd00::{n}")) }
}

/// A state of these chains: who uses which, and who is in which set.
fn a_state(chains: &[Chain], uses: &[(u8, u8)], members: &[(u8, u8)]) -> PolicyState {
    let mut out = PolicyState::default();
    for (pod, chain) in uses {
        let at = usize::from(*chain) % chains.len();
        let id = ChainId(format!("c{at}").into());
        let subject: &mut Subject = out.subjects.entry(address(*pod)).or_default();
        match chains[at].direction {
            Direction::Ingress => subject.ingress = Some(id),
            Direction::Egress => subject.egress = Some(id),
        }
    }
    let used: Vec<ChainId> =
        out.subjects.values().flat_map(|s| s.ingress.iter().chain(&s.egress)).cloned().collect();
    for id in used {
        let at: usize = id.0[1..].parse().unwrap();
        for rule in chains[at].admin.iter().chain(&chains[at].main) {
            if let Peers::Set(set) = &rule.peers {
                let kind =
                    if set.0.starts_with('a') { SetKind::Addresses } else { SetKind::Ranges };
                out.sets.insert(set.clone(), (kind, Default::default()));
            }
            if let Ports::PerDestination(set) = &rule.ports {
                out.sets.insert(set.clone(), (SetKind::Ports, Default::default()));
            }
        }
        out.chains.insert(id, chains[at].clone());
    }
    for (n, (kind, elements)) in out.sets.values_mut().enumerate() {
        for (_, member) in members.iter().filter(|(set, _)| usize::from(*set) == n) {
            let at = address(*member);
            elements.insert(match kind {
                SetKind::Addresses => Element::Address(at),
                // Apart from each other, so that they stay disjoint.
                SetKind::Ranges => Element::Range(at, at),
                SetKind::Ports => Element::Port(at, Protocol::Udp, 53),
            });
        }
        if *kind == SetKind::Ranges {
            let apart = |e: &Element| matches!(e, Element::Range(a, _) if a.to_string().ends_with(['0', '1', '4', '5', '8', '9']));
            elements.retain(apart);
        }
    }
    out
}

proptest! {
    #[test]
    fn a_delta_leads_where_the_whole_does(
        chains in prop::collection::vec(a_chain(), 1..5),
        uses in prop::collection::vec((0..10_u8, 0..5_u8), 0..12),
        later in prop::collection::vec((0..10_u8, 0..5_u8), 0..12),
        members in prop::collection::vec((0..4_u8, 0..20_u8), 0..20),
        after in prop::collection::vec((0..4_u8, 0..20_u8), 0..20),
        v6 in any::<bool>(),
    ) {
        let families = Families { v4: true, v6 };
        let (from, to) = (a_state(&chains, &uses, &members), a_state(&chains, &later, &after));
        let (before, wanted) = (layout(&from, families), layout(&to, families));

        let mut tracker = Tracker::of(&from);
        let mut kernel = found(&before);
        kernel.apply(&tracker.edit(&delta(&from, &to), families));
        prop_assert_eq!(&kernel, &found(&wanted));
        if v6 {
            prop_assert_eq!(tracker, Tracker::of(&to));
        }

        let mut kernel = found(&before);
        kernel.apply(&diff(&wanted, &kernel));
        prop_assert_eq!(&kernel, &found(&wanted));
        prop_assert!(diff(&wanted, &kernel).is_empty());
        let mut nothing = Observed::default();
        nothing.apply(&rebuild(&wanted));
        prop_assert_eq!(&nothing, &kernel);
    }

    #[test]
    fn held_rules_stay_and_new_pods_are_closed(
        chains in prop::collection::vec(a_chain(), 1..5),
        uses in prop::collection::vec((0..10_u8, 0..5_u8), 0..12),
        local in prop::collection::btree_set(0..12_u8, 0..12),
        new in prop::collection::btree_set(12..16_u8, 0..4),
    ) {
        let both = Families { v4: true, v6: true };
        let state = a_state(&chains, &uses, &[]);
        let mut kernel = found(&layout(&state, both));
        let mut held = Held::of(&kernel);
        let local = local.into_iter().map(address).collect();
        let gone = held.keep(&local);
        prop_assert!(gone.iter().all(|ip| state.subjects.contains_key(ip)));
        for n in &new {
            held.close(address(*n));
        }
        let edit = held.edit(&kernel);
        // No chain and no set of the policy is touched; the base chain comes and goes.
        prop_assert!(edit.new_chains.keys().all(|name| name == FORWARD));
        prop_assert!(!edit.reset && edit.old_chains.iter().all(|name| name == FORWARD));
        prop_assert!(edit.old_sets.is_empty() && edit.rewrite.is_empty());
        kernel.apply(&edit);
        let mut wanted = state.clone();
        wanted.subjects.retain(|ip, _| local.contains(ip));
        let mut wanted = Held::of(&found(&layout(&wanted, both)));
        for n in &new {
            wanted.close(address(*n));
        }
        prop_assert_eq!(Held::of(&kernel), wanted);
        prop_assert!(held.edit(&kernel).is_empty());
        // With the chains lost, those who had one are closed.
        let mut flushed = Observed::default();
        flushed.apply(&held.edit(&flushed));
        let closed = flushed.sets.iter().filter(|(_, set)| set.shape.verdicts);
        for chain in closed.flat_map(|(_, set)| set.elements.values()) {
            prop_assert!(chain.starts_with("deny-"));
        }
        let addresses = |held: &Held| held.addresses();
        prop_assert_eq!(addresses(&Held::of(&flushed)), addresses(&held));
    }
}

/// What the kernel says of these addresses.
fn verdicts(kernel: &Observed, of: &BTreeSet<IpAddr>) -> BTreeMap<(String, Key), String> {
    let maps = kernel.sets.iter().filter(|(_, set)| set.shape.verdicts);
    let each = maps.flat_map(|(name, set)| {
        set.elements.iter().map(move |(key, chain)| ((name.clone(), key.clone()), chain.clone()))
    });
    each.filter(|((_, key), _)| holder(key).is_some_and(|ip| of.contains(&ip))).collect()
}

/// Who is in the sets of the policy, of those that `of` says.
fn members(kernel: &Observed, of: impl Fn(IpAddr) -> bool) -> BTreeSet<(String, Key)> {
    let fixed = layout(&PolicyState::default(), Families { v4: true, v6: true });
    let sets = kernel.sets.iter().filter(|(name, _)| !fixed.sets.contains_key(*name));
    let each = sets.flat_map(|(name, set)| {
        let keys = set.elements.keys().filter(|key| {
            let ours = holder(key).is_some_and(&of);
            if set.shape.intervals() { of(address(0)) && of(address(1)) } else { ours }
        });
        keys.map(|key| (name.clone(), key.clone())).collect::<Vec<_>>()
    });
    each.collect()
}

proptest! {
    /// The kernel is newer than the memory: of what was there, it decides.
    #[test]
    fn memory_is_for_new_pods_alone(
        chains in prop::collection::vec(a_chain(), 1..5),
        uses in prop::collection::vec((0..10_u8, 0..5_u8), 0..12),
        in_sets in prop::collection::vec((0..4_u8, 0..20_u8), 0..20),
        known in prop::collection::vec((0..16_u8, 0..5_u8), 0..20),
        known_sets in prop::collection::vec((0..4_u8, 0..20_u8), 0..20),
        gone in prop::collection::btree_set(0..10_u8, 0..3),
        new in prop::collection::btree_set(8..16_u8, 0..6),
    ) {
        let both = Families { v4: true, v6: true };
        let before = found(&layout(&a_state(&chains, &uses, &in_sets), both));
        let here: BTreeSet<IpAddr> = (0..16).map(address).collect();
        let anew: BTreeSet<IpAddr> = gone.iter().chain(&new).map(|n| address(*n)).collect();
        let old: BTreeSet<IpAddr> = here.difference(&anew).copied().collect();
        // Whoever is gone has no chain; the rest is as remembered.
        let mut state = a_state(&chains, &known, &known_sets);
        state.subjects.retain(|ip, _| here.contains(ip));
        let memory = layout(&state, both);

        let mut held = Held::of(&before);
        anew.iter().for_each(|ip| held.renew(*ip));
        let edit = held.edit_with(&memory, &before);
        prop_assert!(!edit.reset && edit.old_sets.is_empty());
        prop_assert!(edit.old_chains.iter().all(|name| name == FORWARD));
        prop_assert!(edit.rewrite.is_empty());
        let mut kernel = before.clone();
        kernel.apply(&edit);
        prop_assert!(held.edit_with(&memory, &kernel).is_empty());

        prop_assert_eq!(verdicts(&kernel, &old), verdicts(&before, &old));
        prop_assert_eq!(verdicts(&kernel, &anew), verdicts(&found(&memory), &anew));
        let stays = |ip: IpAddr| !anew.contains(&ip);
        let (had, has) = (members(&before, stays), members(&kernel, stays));
        prop_assert!(had.is_subset(&has));
        // Sets that were there have nobody else in them; new ones are as remembered.
        let (at_first, remembered) = (members(&before, |_| true), members(&found(&memory), |_| true));
        for (set, key) in members(&kernel, |_| true) {
            let member = (set.clone(), key.clone());
            let moved = holder(&key).is_some_and(|ip| anew.contains(&ip))
                && !kernel.sets[&set].shape.intervals();
            let right = if moved || !before.sets.contains_key(&set) { &remembered } else { &at_first };
            prop_assert!(right.contains(&member), "{member:?}");
        }
    }

    /// A memory that is as new as the kernel: as if the agent had gone on.
    #[test]
    fn a_restart_with_memory_is_like_none(
        chains in prop::collection::vec(a_chain(), 1..5),
        uses in prop::collection::vec((0..10_u8, 0..5_u8), 0..12),
        later in prop::collection::vec((10..16_u8, 0..5_u8), 0..6),
        in_sets in prop::collection::vec((0..4_u8, 0..20_u8), 0..20),
        lost in any::<bool>(),
    ) {
        let both = Families { v4: true, v6: true };
        let all: Vec<(u8, u8)> = uses.iter().chain(&later).copied().collect();
        let anew: BTreeSet<IpAddr> = later.iter().map(|(n, _)| address(*n)).collect();
        let wanted = a_state(&chains, &all, &in_sets);
        let mut old = wanted.clone();
        old.subjects.retain(|ip, _| !anew.contains(ip));
        for (kind, elements) in old.sets.values_mut() {
            let own = |e: &Element| !matches!(e, Element::Address(ip) | Element::Port(ip, ..) if anew.contains(ip));
            elements.retain(|e| *kind == SetKind::Ranges || own(e));
        }
        let mut kernel = found(&layout(&old, both));
        let mut held = Held::of(&kernel);
        anew.iter().for_each(|ip| held.renew(*ip));
        if lost {
            kernel = Observed::default();
        }
        kernel.apply(&held.edit_with(&layout(&wanted, both), &kernel));
        prop_assert_eq!(&kernel, &found(&layout(&wanted, both)));
    }
}

#[test]
fn packets_are_looked_at_only_while_a_pod_is_restricted() {
    let both = Families { v4: true, v6: true };
    let hooks = |kernel: &Observed| {
        let hooked = kernel.chains.iter().filter(|(_, chain)| chain.hook.is_some());
        hooked.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let nobody = PolicyState::default();
    let mut kernel = found(&layout(&nobody, both));
    assert!(hooks(&kernel).is_empty());
    let open = isolated(Direction::Ingress, vec![rule(Peers::Any, Ports::Any, Action::Accept)]);
    let somebody = Build::default().chain("in", open, &["10.0.0.1"]).0;
    let mut tracker = Tracker::of(&nobody);
    kernel.apply(&tracker.edit(&delta(&nobody, &somebody), both));
    assert_eq!(
        (hooks(&kernel), &kernel),
        (vec![FORWARD.to_owned()], &found(&layout(&somebody, both)))
    );
    kernel.apply(&tracker.edit(&delta(&somebody, &nobody), both));
    assert_eq!(kernel, found(&layout(&nobody, both)));
    // Nothing is known yet, and a pod comes.
    let mut held = Held::of(&kernel);
    held.close(ip("10.0.0.2"));
    kernel.apply(&held.edit(&kernel));
    assert_eq!(hooks(&kernel), [FORWARD]);
}

#[test]
fn a_lost_chain_that_is_not_remembered_is_closed() {
    let both = Families { v4: true, v6: true };
    let open = isolated(Direction::Ingress, vec![rule(Peers::Any, Ports::Any, Action::Accept)]);
    let had = Build::default().chain("newer", open.clone(), &["10.0.0.1"]).0;
    let remembered = Build::default().chain("older", open, &["10.0.0.1", "10.0.0.2"]).0;
    let mut held = Held::of(&found(&layout(&had, both)));
    held.renew(ip("10.0.0.2"));
    let mut kernel = Observed::default();
    kernel.apply(&held.edit_with(&layout(&remembered, both), &kernel));
    let chain = |address| verdicts(&kernel, &[ip(address)].into()).into_values().next().unwrap();
    assert!(chain("10.0.0.1").starts_with("deny-"), "{}", chain("10.0.0.1"));
    assert_eq!(chain("10.0.0.2"), "in4-older");
    // Where there was no table at all, memory is for everybody.
    let held = Held::of(&Observed::default());
    let mut kernel = Observed::default();
    kernel.apply(&held.edit_with(&layout(&remembered, both), &kernel));
    assert_eq!(kernel, found(&layout(&remembered, both)));
}

#[test]
fn only_what_gets_worse_is_looked_at() {
    let chain = isolated(
        Direction::Ingress,
        vec![rule(Peers::Set(SetId("a".into())), Ports::Any, Action::Accept)],
    );
    let with = |members: &[&str]| {
        Build::default().pods("a", members).chain("c", chain.clone(), &["10.0.0.1"]).0
    };
    let (fewer, more) = (with(&["10.0.0.2"]), with(&["10.0.0.2", "10.0.0.3"]));
    let affected = |from: &PolicyState, to: &PolicyState| {
        let mut tracker = Tracker::of(from);
        let delta = delta(from, to);
        tracker.edit(&delta, Families { v4: true, v6: true });
        tracker.affected(&delta).len()
    };
    assert_eq!(affected(&fewer, &more), 0);
    assert_eq!(affected(&more, &fewer), 1);
    assert_eq!(affected(&PolicyState::default(), &fewer), 1);
    assert_eq!(affected(&fewer, &PolicyState::default()), 0);
}

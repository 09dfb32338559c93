//! A delta leads where the whole would.

use proptest::prelude::*;

use super::states::{Build, delta, found, ip, isolated, rule};
use crate::policy::nft::hold::Held;
use crate::policy::nft::layout::{Families, layout};
use crate::policy::nft::model::{Observed, diff, rebuild};
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

fn address(n: u8) -> std::net::IpAddr {
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
        // No chain and no set of the policy is touched.
        prop_assert!(!edit.reset && edit.new_chains.is_empty() && edit.old_chains.is_empty());
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

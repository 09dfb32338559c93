//! Policy states by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::policy::nft::model::{Desired, Observed};
use crate::policy::state::{
    Action, Chain, ChainId, Delta, Direction, Element, Peers, PolicyState, Ports, Protocol, Rule,
    SetId, SetKind, Subject,
};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn set(name: &str) -> SetId {
    SetId(name.into())
}

pub(super) fn id(name: &str) -> ChainId {
    ChainId(name.into())
}

pub(super) fn rule(peers: Peers, ports: Ports, action: Action) -> Rule {
    Rule { peers, ports, action }
}

pub(super) fn of(name: &str) -> Peers {
    Peers::Set(set(name))
}

pub(super) fn tcp(first: u16, last: u16) -> Ports {
    Ports::Listed(vec![(Protocol::Tcp, first, last)])
}

/// A chain of NetworkPolicies.
pub(super) fn isolated(direction: Direction, main: Vec<Rule>) -> Chain {
    Chain { direction, admin: Vec::new(), main, end: Action::Deny }
}

/// Builds states.
#[derive(Default)]
pub(super) struct Build(pub(super) PolicyState);

impl Build {
    pub(super) fn set(mut self, name: &str, kind: SetKind, members: Vec<Element>) -> Self {
        self.0.sets.insert(set(name), (kind, members.into_iter().collect()));
        self
    }

    pub(super) fn pods(self, name: &str, members: &[&str]) -> Self {
        let members = members.iter().map(|m| Element::Address(ip(m))).collect();
        self.set(name, SetKind::Addresses, members)
    }

    /// A chain for these addresses.
    pub(super) fn chain(mut self, name: &str, chain: Chain, addresses: &[&str]) -> Self {
        for address in addresses {
            let subject = self.0.subjects.entry(ip(address)).or_default();
            match chain.direction {
                Direction::Ingress => subject.ingress = Some(id(name)),
                Direction::Egress => subject.egress = Some(id(name)),
            }
        }
        self.0.chains.insert(id(name), chain);
        self
    }
}

/// The difference, found the slow way.
pub(super) fn delta(from: &PolicyState, to: &PolicyState) -> Delta {
    let none = BTreeSet::new();
    let mut out = Delta::default();
    for (id, (kind, members)) in &to.sets {
        if !from.sets.contains_key(id) {
            out.new_sets.insert(id.clone(), *kind);
        }
        let had = from.sets.get(id).map_or(&none, |(_, members)| members);
        let add: BTreeSet<Element> = members.difference(had).copied().collect();
        let remove: BTreeSet<Element> = had.difference(members).copied().collect();
        if !add.is_empty() {
            out.add.insert(id.clone(), add);
        }
        if !remove.is_empty() {
            out.remove.insert(id.clone(), remove);
        }
    }
    let new = to.chains.iter().filter(|(id, _)| !from.chains.contains_key(*id));
    out.new_chains = new.map(|(id, chain)| (id.clone(), chain.clone())).collect();
    let all: BTreeSet<&IpAddr> = from.subjects.keys().chain(to.subjects.keys()).collect();
    for ip in all {
        let (old, new): (Option<&Subject>, _) = (from.subjects.get(ip), to.subjects.get(ip));
        if old != new {
            out.subjects.insert(*ip, new.cloned());
        }
    }
    let gone = |id: &&ChainId| !to.chains.contains_key(*id);
    out.old_chains = from.chains.keys().filter(gone).cloned().collect();
    let gone = |id: &&SetId| !to.sets.contains_key(*id);
    out.old_sets = from.sets.keys().filter(gone).cloned().collect();
    out
}

/// What would be found if just this were there.
pub(super) fn found(desired: &Desired) -> Observed {
    let chains: BTreeMap<_, _> =
        desired.chains.iter().map(|(name, body)| (name.clone(), body.chain())).collect();
    Observed { live: true, sets: desired.sets.clone(), chains }
}

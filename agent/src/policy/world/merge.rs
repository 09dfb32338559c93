//! Rules of one action, in any order: the fewest that mean the same.

use std::collections::{BTreeMap, BTreeSet};

use super::groups::{Group, Scope, SetDef};
use super::naming;
use super::spans::{AddressSpans, PortSpans};
use crate::policy::objects::NamedPort;
use crate::policy::objects::Text;
use crate::policy::objects::network::{Namespaces, Peer, Port};
use crate::policy::selector::Selector;
use crate::policy::state::{Action, Direction, Peers, Ports, Protocol, Rule, SetId};

/// From this many groups with the same ports on, one set of their union takes the
/// place of a rule for each: a packet then asks one set instead of many, and the
/// elements are there once more.
const UNION_FROM: usize = 5;

/// Sets that rules name.
pub(super) type SetDefs = BTreeMap<SetId, SetDef>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Any,
    Group(Group),
    Nodes(Selector),
    Ranges(AddressSpans),
}

/// Ports of one [`Who`].
#[derive(Debug, Clone, Default)]
struct What {
    all: bool,
    listed: PortSpans,
    named: BTreeSet<(Option<Protocol>, Text)>,
}

impl What {
    fn add(&mut self, other: &Self) {
        self.all |= other.all;
        self.listed = self.listed.union(&other.listed);
        self.named.extend(other.named.iter().cloned());
    }

    fn take(&mut self, other: &Self) {
        if other.all {
            *self = Self::default();
        }
        self.listed = self.listed.minus(&other.listed);
        self.named.retain(|name| !other.named.contains(name));
    }
}

/// Collects rules of one action that follow each other.
#[derive(Debug)]
pub(super) struct Run<'a> {
    direction: Direction,
    /// Namespace of the policy that is being added.
    namespace: &'a Text,
    /// Named ports of the subject: what a name means in an ingress rule.
    own: &'a [NamedPort],
    rules: BTreeMap<Who, What>,
}

impl<'a> Run<'a> {
    pub(super) fn new(direction: Direction, namespace: &'a Text, own: &'a [NamedPort]) -> Self {
        Self { direction, namespace, own, rules: BTreeMap::new() }
    }

    /// A rule: each of `peers` (`None`: everybody) at each of `ports` (`None`: all).
    pub(super) fn add(&mut self, peers: Option<&[Peer]>, ports: Option<&[Port]>) {
        let what = self.what(ports);
        if !what.all && what.listed.is_empty() && what.named.is_empty() {
            return;
        }
        let Some(peers) = peers else {
            self.rules.entry(Who::Any).or_default().add(&what);
            return;
        };
        let mut blocks = AddressSpans::default();
        for peer in peers {
            let who = match peer {
                Peer::Pods(namespaces, pods) => Who::Group(Group {
                    scope: match namespaces {
                        Namespaces::Own => Scope::Named(self.namespace.clone()),
                        Namespaces::Matching(selector) => Scope::Matching(selector.clone()),
                    },
                    pods: pods.clone(),
                }),
                Peer::Nodes(selector) => Who::Nodes(selector.clone()),
                Peer::Block(net, except) => {
                    let block = AddressSpans::of([net]).minus(&AddressSpans::of(except));
                    blocks = blocks.union(&block);
                    continue;
                }
            };
            self.rules.entry(who).or_default().add(&what);
        }
        if !blocks.is_empty() {
            self.rules.entry(Who::Ranges(blocks)).or_default().add(&what);
        }
    }

    fn what(&self, ports: Option<&[Port]>) -> What {
        let Some(ports) = ports else { return What { all: true, ..What::default() } };
        let mut what = What::default();
        let mut ranges = Vec::with_capacity(ports.len());
        for port in ports {
            match port {
                Port::Range(protocol, low, high) => ranges.push((*protocol, *low, *high)),
                Port::Named(protocol, name) if self.direction == Direction::Ingress => {
                    let meant = self.own.iter().filter(|own| {
                        own.name == *name && protocol.is_none_or(|p| p == own.protocol)
                    });
                    ranges.extend(meant.map(|own| (own.protocol, own.port, own.port)));
                }
                Port::Named(protocol, name) => {
                    what.named.insert((*protocol, name.clone()));
                }
            }
        }
        what.listed = PortSpans::of(ranges);
        what
    }

    /// The rules, and the sets they name. Empty if nothing can match.
    pub(super) fn finish(self, action: Action, sets: &mut SetDefs) -> Vec<Rule> {
        let mut rules = self.rules;
        if let Some(any) = rules.get(&Who::Any).cloned() {
            for (who, what) in &mut rules {
                if *who != Who::Any {
                    what.take(&any);
                }
            }
        }
        // By ports, so that peers with the same ports can share a rule.
        let mut all: Vec<Who> = Vec::new();
        let mut listed: BTreeMap<PortSpans, Vec<Who>> = BTreeMap::new();
        let mut named: BTreeMap<(Option<Protocol>, Text), Vec<Who>> = BTreeMap::new();
        for (who, what) in rules {
            if what.all {
                all.push(who);
                continue;
            }
            for name in what.named {
                named.entry(name).or_default().push(who.clone());
            }
            if !what.listed.is_empty() {
                listed.entry(what.listed).or_default().push(who);
            }
        }
        let mut out = Vec::new();
        for peers in peers(all, sets) {
            out.push(Rule { peers, ports: Ports::Any, action });
        }
        for (ports, whos) in listed {
            for peers in peers(whos, sets) {
                out.push(Rule { peers, ports: Ports::Listed(ports.listed()), action });
            }
        }
        for ((protocol, name), whos) in named {
            named_rules(protocol, &name, whos, action, sets, &mut out);
        }
        out
    }
}

/// The same, for who has them at the same ports.
fn peers(whos: Vec<Who>, sets: &mut SetDefs) -> Vec<Peers> {
    let mut out = Vec::new();
    let mut groups = Vec::new();
    let mut blocks = AddressSpans::default();
    for who in whos {
        match who {
            Who::Any => out.push(Peers::Any),
            Who::Group(group) => groups.push(group),
            Who::Nodes(selector) => out.push(Peers::Set(set(SetDef::Nodes(selector), sets))),
            Who::Ranges(spans) => blocks = blocks.union(&spans),
        }
    }
    if !blocks.is_empty() {
        out.push(Peers::Set(set(SetDef::Ranges(blocks.ranges()), sets)));
    }
    for groups in split(groups) {
        out.push(Peers::Set(set(SetDef::Pods(groups), sets)));
    }
    out
}

/// Each its own set while they are few, else all in one.
fn split(groups: Vec<Group>) -> Vec<Vec<Group>> {
    if groups.len() < UNION_FROM {
        return groups.into_iter().map(|group| vec![group]).collect();
    }
    vec![groups]
}

fn named_rules(
    protocol: Option<Protocol>,
    name: &Text,
    whos: Vec<Who>,
    action: Action,
    sets: &mut SetDefs,
    out: &mut Vec<Rule>,
) {
    let mut groups = Vec::new();
    let mut rule = |peers: Peers, of: Option<Vec<Group>>, sets: &mut SetDefs| {
        let ports = set(SetDef::Ports(of, protocol, name.clone()), sets);
        out.push(Rule { peers, ports: Ports::PerDestination(ports), action });
    };
    for who in whos {
        match who {
            Who::Any => rule(Peers::Any, None, sets),
            Who::Ranges(spans) => {
                let peers = Peers::Set(set(SetDef::Ranges(spans.ranges()), sets));
                rule(peers, None, sets);
            }
            Who::Group(group) => groups.push(group),
            // A node has no named ports.
            Who::Nodes(_) => {}
        }
    }
    for groups in split(groups) {
        rule(Peers::Any, Some(groups), sets);
    }
}

fn set(def: SetDef, sets: &mut SetDefs) -> SetId {
    let id = naming::set(&def);
    sets.insert(id.clone(), def);
    id
}

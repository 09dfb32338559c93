//! The table for a [`PolicyState`]: what is always there, and what follows from it.
//!
//! ```text
//! forward: established? accept ─► judge4 / judge6
//! judge4:  itself? accept ─► stray TCP? stray4 ─► egress4[source] ─► ingress4[destination]
//! out4-ID: rules, each return (allowed: on to ingress) or goto deny-out4
//! deny-*:  counter of the pod ─► refuse-*: counter of the port, log, drop
//! ```
//!
//! The base chain `forward` is there only while a pod of this node is restricted: every
//! packet of every pod pays for it. It comes and goes in the transaction that brings the
//! first of them and takes the last. Until then `tracking`, which no packet reaches, makes
//! the kernel track connections: one that is there when its pod becomes restricted is an
//! established one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::LOG_GROUP;
use super::elements::{
    Fam, address_key, chain_name, counted, keys, pair_key, pairs, protocol_key, protocols,
    refused_ports, set_name, shape, verdicts, way,
};
use super::model::{Body, Desired, Elements, Set, Shape};
use crate::dataplane::nft::expr::{ACCEPT, DROP, GOTO, JUMP, REG, RETURN, Rule};
use crate::dataplane::nft::ruleset::Hook;
use crate::policy::state::{
    Action, Chain, ChainId, Direction, Peers, PolicyState, Ports, SetId, SetKind, Subject,
};

/// Refused packets counted by protocol and port.
pub(crate) const REFUSED_PORTS: &str = "refused-ports";
/// The base chain.
pub(crate) const FORWARD: &str = "forward";
const TRACKING: &str = "tracking";
const PROTOCOLS: &str = "protocols";
const WITH_PORTS: [u8; 3] = [6, 17, 132];
const LOGS_PER_SECOND: u64 = 50;
const LOG_BURST: u32 = 100;
/// Enough for the headers of network and transport.
const LOG_BYTES: u32 = 128;

/// What log prefixes begin with; then [`way`] or [`STRAY`].
pub(crate) const PREFIX: &str = "weft-policy ";
/// TCP that belongs to no known connection.
pub(crate) const STRAY: &str = "stray";

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Which families the pod network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

impl Families {
    pub(crate) fn has(self, fam: Fam) -> bool {
        if fam.is_v6() { self.v6 } else { self.v4 }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Fam> {
        Fam::BOTH.into_iter().filter(move |fam| self.has(*fam))
    }
}

/// Map of a direction.
pub(crate) fn map_name(direction: Direction, fam: Fam) -> String {
    fam.name(match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    })
}

/// Set of local addresses that counts what is refused in a direction.
pub(crate) fn refused_name(direction: Direction, fam: Fam) -> String {
    fam.name(&format!("refused-{}", way(direction)))
}

fn itself(fam: Fam) -> String {
    fam.name("itself")
}

/// Sets of restricted addresses, whatever their chains.
pub(crate) fn membership(ip: IpAddr) -> [(String, super::model::Key); 3] {
    let fam = Fam::of(ip);
    [
        (itself(fam), pair_key(ip)),
        (refused_name(Direction::Ingress, fam), address_key(ip)),
        (refused_name(Direction::Egress, fam), address_key(ip)),
    ]
}

/// The base chain, which leads packets to the rest.
pub(crate) fn forward() -> Body {
    let mut rules = vec![Rule::default().established().verdict(ACCEPT, None)];
    for fam in Fam::BOTH {
        rules.push(Rule::default().family(fam.is_v6()).verdict(GOTO, Some(&fam.name("judge"))));
    }
    let hook = Hook { kind: "filter".to_owned(), hook: 2, priority: 0 };
    Body { hook: Some(hook), rules: rules.into_iter().map(Rule::build).collect() }
}

/// Puts the base chain in if anybody is restricted, else takes it out.
pub(crate) fn settle(out: &mut Desired) {
    let is_restricted =
        |fam: &Fam| out.sets.get(&itself(*fam)).is_some_and(|set| !set.elements.is_empty());
    if Fam::BOTH.iter().any(is_restricted) {
        out.chains.insert(FORWARD.to_owned(), forward());
    } else {
        out.chains.remove(FORWARD);
    }
}

/// What is in the table whatever the policies, but for the base chain.
pub(crate) fn base() -> Desired {
    let mut out = Desired::default();
    let mut set = |name: String, shape: Shape, elements: Elements| {
        out.sets.insert(name, Set { shape, elements });
    };
    for fam in Fam::BOTH {
        set(itself(fam), pairs(fam), Elements::new());
        for direction in DIRECTIONS {
            set(map_name(direction, fam), verdicts(fam), Elements::new());
            set(refused_name(direction, fam), counted(fam), Elements::new());
        }
    }
    set(REFUSED_PORTS.to_owned(), refused_ports(), Elements::new());
    let with_ports = WITH_PORTS.map(|proto| (protocol_key(proto), String::new())).into();
    set(PROTOCOLS.to_owned(), protocols(), with_ports);
    let mut chain = |name: String, rules: Vec<Rule>| {
        let rules = rules.into_iter().map(Rule::build).collect();
        out.chains.insert(name, Body { hook: None, rules });
    };
    chain(TRACKING.to_owned(), vec![Rule::default().established().verdict(ACCEPT, None)]);
    for fam in Fam::BOTH {
        chain(fam.name("judge"), judge(fam));
        chain(fam.name(STRAY), stray(fam));
        for direction in DIRECTIONS {
            let count = own(Rule::default().family(fam.is_v6()), direction, fam).lookup(
                &refused_name(direction, fam),
                REG,
                None,
            );
            let on = Rule::default().verdict(GOTO, Some(&format!("refuse-{}", way(direction))));
            chain(deny_name(direction, fam), vec![count, on]);
        }
    }
    for (what, ports) in [("in", true), ("out", true), (STRAY, false)] {
        let mut rules = Vec::new();
        if ports {
            let count = Rule::default()
                .load_l4proto(REG)
                .lookup(PROTOCOLS, REG, None)
                .load_dport(REG + 1)
                .count_in(REFUSED_PORTS, REG);
            rules.push(count);
        }
        let prefix = format!("{PREFIX}{what}");
        rules.push(
            Rule::default().limit(LOGS_PER_SECOND, LOG_BURST).log(&prefix, LOG_GROUP, LOG_BYTES),
        );
        rules.push(Rule::default().verdict(DROP, None));
        chain(format!("refuse-{what}"), rules);
    }
    out
}

pub(crate) fn deny_name(direction: Direction, fam: Fam) -> String {
    fam.name(&format!("deny-{}", way(direction)))
}

/// Loads the address of the local pod that a direction is about.
fn own(rule: Rule, direction: Direction, fam: Fam) -> Rule {
    rule.load_address(direction == Direction::Egress, fam.is_v6(), REG)
}

fn judge(fam: Fam) -> Vec<Rule> {
    let v6 = fam.is_v6();
    let words = if v6 { 4 } else { 1 };
    let same = Rule::default()
        .family(v6)
        .load_address(true, v6, REG)
        .load_address(false, v6, REG + words)
        .lookup(&itself(fam), REG, None)
        .verdict(ACCEPT, None);
    // A connection whose conntrack entry was dropped must not come back the
    // other way round, as one that the pod has opened.
    let stray = Rule::default().tcp_not_opening().verdict(JUMP, Some(&fam.name(STRAY)));
    let mut rules = vec![same, stray];
    rules.extend(DIRECTIONS.map(|direction| {
        own(Rule::default().family(v6), direction, fam).lookup(
            &map_name(direction, fam),
            REG,
            Some(0),
        )
    }));
    rules
}

fn stray(fam: Fam) -> Vec<Rule> {
    let refuse = |direction| {
        own(Rule::default().family(fam.is_v6()), direction, fam)
            .lookup(&refused_name(direction, fam), REG, None)
            .verdict(GOTO, Some("refuse-stray"))
    };
    DIRECTIONS.map(refuse).into()
}

/// Kinds of the sets that rules name.
pub(crate) type Kinds<'a> = dyn Fn(&SetId) -> Option<SetKind> + 'a;

/// The chains of the kernel for one of the policy. A set that `kinds` does not
/// know holds nothing: rules of it match nothing, unless they refuse; those
/// match everything.
pub(crate) fn chains(
    id: &ChainId,
    chain: &Chain,
    fam: Fam,
    kinds: &Kinds<'_>,
) -> Vec<(String, Body)> {
    let name = chain_name(chain.direction, fam, id);
    let main_name = format!("{name}.main");
    let write = |rules: &[crate::policy::state::Rule]| {
        rules
            .iter()
            .flat_map(|rule| rule_for(rule, chain.direction, fam, &main_name, kinds))
            .collect()
    };
    let mut main: Vec<Vec<u8>> = write(&chain.main);
    if chain.end != Action::Accept {
        main.push(refuse(Rule::default(), chain.direction, fam).build());
    }
    let mut admin: Vec<Vec<u8>> = write(&chain.admin);
    if !chain.admin.iter().any(|rule| rule.action == Action::Pass) {
        admin.append(&mut main);
        return vec![(name, Body { hook: None, rules: admin })];
    }
    admin.push(Rule::default().verdict(GOTO, Some(&main_name)).build());
    vec![
        (name, Body { hook: None, rules: admin }),
        (main_name.clone(), Body { hook: None, rules: main }),
    ]
}

/// Names of [`chains`].
pub(crate) fn chain_names(id: &ChainId, chain: &Chain, fam: Fam) -> Vec<String> {
    chains(id, chain, fam, &|_| None).into_iter().map(|(name, _)| name).collect()
}

fn refuse(rule: Rule, direction: Direction, fam: Fam) -> Rule {
    rule.verdict(GOTO, Some(&deny_name(direction, fam)))
}

fn rule_for(
    rule: &crate::policy::state::Rule,
    direction: Direction,
    fam: Fam,
    main: &str,
    kinds: &Kinds<'_>,
) -> Vec<Vec<u8>> {
    let ports = match &rule.ports {
        Ports::Any => vec![None],
        Ports::PerDestination(_) => vec![None],
        Ports::Listed(list) => list.iter().copied().map(Some).collect(),
    };
    let one = |port: Option<(crate::policy::state::Protocol, u16, u16)>| {
        let mut out = Rule::default();
        if let Some((proto, first, last)) = port {
            out = out.l4proto(proto as u8);
            if (first, last) != (0, u16::MAX) {
                out = out.dport(first, last);
            }
        }
        if let Peers::Set(id) = &rule.peers {
            let kind = kinds(id)?;
            out = out
                .family(fam.is_v6())
                .load_address(direction == Direction::Ingress, fam.is_v6(), REG)
                .lookup(&set_name(kind, fam, id), REG, None);
        }
        if let Ports::PerDestination(id) = &rule.ports {
            let words = if fam.is_v6() { 4 } else { 1 };
            out = out
                .family(fam.is_v6())
                .load_l4proto(REG + words)
                .load_address(false, fam.is_v6(), REG)
                .load_dport(REG + words + 1)
                .lookup(&set_name(kinds(id)?, fam, id), REG, None);
        }
        Some(match rule.action {
            Action::Accept => out.verdict(RETURN, None),
            Action::Deny => refuse(out, direction, fam),
            Action::Pass => out.verdict(GOTO, Some(main)),
        })
    };
    ports.into_iter().filter_map(one).map(Rule::build).collect()
}

/// Map elements of a subject.
pub(crate) fn verdict_elements<'a>(
    ip: IpAddr,
    subject: &'a Subject,
) -> impl Iterator<Item = (Direction, String)> + 'a {
    let fam = Fam::of(ip);
    let ingress = subject.ingress.as_ref().map(|id| (Direction::Ingress, id));
    let egress = subject.egress.as_ref().map(|id| (Direction::Egress, id));
    ingress.into_iter().chain(egress).map(move |(way, id)| (way, chain_name(way, fam, id)))
}

/// The whole table.
pub(crate) fn layout(state: &PolicyState, families: Families) -> Desired {
    let mut out = base();
    for (id, (kind, members)) in &state.sets {
        let mut found: BTreeMap<Fam, Elements> = BTreeMap::new();
        for (fam, keys) in members.iter().map(keys) {
            found.entry(fam).or_default().extend(keys.into_iter().map(|key| (key, String::new())));
        }
        for fam in families.iter() {
            let elements = found.remove(&fam).unwrap_or_default();
            out.sets.insert(set_name(*kind, fam, id), Set { shape: shape(*kind, fam), elements });
        }
    }
    let kinds = |id: &SetId| state.sets.get(id).map(|(kind, _)| *kind);
    for (id, chain) in &state.chains {
        for fam in families.iter() {
            out.chains.extend(chains(id, chain, fam, &kinds));
        }
    }
    for (ip, subject) in &state.subjects {
        let fam = Fam::of(*ip);
        if !families.has(fam) {
            continue;
        }
        for (set, key) in membership(*ip) {
            if let Some(set) = out.sets.get_mut(&set) {
                set.elements.insert(key, String::new());
            }
        }
        for (direction, chain) in verdict_elements(*ip, subject) {
            if let Some(map) = out.sets.get_mut(&map_name(direction, fam)) {
                map.elements.insert(address_key(*ip), chain);
            }
        }
    }
    settle(&mut out);
    out
}

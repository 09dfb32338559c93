//! From the policies that select a pod to its chain in one direction.

use std::collections::BTreeSet;

use super::merge::{Run, SetDefs};
use crate::policy::objects::cluster::{ClusterPolicy, ClusterRule, Tier};
use crate::policy::objects::network;
use crate::policy::objects::{NamedPort, NetworkPolicy, Text};
use crate::policy::state::{Action, Chain, Direction, Peers, Ports, Rule, SetId};

/// What has a say about a pod in one direction.
#[derive(Debug)]
pub(in crate::policy) struct Selected<'a> {
    /// NetworkPolicies that isolate it in this direction.
    pub(in crate::policy) network: Vec<&'a NetworkPolicy>,
    /// ClusterNetworkPolicies of both tiers, in the order of [`order`].
    pub(in crate::policy) cluster: Vec<&'a ClusterPolicy>,
}

/// Order in which ClusterNetworkPolicies are asked.
pub(super) fn order(policy: &ClusterPolicy) -> (Tier, i32, &str) {
    (policy.tier, policy.priority, &policy.id.name)
}

pub(in crate::policy) fn cluster_rules(
    policy: &ClusterPolicy,
    direction: Direction,
) -> &[ClusterRule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

/// Rules of a NetworkPolicy; `None` if it does not isolate in this direction.
pub(in crate::policy) fn network_rules(
    policy: &NetworkPolicy,
    direction: Direction,
) -> Option<&[network::Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// The chain of a pod that nothing is known of and that must do nothing.
pub(super) fn closed(direction: Direction) -> Chain {
    Chain { direction, admin: Vec::new(), main: Vec::new(), end: Action::Deny }
}

/// The chain, or `None` if it could refuse nothing; and the sets it names.
pub(super) fn chain(
    selected: &Selected<'_>,
    direction: Direction,
    namespace: &Text,
    own: &[NamedPort],
) -> (Option<Chain>, SetDefs) {
    let mut sets = SetDefs::new();
    let tier = |tier: Tier, sets: &mut SetDefs| {
        let rules = selected
            .cluster
            .iter()
            .filter(|policy| policy.tier == tier)
            .flat_map(|policy| cluster_rules(policy, direction));
        tier_rules(rules, tier, direction, namespace, own, sets)
    };
    let admin = tier(Tier::Admin, &mut sets);
    let (main, end) = if selected.network.is_empty() {
        (tier(Tier::Baseline, &mut sets), Action::Accept)
    } else {
        let mut run = Run::new(direction, namespace, own);
        for policy in &selected.network {
            for rule in network_rules(policy, direction).unwrap_or_default() {
                run.add(rule.peers.as_deref(), rule.ports.as_deref());
            }
        }
        (run.finish(Action::Accept, &mut sets), Action::Deny)
    };
    let (main, end) = if main.first().is_some_and(matches_all) {
        (Vec::new(), main[0].action)
    } else {
        (main, end)
    };
    let chain = Chain { direction, admin, main, end };
    let refuses = chain.end == Action::Deny
        || chain.admin.iter().chain(&chain.main).any(|rule| rule.action == Action::Deny);
    if !refuses {
        return (None, SetDefs::new());
    }
    // Rules that were left out may have named sets that nobody names now.
    let rules = || chain.admin.iter().chain(&chain.main);
    let named: BTreeSet<&SetId> = rules()
        .filter_map(|rule| match &rule.peers {
            Peers::Set(id) => Some(id),
            Peers::Any => None,
        })
        .chain(rules().filter_map(|rule| match &rule.ports {
            Ports::PerDestination(id) => Some(id),
            Ports::Any | Ports::Listed(_) => None,
        }))
        .collect();
    sets.retain(|id, _| named.contains(id));
    (Some(chain), sets)
}

fn matches_all(rule: &Rule) -> bool {
    rule.peers == Peers::Any && rule.ports == Ports::Any
}

/// Rules of a tier, in order: neighbours of the same action are merged.
fn tier_rules<'a>(
    rules: impl Iterator<Item = &'a ClusterRule>,
    tier: Tier,
    direction: Direction,
    namespace: &Text,
    own: &[NamedPort],
    sets: &mut SetDefs,
) -> Vec<Rule> {
    let mut out = Vec::new();
    let mut run: Option<(Action, Run<'_>)> = None;
    for rule in rules {
        // After the baseline tier nothing is asked any more: to pass is to accept.
        let action = match (tier, rule.action) {
            (Tier::Baseline, Action::Pass) => Action::Accept,
            (_, action) => action,
        };
        if let Some((other, done)) = run.take_if(|(held, _)| *held != action) {
            out.extend(done.finish(other, sets));
        }
        let (_, open) = run.get_or_insert_with(|| (action, Run::new(direction, namespace, own)));
        open.add(rule.peers.as_deref(), rule.ports.as_deref());
    }
    if let Some((action, done)) = run {
        out.extend(done.finish(action, sets));
    }
    // Nothing is asked after a rule that always matches.
    if let Some(last) = out.iter().position(matches_all) {
        out.truncate(last + 1);
    }
    out
}

//! Before the API server has told everything: what an earlier life of the agent
//! left in the kernel stays, pods come and go. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::elements::{Fam, address_key};
use super::layout::{base, map_name, membership};
use super::model::{Edit, Observed, Set, diff};
use crate::policy::state::Direction;

/// Where the verdicts of local addresses lead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held(BTreeMap<(IpAddr, bool), String>);

const WAYS: [(bool, Direction); 2] = [(true, Direction::Ingress), (false, Direction::Egress)];

impl Held {
    /// What is found.
    pub(crate) fn of(observed: &Observed) -> Self {
        let mut out = Self::default();
        for fam in Fam::BOTH {
            for (ingress, direction) in WAYS {
                let Some(map) = observed.sets.get(&map_name(direction, fam)) else { continue };
                for (key, chain) in &map.elements {
                    if let Some(ip) = crate::dataplane::netlink::codec::ip(&key.bytes) {
                        out.0.insert((ip, ingress), chain.clone());
                    }
                }
            }
        }
        out
    }

    /// A new pod of which nothing is known: nothing is allowed.
    pub(crate) fn close(&mut self, ip: IpAddr) {
        for (ingress, direction) in WAYS {
            self.0.insert((ip, ingress), deny(direction, Fam::of(ip)));
        }
    }

    /// Forgets addresses that are no pod's any more; tells which.
    pub(crate) fn keep(&mut self, local: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let gone: BTreeSet<IpAddr> =
            self.0.keys().map(|(ip, _)| *ip).filter(|ip| !local.contains(ip)).collect();
        self.0.retain(|(ip, _), _| local.contains(ip));
        gone
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains_key(&(ip, true)) || self.0.contains_key(&(ip, false))
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.0.keys().map(|(ip, _)| *ip).collect()
    }

    /// The way from what is there to this. A chain that is lost is replaced by
    /// a refusal: what it allowed is not known.
    pub(crate) fn edit(&self, observed: &Observed) -> Edit {
        // Everything of the policy stays out of the comparison.
        let fixed = base();
        let known = Observed {
            live: observed.live,
            sets: observed
                .sets
                .iter()
                .filter(|(name, _)| fixed.sets.contains_key(*name))
                .map(|(name, set)| (name.clone(), set.clone()))
                .collect(),
            chains: observed
                .chains
                .iter()
                .filter(|(name, _)| fixed.chains.contains_key(*name))
                .map(|(name, chain)| (name.clone(), chain.clone()))
                .collect(),
        };
        let edit =
            diff(&self.desired(&fixed.sets, |chain| observed.chains.contains_key(chain)), &known);
        if !edit.reset {
            return edit;
        }
        diff(&self.desired(&fixed.sets, |chain| fixed.chains.contains_key(chain)), &known)
    }

    fn desired(
        &self,
        fixed: &BTreeMap<String, Set>,
        there: impl Fn(&str) -> bool,
    ) -> super::model::Desired {
        let mut out = base();
        out.sets.clone_from(fixed);
        for ((ip, ingress), chain) in &self.0 {
            let fam = Fam::of(*ip);
            let direction = if *ingress { Direction::Ingress } else { Direction::Egress };
            let chain = if there(chain) { chain.clone() } else { deny(direction, fam) };
            if let Some(map) = out.sets.get_mut(&map_name(direction, fam)) {
                map.elements.insert(address_key(*ip), chain);
            }
            for (set, key) in membership(*ip) {
                if let Some(set) = out.sets.get_mut(&set) {
                    set.elements.insert(key, String::new());
                }
            }
        }
        out
    }
}

fn deny(direction: Direction, fam: Fam) -> String {
    super::layout::deny_name(direction, fam)
}

//! Before the API server has told everything: what an earlier life of the agent
//! left in the kernel stays, pods come and go. Pure.
//!
//! With what that life remembered of the cluster, new pods get the rules that
//! follow from it. The kernel is at least as new as the memory: about everything
//! that was there before, the kernel is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::elements::{Fam, address_key, holder};
use super::layout::{FORWARD, base, map_name, membership, settle};
use super::model::{Desired, Edit, Key, Observed, Set, diff};
use crate::policy::state::Direction;

/// What is kept of an earlier life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Where the verdicts of local addresses lead.
    verdicts: BTreeMap<(IpAddr, bool), String>,
    /// Addresses that a pod got or gave back since.
    anew: BTreeSet<IpAddr>,
    /// There was no table: the kernel says nothing about anybody.
    blank: bool,
}

const WAYS: [(bool, Direction); 2] = [(true, Direction::Ingress), (false, Direction::Egress)];

impl Held {
    /// What is found.
    pub(crate) fn of(observed: &Observed) -> Self {
        let mut out = Self { blank: !observed.live, ..Self::default() };
        for fam in Fam::BOTH {
            for (ingress, direction) in WAYS {
                let Some(map) = observed.sets.get(&map_name(direction, fam)) else { continue };
                for (key, chain) in &map.elements {
                    if let Some(ip) = crate::dataplane::netlink::codec::ip(&key.bytes) {
                        out.verdicts.insert((ip, ingress), chain.clone());
                    }
                }
            }
        }
        out
    }

    /// A new pod of which nothing is known: nothing is allowed.
    pub(crate) fn close(&mut self, ip: IpAddr) {
        for (ingress, direction) in WAYS {
            self.verdicts.insert((ip, ingress), deny(direction, Fam::of(ip)));
        }
    }

    /// Another pod has this address now, or none: what was there before does not count.
    pub(crate) fn renew(&mut self, ip: IpAddr) {
        for (ingress, _) in WAYS {
            self.verdicts.remove(&(ip, ingress));
        }
        self.anew.insert(ip);
    }

    /// The kernel decides about this address, not the memory.
    pub(crate) fn keeps(&self, ip: IpAddr) -> bool {
        !self.blank && !self.anew.contains(&ip)
    }

    /// Forgets addresses that are no pod's any more; tells which.
    pub(crate) fn keep(&mut self, local: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let gone: BTreeSet<IpAddr> =
            self.verdicts.keys().map(|(ip, _)| *ip).filter(|ip| !local.contains(ip)).collect();
        gone.iter().for_each(|ip| self.renew(*ip));
        gone
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        WAYS.iter().any(|(ingress, _)| self.verdicts.contains_key(&(ip, *ingress)))
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.verdicts.keys().map(|(ip, _)| *ip).collect()
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
                .filter(|(name, _)| fixed.chains.contains_key(*name) || *name == FORWARD)
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

    fn desired(&self, fixed: &BTreeMap<String, Set>, there: impl Fn(&str) -> bool) -> Desired {
        let mut out = base();
        out.sets.clone_from(fixed);
        self.place(&mut out, there);
        settle(&mut out);
        out
    }

    /// Enters the verdicts that are kept.
    fn place(&self, out: &mut Desired, there: impl Fn(&str) -> bool) {
        for ((ip, ingress), chain) in &self.verdicts {
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
    }

    /// The way from what is there to this and what follows from memory: `memory`
    /// is the table for all that is remembered and for the pods that are here now.
    ///
    /// Pods of before keep their chains, sets keep their members; new pods get
    /// their chains and their places in sets. Nothing of before is removed but
    /// the places of addresses that changed hands. A chain that is lost is made
    /// again if it is remembered; else who had it is closed.
    pub(crate) fn edit_with(&self, memory: &Desired, observed: &Observed) -> Edit {
        let desired = self.remembered(memory, observed);
        let mut known = Observed {
            live: observed.live,
            sets: common(&observed.sets, &desired.sets),
            chains: common(&observed.chains, &desired.chains),
        };
        if let Some(forward) = observed.chains.get(FORWARD) {
            known.chains.insert(FORWARD.to_owned(), forward.clone());
        }
        let edit = diff(&desired, &known);
        if !edit.reset {
            return edit;
        }
        diff(&self.remembered(memory, &Observed::default()), &known)
    }

    /// An element of a set of pods, for an address that changed hands.
    fn is_anew(&self, set: &Set, key: &Key) -> bool {
        !set.shape.intervals() && holder(key).is_some_and(|ip| self.anew.contains(&ip))
    }

    fn remembered(&self, memory: &Desired, observed: &Observed) -> Desired {
        let fixed = base();
        let mut out = memory.clone();
        for (name, set) in &mut out.sets {
            if fixed.sets.contains_key(name) {
                // Verdicts and counters of local addresses.
                set.elements.retain(|key, _| holder(key).is_none_or(|ip| !self.keeps(ip)));
            } else if let Some(found) = observed.sets.get(name) {
                set.elements.retain(|key, _| self.is_anew(found, key));
                let old = found.elements.iter().filter(|(key, _)| !self.is_anew(found, key));
                set.elements.extend(old.map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        // Sets of which nothing is remembered: only who is gone leaves them.
        for (name, set) in &observed.sets {
            if !out.sets.contains_key(name) {
                let stay = set.elements.iter().filter(|(key, _)| !self.is_anew(set, key));
                let elements = stay.map(|(key, value)| (key.clone(), value.clone())).collect();
                out.sets.insert(name.clone(), Set { shape: set.shape, elements });
            }
        }
        let made: BTreeSet<String> = out.chains.keys().cloned().collect();
        self.place(&mut out, |chain| made.contains(chain) || observed.chains.contains_key(chain));
        settle(&mut out);
        out
    }
}

fn common<T: Clone, U>(
    of: &BTreeMap<String, T>,
    with: &BTreeMap<String, U>,
) -> BTreeMap<String, T> {
    let both = of.iter().filter(|(name, _)| with.contains_key(*name));
    both.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn deny(direction: Direction, fam: Fam) -> String {
    super::layout::deny_name(direction, fam)
}

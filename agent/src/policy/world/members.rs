//! Which elements are in which set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::groups::{Group, Scope, SetDef, SetIndex};
use super::known::{Known, Space};
use super::update::Compiled;
use crate::policy::objects::Pod;
use crate::policy::selector::Selector;
use crate::policy::state::{Delta, Element, Protocol, SetId};

/// Up to so many groups are filled by looking for their pods, more by looking for the
/// groups of every pod.
const FEW_GROUPS: usize = 8;

/// The pod's address in an element of a set of pods.
pub(super) fn address(element: &Element) -> Option<IpAddr> {
    match element {
        Element::Address(address) | Element::Port(address, ..) => Some(*address),
        Element::Range(..) => None,
    }
}

impl Compiled {
    /// Puts an address into the sets it belongs to now, and takes it out of others.
    pub(super) fn members(&mut self, known: &mut Known, address: IpAddr, delta: &mut Delta) {
        let Some(holder) = known.holders.get(&address) else { return };
        let mut want: BTreeMap<u32, Vec<Element>> = BTreeMap::new();
        if let Some(pod) = holder.owner.as_ref().and_then(|key| known.pod(key)) {
            let space = known.labels_of_space(&pod.key.namespace);
            for number in self.sets.index.sets_of(pod, space) {
                let Some(set) = self.sets.get(number) else { continue };
                let elements = set.def.elements(pod, address);
                if !elements.is_empty() {
                    want.insert(number, elements);
                }
            }
        }
        let both: BTreeSet<u32> = holder.sets.iter().chain(want.keys()).copied().collect();
        for number in both {
            let Some(set) = self.sets.get(number) else { continue };
            let Some((_, held)) = self.state.sets.get_mut(&set.id) else { continue };
            let new: BTreeSet<Element> = want.get(&number).into_iter().flatten().copied().collect();
            let old: BTreeSet<Element> = match set.def {
                SetDef::Ports(..) => {
                    let first = Element::Port(address, Protocol::Tcp, 0);
                    let last = Element::Port(address, Protocol::Sctp, u16::MAX);
                    held.range(first..=last).copied().collect()
                }
                _ => held.get(&Element::Address(address)).copied().into_iter().collect(),
            };
            change(&set.id, held, &old, &new, delta);
        }
        if let Some(holder) = known.holders.get_mut(&address) {
            holder.sets = want.into_keys().collect();
            holder.sets.shrink_to_fit();
        }
    }

    /// Sets of nodes, except those that are new.
    pub(super) fn node_sets(&mut self, known: &Known, except: &BTreeSet<u32>, delta: &mut Delta) {
        for (number, set) in self.sets.iter() {
            let SetDef::Nodes(selector) = &set.def else { continue };
            if except.contains(&number) {
                continue;
            }
            let Some((_, held)) = self.state.sets.get_mut(&set.id) else { continue };
            let old = held.clone();
            change(&set.id, held, &old, &nodes(known, selector), delta);
        }
    }

    /// Fills new sets.
    pub(super) fn fill(&mut self, known: &mut Known, new: &BTreeSet<u32>, delta: &mut Delta) {
        let mut fresh = SetIndex::default();
        let mut groups = Vec::new();
        let mut all_pods = false;
        for &number in new {
            let Some(set) = self.sets.get(number) else { continue };
            fresh.insert(number, &set.def);
            all_pods |= set.def.is_of_all_pods();
            groups.extend(set.def.groups().into_iter().map(|group| (number, group)));
        }
        let members = if all_pods || groups.len() > FEW_GROUPS {
            by_pod(known, &fresh)
        } else {
            by_group(known, &groups)
        };
        let mut elements: BTreeMap<u32, BTreeSet<Element>> = BTreeMap::new();
        for (number, address) in members {
            let Some(set) = self.sets.get(number) else { continue };
            let Some(holder) = known.holders.get(&address) else { continue };
            let Some(pod) = holder.owner.as_ref().and_then(|key| known.pod(key)) else { continue };
            let more = set.def.elements(pod, address);
            if more.is_empty() {
                continue;
            }
            elements.entry(number).or_default().extend(more);
            if let Some(holder) = known.holders.get_mut(&address)
                && !holder.sets.contains(&number)
            {
                holder.sets.push(number);
            }
        }
        for &number in new {
            let Some(def) = self.sets.get(number).map(|set| set.def.clone()) else { continue };
            self.sets.index.insert(number, &def);
            let Some(set) = self.sets.get(number) else { continue };
            let elements = match &set.def {
                SetDef::Pods(_) | SetDef::Ports(..) => elements.remove(&number).unwrap_or_default(),
                SetDef::Nodes(selector) => nodes(known, selector),
                SetDef::Ranges(ranges) => {
                    ranges.iter().map(|&(low, high)| Element::Range(low, high)).collect()
                }
            };
            if elements.is_empty() {
                continue;
            }
            delta.add.insert(set.id.clone(), elements.clone());
            if let Some((_, held)) = self.state.sets.get_mut(&set.id) {
                *held = elements;
            }
        }
    }
}

fn change(
    id: &SetId,
    held: &mut BTreeSet<Element>,
    old: &BTreeSet<Element>,
    new: &BTreeSet<Element>,
    delta: &mut Delta,
) {
    for element in new.difference(old) {
        held.insert(*element);
        delta.add.entry(id.clone()).or_default().insert(*element);
    }
    for element in old.difference(new) {
        held.remove(element);
        delta.remove.entry(id.clone()).or_default().insert(*element);
    }
}

fn nodes(known: &Known, selector: &Selector) -> BTreeSet<Element> {
    let selected = known.nodes.values().filter(|node| selector.matches(&node.labels));
    selected.flat_map(|node| node.addresses.iter().copied().map(Element::Address)).collect()
}

/// Set and address of every pod that is in a set of the index.
fn by_pod(known: &Known, index: &SetIndex) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    for (name, space) in &known.spaces {
        let labels = known.labels_of_space(name);
        for pod in space.pods.values() {
            let sets = index.sets_of(pod, labels);
            if sets.is_empty() {
                continue;
            }
            for address in known.addresses_of(pod) {
                found.extend(sets.iter().map(|number| (*number, address)));
            }
        }
    }
    found
}

/// The same for a few groups.
fn by_group(known: &Known, groups: &[(u32, Group)]) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    for (number, group) in groups {
        let mut look = |space: &Space| {
            let matching = |pod: &&Pod| group.pods.matches(&pod.labels);
            for pod in space.pods.values().filter(matching) {
                found.extend(known.addresses_of(pod).into_iter().map(|address| (*number, address)));
            }
        };
        match &group.scope {
            Scope::Named(name) => known.spaces.get(name).into_iter().for_each(&mut look),
            Scope::Matching(selector) => known
                .spaces
                .values()
                .filter(|space| space.labels.as_ref().is_some_and(|l| selector.matches(l)))
                .for_each(&mut look),
        }
    }
    found
}

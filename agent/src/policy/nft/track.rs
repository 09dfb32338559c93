//! From one state's table to the next's, without looking at either as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::elements::{Fam, address_key, keys, set_name, shape};
use super::layout::{
    FORWARD, Families, chain_names, chains, forward, map_name, membership, verdict_elements,
};
use super::model::Edit;
use crate::policy::state::{
    Action, Chain, ChainId, Delta, Peers, PolicyState, Ports, Rule, SetId, SetKind, Subject,
};

/// What is in the kernel, as far as a delta needs it: everything but elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tracker {
    sets: BTreeMap<SetId, SetKind>,
    chains: BTreeMap<ChainId, Chain>,
    subjects: BTreeMap<IpAddr, Subject>,
}

impl Tracker {
    /// Of a state.
    pub(crate) fn of(state: &PolicyState) -> Self {
        Self {
            sets: state.sets.iter().map(|(id, (kind, _))| (id.clone(), *kind)).collect(),
            chains: state.chains.clone(),
            subjects: state.subjects.clone(),
        }
    }

    /// Takes a delta in; yields what to change in the kernel.
    pub(crate) fn edit(&mut self, delta: &Delta, families: Families) -> Edit {
        let mut edit = Edit::default();
        let restricted = self.restricts(families);
        for (id, kind) in &delta.new_sets {
            self.sets.insert(id.clone(), *kind);
            for fam in families.iter() {
                edit.new_sets.insert(set_name(*kind, fam, id), shape(*kind, fam));
            }
        }
        for (id, members) in &delta.add {
            self.each(id, members, families, |set, key| edit.add(set, key, String::new()));
        }
        for (id, members) in &delta.remove {
            self.each(id, members, families, |set, key| edit.remove(set, key));
        }
        for (id, chain) in &delta.new_chains {
            let kinds = |set: &SetId| self.sets.get(set).copied();
            for fam in families.iter() {
                edit.new_chains.extend(chains(id, chain, fam, &kinds));
            }
            self.chains.insert(id.clone(), chain.clone());
        }
        for (ip, subject) in &delta.subjects {
            self.subject(*ip, subject.clone(), families, &mut edit);
        }
        match (restricted, self.restricts(families)) {
            (false, true) => {
                edit.new_chains.insert(FORWARD.to_owned(), forward());
            }
            (true, false) => {
                edit.old_chains.insert(FORWARD.to_owned());
            }
            _ => {}
        }
        for id in &delta.old_chains {
            if let Some(chain) = self.chains.remove(id) {
                for fam in families.iter() {
                    edit.old_chains.extend(chain_names(id, &chain, fam));
                }
            }
        }
        for id in &delta.old_sets {
            if let Some(kind) = self.sets.remove(id) {
                edit.old_sets.extend(families.iter().map(|fam| set_name(kind, fam, id)));
            }
        }
        edit
    }

    fn restricts(&self, families: Families) -> bool {
        self.subjects.keys().any(|ip| families.has(Fam::of(*ip)))
    }

    fn each<'a>(
        &self,
        id: &SetId,
        members: impl IntoIterator<Item = &'a crate::policy::state::Element>,
        families: Families,
        mut with: impl FnMut(&str, super::model::Key),
    ) {
        let Some(kind) = self.sets.get(id) else { return };
        let names: BTreeMap<Fam, String> =
            families.iter().map(|fam| (fam, set_name(*kind, fam, id))).collect();
        for (fam, keys) in members.into_iter().map(keys) {
            if let Some(name) = names.get(&fam) {
                keys.into_iter().for_each(|key| with(name, key));
            }
        }
    }

    fn subject(&mut self, ip: IpAddr, new: Option<Subject>, families: Families, edit: &mut Edit) {
        let fam = Fam::of(ip);
        if !families.has(fam) {
            return;
        }
        let old = self.subjects.remove(&ip);
        match (&old, &new) {
            (None, Some(_)) => {
                membership(ip)
                    .into_iter()
                    .for_each(|(set, key)| edit.add(&set, key, String::new()));
            }
            (Some(_), None) => {
                membership(ip).into_iter().for_each(|(set, key)| edit.remove(&set, key));
            }
            _ => {}
        }
        let before: BTreeMap<_, _> = old.iter().flat_map(|s| verdict_elements(ip, s)).collect();
        let after: BTreeMap<_, _> = new.iter().flat_map(|s| verdict_elements(ip, s)).collect();
        for direction in before.keys().filter(|way| before.get(way) != after.get(way)) {
            edit.remove(&map_name(*direction, fam), address_key(ip));
        }
        for (direction, chain) in after.iter().filter(|(way, _)| before.get(way) != after.get(way))
        {
            edit.add(&map_name(*direction, fam), address_key(ip), chain.clone());
        }
        if let Some(new) = new {
            self.subjects.insert(ip, new);
        }
    }

    /// Local addresses that may lose an established connection by a delta, to be
    /// asked after it was taken in: their chains are others, or a set in them
    /// changed to the worse.
    pub(crate) fn affected(&self, delta: &Delta) -> BTreeSet<IpAddr> {
        let named = |rule: &Rule, id: &SetId| {
            matches!(&rule.peers, Peers::Set(set) if set == id)
                || matches!(&rule.ports, Ports::PerDestination(set) if set == id)
        };
        // Fewer whom a rule accepts, more whom it refuses; with Pass either.
        let worse = |rule: &Rule| {
            let less = rule.action != Action::Deny && delta.remove.keys().any(|id| named(rule, id));
            less || rule.action != Action::Accept && delta.add.keys().any(|id| named(rule, id))
        };
        let mut chains: BTreeSet<&ChainId> = delta.new_chains.keys().collect();
        if !(delta.add.is_empty() && delta.remove.is_empty()) {
            let hit = |chain: &Chain| chain.admin.iter().chain(&chain.main).any(worse);
            chains.extend(self.chains.iter().filter(|(_, c)| hit(c)).map(|(id, _)| id));
        }
        let mut out: BTreeSet<IpAddr> =
            delta.subjects.iter().filter(|(_, s)| s.is_some()).map(|(ip, _)| *ip).collect();
        let of = |id: &Option<ChainId>| id.as_ref().is_some_and(|id| chains.contains(id));
        let subjects = self.subjects.iter().filter(|(_, s)| of(&s.ingress) || of(&s.egress));
        out.extend(subjects.map(|(ip, _)| *ip));
        out
    }

    /// Restricted addresses.
    pub(crate) fn subjects(&self) -> &BTreeMap<IpAddr, Subject> {
        &self.subjects
    }

    /// Counts of sets and chains.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.sets.len(), self.chains.len())
    }
}

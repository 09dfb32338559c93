//! What the table holds, or should hold, as a value; and the difference.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::names::fnv64;

use super::layout::FORWARD;
use crate::dataplane::nft::ruleset::Hook;

/// Form of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// `NFT_SET_*`.
    pub(crate) flags: u32,
    /// Key type as userspace numbers it. For listing only, and not compared.
    pub(crate) key_type: u32,
    /// Bytes of a key.
    pub(crate) key: u32,
    /// Values are verdicts.
    pub(crate) verdicts: bool,
    /// Each element counts the packets that match it.
    pub(crate) counted: bool,
    /// Most elements, 0 for no bound.
    pub(crate) size: u32,
}

impl Shape {
    /// Elements are ends of intervals.
    pub(crate) fn intervals(self) -> bool {
        self.flags & super::elements::INTERVAL != 0
    }

    fn like(self, other: Self) -> bool {
        Self { key_type: 0, ..self } == Self { key_type: 0, ..other }
    }
}

/// Key of an element; in interval sets `end` marks the first key after an interval.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) end: bool,
}

/// Elements; the value is the chain a verdict jumps to, else empty.
pub(crate) type Elements = BTreeMap<Key, String>;

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) shape: Shape,
    pub(crate) elements: Elements,
}

/// A chain by the marks of its rules (see [`mark`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<String>,
}

/// A chain to be made: rules as encoded expressions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Vec<u8>>,
}

impl Body {
    pub(crate) fn chain(&self) -> Chain {
        let rules = self.rules.iter().map(|rule| mark(rule)).collect();
        Chain { hook: self.hook.clone(), rules }
    }
}

/// What a rule is known by again: an edited or foreign rule has another or none.
pub(crate) fn mark(expressions: &[u8]) -> String {
    format!("weft:{:016x}", fnv64(&[expressions]))
}

/// The table as found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// It is there, and not switched off by a flag.
    pub(crate) live: bool,
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) chains: BTreeMap<String, Chain>,
}

impl Observed {
    /// What is there after a transaction.
    pub(crate) fn apply(&mut self, edit: &Edit) {
        if edit.reset {
            *self = Self { live: true, ..Self::default() };
        }
        for (name, shape) in &edit.new_sets {
            self.sets.insert(name.clone(), Set { shape: *shape, elements: Elements::new() });
        }
        for (name, body) in edit.new_chains.iter().chain(&edit.rewrite) {
            self.chains.insert(name.clone(), body.chain());
        }
        for (name, keys) in &edit.remove {
            if let Some(set) = self.sets.get_mut(name) {
                set.elements.retain(|key, _| !keys.contains(key));
            }
        }
        for (name, elements) in &edit.add {
            if let Some(set) = self.sets.get_mut(name) {
                set.elements.extend(elements.clone());
            }
        }
        self.chains.retain(|name, _| !edit.old_chains.contains(name));
        self.sets.retain(|name, _| !edit.old_sets.contains(name));
    }
}

/// The table as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) chains: BTreeMap<String, Body>,
}

/// One transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// The table is made anew; nothing that was in it stays.
    pub(crate) reset: bool,
    pub(crate) new_sets: BTreeMap<String, Shape>,
    pub(crate) new_chains: BTreeMap<String, Body>,
    /// Chains that stay but get these rules.
    pub(crate) rewrite: BTreeMap<String, Body>,
    pub(crate) remove: BTreeMap<String, BTreeSet<Key>>,
    pub(crate) add: BTreeMap<String, Elements>,
    pub(crate) old_chains: BTreeSet<String>,
    pub(crate) old_sets: BTreeSet<String>,
}

impl Edit {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn add(&mut self, set: &str, key: Key, value: String) {
        entry(&mut self.add, set).insert(key, value);
    }

    pub(crate) fn remove(&mut self, set: &str, key: Key) {
        entry(&mut self.remove, set).insert(key);
    }

    /// Elements named in it.
    pub(crate) fn elements(&self) -> usize {
        let add: usize = self.add.values().map(BTreeMap::len).sum();
        add + self.remove.values().map(BTreeSet::len).sum::<usize>()
    }
}

fn entry<'a, T: Default>(map: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), T::default());
    }
    map.entry(name.to_owned()).or_default()
}

/// Everything from nothing.
pub(crate) fn rebuild(desired: &Desired) -> Edit {
    let filled = |(name, set): (&String, &Set)| {
        (!set.elements.is_empty()).then(|| (name.clone(), set.elements.clone()))
    };
    Edit {
        reset: true,
        new_sets: desired.sets.iter().map(|(name, set)| (name.clone(), set.shape)).collect(),
        new_chains: desired.chains.clone(),
        add: desired.sets.iter().filter_map(filled).collect(),
        ..Edit::default()
    }
}

/// The way from what is there to what should be. Empty if they are the same.
pub(crate) fn diff(desired: &Desired, observed: &Observed) -> Edit {
    let reshaped = |(name, set): (&String, &Set)| {
        observed.sets.get(name).is_some_and(|found| !found.shape.like(set.shape))
    };
    let rehooked = |(name, body): (&String, &Body)| {
        observed.chains.get(name).is_some_and(|found| found.hook != body.hook)
    };
    // What cannot be changed in place, and a table that holds next to nothing.
    if !observed.live
        || observed.sets.is_empty()
        || desired.sets.iter().any(reshaped)
        || desired.chains.iter().any(rehooked)
        || observed.chains.iter().any(|(name, c)| {
            c.hook.is_some() && name != FORWARD && !desired.chains.contains_key(name)
        })
    {
        return rebuild(desired);
    }
    let mut edit = Edit::default();
    for (name, body) in &desired.chains {
        match observed.chains.get(name) {
            None => edit.new_chains.insert(name.clone(), body.clone()),
            Some(found) if *found != body.chain() => {
                edit.rewrite.insert(name.clone(), body.clone())
            }
            Some(_) => None,
        };
    }
    let strange = |name: &&String| !desired.chains.contains_key(*name);
    edit.old_chains = observed.chains.keys().filter(strange).cloned().collect();
    let strange = |name: &&String| !desired.sets.contains_key(*name);
    edit.old_sets = observed.sets.keys().filter(strange).cloned().collect();
    let none = Elements::new();
    for (name, set) in &desired.sets {
        let found = observed.sets.get(name);
        if found.is_none() {
            edit.new_sets.insert(name.clone(), set.shape);
        }
        let found = found.map_or(&none, |found| &found.elements);
        for (key, value) in &set.elements {
            if found.get(key) != Some(value) {
                edit.add(name, key.clone(), value.clone());
            }
        }
        for (key, value) in found {
            if set.elements.get(key) != Some(value) {
                edit.remove(name, key.clone());
            }
        }
    }
    // A verdict that leads to a chain which goes must go first.
    for name in &edit.old_sets.clone() {
        if let Some(found) = observed.sets.get(name).filter(|found| found.shape.verdicts) {
            for key in found.elements.keys() {
                edit.remove(name, key.clone());
            }
        }
    }
    edit
}

//! What the watches say becomes changes of the world, in an order in which no
//! policy is in force before everything it speaks of is known. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::kube::watch::{Failure, Heard};

/// A collection that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// Pods of this node.
    LocalPods,
    /// Pods of other nodes that have an address.
    OtherPods,
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// NetworkPolicies.
    Policies,
    /// ClusterNetworkPolicies.
    ClusterPolicies,
}

impl Source {
    /// All, in the order in which they are shown.
    pub(super) const ALL: [Self; 6] = [
        Self::LocalPods,
        Self::OtherPods,
        Self::Namespaces,
        Self::Nodes,
        Self::Policies,
        Self::ClusterPolicies,
    ];

    /// Sources that must be complete before objects of this one count.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Policies => &[Self::LocalPods, Self::OtherPods, Self::Namespaces],
            Self::ClusterPolicies => {
                &[Self::LocalPods, Self::OtherPods, Self::Namespaces, Self::Nodes]
            }
            _ => &[],
        }
    }

    /// The other source of objects of the same kind.
    fn twin(self) -> Option<Self> {
        match self {
            Self::LocalPods => Some(Self::OtherPods),
            Self::OtherPods => Some(Self::LocalPods),
            _ => None,
        }
    }

    /// One name for the sources of objects of one kind.
    pub(super) fn kind(self) -> Self {
        if self == Self::OtherPods { Self::LocalPods } else { self }
    }

    /// A cluster may do without it.
    fn optional(self) -> bool {
        self == Self::ClusterPolicies
    }
}

/// What is followed from the start: what tells whether there are policies, and
/// what makes a pod of this node known.
const FIRST: [Source; 4] =
    [Source::LocalPods, Source::Namespaces, Source::Policies, Source::ClusterPolicies];

/// An object as it arrives: who, which version, and what the world takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object<B> {
    /// `namespace/name`, or `name`.
    pub(super) key: Arc<str>,
    /// `metadata.resourceVersion`; pods of both sources share one sequence.
    pub(super) version: String,
    /// `None`: nothing that matters (a pod elsewhere without an address).
    pub(super) body: Option<B>,
}

/// A change of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op<B> {
    /// Made or changed.
    Put(Source, Arc<str>, B),
    /// Gone.
    Remove(Source, Arc<str>),
}

/// What follows from something heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step<B> {
    /// For the world, as one change.
    pub(super) ops: Vec<Op<B>>,
    /// Sources to be followed from now on.
    pub(super) start: Vec<Source>,
}

/// One source.
#[derive(Debug, Clone, Default)]
struct Stand {
    followed: bool,
    complete: bool,
    /// Number of the list under way, or of the last one.
    list: u32,
    /// Version up to which all is known.
    version: u64,
    known: HashMap<Arc<str>, Seen>,
    trouble: Option<(Instant, Failure)>,
    heard: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    list: u32,
    version: u64,
}

/// How a source is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceState {
    /// Which.
    pub(super) source: Source,
    /// Its first list is complete.
    pub(super) complete: bool,
    /// Objects known.
    pub(super) objects: usize,
    /// Resource version up to which all is known.
    pub(super) version: u64,
    /// Since when it cannot be followed, and why.
    pub(super) trouble: Option<(Instant, Failure)>,
    /// When the server was last heard about it.
    pub(super) heard: Option<Instant>,
}

/// The feed's state.
#[derive(Debug, Clone)]
pub(super) struct Core<B> {
    stands: BTreeMap<Source, Stand>,
    /// Policies that wait for what they need; `None`: to be removed.
    held: BTreeMap<(Source, Arc<str>), Option<B>>,
    /// There is a memory: what is told waits until it is all.
    early: Option<Early<B>>,
}

/// An object, whichever source told it.
pub(super) type Id = (Source, Arc<str>);

/// Before everything was told once, with a memory of an earlier life. What is
/// told would be mixed with what is remembered, old policies with new labels:
/// so it replaces all of it at once.
#[derive(Debug, Clone)]
struct Early<B> {
    /// The last word on each object.
    told: BTreeMap<Id, (Source, Option<B>)>,
    /// Of these the world knows: remembered, and answers about single objects.
    given: BTreeSet<Id>,
}

impl<B: Clone> Core<B> {
    /// Knows nothing yet; and what to follow first.
    pub(super) fn new() -> (Self, Vec<Source>) {
        let mut core = Self { stands: BTreeMap::new(), held: BTreeMap::new(), early: None };
        let start = core.follow(&FIRST);
        (core, start)
    }

    /// There is a memory that may be needed. Before anything is heard.
    pub(super) fn expect_memory(&mut self) {
        self.early = Some(Early { told: BTreeMap::new(), given: BTreeSet::new() });
    }

    /// The server has never told everything, and there is a memory.
    pub(super) fn awaits_memory(&self) -> bool {
        self.early.is_some()
    }

    /// Takes the memory in, for as long as the server has not told everything.
    /// Of what was asked one by one, the answers are newer.
    pub(super) fn recall(&mut self, memory: Vec<(Id, B)>) -> Vec<Op<B>> {
        let Some(early) = &mut self.early else { return Vec::new() };
        let mut ops = Vec::with_capacity(memory.len());
        for ((source, key), body) in memory {
            if early.given.insert((source.kind(), Arc::clone(&key))) {
                ops.push(Op::Put(source, key, body));
            }
        }
        ops
    }

    fn follow(&mut self, sources: &[Source]) -> Vec<Source> {
        let mut new = Vec::new();
        for source in sources {
            let stand = self.stands.entry(*source).or_default();
            if !stand.followed {
                stand.followed = true;
                new.push(*source);
            }
        }
        new
    }

    fn complete(&self, source: Source) -> bool {
        self.stands.get(&source).is_some_and(|stand| stand.complete)
    }

    fn released(&self, source: Source) -> bool {
        source.needs().iter().all(|need| self.complete(*need))
    }

    /// Every object that can matter is known and given to the world.
    pub(super) fn synced(&self) -> bool {
        self.told() && self.held.is_empty() && self.early.is_none()
    }

    /// What is followed from the start is complete, and what its policies need.
    fn told(&self) -> bool {
        let ready = |source: &Source| {
            let known = self.stands.get(source).is_some_and(|stand| !stand.known.is_empty());
            !known || self.released(*source)
        };
        FIRST.into_iter().all(|source| self.complete(source)) && FIRST.iter().all(ready)
    }

    /// An object is known from this source.
    pub(super) fn knows(&self, source: Source, key: &str) -> bool {
        self.stands.get(&source).is_some_and(|stand| stand.known.contains_key(key))
    }

    /// How the followed sources are doing.
    pub(super) fn sources(&self) -> Vec<SourceState> {
        let shown = |source: &Source| {
            let stand = self.stands.get(source)?;
            Some(SourceState {
                source: *source,
                complete: stand.complete,
                objects: stand.known.len(),
                version: stand.version,
                trouble: stand.trouble.clone(),
                heard: stand.heard,
            })
        };
        Source::ALL.iter().filter_map(shown).collect()
    }

    /// Takes in what a watch said.
    pub(super) fn hear(
        &mut self,
        source: Source,
        heard: Heard<Object<B>>,
        now: Instant,
    ) -> Step<B> {
        let mut ops = Vec::new();
        let stand = self.stands.entry(source).or_default();
        match &heard {
            Heard::Failed(_) | Heard::Answer(_) => {}
            _ => {
                stand.heard = Some(now);
                stand.trouble = None;
            }
        }
        let upto = match &heard {
            Heard::End(version) | Heard::Alive(Some(version)) => Some(version),
            Heard::Put(object) | Heard::Gone(object) => Some(&object.version),
            _ => None,
        };
        stand.version = upto.and_then(|v| v.parse().ok()).unwrap_or(stand.version);
        match heard {
            Heard::Begin => stand.list = stand.list.wrapping_add(1),
            Heard::Items(items) => {
                for object in items {
                    self.put(source, object, &mut ops);
                }
            }
            Heard::Put(object) => self.put(source, object, &mut ops),
            Heard::Answer(object) => {
                self.put(source, object.clone(), &mut ops);
                self.answer(source, object.key, &mut ops);
            }
            Heard::Gone(object) => self.gone(source, &object.key, &mut ops),
            Heard::End(_) => {
                stand.complete = true;
                let list = stand.list;
                self.forget(source, |seen| seen.list != list, &mut ops);
            }
            Heard::Alive(_) => {}
            Heard::Failed(failure) => self.failed(source, failure, now, &mut ops),
        }
        let start = self.start();
        self.release(&mut ops);
        if self.told()
            && let Some(early) = self.early.take()
        {
            replace(early, &mut ops);
        }
        Step { ops, start }
    }

    /// An answer is waited for: it goes past everything else.
    fn answer(&mut self, source: Source, key: Arc<str>, ops: &mut Vec<Op<B>>) {
        let Some(early) = &mut self.early else { return };
        let id = (source.kind(), key);
        if let Some((source, Some(body))) = early.told.get(&id) {
            ops.push(Op::Put(*source, Arc::clone(&id.1), body.clone()));
            early.given.insert(id);
        }
    }

    fn put(&mut self, source: Source, object: Object<B>, ops: &mut Vec<Op<B>>) {
        let Some(body) = object.body else {
            return self.gone(source, &object.key, ops);
        };
        // Versions of one kind are numbers that grow; one that is none is taken as new.
        let version = object.version.parse().unwrap_or(u64::MAX);
        let newer = source
            .twin()
            .and_then(|twin| self.stands.get(&twin)?.known.get(&object.key))
            .is_some_and(|other| other.version > version && version != u64::MAX);
        let stand = self.stands.entry(source).or_default();
        // A watch never goes back; an answer to a single question may be older.
        let list = stand.list;
        if let Some(seen) = stand.known.get_mut(&object.key)
            && seen.version > version
        {
            seen.list = list;
            return;
        }
        stand.known.insert(Arc::clone(&object.key), Seen { list: stand.list, version });
        // A pod that was made again elsewhere under its name: the old one's last
        // words come by the other watch, in any order.
        if !newer {
            self.emit(source, object.key, Some(body), ops);
        }
    }

    fn gone(&mut self, source: Source, key: &Arc<str>, ops: &mut Vec<Op<B>>) {
        let stand = self.stands.entry(source).or_default();
        if stand.known.remove(key).is_none() {
            return;
        }
        let elsewhere = source
            .twin()
            .and_then(|twin| self.stands.get(&twin))
            .is_some_and(|twin| twin.known.contains_key(key));
        if !elsewhere {
            self.emit(source, Arc::clone(key), None, ops);
        }
    }

    fn forget(&mut self, source: Source, which: impl Fn(&Seen) -> bool, ops: &mut Vec<Op<B>>) {
        let Some(stand) = self.stands.get(&source) else { return };
        let mut keys: Vec<_> = stand
            .known
            .iter()
            .filter(|(_, seen)| which(seen))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        keys.sort();
        for key in keys {
            self.gone(source, &key, ops);
        }
    }

    fn emit(&mut self, source: Source, key: Arc<str>, body: Option<B>, ops: &mut Vec<Op<B>>) {
        if let Some(early) = &mut self.early {
            early.told.insert((source.kind(), key), (source, body));
        } else if source.needs().is_empty() || self.released(source) {
            ops.push(op(source, key, body));
        } else {
            self.held.insert((source, key), body);
        }
    }

    fn failed(&mut self, source: Source, failure: Failure, now: Instant, ops: &mut Vec<Op<B>>) {
        let optional = source.optional();
        let absent = optional && failure == Failure::Absent;
        if absent {
            self.forget(source, |_| true, ops);
        }
        let stand = self.stands.entry(source).or_default();
        // Where it is not served there is nothing to know; where it may not be
        // read, the rest is not kept waiting for it.
        if absent || (optional && matches!(failure, Failure::Denied(_))) {
            stand.complete = true;
        }
        if absent {
            stand.trouble = None;
            stand.heard = Some(now);
        } else if !matches!(failure, Failure::Expired(_)) {
            let since = stand.trouble.as_ref().map_or(now, |(since, _)| *since);
            stand.trouble = Some((since, failure));
        }
    }

    /// Sources that are needed now.
    fn start(&mut self) -> Vec<Source> {
        let wanted: Vec<_> = [Source::Policies, Source::ClusterPolicies]
            .into_iter()
            .filter(|source| self.stands.get(source).is_some_and(|stand| !stand.known.is_empty()))
            .flat_map(Source::needs)
            .copied()
            .collect();
        self.follow(&wanted)
    }

    /// Lets go what has all it needs.
    fn release(&mut self, ops: &mut Vec<Op<B>>) {
        for source in [Source::Policies, Source::ClusterPolicies] {
            if self.released(source) {
                let mut rest = BTreeMap::new();
                for ((of, key), body) in std::mem::take(&mut self.held) {
                    if of == source {
                        ops.push(op(of, key, body));
                    } else {
                        rest.insert((of, key), body);
                    }
                }
                self.held = rest;
            }
        }
    }
}

/// What was told instead of what was remembered.
fn replace<B>(early: Early<B>, ops: &mut Vec<Op<B>>) {
    let gone = early.given.iter().filter(|id| !early.told.contains_key(*id));
    ops.extend(gone.map(|(source, key)| Op::Remove(*source, Arc::clone(key))));
    // Peers before policies, as everywhere: the order of the sources.
    ops.extend(early.told.into_iter().map(|((_, key), (source, body))| op(source, key, body)));
}

fn op<B>(source: Source, key: Arc<str>, body: Option<B>) -> Op<B> {
    match body {
        Some(body) => Op::Put(source, key, body),
        None => Op::Remove(source, key),
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! From what is known to the state, touching only what a change can reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::Unknown;
use super::compile::{self, Selected};
use super::groups::{SetDef, SetIndex};
use super::known::{Known, Touched};
use super::merge::SetDefs;
use super::naming;
use crate::policy::objects::{NamedPort, Pod, Text};
use crate::policy::state::{Chain, ChainId, Delta, Direction, PolicyState, SetId, Subject};

/// The state, and how often its parts are used.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub(super) state: PolicyState,
    pub(super) sets: Sets,
    chains: HashMap<ChainId, ChainUse>,
}

#[derive(Debug)]
struct ChainUse {
    users: usize,
    sets: Vec<u32>,
}

/// Sets in use, by number.
#[derive(Debug, Default)]
pub(super) struct Sets {
    list: Vec<Option<SetUse>>,
    free: Vec<u32>,
    by_id: HashMap<SetId, u32>,
    pub(super) index: SetIndex,
}

#[derive(Debug)]
pub(super) struct SetUse {
    pub(super) id: SetId,
    pub(super) def: SetDef,
    users: usize,
}

impl Sets {
    pub(super) fn get(&self, number: u32) -> Option<&SetUse> {
        self.list.get(number as usize)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &SetUse)> {
        (0_u32..).zip(&self.list).filter_map(|(number, set)| Some((number, set.as_ref()?)))
    }

    fn add(&mut self, id: SetId, def: SetDef) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_id.insert(id.clone(), number);
        self.list[number as usize] = Some(SetUse { id, def, users: 0 });
        number
    }
}

/// Chains compiled during one update: pods with the same policies share the work.
#[derive(Debug, Default)]
struct Fresh {
    memo: HashMap<MemoKey, Option<ChainId>>,
    chains: HashMap<ChainId, (Chain, SetDefs)>,
}

/// Direction, namespace, policies by place, and what ports mean.
type MemoKey = (Direction, Text, Vec<Place>, Box<[NamedPort]>);

/// Address of a policy object, which does not move during an update.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Place(usize);

impl Fresh {
    fn add(&mut self, chain: Chain, sets: SetDefs) -> ChainId {
        let id = naming::chain(&chain);
        self.chains.entry(id.clone()).or_insert((chain, sets));
        id
    }

    fn of_pod(
        &mut self,
        pod: &Pod,
        selected: &Selected<'_>,
        direction: Direction,
    ) -> Option<ChainId> {
        let network =
            selected.network.iter().map(|policy| Place(std::ptr::from_ref(*policy).addr()));
        let cluster =
            selected.cluster.iter().map(|policy| Place(std::ptr::from_ref(*policy).addr()));
        let own = match direction {
            Direction::Ingress => pod.ports.clone(),
            Direction::Egress => Box::default(),
        };
        let space = pod.key.namespace.clone();
        let key = (direction, space, network.chain(cluster).collect(), own);
        if let Some(known) = self.memo.get(&key) {
            return known.clone();
        }
        let (chain, sets) = compile::chain(selected, direction, &pod.key.namespace, &pod.ports);
        let id = chain.map(|chain| self.add(chain, sets));
        self.memo.insert(key, id.clone());
        id
    }
}

impl Compiled {
    pub(super) fn update(
        &mut self,
        known: &mut Known,
        unknown: Unknown,
        touched: &Touched,
    ) -> Delta {
        let mut delta = Delta::default();
        for address in &touched.addresses {
            known.settle(*address);
        }
        let new_sets = self.subjects(known, unknown, &touched.subjects, &mut delta);
        for address in &touched.addresses {
            self.members(known, *address, &mut delta);
        }
        if touched.nodes {
            self.node_sets(known, &new_sets, &mut delta);
        }
        self.fill(known, &new_sets, &mut delta);
        for address in touched.addresses.iter().chain(&touched.subjects) {
            known.forget(*address);
        }
        delta
    }

    /// Gives addresses of this node their chains; drops chains and sets that nobody
    /// uses any more. Returns the numbers of the sets that are new, and empty.
    fn subjects(
        &mut self,
        known: &mut Known,
        unknown: Unknown,
        addresses: &BTreeSet<IpAddr>,
        delta: &mut Delta,
    ) -> BTreeSet<u32> {
        let mut fresh = Fresh::default();
        let mut new_sets = BTreeSet::new();
        let mut left = Vec::new();
        for &address in addresses {
            let new = subject(known, unknown, address, &mut fresh);
            let old = self.state.subjects.get(&address);
            if old == new.as_ref() {
                continue;
            }
            left.extend(old.into_iter().flat_map(chains_of).cloned());
            for id in new.iter().flat_map(chains_of) {
                self.hold(id, &fresh, &mut new_sets, delta);
            }
            delta.subjects.insert(address, new.clone());
            match new {
                Some(subject) => self.state.subjects.insert(address, subject),
                None => self.state.subjects.remove(&address),
            };
        }
        self.release(left, known, delta);
        new_sets
    }

    fn hold(
        &mut self,
        id: &ChainId,
        fresh: &Fresh,
        new_sets: &mut BTreeSet<u32>,
        delta: &mut Delta,
    ) {
        if let Some(chain) = self.chains.get_mut(id) {
            chain.users += 1;
            return;
        }
        let Some((chain, defs)) = fresh.chains.get(id) else { return };
        let mut sets = Vec::with_capacity(defs.len());
        for (set, def) in defs {
            let number = self.sets.by_id.get(set).copied().unwrap_or_else(|| {
                let number = self.sets.add(set.clone(), def.clone());
                new_sets.insert(number);
                self.state.sets.insert(set.clone(), (def.kind(), BTreeSet::new()));
                delta.new_sets.insert(set.clone(), def.kind());
                number
            });
            if let Some(set) = &mut self.sets.list[number as usize] {
                set.users += 1;
            }
            sets.push(number);
        }
        self.chains.insert(id.clone(), ChainUse { users: 1, sets });
        self.state.chains.insert(id.clone(), chain.clone());
        delta.new_chains.insert(id.clone(), chain.clone());
    }

    fn release(&mut self, left: Vec<ChainId>, known: &mut Known, delta: &mut Delta) {
        let mut sets = BTreeSet::new();
        for id in left {
            let Some(chain) = self.chains.get_mut(&id) else { continue };
            chain.users -= 1;
            if chain.users > 0 {
                continue;
            }
            if let Some(chain) = self.chains.remove(&id) {
                for number in chain.sets {
                    if let Some(set) = &mut self.sets.list[number as usize] {
                        set.users -= 1;
                        sets.insert(number);
                    }
                }
            }
            self.state.chains.remove(&id);
            delta.old_chains.insert(id);
        }
        for number in sets {
            if self.sets.get(number).is_some_and(|set| set.users == 0) {
                self.drop_set(number, known, delta);
            }
        }
    }

    fn drop_set(&mut self, number: u32, known: &mut Known, delta: &mut Delta) {
        let Some(set) = self.sets.list[number as usize].take() else { return };
        self.sets.index.remove(number, &set.def);
        self.sets.by_id.remove(&set.id);
        self.sets.free.push(number);
        if let Some((_, elements)) = self.state.sets.remove(&set.id) {
            for address in elements.iter().filter_map(super::members::address) {
                if let Some(holder) = known.holders.get_mut(&address) {
                    holder.sets.retain(|other| *other != number);
                }
            }
        }
        delta.old_sets.insert(set.id);
    }
}

fn chains_of(subject: &Subject) -> impl Iterator<Item = &ChainId> {
    subject.ingress.iter().chain(&subject.egress)
}

/// Chains of an address; `None` if it is not restricted.
fn subject(known: &Known, unknown: Unknown, address: IpAddr, fresh: &mut Fresh) -> Option<Subject> {
    let lease = known.lease_at(address)?;
    let pod = lease.pod.as_ref()?;
    let mut chain = |direction: Direction| match known.local(lease) {
        Ok((pod, _)) if pod.host_network => None,
        Ok((pod, space)) => {
            let selected = known.selected(pod, space, direction);
            fresh.of_pod(pod, &selected, direction)
        }
        Err(_) if unknown == Unknown::Deny && known.could_apply(&pod.namespace, direction) => {
            Some(fresh.add(compile::closed(direction), BTreeMap::new()))
        }
        Err(_) => None,
    };
    let subject = Subject { ingress: chain(Direction::Ingress), egress: chain(Direction::Egress) };
    (subject != Subject::default()).then_some(subject)
}

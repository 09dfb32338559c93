//! What sets are made of, and which sets a pod belongs to.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::policy::objects::{Labels, Pod, Text};
use crate::policy::selector::{Requirement, Selector};
use crate::policy::state::{Element, Protocol, SetKind};

/// Namespaces of a [`Group`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// The one of this name.
    Named(Text),
    /// All known ones with these labels.
    Matching(Selector),
}

/// Pods of namespaces, by labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Group {
    pub(super) scope: Scope,
    pub(super) pods: Selector,
}

impl Group {
    /// `space`: labels of the pod's namespace, if that is known.
    pub(super) fn matches(&self, pod: &Pod, space: Option<&Labels>) -> bool {
        let scope = match &self.scope {
            Scope::Named(name) => *name == pod.key.namespace,
            Scope::Matching(selector) => space.is_some_and(|labels| selector.matches(labels)),
        };
        scope && self.pods.matches(&pod.labels)
    }
}

/// Definition of a set: with what is known it gives the elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SetDef {
    /// Addresses of the pods of any of these groups; sorted.
    Pods(Vec<Group>),
    /// Addresses of nodes.
    Nodes(Selector),
    /// These addresses.
    Ranges(Vec<(IpAddr, IpAddr)>),
    /// Where the pods of any of these groups (`None`: all pods) have the named port.
    Ports(Option<Vec<Group>>, Option<Protocol>, Text),
}

impl SetDef {
    pub(super) fn kind(&self) -> SetKind {
        match self {
            Self::Pods(_) | Self::Nodes(_) => SetKind::Addresses,
            Self::Ranges(_) => SetKind::Ranges,
            Self::Ports(..) => SetKind::Ports,
        }
    }

    /// What a pod that matches one of the groups adds for one of its addresses.
    pub(super) fn elements(&self, pod: &Pod, address: IpAddr) -> Vec<Element> {
        match self {
            Self::Pods(_) => vec![Element::Address(address)],
            Self::Ports(_, protocol, name) => pod
                .ports
                .iter()
                .filter(|port| port.name == *name && protocol.is_none_or(|p| p == port.protocol))
                .map(|port| Element::Port(address, port.protocol, port.port))
                .collect(),
            Self::Nodes(_) | Self::Ranges(_) => Vec::new(),
        }
    }

    /// Groups whose pods are in the set.
    pub(super) fn groups(&self) -> Vec<Group> {
        match self {
            Self::Pods(groups) | Self::Ports(Some(groups), ..) => groups.clone(),
            Self::Ports(None, ..) => {
                // Also pods of namespaces that are not known: the rule is for everybody.
                vec![]
            }
            Self::Nodes(_) | Self::Ranges(_) => vec![],
        }
    }

    /// True if every pod may be in it.
    pub(super) fn is_of_all_pods(&self) -> bool {
        matches!(self, Self::Ports(None, ..))
    }
}

/// A label without which a pod cannot be in a group. The smallest thing to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Anchor {
    Free,
    Pod(Text, Option<Text>),
    Space(Text, Option<Text>),
}

/// Namespace (`None`: any) and label.
type Place = (Option<Text>, Anchor);

/// From a pod to the sets it is in, without looking at sets that want other labels.
#[derive(Debug, Default)]
pub(super) struct SetIndex {
    places: HashMap<Place, Vec<(u32, Option<Group>)>>,
}

fn anchors(group: &Group) -> Vec<Place> {
    let (scope, space) = match &group.scope {
        Scope::Named(name) => (Some(name.clone()), None),
        Scope::Matching(selector) => (None, Some(selector)),
    };
    let of = |selector: &Selector, make: fn(Text, Option<Text>) -> Anchor| {
        let mut best: Option<Vec<Anchor>> = None;
        for requirement in selector.requirements() {
            match requirement {
                Requirement::In(key, values) => {
                    let by_value =
                        values.iter().map(|value| make(key.clone(), Some(value.clone())));
                    return Some(by_value.collect());
                }
                Requirement::Exists(key) => best = Some(vec![make(key.clone(), None)]),
                Requirement::NotIn(..) | Requirement::DoesNotExist(_) => {}
            }
        }
        best
    };
    of(&group.pods, Anchor::Pod)
        .or_else(|| of(space?, Anchor::Space))
        .unwrap_or_else(|| vec![Anchor::Free])
        .into_iter()
        .map(|anchor| (scope.clone(), anchor))
        .collect()
}

impl SetIndex {
    pub(super) fn insert(&mut self, set: u32, def: &SetDef) {
        if def.is_of_all_pods() {
            self.places.entry((None, Anchor::Free)).or_default().push((set, None));
        }
        for group in def.groups() {
            for place in anchors(&group) {
                self.places.entry(place).or_default().push((set, Some(group.clone())));
            }
        }
    }

    pub(super) fn remove(&mut self, set: u32, def: &SetDef) {
        let mut places: Vec<Place> = def.groups().iter().flat_map(anchors).collect();
        if def.is_of_all_pods() {
            places.push((None, Anchor::Free));
        }
        for place in places {
            if let Some(list) = self.places.get_mut(&place) {
                list.retain(|(number, _)| *number != set);
                if list.is_empty() {
                    self.places.remove(&place);
                }
            }
        }
    }

    /// Numbers of the sets whose groups the pod matches; sorted, each once.
    pub(super) fn sets_of(&self, pod: &Pod, space: Option<&Labels>) -> Vec<u32> {
        let mut found = Vec::new();
        let mut look = |anchor: Anchor| {
            let mut place = (Some(pod.key.namespace.clone()), anchor);
            for everywhere in [false, true] {
                if everywhere {
                    place.0 = None;
                }
                for (set, group) in self.places.get(&place).into_iter().flatten() {
                    if group.as_ref().is_none_or(|group| group.matches(pod, space)) {
                        found.push(*set);
                    }
                }
            }
        };
        if self.places.is_empty() {
            return found;
        }
        look(Anchor::Free);
        for (key, value) in pod.labels.iter() {
            look(Anchor::Pod(key.clone(), None));
            look(Anchor::Pod(key.clone(), Some(value.clone())));
        }
        for (key, value) in space.into_iter().flat_map(Labels::iter) {
            look(Anchor::Space(key.clone(), None));
            look(Anchor::Space(key.clone(), Some(value.clone())));
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

//! What is known of the cluster, and who holds which address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::compile::{self, Selected};
use super::{Change, Missing};
use crate::policy::objects::{
    ClusterPolicy, Intern, Labels, LocalPod, Namespace, NetworkPolicy, Node, Phase, Pod, PodRef,
    Text,
};
use crate::policy::state::Direction;

/// A namespace: the object, or only things in it.
#[derive(Debug, Default)]
pub(in crate::policy) struct Space {
    /// `None` while the object is not known.
    pub(in crate::policy) labels: Option<Labels>,
    pub(in crate::policy) pods: HashMap<Text, Pod>,
    pub(in crate::policy) policies: BTreeMap<Text, NetworkPolicy>,
}

/// An address.
#[derive(Debug, Default)]
pub(in crate::policy) struct Holder {
    /// Live pods that name it in their status.
    claims: Vec<PodRef>,
    /// Leases of this node for it, sorted; more than one only for a moment.
    leases: Vec<Text>,
    /// Whose address it is.
    pub(in crate::policy) owner: Option<PodRef>,
    /// Sets in which it has elements.
    pub(super) sets: Vec<u32>,
}

#[derive(Debug, Default)]
pub(in crate::policy) struct Known {
    intern: Intern,
    pub(in crate::policy) spaces: HashMap<Text, Space>,
    pub(in crate::policy) nodes: BTreeMap<Text, Node>,
    /// In the order in which they are asked.
    pub(in crate::policy) cluster: Vec<ClusterPolicy>,
    pub(in crate::policy) locals: BTreeMap<Text, LocalPod>,
    leases_of: HashMap<PodRef, BTreeSet<Text>>,
    pub(in crate::policy) holders: HashMap<IpAddr, Holder>,
}

/// What changes may have an effect on.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Addresses whose owner, or the owner's sets, may be others.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Addresses of this node whose chains may be others.
    pub(super) subjects: BTreeSet<IpAddr>,
    /// Nodes changed.
    pub(super) nodes: bool,
}

/// Has an address of its own in the pod network.
fn counts(pod: &Pod) -> bool {
    !pod.host_network && pod.phase == Phase::Alive
}

impl Known {
    pub(super) fn take(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Pod(pod) => self.set_pod(&pod.key.clone(), Some(pod), touched),
            Change::PodGone(key) => self.set_pod(&key, None, touched),
            Change::AllPods(pods) => {
                let new: BTreeSet<PodRef> = pods.iter().map(|pod| pod.key.clone()).collect();
                let old = self.spaces.values().flat_map(|space| space.pods.values());
                let gone: Vec<PodRef> =
                    old.map(|pod| &pod.key).filter(|key| !new.contains(key)).cloned().collect();
                gone.iter().for_each(|key| self.set_pod(key, None, touched));
                pods.into_iter().for_each(|pod| self.take(Change::Pod(pod), touched));
            }
            Change::Namespace(Namespace { name, labels }) => {
                self.set_namespace(&name, Some(labels), touched);
            }
            Change::NamespaceGone(name) => self.set_namespace(&name, None, touched),
            Change::AllNamespaces(all) => {
                let new: BTreeSet<&Text> = all.iter().map(|space| &space.name).collect();
                let gone: Vec<Text> =
                    self.spaces.keys().filter(|name| !new.contains(name)).cloned().collect();
                gone.iter().for_each(|name| self.set_namespace(name, None, touched));
                all.into_iter().for_each(|one| self.take(Change::Namespace(one), touched));
            }
            Change::Node(node) => {
                if self.nodes.get(&node.name) != Some(&node) {
                    self.nodes.insert(node.name.clone(), node);
                    touched.nodes = true;
                }
            }
            Change::NodeGone(name) => touched.nodes |= self.nodes.remove(&name).is_some(),
            Change::AllNodes(all) => {
                let all = all.into_iter().map(|node| (node.name.clone(), node)).collect();
                touched.nodes |= self.nodes != all;
                self.nodes = all;
            }
            Change::Policy(policy) => {
                let (space, name) = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_policy(&space, name, Some(policy), touched);
            }
            Change::PolicyGone(space, name) => self.set_policy(&space, name, None, touched),
            Change::AllPolicies(all) => {
                let id =
                    |policy: &NetworkPolicy| (policy.id.namespace.clone(), policy.id.name.clone());
                let new: BTreeSet<(Text, Text)> = all.iter().map(id).collect();
                let old = self.spaces.values().flat_map(|space| space.policies.values());
                let gone: Vec<_> = old.map(id).filter(|id| !new.contains(id)).collect();
                for (space, name) in gone {
                    self.set_policy(&space, name, None, touched);
                }
                all.into_iter().for_each(|one| self.take(Change::Policy(one), touched));
            }
            Change::ClusterPolicy(policy) => {
                self.set_cluster_policy(&policy.id.name.clone(), Some(policy), touched);
            }
            Change::ClusterPolicyGone(name) => self.set_cluster_policy(&name, None, touched),
            Change::AllClusterPolicies(all) => {
                let new: BTreeSet<&Text> = all.iter().map(|policy| &policy.id.name).collect();
                let old = self.cluster.iter().map(|policy| policy.id.name.clone());
                let gone: Vec<Text> = old.filter(|name| !new.contains(name)).collect();
                gone.iter().for_each(|name| self.set_cluster_policy(name, None, touched));
                all.into_iter().for_each(|one| self.take(Change::ClusterPolicy(one), touched));
            }
            Change::Local(lease) => self.set_local(lease.id.clone(), Some(lease), touched),
            Change::LocalGone(id) => self.set_local(id, None, touched),
            Change::AllLocal(all) => {
                let new: BTreeSet<&Text> = all.iter().map(|lease| &lease.id).collect();
                let gone: Vec<Text> =
                    self.locals.keys().filter(|id| !new.contains(id)).cloned().collect();
                gone.into_iter().for_each(|id| self.set_local(id, None, touched));
                all.into_iter().for_each(|one| self.take(Change::Local(one), touched));
            }
        }
    }

    fn set_pod(&mut self, key: &PodRef, mut new: Option<Pod>, touched: &mut Touched) {
        let old = self.pod(key);
        if old == new.as_ref() {
            return;
        }
        for pod in old.into_iter().chain(&new) {
            touched.addresses.extend(pod.addresses.iter().copied());
        }
        let leased = self.leased_to(key);
        touched.addresses.extend(leased.clone());
        touched.subjects.extend(leased);
        let old_claims = self.claims(key);
        if let Some(pod) = &mut new {
            pod.intern(&mut self.intern);
        }
        let new_claims: Vec<IpAddr> =
            new.iter().filter(|pod| counts(pod)).flat_map(|pod| pod.addresses.to_vec()).collect();
        for address in old_claims {
            self.holder(address).claims.retain(|claim| claim != key);
        }
        for address in new_claims {
            self.holder(address).claims.push(key.clone());
        }
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        match new {
            Some(pod) => {
                space.pods.insert(pod.key.name.clone(), pod);
            }
            None => {
                space.pods.remove(&key.name);
            }
        }
        self.forget_empty(&key.namespace);
    }

    fn set_namespace(&mut self, name: &Text, labels: Option<Labels>, touched: &mut Touched) {
        let space = self.spaces.entry(name.clone()).or_default();
        if space.labels == labels {
            self.forget_empty(name);
            return;
        }
        space.labels = labels;
        if let Some(labels) = &mut space.labels {
            labels.intern(&mut self.intern);
        }
        touched.addresses.extend(space.pods.values().flat_map(|pod| pod.addresses.iter().copied()));
        for lease in self.locals.values() {
            if lease.pod.as_ref().is_some_and(|pod| pod.namespace == *name) {
                touched.addresses.extend(lease.addresses.iter().copied());
                touched.subjects.extend(lease.addresses.iter().copied());
            }
        }
        self.forget_empty(name);
    }

    fn set_policy(
        &mut self,
        space: &Text,
        name: Text,
        new: Option<NetworkPolicy>,
        touched: &mut Touched,
    ) {
        let old = self.spaces.get(space).and_then(|space| space.policies.get(&name));
        if old == new.as_ref() {
            return;
        }
        for lease in self.locals.values() {
            let affected = match self.local(lease) {
                Ok((pod, _)) => {
                    let selects = |policy: &NetworkPolicy| policy.subject.matches(&pod.labels);
                    pod.key.namespace == *space && old.into_iter().chain(&new).any(selects)
                }
                Err(_) => lease.pod.as_ref().is_some_and(|pod| pod.namespace == *space),
            };
            if affected {
                touched.subjects.extend(lease.addresses.iter().copied());
            }
        }
        let policies = &mut self.spaces.entry(space.clone()).or_default().policies;
        match new {
            Some(policy) => {
                policies.insert(name, policy);
            }
            None => {
                policies.remove(&name);
            }
        }
        self.forget_empty(space);
    }

    fn set_cluster_policy(
        &mut self,
        name: &Text,
        new: Option<ClusterPolicy>,
        touched: &mut Touched,
    ) {
        let at = self.cluster.iter().position(|policy| policy.id.name == *name);
        let old = at.map(|at| &self.cluster[at]);
        if old == new.as_ref() {
            return;
        }
        for lease in self.locals.values() {
            let affected = match self.local(lease) {
                Ok((pod, space)) => {
                    old.into_iter().chain(&new).any(|policy| selects(policy, pod, space))
                }
                Err(_) => true,
            };
            if affected {
                touched.subjects.extend(lease.addresses.iter().copied());
            }
        }
        if let Some(at) = at {
            self.cluster.remove(at);
        }
        if let Some(policy) = new {
            let order = compile::order(&policy);
            let at = self.cluster.partition_point(|other| compile::order(other) < order);
            self.cluster.insert(at, policy);
        }
    }

    fn set_local(&mut self, id: Text, new: Option<LocalPod>, touched: &mut Touched) {
        if self.locals.get(&id) == new.as_ref() {
            return;
        }
        if let Some(old) = self.locals.remove(&id) {
            for address in old.addresses {
                self.holder(address).leases.retain(|other| *other != id);
                touched.addresses.insert(address);
                touched.subjects.insert(address);
            }
            if let Some(pod) = old.pod
                && let Some(leases) = self.leases_of.get_mut(&pod)
            {
                leases.remove(&id);
                if leases.is_empty() {
                    self.leases_of.remove(&pod);
                }
            }
        }
        let Some(mut lease) = new else { return };
        lease.addresses = {
            let unique: BTreeSet<IpAddr> = lease.addresses.iter().copied().collect();
            unique.into_iter().collect()
        };
        for &address in &lease.addresses {
            let leases = &mut self.holder(address).leases;
            leases.push(id.clone());
            leases.sort_unstable();
            touched.addresses.insert(address);
            touched.subjects.insert(address);
        }
        if let Some(pod) = &lease.pod {
            self.leases_of.entry(pod.clone()).or_default().insert(id.clone());
        }
        self.locals.insert(id, lease);
    }

    fn holder(&mut self, address: IpAddr) -> &mut Holder {
        self.holders.entry(address).or_default()
    }

    fn forget_empty(&mut self, name: &Text) {
        if self.spaces.get(name).is_some_and(|space| {
            space.labels.is_none() && space.pods.is_empty() && space.policies.is_empty()
        }) {
            self.spaces.remove(name);
        }
    }

    /// Addresses that count as claimed by a pod as it is known.
    fn claims(&self, key: &PodRef) -> Vec<IpAddr> {
        self.pod(key).filter(|pod| counts(pod)).map_or_else(Vec::new, |pod| pod.addresses.to_vec())
    }

    fn leased_to(&self, key: &PodRef) -> Vec<IpAddr> {
        let ids = self.leases_of.get(key).into_iter().flatten();
        ids.filter_map(|id| self.locals.get(id))
            .flat_map(|lease| lease.addresses.iter().copied())
            .collect()
    }

    /// Every address that may be this pod's: to be compared with the owner.
    pub(in crate::policy) fn addresses_of(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut all = self.leased_to(&pod.key);
        all.extend(pod.addresses.iter().copied());
        all.sort_unstable();
        all.dedup();
        all.retain(|address| {
            self.holders.get(address).and_then(|holder| holder.owner.as_ref()) == Some(&pod.key)
        });
        all
    }

    pub(in crate::policy) fn pod(&self, key: &PodRef) -> Option<&Pod> {
        self.spaces.get(&key.namespace)?.pods.get(&key.name)
    }

    pub(in crate::policy) fn labels_of_space(&self, name: &Text) -> Option<&Labels> {
        self.spaces.get(name)?.labels.as_ref()
    }

    /// The lease that decides about an address.
    pub(in crate::policy) fn lease_at(&self, address: IpAddr) -> Option<&LocalPod> {
        self.locals.get(self.holders.get(&address)?.leases.last()?)
    }

    fn leased_pod(&self, lease: &LocalPod) -> Result<&Pod, Missing> {
        let pod = lease.pod.as_ref().and_then(|key| self.pod(key)).ok_or(Missing::Pod)?;
        match &lease.uid {
            Some(uid) if !pod.uid.is_empty() && *uid != pod.uid => Err(Missing::OtherUid),
            _ => Ok(pod),
        }
    }

    /// Pod of a lease and the labels of its namespace.
    pub(in crate::policy) fn local(&self, lease: &LocalPod) -> Result<(&Pod, &Labels), Missing> {
        let pod = self.leased_pod(lease)?;
        let labels = self.labels_of_space(&pod.key.namespace).ok_or(Missing::Namespace)?;
        Ok((pod, labels))
    }

    /// Decides anew whose an address is.
    pub(super) fn settle(&mut self, address: IpAddr) {
        let Some(holder) = self.holders.get(&address) else { return };
        let owner = match self.lease_at(address) {
            Some(lease) => {
                let pod = self.leased_pod(lease).ok().filter(|pod| counts(pod));
                pod.map(|pod| pod.key.clone())
            }
            None => {
                let claims = holder.claims.iter().filter_map(|key| self.pod(key));
                let newest =
                    claims.max_by_key(|pod| (!pod.terminating, pod.created, &pod.uid, &pod.key));
                newest.map(|pod| pod.key.clone())
            }
        };
        self.holder(address).owner = owner;
    }

    /// Forgets an address that nobody names any more.
    pub(super) fn forget(&mut self, address: IpAddr) {
        if self.holders.get(&address).is_some_and(|holder| {
            holder.claims.is_empty() && holder.leases.is_empty() && holder.sets.is_empty()
        }) {
            self.holders.remove(&address);
        }
    }

    /// True if a policy could have a say about a pod of which only the namespace's name is
    /// known.
    pub(in crate::policy) fn could_apply(&self, namespace: &Text, direction: Direction) -> bool {
        let policies = self.spaces.get(namespace).map(|space| space.policies.values());
        let mut network = policies.into_iter().flatten();
        network.any(|policy| compile::network_rules(policy, direction).is_some())
            || self
                .cluster
                .iter()
                .any(|policy| !compile::cluster_rules(policy, direction).is_empty())
    }

    /// Policies with a say about a pod in one direction.
    pub(in crate::policy) fn selected(
        &self,
        pod: &Pod,
        space: &Labels,
        direction: Direction,
    ) -> Selected<'_> {
        let policies = self.spaces.get(&pod.key.namespace).map(|space| &space.policies);
        let network = policies
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|policy| compile::network_rules(policy, direction).is_some())
            .filter(|policy| policy.subject.matches(&pod.labels))
            .collect();
        let cluster = self.cluster.iter().filter(|policy| selects(policy, pod, space)).collect();
        Selected { network, cluster }
    }
}

fn selects(policy: &ClusterPolicy, pod: &Pod, space: &Labels) -> bool {
    policy.namespaces.matches(space) && policy.pods.matches(&pod.labels)
}

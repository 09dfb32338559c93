//! What this node knows of the cluster, and what follows for its kernel.
//!
//! [`World::apply`] takes one change, [`World::apply_all`] many at once; both yield
//! the [`Delta`] to the next [`PolicyState`]. The state depends on what is known,
//! never on the order in which it became known.

pub(super) mod compile;
mod families;
mod groups;
pub(super) mod known;
mod members;
mod merge;
mod naming;
mod spans;
#[cfg(test)]
mod tests;
mod update;

use std::net::IpAddr;

use serde::Serialize;

use crate::policy::objects::{
    ClusterPolicy, Labels, LocalPod, Namespace, NetworkPolicy, Node, Pod, PodRef, PolicyRef,
    Problem, Text, Tier,
};
use crate::policy::state::{Delta, Direction, PolicyState};
use known::{Known, Touched};
use update::Compiled;

/// What a local pod may do whose labels are not known yet, in a direction in which a
/// policy of its namespace or of the cluster could apply to it. Where none could, its
/// labels do not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing.
    #[default]
    Deny,
    /// Everything.
    Allow,
}

/// Settings of a [`World`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// For pods that are not known yet.
    pub unknown: Unknown,
    /// The pod network has IPv4 addresses.
    pub ipv4: bool,
    /// The pod network has IPv6 addresses.
    pub ipv6: bool,
}

/// A change of what is known. A thing that is already known so changes nothing.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pod is there, or is other than before.
    Pod(Pod),
    /// A pod is gone.
    PodGone(PodRef),
    /// These are all pods: others are gone. For the end of a list.
    AllPods(Vec<Pod>),
    /// A namespace is there, or is other than before.
    Namespace(Namespace),
    /// A namespace is gone.
    NamespaceGone(Text),
    /// These are all namespaces.
    AllNamespaces(Vec<Namespace>),
    /// A node is there, or is other than before.
    Node(Node),
    /// A node is gone.
    NodeGone(Text),
    /// These are all nodes.
    AllNodes(Vec<Node>),
    /// A NetworkPolicy is there, or is other than before.
    Policy(NetworkPolicy),
    /// A NetworkPolicy is gone: namespace and name.
    PolicyGone(Text, Text),
    /// These are all NetworkPolicies.
    AllPolicies(Vec<NetworkPolicy>),
    /// A ClusterNetworkPolicy is there, or is other than before.
    ClusterPolicy(ClusterPolicy),
    /// A ClusterNetworkPolicy is gone.
    ClusterPolicyGone(Text),
    /// These are all ClusterNetworkPolicies.
    AllClusterPolicies(Vec<ClusterPolicy>),
    /// A pod interface of this node.
    Local(LocalPod),
    /// The lease of this id is gone.
    LocalGone(Text),
    /// These are all leases of this node.
    AllLocal(Vec<LocalPod>),
}

/// Why a local pod counts as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Missing {
    /// No pod object of this name.
    Pod,
    /// The pod object has another uid: it is of the pod's predecessor or successor.
    OtherUid,
    /// The namespace object.
    Namespace,
}

/// Policies that isolate a pod in a direction, or speak in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// True if a NetworkPolicy selects the pod in this direction, or it is unknown and
    /// unknown pods are denied: what no rule allows is refused.
    pub isolated: bool,
    /// All policies with a say, in the order in which they are asked.
    pub policies: Vec<PolicyRef>,
}

/// A pod interface of this node, for `agent status policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalStatus {
    /// Lease.
    pub id: Text,
    /// Namespace of the pod.
    pub namespace: Text,
    /// Name of the pod.
    pub name: Text,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// What is not known of it; `None` if all is.
    pub missing: Option<Missing>,
    /// Connections to it.
    pub ingress: Isolation,
    /// Connections from it.
    pub egress: Isolation,
}

/// All that is known, and the state compiled from it.
#[derive(Debug)]
pub struct World {
    pub(super) settings: Settings,
    pub(super) known: Known,
    compiled: Compiled,
}

impl World {
    /// Knows nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings, known: Known::default(), compiled: Compiled::default() }
    }

    /// Takes one change in.
    pub fn apply(&mut self, change: Change) -> Delta {
        self.apply_all(vec![change])
    }

    /// Takes changes in, in order; the delta is from before the first to after the last.
    pub fn apply_all(&mut self, changes: Vec<Change>) -> Delta {
        let mut touched = Touched::default();
        for change in changes {
            self.known.take(change, &mut touched);
        }
        self.compiled.update(&mut self.known, self.settings.unknown, &touched)
    }

    /// What the kernel should hold.
    pub fn state(&self) -> &PolicyState {
        &self.compiled.state
    }

    /// True if labels of this local pod and of its namespace are known, so that its
    /// chains are those of its policies. False also if no lease has this id.
    pub fn is_known(&self, id: &str) -> bool {
        let Some(lease) = self.known.locals.get(id) else { return false };
        self.known.local(lease).is_ok()
    }

    /// The pod that holds an address, as far as known: for log lines.
    pub fn pod_at(&self, address: IpAddr) -> Option<PodRef> {
        let holder = self.known.holders.get(&address)?;
        let leased = || self.known.lease_at(address).and_then(|lease| lease.pod.clone());
        holder.owner.clone().or_else(leased)
    }

    /// Every pod interface of this node, by lease id. Those without a pod are left out.
    pub fn locals(&self) -> Vec<LocalStatus> {
        let status = |lease: &LocalPod| {
            let pod = lease.pod.clone()?;
            let found = self.known.local(lease);
            let isolation = |direction| match &found {
                Ok((pod, space)) => isolation(&self.known, pod, space, direction),
                Err(_) => Isolation {
                    isolated: self.settings.unknown == Unknown::Deny
                        && self.known.could_apply(&pod.namespace, direction),
                    policies: Vec::new(),
                },
            };
            Some(LocalStatus {
                id: lease.id.clone(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                addresses: lease.addresses.to_vec(),
                missing: found.as_ref().err().copied(),
                ingress: isolation(Direction::Ingress),
                egress: isolation(Direction::Egress),
            })
        };
        self.known.locals.values().filter_map(status).collect()
    }

    /// Parts of policies that are not enforced as written, by policy.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for policy in self.known.spaces.values().flat_map(|space| space.policies.values()) {
            problems.extend(policy.problems.iter().cloned());
            families::of_network(policy, self.settings, &mut problems);
        }
        for policy in &self.known.cluster {
            problems.extend(policy.problems.iter().cloned());
            families::of_cluster(policy, self.settings, &mut problems);
        }
        problems.sort_unstable();
        problems
    }
}

fn isolation(known: &Known, pod: &Pod, space: &Labels, direction: Direction) -> Isolation {
    let selected = known.selected(pod, space, direction);
    let isolated = !selected.network.is_empty();
    let speaks = |tier: Tier| {
        selected.cluster.iter().filter(move |policy| {
            policy.tier == tier && !compile::cluster_rules(policy, direction).is_empty()
        })
    };
    let mut policies: Vec<PolicyRef> =
        speaks(Tier::Admin).map(|policy| policy.id.clone()).collect();
    policies.extend(selected.network.iter().map(|policy| policy.id.clone()));
    if !isolated {
        policies.extend(speaks(Tier::Baseline).map(|policy| policy.id.clone()));
    }
    Isolation { isolated, policies }
}

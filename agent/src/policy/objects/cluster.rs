//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.

use super::network::{Peer, Port};
use super::problem::{PolicyRef, Problem};
use super::text::Text;
use crate::policy::selector::Selector;
use crate::policy::state::Action;

/// When it is asked: before or after NetworkPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before; cannot be overruled.
    Admin,
    /// For pods that no NetworkPolicy selects.
    Baseline,
}

/// A ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Name and uid.
    pub id: PolicyRef,
    /// Tier.
    pub tier: Tier,
    /// The lower comes first; among equals the name decides.
    pub priority: i32,
    /// Namespaces of the pods it applies to.
    pub namespaces: Selector,
    /// Labels of the pods it applies to.
    pub pods: Selector,
    /// In order.
    pub ingress: Vec<ClusterRule>,
    /// In order.
    pub egress: Vec<ClusterRule>,
    /// What is not enforced as written.
    pub problems: Vec<Problem>,
}

/// One rule of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRule {
    /// Place in the list of the object.
    pub index: usize,
    /// `name`, if given.
    pub name: Option<Text>,
    /// What it does.
    pub action: Action,
    /// `None` for everybody.
    pub peers: Option<Vec<Peer>>,
    /// `None` for all.
    pub ports: Option<Vec<Port>>,
}

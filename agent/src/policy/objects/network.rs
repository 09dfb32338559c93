//! `networking.k8s.io/v1` NetworkPolicy, and the parts it shares with ClusterNetworkPolicy.

use ipnet::IpNet;

use super::problem::{PolicyRef, Problem};
use super::text::Text;
use crate::policy::selector::Selector;
use crate::policy::state::Protocol;

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace, name, uid.
    pub id: PolicyRef,
    /// `spec.podSelector`: pods of its namespace.
    pub subject: Selector,
    /// Rules for connections to the subjects; `None` if it does not isolate them so.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for connections from the subjects; `None` if it does not isolate them so.
    pub egress: Option<Vec<Rule>>,
    /// What is not enforced as written.
    pub problems: Vec<Problem>,
}

/// What an `ingress` or `egress` entry allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Place in the list of the object.
    pub index: usize,
    /// `from` or `to`; `None` for everybody, empty for nobody.
    pub peers: Option<Vec<Peer>>,
    /// `ports`; `None` for all, empty for none.
    pub ports: Option<Vec<Port>>,
}

/// One of the other ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Pods of namespaces.
    Pods(Namespaces, Selector),
    /// A block less its exceptions.
    Block(IpNet, Vec<IpNet>),
    /// Addresses of nodes.
    Nodes(Selector),
}

/// Whose pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// The policy's own namespace.
    Own,
    /// Namespaces with these labels.
    Matching(Selector),
}

/// Destination ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// First to last of a protocol.
    Range(Protocol, u16, u16),
    /// A container port by name; of any protocol if none is given.
    Named(Option<Protocol>, Text),
}

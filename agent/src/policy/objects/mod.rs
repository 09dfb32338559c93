//! API objects, reduced to what policy needs.
//!
//! Each type is read from the object's JSON as the API server sends it; fields not
//! named here are skipped. Pods, namespaces and nodes never fail for a bad part: it
//! counts as absent. Policies keep what can be understood, and a [`Problem`] for
//! each part that cannot: an allow rule then matches less, a Deny rule more.

pub mod cluster;
mod cluster_parse;
mod json;
pub mod network;
mod network_parse;
mod node;
mod pod;
mod problem;
mod reader;
mod text;

#[cfg(test)]
mod tests;

pub use cluster::{ClusterPolicy, ClusterRule, Tier};
pub use network::{NetworkPolicy, Rule};
pub use node::{Namespace, Node};
pub use pod::{LocalPod, NamedPort, Phase, Pod, PodRef, Stamp};
pub use problem::{PolicyKind, PolicyRef, Problem};
pub use text::{Intern, Labels, Text};

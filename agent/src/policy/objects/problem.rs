//! What of a policy cannot be understood or done.

use std::fmt;

use serde::Serialize;

use super::text::Text;

/// Kind of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
}

/// Which policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PolicyRef {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace; empty for a ClusterNetworkPolicy.
    pub namespace: Text,
    /// Name.
    pub name: Text,
    /// Uid, for Events; empty if the object had none.
    pub uid: Text,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PolicyKind::NetworkPolicy => {
                write!(f, "NetworkPolicy {}/{}", self.namespace, self.name)
            }
            PolicyKind::ClusterNetworkPolicy => write!(f, "ClusterNetworkPolicy {}", self.name),
        }
    }
}

/// A part of a policy that is not enforced as written. What it means instead is
/// always the stricter reading; `what` says which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Policy.
    pub policy: PolicyRef,
    /// Path of the field: `spec.ingress[0].from[2].ipBlock.cidr`.
    pub field: String,
    /// What is wrong, and what it counts as.
    pub what: String,
    /// What to write instead.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}; {}", self.policy, self.field, self.what, self.hint)
    }
}

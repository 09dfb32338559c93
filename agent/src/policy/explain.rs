//! Why a connection is allowed or refused, in the words of the policies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use crate::policy::objects::network::{Namespaces, Peer, Port};
use crate::policy::objects::{ClusterPolicy, Pod, PodRef, PolicyRef, Tier};
use crate::policy::state::{Action, Direction, Protocol};
use crate::policy::world::compile::{self, Selected};
use crate::policy::world::{Missing, Unknown, World};

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
    /// No NetworkPolicy selects it, and no rule of those ClusterNetworkPolicies
    /// that do is about this connection.
    NotMentioned {
        /// Those policies.
        policies: Vec<PolicyRef>,
    },
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

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "refused" }
}

impl Reason {
    /// `allowed: no policy selects shop/front for egress`.
    fn sentence(&self, side: &Side, direction: &str) -> String {
        let pod = side.pod.as_ref().map_or_else(|| side.address.to_string(), ToString::to_string);
        let (why, word) = (self.why(&pod, direction), word(side.allowed));
        match self {
            Self::Rule { .. } => format!("{word} by {why}"),
            Self::Unknown { .. } => {
                let unknown = if side.allowed { "allow" } else { "deny" };
                format!("{word}: {why} (POLICY_UNKNOWN={unknown})")
            }
            _ => format!("{word}: {why}"),
        }
    }

    fn why(&self, pod: &str, direction: &str) -> String {
        match self {
            Self::Itself => "a pod may always talk to itself".to_owned(),
            Self::NoPod => format!("{pod} is not the address of a pod, so no policy applies to it"),
            Self::NotSelected => format!("no policy selects {pod} for {direction}"),
            Self::NotMentioned { policies } => format!(
                "no NetworkPolicy selects {pod} for {direction}, and no rule of {} matches",
                names(policies)
            ),
            Self::Rule { policy, field, name: None } => format!("{policy}, {field}"),
            Self::Rule { policy, field, name: Some(name) } => format!("{policy}, {field} ({name})"),
            Self::NoRule { policies } => format!("no rule of {} allows it", names(policies)),
            Self::Unknown { missing } => match missing {
                Missing::Pod => format!("the labels of {pod} are not known yet"),
                Missing::OtherUid => {
                    format!("what is known of {pod} is about an earlier or later pod of that name")
                }
                Missing::Namespace => format!("the namespace of {pod} is not known yet"),
            },
        }
    }
}

fn names(policies: &[PolicyRef]) -> String {
    let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |side: &Side| match &side.pod {
            Some(pod) => format!("{pod} ({})", side.address),
            None => side.address.to_string(),
        };
        writeln!(
            f,
            "{}: {} -> {} {} {}",
            word(self.allowed),
            end(&self.egress),
            end(&self.ingress),
            self.protocol,
            self.port
        )?;
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            writeln!(f, "  {name:<8} {}", side.reason.sentence(side, name))?;
            for passed in &side.passed {
                writeln!(f, "           after Pass by {}", passed.why("", name))?;
            }
            let named = matches!(side.reason, Reason::NoRule { .. });
            if !named && !side.isolated_by.is_empty() {
                writeln!(f, "           isolated by {}", names(&side.isolated_by))?;
            }
            if !side.here && side.pod.is_some() {
                writeln!(f, "           enforced by the agent of that pod's node")?;
            }
        }
        Ok(())
    }
}

/// A connection, and what is known of its ends.
struct Connection<'a> {
    world: &'a World,
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

impl World {
    /// Which policies and rules decide about a connection, in the words of the API. Each
    /// end is judged by all that is known here, also where another node enforces it.
    pub fn explain(
        &self,
        from: &End,
        to: &End,
        protocol: Protocol,
        port: u16,
    ) -> Result<Explanation, ExplainError> {
        let (froms, tos) = (self.addresses(from)?, self.addresses(to)?);
        let pair = froms.iter().find_map(|from| {
            let to = tos.iter().find(|to| to.is_ipv4() == from.is_ipv4())?;
            Some((*from, *to))
        });
        let Some((from, to)) = pair else {
            let list =
                |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(ExplainError::Families(list(&froms), list(&tos)));
        };
        let connection = Connection { world: self, from, to, protocol, port };
        let egress = connection.side(Direction::Egress);
        let ingress = connection.side(Direction::Ingress);
        Ok(Explanation {
            allowed: egress.allowed && ingress.allowed,
            egress,
            ingress,
            protocol: protocol.name().to_owned(),
            port,
        })
    }

    fn addresses(&self, end: &End) -> Result<Vec<IpAddr>, ExplainError> {
        let key = match end {
            End::Address(address) => return Ok(vec![*address]),
            End::Pod(key) => key,
        };
        let pod = self.known.pod(key);
        let mut all = pod.map_or_else(Vec::new, |pod| self.known.addresses_of(pod));
        if all.is_empty() {
            // Leased here, but not known well enough to own its addresses.
            let leases = self.known.locals.values();
            let own = leases.filter(|lease| lease.pod.as_ref() == Some(key));
            all.extend(own.flat_map(|lease| lease.addresses.iter().copied()));
        }
        match (all.is_empty(), pod) {
            (false, _) => Ok(all),
            (true, Some(_)) => Err(ExplainError::NoAddress(key.clone())),
            (true, None) => Err(ExplainError::NoPod(key.clone())),
        }
    }

    fn owner(&self, address: IpAddr) -> Option<&Pod> {
        self.known.pod(self.known.holders.get(&address)?.owner.as_ref()?)
    }
}

impl Connection<'_> {
    fn side(&self, direction: Direction) -> Side {
        let address = match direction {
            Direction::Egress => self.from,
            Direction::Ingress => self.to,
        };
        let known = &self.world.known;
        let lease = known.lease_at(address).filter(|lease| lease.pod.is_some());
        let subject = match lease {
            Some(lease) => Some(known.local(lease)),
            None => self.world.owner(address).map(|pod| {
                let space = known.labels_of_space(&pod.key.namespace);
                space.map(|space| (pod, space)).ok_or(Missing::Namespace)
            }),
        };
        let mut side = Side {
            allowed: true,
            reason: Reason::NotSelected,
            isolated_by: Vec::new(),
            passed: Vec::new(),
            pod: self.world.pod_at(address),
            address,
            here: lease.is_some(),
        };
        match subject {
            _ if self.from == self.to => side.reason = Reason::Itself,
            None => side.reason = Reason::NoPod,
            Some(Ok((pod, _))) if pod.host_network => side.reason = Reason::NoPod,
            Some(Ok((pod, space))) => {
                let selected = known.selected(pod, space, direction);
                self.judge(pod, &selected, direction, &mut side);
            }
            Some(Err(missing)) => {
                let namespace = side.pod.as_ref().map(|pod| &pod.namespace);
                let could = namespace.is_some_and(|name| known.could_apply(name, direction));
                if could {
                    side.allowed = self.world.settings.unknown == Unknown::Allow;
                    side.reason = Reason::Unknown { missing };
                }
            }
        }
        side
    }

    fn judge(&self, pod: &Pod, selected: &Selected<'_>, direction: Direction, side: &mut Side) {
        side.isolated_by = selected.network.iter().map(|policy| policy.id.clone()).collect();
        if self.tier(Tier::Admin, pod, selected, direction, side) {
            return;
        }
        for policy in &selected.network {
            for rule in compile::network_rules(policy, direction).unwrap_or_default() {
                let own = &policy.id.namespace;
                if self.matches(rule.peers.as_deref(), rule.ports.as_deref(), pod, own, direction) {
                    let field = field(direction, rule.index);
                    side.reason = Reason::Rule { policy: policy.id.clone(), field, name: None };
                    return;
                }
            }
        }
        if !selected.network.is_empty() {
            side.allowed = false;
            side.reason = Reason::NoRule { policies: side.isolated_by.clone() };
            return;
        }
        let decided = self.tier(Tier::Baseline, pod, selected, direction, side);
        let speak =
            |policy: &&&ClusterPolicy| !compile::cluster_rules(policy, direction).is_empty();
        let policies: Vec<PolicyRef> =
            selected.cluster.iter().filter(speak).map(|policy| policy.id.clone()).collect();
        if !decided && !policies.is_empty() {
            side.reason = Reason::NotMentioned { policies };
        }
    }

    /// True if a rule of the tier decides.
    fn tier(
        &self,
        tier: Tier,
        pod: &Pod,
        selected: &Selected<'_>,
        direction: Direction,
        side: &mut Side,
    ) -> bool {
        for policy in selected.cluster.iter().filter(|policy| policy.tier == tier) {
            for rule in compile::cluster_rules(policy, direction) {
                let own = &policy.id.namespace;
                if !self.matches(rule.peers.as_deref(), rule.ports.as_deref(), pod, own, direction)
                {
                    continue;
                }
                let reason = Reason::Rule {
                    policy: policy.id.clone(),
                    field: field(direction, rule.index),
                    name: rule.name.as_deref().map(str::to_owned),
                };
                if rule.action == Action::Pass {
                    side.passed.push(reason);
                    return false;
                }
                side.allowed = rule.action == Action::Accept;
                side.reason = reason;
                return true;
            }
        }
        false
    }

    fn matches(
        &self,
        peers: Option<&[Peer]>,
        ports: Option<&[Port]>,
        pod: &Pod,
        own: &str,
        direction: Direction,
    ) -> bool {
        let peer = match direction {
            Direction::Egress => self.to,
            Direction::Ingress => self.from,
        };
        let named_on = match direction {
            Direction::Egress => self.world.owner(self.to),
            Direction::Ingress => Some(pod),
        };
        let at_ports = |named_on: Option<&Pod>| {
            ports.is_none_or(|ports| ports.iter().any(|port| self.is_port(port, named_on)))
        };
        let Some(peers) = peers else { return at_ports(named_on) };
        peers.iter().any(|one| {
            // A node has no named ports.
            let named_on = named_on.filter(|_| !matches!(one, Peer::Nodes(_)));
            self.is_peer(one, peer, own) && at_ports(named_on)
        })
    }

    fn is_peer(&self, peer: &Peer, address: IpAddr, own: &str) -> bool {
        let known = &self.world.known;
        match peer {
            Peer::Block(net, except) => {
                net.contains(&address) && !except.iter().any(|net| net.contains(&address))
            }
            Peer::Nodes(selector) => known
                .nodes
                .values()
                .any(|node| selector.matches(&node.labels) && node.addresses.contains(&address)),
            Peer::Pods(namespaces, pods) => self.world.owner(address).is_some_and(|pod| {
                let space = match namespaces {
                    Namespaces::Own => *pod.key.namespace == *own,
                    Namespaces::Matching(selector) => known
                        .labels_of_space(&pod.key.namespace)
                        .is_some_and(|labels| selector.matches(labels)),
                };
                space && pods.matches(&pod.labels)
            }),
        }
    }

    fn is_port(&self, port: &Port, named_on: Option<&Pod>) -> bool {
        match port {
            Port::Range(protocol, low, high) => {
                *protocol == self.protocol && (*low..=*high).contains(&self.port)
            }
            Port::Named(protocol, name) => named_on.is_some_and(|pod| {
                protocol.is_none_or(|protocol| protocol == self.protocol)
                    && pod.ports.iter().any(|own| {
                        own.name == *name && own.protocol == self.protocol && own.port == self.port
                    })
            }),
        }
    }
}

fn field(direction: Direction, index: usize) -> String {
    match direction {
        Direction::Ingress => format!("spec.ingress[{index}]"),
        Direction::Egress => format!("spec.egress[{index}]"),
    }
}

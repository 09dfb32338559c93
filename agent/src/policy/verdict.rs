//! What a [`PolicyState`] says of a connection: the reading that the kernel's rules follow.

use std::net::IpAddr;

use crate::policy::state::{Action, Chain, ChainId, Element, Peers, PolicyState, Ports, Protocol};

/// What one direction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Half {
    /// The address has no chain in this direction.
    Unrestricted,
    /// A chain decides.
    Chain {
        /// Which.
        chain: ChainId,
        /// Place of the deciding rule, `admin` rules first, then `main`; `None` if
        /// the chain's end decides.
        rule: Option<usize>,
        /// Allowed.
        allowed: bool,
    },
}

impl Half {
    /// True if this direction allows the connection.
    pub fn allowed(&self) -> bool {
        !matches!(self, Self::Chain { allowed: false, .. })
    }
}

/// Both halves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Leaving the source.
    pub egress: Half,
    /// Reaching the destination.
    pub ingress: Half,
}

impl Verdict {
    /// True if both halves allow it.
    pub fn allowed(&self) -> bool {
        self.egress.allowed() && self.ingress.allowed()
    }
}

/// Protocol number and destination port of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// `None` for a protocol that no policy can name: only rules for all ports match it.
    pub protocol: Option<Protocol>,
    /// Destination port; of no meaning without a protocol.
    pub port: u16,
}

impl PolicyState {
    /// Judges a new connection as far as this node does.
    pub fn verdict(&self, from: IpAddr, to: IpAddr, flow: Flow) -> Verdict {
        if from == to {
            return Verdict { egress: Half::Unrestricted, ingress: Half::Unrestricted };
        }
        let chain = |own: IpAddr, ingress: bool| {
            let subject = self.subjects.get(&own)?;
            if ingress { subject.ingress.as_ref() } else { subject.egress.as_ref() }
        };
        Verdict {
            egress: self.half(chain(from, false), to, to, flow),
            ingress: self.half(chain(to, true), from, to, flow),
        }
    }

    fn half(&self, id: Option<&ChainId>, peer: IpAddr, to: IpAddr, flow: Flow) -> Half {
        let Some(id) = id else { return Half::Unrestricted };
        let Some(chain) = self.chains.get(id) else { return Half::Unrestricted };
        let (rule, allowed) = self.judge(chain, peer, to, flow);
        Half::Chain { chain: id.clone(), rule, allowed }
    }

    fn judge(&self, chain: &Chain, peer: IpAddr, to: IpAddr, flow: Flow) -> (Option<usize>, bool) {
        let matching = |rule: &crate::policy::state::Rule| {
            self.peers_match(&rule.peers, peer) && self.ports_match(&rule.ports, to, flow)
        };
        if let Some(at) = chain.admin.iter().position(matching)
            && chain.admin[at].action != Action::Pass
        {
            return (Some(at), chain.admin[at].action == Action::Accept);
        }
        match chain.main.iter().position(matching) {
            Some(at) => (Some(chain.admin.len() + at), chain.main[at].action == Action::Accept),
            None => (None, chain.end == Action::Accept),
        }
    }

    fn peers_match(&self, peers: &Peers, peer: IpAddr) -> bool {
        let Peers::Set(id) = peers else { return true };
        let Some((_, elements)) = self.sets.get(id) else { return false };
        if elements.contains(&Element::Address(peer)) {
            return true;
        }
        let last = match peer {
            IpAddr::V4(_) => IpAddr::from([u8::MAX; 4]),
            IpAddr::V6(_) => IpAddr::from([u8::MAX; 16]),
        };
        elements.range(..=Element::Range(peer, last)).next_back().is_some_and(
            |element| matches!(element, Element::Range(low, high) if *low <= peer && peer <= *high),
        )
    }

    fn ports_match(&self, ports: &Ports, to: IpAddr, flow: Flow) -> bool {
        if *ports == Ports::Any {
            return true;
        }
        let Some(protocol) = flow.protocol else { return false };
        match ports {
            Ports::Any => true,
            Ports::Listed(ranges) => ranges
                .iter()
                .any(|(p, low, high)| *p == protocol && (*low..=*high).contains(&flow.port)),
            Ports::PerDestination(id) => self.sets.get(id).is_some_and(|(_, elements)| {
                elements.contains(&Element::Port(to, protocol, flow.port))
            }),
        }
    }
}

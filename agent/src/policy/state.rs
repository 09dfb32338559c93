//! The desired policy of this node, without nftables' words: what the compiler
//! yields and the kernel part turns into chains, sets and a verdict map.
//!
//! A connection is judged at its first packet, after destination NAT, in two
//! halves: egress by the chain of the source if that is a pod of this node,
//! ingress by the chain of the destination if that is one. Both must allow it.
//! An address without a chain in a direction is not restricted in it. From an
//! address to itself everything is allowed, whatever the chains say.
//!
//! Chains are never edited: their name is made of their content, so a pod whose
//! rules change moves to another chain by one element of the verdict map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Name of a set, at most 24 bytes of `[a-z0-9-]`, the same for the same selector
/// or block list on every node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub Arc<str>);

/// Name of a chain, at most 24 bytes of `[a-z0-9-]`, made of the chain's content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub Arc<str>);

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// [`Element::Address`]: pods of a selector.
    Addresses,
    /// [`Element::Range`]: blocks less their exceptions; disjoint, not adjacent.
    Ranges,
    /// [`Element::Port`]: destinations of a named port.
    Ports,
}

/// An element of a set. Both families share a set id; the kernel part keeps a
/// set per family where it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// An address.
    Address(IpAddr),
    /// First and last address, of one family.
    Range(IpAddr, IpAddr),
    /// Destination address, protocol and port.
    Port(IpAddr, Protocol, u16),
}

/// Protocols that policies name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    /// As policies write it: `TCP`, `UDP`, `SCTP`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As policies write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Which connections a chain judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Those to its addresses: [`Peers`] are sources.
    Ingress,
    /// Those from its addresses: [`Peers`] are destinations.
    Egress,
}

/// The other end: the source in an ingress chain, the destination in an egress chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    Any,
    /// Members of a set of [`SetKind::Addresses`] or [`SetKind::Ranges`].
    Set(SetId),
}

/// Destination ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol and port, also protocols without ports.
    Any,
    /// First and last port of a protocol; sorted, disjoint, not empty.
    Listed(Vec<(Protocol, u16, u16)>),
    /// (destination, protocol, port) is in a set of [`SetKind::Ports`].
    PerDestination(SetId),
}

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Allowed in this direction.
    Accept,
    /// Refused.
    Deny,
    /// On to [`Chain::main`]. Only in [`Chain::admin`].
    Pass,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Other end.
    pub peers: Peers,
    /// Destination ports.
    pub ports: Ports,
    /// What then.
    pub action: Action,
}

/// The rules of one direction for a group of pods. The first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Direction; a chain id is used in one only.
    pub direction: Direction,
    /// Admin tier; where nothing matches, `main` follows.
    pub admin: Vec<Rule>,
    /// NetworkPolicies if any selects the pod, else the baseline tier.
    pub main: Vec<Rule>,
    /// Where nothing matches: [`Action::Deny`] for isolated pods, else [`Action::Accept`].
    pub end: Action,
}

/// Chains of an address of this node. At least one is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// For connections to it.
    pub ingress: Option<ChainId>,
    /// For connections from it.
    pub egress: Option<ChainId>,
}

/// All of it. Only sets and chains in use are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// Sets.
    pub sets: BTreeMap<SetId, (SetKind, BTreeSet<Element>)>,
    /// Chains.
    pub chains: BTreeMap<ChainId, Chain>,
    /// Restricted addresses of this node.
    pub subjects: BTreeMap<IpAddr, Subject>,
}

/// The way from one [`PolicyState`] to the next: to be applied at once or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Sets that were not there, without their elements.
    pub new_sets: BTreeMap<SetId, SetKind>,
    /// Elements to add, also to new sets.
    pub add: BTreeMap<SetId, BTreeSet<Element>>,
    /// Elements to remove from sets that stay.
    pub remove: BTreeMap<SetId, BTreeSet<Element>>,
    /// Chains that were not there.
    pub new_chains: BTreeMap<ChainId, Chain>,
    /// Addresses whose chains are others now; `None` if no longer restricted.
    pub subjects: BTreeMap<IpAddr, Option<Subject>>,
    /// Chains that nobody uses any more.
    pub old_chains: BTreeSet<ChainId>,
    /// Sets that nobody uses any more.
    pub old_sets: BTreeSet<SetId>,
}

impl Delta {
    /// True if nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

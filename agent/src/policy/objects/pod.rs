//! Pods, as the API server knows them and as this node's leases know them.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use super::json::{Meta, null_default};
use super::text::{Intern, Labels, Text};
use crate::policy::state::Protocol;

/// Time of creation, ordered; [`Stamp::default`] if not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// Of an RFC 3339 time in UTC with whole seconds, which is what the API server writes.
    pub(super) fn parse(text: &str) -> Self {
        let digits = text.bytes().take(19).filter(u8::is_ascii_digit);
        Self(digits.fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
    }
}

/// What matters of `status.phase`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Pending, Running, Unknown, or a word of the future.
    #[default]
    Alive,
    /// Succeeded or Failed: its address may be another's by now.
    Finished,
}

/// A named container port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedPort {
    /// `name`.
    pub name: Text,
    /// `protocol`, TCP if absent.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

impl PodRef {
    /// From its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `v1/Pod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace` and `.name`.
    pub key: PodRef,
    /// `metadata.uid`.
    pub uid: Text,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`, once bound.
    pub node: Option<Text>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Ports with a name, of all containers and init containers.
    pub ports: Box<[NamedPort]>,
    /// `status.podIPs`, else `status.podIP`.
    pub addresses: Box<[IpAddr]>,
    /// `status.phase`.
    pub phase: Phase,
    /// `metadata.creationTimestamp`.
    pub created: Stamp,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

impl Pod {
    pub(crate) fn intern(&mut self, intern: &mut Intern) {
        intern.text(&mut self.key.namespace);
        self.labels.intern(intern);
        if let Some(node) = &mut self.node {
            intern.text(node);
        }
        for port in &mut self.ports {
            intern.text(&mut port.name);
        }
    }
}

/// A pod interface of this node, from its lease. Its addresses are its own whatever
/// the API server says of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Name of the lease: the same id again replaces it.
    pub id: Text,
    /// All addresses of the interface.
    pub addresses: Box<[IpAddr]>,
    /// Its pod; `None` for a container outside Kubernetes, which no policy touches.
    pub pod: Option<PodRef>,
    /// Uid of the pod, if the runtime gave one.
    pub uid: Option<Text>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "null_default")]
    metadata: Meta,
    #[serde(default, deserialize_with = "null_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "null_default")]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
    #[serde(deserialize_with = "null_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "null_default")]
    init_containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    #[serde(deserialize_with = "null_default")]
    ports: Vec<ContainerPort>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "null_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Raw { metadata, spec, status } = Raw::deserialize(from)?;
        let mut addresses: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .filter_map(|entry| entry.ip.as_deref())
            .chain(status.pod_ip.as_deref())
            .filter_map(|ip| ip.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let containers = spec.containers.iter().chain(&spec.init_containers);
        let mut ports: Vec<NamedPort> =
            containers.flat_map(|c| &c.ports).filter_map(ContainerPort::named).collect();
        ports.sort_unstable_by(|a, b| {
            (&a.name, a.protocol, a.port).cmp(&(&b.name, b.protocol, b.port))
        });
        ports.dedup();
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        Ok(Self {
            key: PodRef {
                namespace: metadata.namespace().into(),
                name: metadata.name::<D::Error>("Pod")?.into(),
            },
            uid: metadata.uid.unwrap_or_default().into(),
            labels: metadata.labels.into_iter().collect(),
            node: spec.node_name.filter(|name| !name.is_empty()).map(Into::into),
            host_network: spec.host_network.unwrap_or(false),
            ports: ports.into(),
            addresses: addresses.into(),
            phase: if finished { Phase::Finished } else { Phase::Alive },
            created: Stamp::parse(metadata.creation_timestamp.as_deref().unwrap_or_default()),
            terminating: metadata.deletion_timestamp.is_some(),
        })
    }
}

impl ContainerPort {
    fn named(&self) -> Option<NamedPort> {
        let name = self.name.as_deref().filter(|name| !name.is_empty())?;
        let protocol = Protocol::parse(self.protocol.as_deref().unwrap_or("TCP"))?;
        let port = u16::try_from(self.container_port).ok().filter(|port| *port != 0)?;
        Some(NamedPort { name: name.into(), protocol, port })
    }
}

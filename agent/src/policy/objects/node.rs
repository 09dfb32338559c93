//! Namespaces and nodes.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use super::json::{Meta, null_default};
use super::text::{Labels, Text};

/// `v1/Namespace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// `v1/Node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Text,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Those of `status.addresses` that are addresses, of every type.
    pub addresses: Box<[IpAddr]>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "null_default")]
    metadata: Meta,
    #[serde(default, deserialize_with = "null_default")]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "null_default")]
    addresses: Vec<Address>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    address: Option<String>,
}

#[derive(Deserialize)]
struct OnlyMeta {
    #[serde(default, deserialize_with = "null_default")]
    metadata: Meta,
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let OnlyMeta { metadata } = OnlyMeta::deserialize(from)?;
        let name = metadata.name::<D::Error>("Namespace")?.into();
        Ok(Self { name, labels: metadata.labels.into_iter().collect() })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Raw { metadata, status } = Raw::deserialize(from)?;
        let mut addresses: Vec<IpAddr> = status
            .addresses
            .iter()
            .filter_map(|entry| entry.address.as_deref()?.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let name = metadata.name::<D::Error>("Node")?.into();
        let labels = metadata.labels.into_iter().collect();
        Ok(Self { name, labels, addresses: addresses.into() })
    }
}

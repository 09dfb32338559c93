//! Reading a ClusterNetworkPolicy.
use serde::{Deserialize, Deserializer, de};

use super::cluster::ClusterPolicy;

impl<'de> Deserialize<'de> for ClusterPolicy {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("not yet"))
    }
}
impl<'de> Deserialize<'de> for super::network::NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("not yet"))
    }
}

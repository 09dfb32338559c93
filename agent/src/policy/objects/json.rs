//! Reading the API server's JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// `null` is the same as absent.
pub(super) fn null_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    pub(super) uid: Option<String>,
    #[serde(deserialize_with = "null_default")]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
}

impl Meta {
    /// Of a whole object.
    pub(super) fn of(object: &Value) -> Result<Self, serde_json::Error> {
        match object.get("metadata") {
            Some(meta) if !meta.is_null() => Self::deserialize(meta),
            _ => Ok(Self::default()),
        }
    }

    /// Name, without which an object cannot be told from others.
    pub(super) fn name<E: de::Error>(&self, kind: &str) -> Result<&str, E> {
        match self.name.as_deref() {
            Some(name) if !name.is_empty() => Ok(name),
            _ => Err(E::custom(format_args!("{kind} without metadata.name"))),
        }
    }

    /// Namespace; `default` where none is given, as everywhere in Kubernetes.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }
}

//! An object as it comes from the API server: its name and version, and what
//! policy needs of it. One that cannot be read does not spoil the list it is in.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::lean::Lean;

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item<T> {
    /// `namespace/name`, or `name`.
    pub(super) key: Arc<str>,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// The object, and the text it can be read from again; or why it makes no sense.
    pub(super) body: Result<(T, Arc<str>), String>,
}

impl<'de, T: DeserializeOwned + Lean> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let meta = |field: &str| {
            value.get("metadata").and_then(|m| m.get(field)?.as_str()).unwrap_or_default()
        };
        let key = match (meta("namespace"), meta("name")) {
            ("", name) => name.into(),
            (namespace, name) => format!("{namespace}/{name}").into(),
        };
        let version = meta("resourceVersion").to_owned();
        let body = T::deserialize(&value).map_err(|e| e.to_string());
        let body = body.map(|body| (body, T::lean(&value).to_string().into()));
        Ok(Self { key, version, body })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
    struct Body {
        size: u8,
    }

    impl Lean for Body {
        fn lean(object: &Value) -> Value {
            json!({ "size": object["size"] })
        }
    }

    #[test]
    fn a_bad_object_does_not_spoil_its_list() {
        let text = json!([
            { "metadata": { "namespace": "a", "name": "x", "resourceVersion": "7" }, "size": 1 },
            { "metadata": { "name": "y" }, "size": "large" },
            { "metadata": null },
            3,
        ])
        .to_string();
        let items: Vec<Item<Body>> = serde_json::from_str(&text).unwrap();
        assert_eq!((&*items[0].key, &*items[0].version), ("a/x", "7"));
        assert_eq!(items[0].body, Ok((Body { size: 1 }, r#"{"size":1}"#.into())));
        assert_eq!(&*items[1].key, "y");
        assert!(items[1].body.as_ref().unwrap_err().contains("large"));
        assert!(items[2].body.is_err() && items[3].body.is_err());
    }
}

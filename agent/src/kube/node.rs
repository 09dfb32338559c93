//! This node's Node: what is read from it, what is written to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::ClusterResourceScope;
use kube::api::{Api, GetParams, Patch, PatchParams};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Ask, Kube, KubeError};

/// Annotation: the agent's identity.
pub const NODE_ID: &str = "weft.io/node-id";
/// Annotation: where its mesh listens, best first.
pub const UNDERLAY: &str = "weft.io/underlay";
/// Annotation: the cluster it is a member of.
pub const CLUSTER: &str = "weft.io/cluster";
/// Type of the condition that keeps pods away while it is true.
const NETWORK: &str = "NetworkUnavailable";
/// Our reason for its being false.
const UP: &str = "WeftIsUp";

/// As much of a Node as is used: one of 33 KB becomes one of less than 1 KB.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Node {
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Status.
    #[serde(default)]
    pub status: Status,
}

/// See [`Node`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Addresses by type.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Conditions by type.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// `InternalIP`, `Hostname`, ….
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Address {
    /// Which kind.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Its text.
    #[serde(default)]
    pub address: String,
}

/// See the field's standard words.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    #[serde(default)]
    pub status: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

impl kube::Resource for Node {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Node {
    /// Its InternalIPs, in the server's order.
    pub fn internal(&self) -> Vec<IpAddr> {
        let internal = self.status.addresses.iter().filter(|a| a.kind == "InternalIP");
        internal.filter_map(|a| a.address.parse().ok()).collect()
    }

    /// A patch of `nodes/status` that makes annotations and condition what they
    /// should be; `None` if they are. The condition is only ever set to false,
    /// and once ADDs can be served: an agent that restarts leaves it alone.
    /// `now` is in RFC 3339.
    pub fn patch(
        &self,
        notes: &BTreeMap<&'static str, String>,
        serves: bool,
        now: &str,
    ) -> Option<Value> {
        let have = self.metadata.annotations.as_ref();
        let has = |key: &str| have.and_then(|have| have.get(key));
        let news: BTreeMap<_, _> =
            notes.iter().filter(|(key, value)| has(key) != Some(*value)).collect();
        let told = self.status.conditions.iter().any(|c| c.kind == NETWORK && c.status == "False");
        let mut patch = json!({});
        if !news.is_empty() {
            patch["metadata"] = json!({ "annotations": news });
        }
        if serves && !told {
            patch["status"] = json!({ "conditions": [{
                "type": NETWORK,
                "status": "False",
                "reason": UP,
                "message": "weft serves pods on this node",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }] });
        }
        (patch != json!({})).then_some(patch)
    }
}

const GET: Ask = Ask::cluster("get", "nodes");
const PATCH: Ask = Ask::cluster("patch", "nodes/status");

impl Kube {
    /// This node's Node; `None` if it has none. From the server's cache: it is
    /// looked at again and again.
    pub async fn own_node(&self) -> Result<Option<Node>, KubeError> {
        let nodes: Api<Node> = Api::all(self.client());
        let any = GetParams::any();
        match self.ask(GET, nodes.get_with(self.node_name(), &any)).await {
            Ok(node) => Ok(Some(node)),
            Err(KubeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True if there is a Node of this name now, by the latest word.
    pub async fn node_exists(&self, name: &str) -> Result<bool, KubeError> {
        let nodes: Api<Node> = Api::all(self.client());
        match self.ask(GET, nodes.get_metadata(name)).await {
            Ok(_) => Ok(true),
            Err(KubeError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a patch made by [`Node::patch`].
    pub async fn patch_own_node(&self, patch: &Value) -> Result<(), KubeError> {
        let nodes: Api<Node> = Api::all(self.client());
        let params = PatchParams::default();
        let patch = Patch::Strategic(patch);
        self.ask(PATCH, nodes.patch_status(self.node_name(), &params, &patch)).await.map(|_| ())
    }
}

/// This moment as the API writes it, in whole seconds.
pub fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn unknown_fields_and_missing_ones_do_not_matter() {
        let found = node(
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"u"},"spec":{"x":1},
            "status":{"addresses":[{"type":"Hostname","address":"n1"},{"type":"InternalIP",
            "address":"10.0.0.1"},{"type":"InternalIP","address":"fd00::1"},{"type":"InternalIP",
            "address":"?"}],"images":[{"names":["a"]}]}}"#,
        );
        assert_eq!(
            found.internal(),
            ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
        );
        assert!(node(r#"{"metadata":{"name":"n1"}}"#).internal().is_empty());
    }

    #[test]
    fn only_what_differs_is_patched() {
        let notes = BTreeMap::from([(NODE_ID, "aa".to_owned()), (UNDERLAY, "10.0.0.1".to_owned())]);
        let fresh = node(r#"{"metadata":{"name":"n1"}}"#);
        let patch = fresh.patch(&notes, false, "t").unwrap();
        assert_eq!(patch["metadata"]["annotations"][UNDERLAY], "10.0.0.1");
        assert_eq!(patch.get("status"), None);
        let patch = fresh.patch(&notes, true, "t").unwrap();
        assert_eq!(patch["status"]["conditions"][0]["reason"], UP);
        let told = node(
            r#"{"metadata":{"annotations":{"weft.io/node-id":"aa","weft.io/underlay":"10.0.0.1",
            "x":"y"}},"status":{"conditions":[{"type":"Ready","status":"True"},
            {"type":"NetworkUnavailable","status":"False","reason":"Other"}]}}"#,
        );
        assert_eq!(told.patch(&notes, true, "t"), None);
        assert_eq!(told.patch(&notes, false, "t"), None);
        // A cloud controller that says "unavailable" is corrected.
        let cloud =
            node(r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}"#);
        assert!(cloud.patch(&BTreeMap::new(), true, "t").is_some());
        assert_eq!(cloud.patch(&BTreeMap::new(), false, "t"), None);
    }

    #[test]
    fn times_are_as_the_api_writes_them() {
        let now = now();
        assert!(now.len() == 20 && now.ends_with('Z') && now.contains('T'), "{now}");
    }
}

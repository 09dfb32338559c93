//! What of an object is remembered: the parts that policy reads, as the API
//! server wrote them, so that they are read again by the same code.

use serde_json::{Map, Value};

use crate::policy::objects::{ClusterPolicy, Namespace, NetworkPolicy, Node, Pod};

/// Objects that can do with less.
pub(super) trait Lean {
    /// The object without what does not matter. It reads as the same.
    fn lean(object: &Value) -> Value;
}

/// Members of an object, those that are there and not `null`.
fn pick(object: &Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let found = names.iter().filter_map(|name| Some((*name, object.get(*name)?)));
    found.filter(|(_, v)| !v.is_null()).map(|(name, v)| (name.to_owned(), v.clone())).collect()
}

/// A part with these members only; as it is, if it is no object.
fn part(object: &Value, name: &'static str, members: &[&str]) -> Option<(String, Value)> {
    let less = match object.get(name)? {
        Value::Null => return None,
        Value::Object(part) => Value::Object(pick(part, members)),
        other => other.clone(),
    };
    Some((name.to_owned(), less))
}

fn meta(object: &Value, more: &[&str]) -> Option<(String, Value)> {
    part(object, "metadata", &[&["namespace", "name", "uid"], more].concat())
}

fn object<const N: usize>(parts: [Option<(String, Value)>; N]) -> Value {
    let parts = parts.into_iter().flatten();
    parts.filter(|(_, part)| part.as_object().is_none_or(|part| !part.is_empty())).collect()
}

impl Lean for Pod {
    fn lean(pod: &Value) -> Value {
        let lists = ["containers", "initContainers"];
        let mut spec = part(pod, "spec", &["nodeName", "hostNetwork", lists[0], lists[1]]);
        if let Some((_, Value::Object(spec))) = &mut spec
            && let Some(ports) = named_ports(lists.map(|list| spec.get(list)))
        {
            lists.iter().for_each(|list| drop(spec.remove(*list)));
            if !ports.is_empty() {
                spec.insert("containers".to_owned(), serde_json::json!([{ "ports": ports }]));
            }
        }
        object([
            meta(pod, &["labels", "creationTimestamp", "deletionTimestamp"]),
            spec,
            part(pod, "status", &["phase", "podIP", "podIPs"]),
        ])
    }
}

/// All ports with names; `None` if the lists have another form than they should.
fn named_ports(lists: [Option<&Value>; 2]) -> Option<Vec<Value>> {
    let mut named = Vec::new();
    for container in lists.into_iter().flatten().map(Value::as_array) {
        for container in container? {
            let Some(ports) = container.as_object()?.get("ports").filter(|p| !p.is_null()) else {
                continue;
            };
            for port in ports.as_array()? {
                let port = pick(port.as_object()?, &["name", "protocol", "containerPort"]);
                if port.contains_key("name") {
                    named.push(Value::Object(port));
                }
            }
        }
    }
    Some(named)
}

impl Lean for Namespace {
    fn lean(namespace: &Value) -> Value {
        object([meta(namespace, &["labels"])])
    }
}

impl Lean for Node {
    fn lean(node: &Value) -> Value {
        object([meta(node, &["labels"]), part(node, "status", &["addresses"])])
    }
}

impl Lean for NetworkPolicy {
    fn lean(policy: &Value) -> Value {
        policy_of(policy)
    }
}

impl Lean for ClusterPolicy {
    fn lean(policy: &Value) -> Value {
        policy_of(policy)
    }
}

/// All of the spec, also what is not understood: it is a problem that is told.
fn policy_of(policy: &Value) -> Value {
    let mut out = object([meta(policy, &[])]);
    if let (Some(spec), Value::Object(out)) = (policy.get("spec"), &mut out) {
        out.insert("spec".to_owned(), spec.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn same<T: DeserializeOwned + Lean + PartialEq + std::fmt::Debug>(object: &Value) {
        let Ok(whole) = serde_json::from_value::<T>(object.clone()) else { return };
        let lean = T::lean(object);
        assert_eq!(serde_json::from_value::<T>(lean.clone()).unwrap(), whole, "{lean} of {object}");
        assert_eq!(T::lean(&lean), lean);
    }

    #[test]
    fn a_pod_is_a_few_hundred_bytes() {
        let pod = json!({
            "metadata": {
                "namespace": "shop", "name": "web-0", "uid": "7ab2f63e-7fd2-4bd8-8e69-0f8d7b2b8d2b",
                "labels": { "app": "web" }, "annotations": { "a": "x".repeat(5000) },
                "creationTimestamp": "2026-02-03T04:05:06Z", "managedFields": [{ "f": "x" }],
            },
            "spec": {
                "nodeName": "n1", "volumes": [{ "name": "v" }],
                "containers": [
                    { "image": "i", "ports": [{ "containerPort": 9 },
                        { "name": "web", "containerPort": 80, "protocol": "TCP" }] },
                    { "image": "sidecar" },
                ],
            },
            "status": { "phase": "Running", "podIP": "10.32.0.2", "podIPs": [{ "ip": "10.32.0.2" }],
                "conditions": [] },
        });
        same::<Pod>(&pod);
        let text = Pod::lean(&pod).to_string();
        assert!(text.len() < 400, "{} bytes: {text}", text.len());
    }

    fn word() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            Just(json!("")),
            Just(json!("10.32.0.7")),
            Just(json!("Failed")),
            Just(json!("TCP")),
            Just(json!("web")),
            Just(json!(80)),
            Just(json!(true)),
            Just(json!("2026-02-03T04:05:06Z")),
        ]
    }

    /// Anything that has the members of the objects, often of the wrong type.
    fn anything() -> impl Strategy<Value = Value> {
        const NAMES: [&str; 22] = [
            "metadata",
            "spec",
            "status",
            "namespace",
            "name",
            "uid",
            "labels",
            "phase",
            "podIP",
            "podIPs",
            "ip",
            "containers",
            "initContainers",
            "ports",
            "protocol",
            "containerPort",
            "nodeName",
            "hostNetwork",
            "addresses",
            "address",
            "deletionTimestamp",
            "other",
        ];
        word().prop_recursive(5, 60, 6, |inner| {
            let member = (prop::sample::select(&NAMES[..]), inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::Array),
                prop::collection::vec(member, 0..8).prop_map(|members| members
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn less_reads_as_the_same(meta in anything(), spec in anything(), status in anything()) {
            let mut object = json!({ "metadata": meta, "spec": spec, "status": status });
            same::<Pod>(&object);
            same::<Node>(&object);
            same::<Namespace>(&object);
            // With a name they are read, whatever else is in there.
            object["metadata"] = json!({ "name": "x", "namespace": "n", "labels": { "a": "b" } });
            same::<Pod>(&object);
            same::<Node>(&object);
            same::<NetworkPolicy>(&object);
            same::<ClusterPolicy>(&object);
        }
    }
}

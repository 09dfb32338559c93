//! Objects as bytes, in the form that was asked for.

use serde_json::{Value, json};

use super::catalog::Resource;
use super::request::Form;
use super::verbs::Answer;

/// The object in this form.
pub(super) fn object(object: &Value, form: Form) -> Value {
    match form {
        Form::Whole => object.clone(),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
    }
}

/// Code and body of an answer.
pub(super) fn answer(answer: &Answer, resource: &Resource, form: Form) -> (u16, Vec<u8>) {
    let (code, value) = match answer {
        Answer::Object(one) => (200, object(one, form)),
        Answer::Created(one) => (201, object(one, form)),
        Answer::Done(status) => (200, status.clone()),
        Answer::List { metadata, items } => {
            let items: Vec<_> = items.iter().map(|item| in_list(item, resource, form)).collect();
            let (kind, version) = match form {
                Form::Whole => (format!("{}List", resource.kind), resource.api_version()),
                Form::Metadata => {
                    ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
                }
            };
            let list =
                json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items});
            (200, list)
        }
    };
    (code, value.to_string().into_bytes())
}

/// Built-in types do not repeat their kind in every item of a list.
fn in_list(item: &Value, resource: &Resource, form: Form) -> Value {
    let mut item = object(item, form);
    if let Value::Object(map) = &mut item
        && form == Form::Whole
        && !resource.custom
    {
        map.remove("kind");
        map.remove("apiVersion");
    }
    item
}

/// One line of a watch.
pub(super) fn line(kind: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": kind, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A bookmark at `revision`; the last of the initial events if `initial_end`.
pub(super) fn bookmark(
    resource: &Resource,
    form: Form,
    revision: u64,
    initial_end: bool,
) -> Vec<u8> {
    let mut mark = json!({
        "kind": resource.kind, "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
    });
    if initial_end {
        mark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    line("BOOKMARK", &object(&mark, form))
}

//! Rules of a real API server that clients run into, beyond those of JSON.

use serde_json::{Value, json};

use super::catalog::Resource;
use super::error::ApiError;
use super::store::metadata;

const LONGEST: usize = 253;

/// A DNS subdomain, as names of nearly all objects must be.
pub fn name(resource: &str, name: &str) -> Result<(), ApiError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(fine)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.is_empty() && name.len() <= LONGEST && name.split('.').all(label) {
        return Ok(());
    }
    let why = format!(
        "metadata.name: Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of \
         lower case alphanumeric characters, '-' or '.'"
    );
    Err(ApiError::invalid(resource, name, &why))
}

/// What every namespace is labelled with: its name.
pub fn defaults(resource: &Resource, object: &mut Value) {
    if resource.qualified() == "namespaces" {
        let meta = metadata(object);
        if !meta["labels"].is_object() {
            meta["labels"] = json!({});
        }
        let name = meta["name"].clone();
        meta["labels"]["kubernetes.io/metadata.name"] = name;
    }
}

/// What cannot be kept at all.
pub fn object(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    if resource.plural == "events" {
        event(resource, object)?;
    }
    for map in ["labels", "annotations"] {
        let values = object["metadata"][map].as_object();
        if values.is_some_and(|map| map.values().any(|value| !value.is_string())) {
            let why = format!("metadata.{map}: json: cannot unmarshal a value into a string");
            return Err(ApiError::bad_request(why));
        }
    }
    let data = object["data"].as_object().filter(|_| resource.group.is_empty());
    if data.is_some_and(|data| data.values().any(|value| !value.is_string())) {
        return Err(ApiError::bad_request("data: json: cannot unmarshal a value into a string"));
    }
    if resource.qualified() == "secrets"
        && data.is_some_and(|data| !data.values().filter_map(Value::as_str).all(base64))
    {
        return Err(ApiError::bad_request("data: illegal base64 data"));
    }
    Ok(())
}

fn base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len() - body.len() <= 2
        && text.len().is_multiple_of(4)
        && body.chars().all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '/')
}

/// Events of either group: those with `eventTime` have more to fulfil.
fn event(resource: &Resource, event: &Value) -> Result<(), ApiError> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let meta = |field: &str| event["metadata"][field].as_str().unwrap_or_default();
    let wrong = |why: String| Err(ApiError::invalid(&resource.qualified(), meta("name"), &why));
    let modern = !resource.group.is_empty();
    let about = if modern { &event["regarding"] } else { &event["involvedObject"] };
    let message = if modern { "note" } else { "message" };
    let (own, theirs) = (meta("namespace"), about["namespace"].as_str().unwrap_or_default());
    let timed = event["eventTime"].is_string();
    if modern && !timed {
        return wrong("eventTime: Required value".to_owned());
    }
    let cluster_scoped = own == "default" || (timed && own == "kube-system");
    if theirs != own && !(theirs.is_empty() && cluster_scoped) {
        return wrong(format!(
            "involvedObject.namespace: Invalid value: \"{theirs}\": does not match event.namespace"
        ));
    }
    if !timed {
        return Ok(());
    }
    let (controller, instance) = match modern {
        true => ("reportingController", "reportingInstance"),
        false => ("reportingComponent", "reportingInstance"),
    };
    for (field, longest) in
        [(controller, 253), (instance, 128), ("action", 128), ("reason", 128), (message, 1024)]
    {
        let value = text(field);
        if value.is_empty() && field != message {
            return wrong(format!("{field}: Required value"));
        }
        if value.len() > longest {
            return wrong(format!("{field}: Invalid value: can have at most {longest} characters"));
        }
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        return wrong(format!("type: Invalid value: \"{}\"", text("type")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::catalog::Catalog;
    use super::*;

    fn verdict(resource: &str, subject: &Value) -> Result<(), String> {
        let resource = Catalog::default().named(resource).unwrap();
        object(&resource, subject).map_err(|error| error.message)
    }

    #[test]
    fn names() {
        for good in ["a", "n1", "node-1.example.com", "0"] {
            assert!(name("nodes", good).is_ok(), "{good}");
        }
        for bad in ["", "N1", "a_b", "-a", "a-", "a..b", "a/b", &"x".repeat(254)] {
            assert_eq!(name("nodes", bad).unwrap_err().code, 422, "{bad}");
        }
    }

    #[test]
    fn events() {
        let good = json!({
            "metadata": {"name": "e", "namespace": "default"}, "type": "Warning",
            "eventTime": "2020-01-01T00:00:00.000000Z", "reportingController": "weft",
            "reportingInstance": "n1", "action": "Start", "reason": "Overlap", "note": "text",
            "regarding": {"kind": "Node", "name": "n1"},
        });
        let modern = "events.events.k8s.io";
        assert_eq!(verdict(modern, &good), Ok(()));
        let long = "x".repeat(1025);
        let table = [
            ("/eventTime", Value::Null, "eventTime: Required"),
            ("/action", json!(""), "action: Required"),
            ("/reportingInstance", Value::Null, "reportingInstance: Required"),
            ("/note", json!(long), "note: Invalid"),
            ("/reason", json!(&long[..129]), "reason: Invalid"),
            ("/type", json!("Error"), "type: Invalid"),
            ("/metadata/namespace", json!("elsewhere"), "does not match event.namespace"),
        ];
        for (path, value, expected) in table {
            let mut wrong = good.clone();
            *wrong.pointer_mut(path).unwrap() = value;
            let message = verdict(modern, &wrong).unwrap_err();
            assert!(message.contains(expected), "{path}: {message}");
        }
        let old = json!({
            "metadata": {"name": "e", "namespace": "kube-system"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "kube-system"},
        });
        assert_eq!(verdict("events", &old), Ok(()));
    }

    #[test]
    fn data_is_text_and_secrets_are_base64() {
        assert_eq!(verdict("configmaps", &json!({"data": {"a": "b c"}})), Ok(()));
        assert!(verdict("configmaps", &json!({"data": {"a": 1}})).is_err());
        assert_eq!(verdict("secrets", &json!({"data": {"a": "QUJD", "b": "QQ=="}})), Ok(()));
        assert!(verdict("secrets", &json!({"data": {"a": "b c"}})).is_err());
        assert!(verdict("nodes", &json!({"metadata": {"labels": {"a": true}}})).is_err());
    }
}

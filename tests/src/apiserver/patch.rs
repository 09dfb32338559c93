//! The four kinds of PATCH.

use serde_json::{Map, Value};

use super::error::ApiError;

/// Lists whose elements are told apart by one field, wherever they are.
/// (The API's types say so; here the name of the list decides.)
const KEYED: [(&str, &str); 9] = [
    ("addresses", "type"),
    ("conditions", "type"),
    ("containers", "name"),
    ("containerStatuses", "name"),
    ("env", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("taints", "key"),
    ("volumes", "name"),
];

/// How the body of a PATCH is meant, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// RFC 7386.
    Merge,
    /// Like that, but known lists are merged by key.
    Strategic,
    /// RFC 6902.
    Json,
    /// Server-side apply, without a record of who owns what: a strategic merge
    /// that may create.
    Apply,
}

impl Style {
    /// From `Content-Type`.
    pub fn of(content_type: &str) -> Result<Self, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/json-patch+json" => Ok(Self::Json),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(ApiError::unsupported(other)),
        }
    }
}

/// `object` after `patch`.
pub fn patched(object: &Value, patch: &Value, style: Style) -> Result<Value, ApiError> {
    let mut object = object.clone();
    match style {
        Style::Json => json_patch(&mut object, patch)?,
        _ if !patch.is_object() => {
            return Err(ApiError::bad_request("a patch of this kind must be a JSON object"));
        }
        Style::Merge => merge(&mut object, patch, false),
        Style::Strategic | Style::Apply => merge(&mut object, patch, true),
    }
    Ok(object)
}

fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        // `$setElementOrder`, `$retainKeys`: order and unions are not modelled.
        if strategic && name.starts_with('$') {
            continue;
        }
        let key = KEYED.iter().find(|(list, _)| strategic && list == name).map(|row| row.1);
        match (value, key) {
            (Value::Null, _) => {
                target.remove(name);
            }
            (Value::Array(changes), Some(key)) => {
                let list = target.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(list, changes, key);
            }
            _ => merge(target.entry(name).or_insert(Value::Null), value, strategic),
        }
    }
}

fn merge_list(list: &mut Value, changes: &[Value], key: &str) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Value::Array(list) = list else { return };
    for change in changes {
        let id = &change[key];
        match change["$patch"].as_str() {
            Some("delete") => list.retain(|element| element[key] != *id),
            Some("replace") => list.clear(),
            _ => match list.iter_mut().find(|element| !id.is_null() && element[key] == *id) {
                Some(element) => merge(element, change, true),
                None => {
                    let mut element = Value::Null;
                    merge(&mut element, change, true);
                    list.push(element);
                }
            },
        }
    }
}

fn json_patch(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let steps =
        patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch must be a list"))?;
    for step in steps {
        json_step(object, step)?;
    }
    Ok(())
}

fn json_step(object: &mut Value, step: &Value) -> Result<(), ApiError> {
    let text = |field: &str| {
        let missing = || ApiError::bad_request(format!("JSON patch: no `{field}` in {step}"));
        step[field].as_str().ok_or_else(missing)
    };
    let absent = |path: &str| {
        let why = format!("the server rejected our request: JSON patch: nothing at {path}");
        ApiError::invalid("", "", &why)
    };
    let value_at = |object: &Value, path: &str| object.pointer(path).cloned();
    let path = text("path")?;
    match text("op")? {
        "add" => add(object, path, step["value"].clone()).ok_or_else(|| absent(path)),
        "replace" => {
            let place = object.pointer_mut(path).ok_or_else(|| absent(path))?;
            *place = step["value"].clone();
            Ok(())
        }
        "remove" => remove(object, path).map(drop).ok_or_else(|| absent(path)),
        "test" if value_at(object, path).unwrap_or_default() == step["value"] => Ok(()),
        "test" => {
            let why = format!("JSON patch: testing value {path} failed");
            Err(ApiError::invalid("", "", &why))
        }
        "copy" => {
            let from = text("from")?;
            let value = value_at(object, from).ok_or_else(|| absent(from))?;
            add(object, path, value).ok_or_else(|| absent(path))
        }
        "move" => {
            let from = text("from")?;
            let value = remove(object, from).ok_or_else(|| absent(from))?;
            add(object, path, value).ok_or_else(|| absent(path))
        }
        other => Err(ApiError::bad_request(format!("JSON patch: unknown op {other}"))),
    }
}

/// Parent and last token of a JSON pointer, unescaped.
fn parent<'a>(object: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((object.pointer_mut(parent)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, token) = parent(object, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(token, value);
        }
        Value::Array(list) if token == "-" => list.push(value),
        Value::Array(list) => {
            let at = token.parse().ok().filter(|at| *at <= list.len())?;
            list.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, token) = parent(object, path)?;
    match parent {
        Value::Object(map) => map.remove(&token),
        Value::Array(list) => {
            let at = token.parse().ok().filter(|at| *at < list.len())?;
            Some(list.remove(at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges() {
        let node = json!({
            "metadata": {"labels": {"a": "1", "b": "2"}},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
                {"type": "NetworkUnavailable", "status": "True"},
            ]},
        });
        let labels = json!({"metadata": {"labels": {"a": null, "c": "3"}}});
        let condition = json!({"status": {"conditions": [
            {"type": "NetworkUnavailable", "status": "False", "reason": "WeftIsUp"},
        ]}});
        for style in [Style::Merge, Style::Strategic, Style::Apply] {
            let after = patched(&node, &labels, style).unwrap();
            assert_eq!(after["metadata"]["labels"], json!({"b": "2", "c": "3"}), "{style:?}");
            assert_eq!(after["status"], node["status"], "{style:?}");
        }
        // A plain merge replaces the list; the others know its key.
        let after = patched(&node, &condition, Style::Merge).unwrap();
        assert_eq!(after["status"]["conditions"].as_array().unwrap().len(), 1);
        for style in [Style::Strategic, Style::Apply] {
            let after = patched(&node, &condition, style).unwrap();
            assert_eq!(
                after["status"]["conditions"],
                json!([
                    {"type": "Ready", "status": "True", "reason": "KubeletReady"},
                    {"type": "NetworkUnavailable", "status": "False", "reason": "WeftIsUp"},
                ])
            );
        }
        let gone = json!({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}});
        let after = patched(&node, &gone, Style::Strategic).unwrap();
        assert_eq!(after["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(patched(&node, &json!([]), Style::Merge).unwrap_err().code, 400);
    }

    #[test]
    fn json_patches() {
        let object = json!({"a": {"b": [1, 2]}, "x/y": "slash"});
        let table = [
            (
                json!([{"op": "add", "path": "/a/c", "value": 3}]),
                json!({"a": {"b": [1, 2], "c": 3}, "x/y": "slash"}),
            ),
            (
                json!([{"op": "add", "path": "/a/b/0", "value": 0}]),
                json!({"a": {"b": [0, 1, 2]}, "x/y": "slash"}),
            ),
            (
                json!([{"op": "add", "path": "/a/b/-", "value": 3}]),
                json!({"a": {"b": [1, 2, 3]}, "x/y": "slash"}),
            ),
            (
                json!([{"op": "replace", "path": "/a/b/1", "value": 9}]),
                json!({"a": {"b": [1, 9]}, "x/y": "slash"}),
            ),
            (json!([{"op": "remove", "path": "/x~1y"}]), json!({"a": {"b": [1, 2]}})),
            (
                json!([{"op": "move", "from": "/x~1y", "path": "/z"}]),
                json!({"a": {"b": [1, 2]}, "z": "slash"}),
            ),
            (
                json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "copy", "from": "/a/b/0", "path": "/q"}]),
                json!({"a": {"b": [1, 2]}, "q": 1, "x/y": "slash"}),
            ),
        ];
        for (patch, expected) in table {
            assert_eq!(patched(&object, &patch, Style::Json).unwrap(), expected, "{patch}");
        }
        let wrong = [
            (json!([{"op": "remove", "path": "/nothing"}]), 422),
            (json!([{"op": "replace", "path": "/nothing", "value": 1}]), 422),
            (json!([{"op": "test", "path": "/a/b/0", "value": 7}]), 422),
            (json!([{"op": "add", "path": "/a/b/7", "value": 7}]), 422),
            (json!([{"op": "jump", "path": "/a"}]), 400),
            (json!({"op": "add"}), 400),
        ];
        for (patch, code) in wrong {
            assert_eq!(patched(&object, &patch, Style::Json).unwrap_err().code, code, "{patch}");
        }
    }

    #[test]
    fn styles() {
        assert_eq!(Style::of("application/merge-patch+json; charset=utf-8"), Ok(Style::Merge));
        assert_eq!(Style::of("application/json").unwrap_err().code, 415);
    }
}

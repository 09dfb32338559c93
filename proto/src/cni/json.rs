//! Reading JSON that others wrote: absent and null are the same, as they are in Go.

use serde_json::{Map, Value};

use super::error::{CniError, code};

/// A key that may be absent or null.
/// The value of a key; null is as good as absent. Go, which runtimes are
/// written in, does not look at the case of keys, and containerd relies on it:
/// it writes `HostPort` for `hostPort`.
pub(super) fn get<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let other = || object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, v)| v);
    object.get(key).or_else(other).filter(|v| !v.is_null())
}

pub(super) fn wrong(path: &str, expected: &str) -> CniError {
    CniError::new(code::DECODE, format!("{path} is not {expected}"))
}

/// A string; empty if absent.
pub(super) fn string(
    object: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<String, CniError> {
    match get(object, key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong(&format!("{path}{key}"), "a string")),
    }
}

/// A whole number that is not negative.
pub(super) fn number(
    object: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<u64>, CniError> {
    match get(object, key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(&format!("{path}{key}"), "a whole number from 0")),
        },
    }
}

/// True, false or absent.
pub(super) fn boolean(
    object: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<bool>, CniError> {
    match get(object, key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(wrong(&format!("{path}{key}"), "true or false")),
    }
}

/// An object; `None` if absent.
pub(super) fn object<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<&'a Map<String, Value>>, CniError> {
    match get(object, key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(wrong(&format!("{path}{key}"), "an object")),
    }
}

/// A list; empty if absent.
pub(super) fn list<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<&'a [Value], CniError> {
    match get(object, key) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(wrong(&format!("{path}{key}"), "a list")),
    }
}

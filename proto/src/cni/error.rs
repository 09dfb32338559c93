//! Errors as a runtime reads them.

use serde_json::json;

/// Error codes of the specification, and our own from 100.
pub mod code {
    /// The configuration's version is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A key of the configuration asks for what we cannot do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable of the environment is missing or malformed.
    pub const BAD_ENVIRONMENT: u32 = 4;
    /// A file could not be read or written.
    pub const IO: u32 = 5;
    /// Standard input is not what it should be.
    pub const DECODE: u32 = 6;
    /// The configuration makes no sense.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace cannot be used.
    pub const INVALID_NETNS: u32 = 8;
    /// Something is not ready yet: try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD cannot be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD cannot be served, and existing containers suffer too.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Ours: the agent refused, for a reason that waiting does not change.
    pub const REFUSED: u32 = 100;
    /// Ours: the container already has an interface of this name.
    pub const INTERFACE_EXISTS: u32 = 101;
    /// Ours: the kernel refused.
    pub const KERNEL: u32 = 102;
    /// Ours: CHECK found something missing or changed.
    pub const CHECK_FAILED: u32 = 103;
}

/// One error: what the runtime shows to a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { "; " })]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What failed, on what.
    pub msg: String,
    /// What to do next, or more of the same.
    pub details: String,
}

impl CniError {
    /// Without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// With details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Several failures as one: the first one's code, all the sentences.
    pub fn join(errors: Vec<Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        let Some(mut first) = errors.next() else { return Ok(()) };
        for more in errors {
            if !first.details.is_empty() {
                first.details.push_str("; ");
            }
            first.details.push_str(&more.to_string());
        }
        Err(first)
    }

    /// The text for standard output, in the words of the request's version
    /// (even of one we do not speak).
    pub fn to_json(&self, cni_version: &str) -> String {
        let mut value = json!({ "cniVersion": cni_version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_keeps_all() {
        assert_eq!(CniError::join(vec![]), Ok(()));
        let joined =
            CniError::join(vec![CniError::new(5, "a"), CniError::new(7, "b").details("c")]);
        assert_eq!(joined.unwrap_err().to_string(), "a; b; c");
    }

    #[test]
    fn json_has_the_fields() {
        let text = CniError::new(11, "no address").details("wait").to_json("1.0.0");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({"cniVersion": "1.0.0", "code": 11, "msg": "no address", "details": "wait"})
        );
    }
}

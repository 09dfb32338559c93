//! What the API says when it refuses: a `Status` object with a code.

use serde_json::{Value, json};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// `reason` of the `Status`: the word clients decide by.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Seconds after which to try again (`Retry-After` too).
    pub retry_after: Option<u64>,
    /// `details.kind` and `details.name`.
    pub about: Option<(String, String)>,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None, about: None }
    }

    fn about(mut self, resource: &str, name: &str) -> Self {
        self.about = Some((plural(resource).to_owned(), name.to_owned()));
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no token, or a wrong one.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403. `resource` is `PLURAL.GROUP`, with its subresource if any.
    pub fn forbidden(verb: &str, resource: &str, namespace: Option<&str>, name: &str) -> Self {
        let group = resource.split_once('.').map_or("", |(_, group)| group);
        let whole = plural(resource);
        let (name_part, scope) = (
            if name.is_empty() { String::new() } else { format!(" \"{name}\"") },
            namespace.map_or("at the cluster scope".to_owned(), |ns| {
                format!("in the namespace \"{ns}\"")
            }),
        );
        let message = format!(
            "{resource}{name_part} is forbidden: User \"system:serviceaccount:kube-system:weft\" \
             cannot {verb} resource \"{whole}\" in API group \"{group}\" {scope}"
        );
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 404 of an object.
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).about(resource, name)
    }

    /// 405: this resource has not this verb.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: no format that the client accepts is spoken here.
    pub fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    /// 409 of a POST.
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
            .about(resource, name)
    }

    /// 409 of a write that is based on something old.
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 410: this version is not kept any more.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415: the body is of an unknown kind.
    pub fn unsupported(content_type: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - {content_type}"),
        )
    }

    /// 422: understood, and wrong.
    pub fn invalid(resource: &str, name: &str, why: &str) -> Self {
        Self::new(422, "Invalid", format!("{resource} \"{name}\" is invalid: {why}"))
            .about(resource, name)
    }

    /// 504: asked for a version that does not exist yet.
    pub fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self { retry_after: Some(1), ..Self::new(504, "Timeout", message) }
    }

    /// Any other code, as a test wants it.
    pub fn other(code: u16, retry_after: Option<u64>) -> Self {
        let reason = match code {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        let message = format!("the test server was told to answer {code}");
        Self { retry_after, ..Self::new(code, reason, message) }
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        let mut details = serde_json::Map::new();
        if let Some((kind, name)) = &self.about {
            details.insert("kind".to_owned(), json!(kind));
            if !name.is_empty() {
                details.insert("name".to_owned(), json!(name));
            }
        }
        if let Some(seconds) = self.retry_after {
            details.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

fn plural(resource: &str) -> &str {
    resource.split_once('.').map_or(resource, |(plural, _)| plural)
}

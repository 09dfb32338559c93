//! How answers are written: Weave's plain texts, JSON under `/v1`.

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use weft_proto::api::ApiError;

use super::backend::BackendError;

/// When to ask again for what cannot be had yet.
const RETRY: Duration = Duration::from_secs(5);
/// How much longer than the caller's patience a request may take: the backend
/// knows better than a clock why it waits, so it gets the first word.
const MARGIN: Duration = Duration::from_millis(500);

fn answer(code: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    set(&mut response, header::CONTENT_TYPE, kind);
    response
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A text as it is.
pub(super) fn text(code: StatusCode, body: impl Into<String>) -> Response {
    answer(code, "text/plain; charset=utf-8", body.into())
}

/// 200 with a text.
pub(super) fn ok(body: impl Into<String>) -> Response {
    text(StatusCode::OK, body)
}

/// 204.
pub(super) fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An error as Weave writes it: text and a final newline.
pub(super) fn failure(code: StatusCode, message: &str) -> Response {
    text(code, format!("{message}\n"))
}

/// 503 with when to come back.
pub(super) fn later(message: &str) -> Response {
    retry_after(failure(StatusCode::SERVICE_UNAVAILABLE, message))
}

fn retry_after(mut response: Response) -> Response {
    set(&mut response, header::RETRY_AFTER, &RETRY.as_secs().to_string());
    response
}

/// JSON.
pub(super) fn json(code: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer(code, "application/json", bytes),
        Err(error) => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot write JSON: {error}"))
        }
    }
}

/// Prometheus text.
pub(super) fn metrics(body: String) -> Response {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

/// An error under `/v1`.
pub(super) fn api_error(code: StatusCode, word: &str, message: impl Into<String>) -> Response {
    let waits = code == StatusCode::SERVICE_UNAVAILABLE;
    let body = ApiError {
        error: word.to_owned(),
        message: message.into(),
        retry_after_ms: waits.then(|| u64::try_from(RETRY.as_millis()).unwrap_or(u64::MAX)),
    };
    let response = json(code, &body);
    if waits { retry_after(response) } else { response }
}

/// A backend's error under `/v1`.
pub(super) fn v1_error(error: &BackendError) -> Response {
    let (code, word) = match error {
        BackendError::Exhausted(_) => (StatusCode::SERVICE_UNAVAILABLE, "exhausted"),
        BackendError::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        BackendError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
        BackendError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
        BackendError::Bad(_) => (StatusCode::BAD_REQUEST, "bad_request"),
        BackendError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    api_error(code, word, error.to_string())
}

/// An error in the form of the path it belongs to.
pub(super) fn error_for(path: &str, code: StatusCode, word: &str, message: &str) -> Response {
    if path.starts_with("/v1/") { api_error(code, word, message) } else { failure(code, message) }
}

/// Waits for a backend's answer, but not for ever.
pub(super) async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    tokio::time::timeout(patience.saturating_add(MARGIN), work).await.unwrap_or_else(|_| {
        Err(BackendError::NotReady(format!(
            "no answer within {patience:?}; `agent status` says what the agent waits for"
        )))
    })
}

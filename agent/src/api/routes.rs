//! Which path goes where, on which listener.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};

use super::answer::{error_for, text};
use super::backend::Backend;
use super::guard::guard;
use super::stats::ApiStats;
use super::token::Token;
use super::{Limits, policy, probes, v1, weave};
use crate::config::Callers;

/// What handlers work with.
pub(super) struct Api {
    pub(super) backend: Arc<dyn Backend>,
    /// Set on the local listener, whose callers are checked; the others only read.
    pub(super) local: Option<Local>,
    pub(super) limits: Limits,
    pub(super) stats: Arc<ApiStats>,
    /// Claims that go on after their caller got an answer.
    pub(super) background: Arc<tokio::sync::Semaphore>,
}

/// Who may change things.
pub(super) struct Local {
    pub(super) token: Token,
    pub(super) callers: Callers,
}

/// Most claims that go on after their callers were answered.
const BACKGROUND: usize = 32;

impl Api {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        local: Option<Local>,
        limits: Limits,
        stats: Arc<ApiStats>,
    ) -> Self {
        let background = Arc::new(tokio::sync::Semaphore::new(BACKGROUND));
        Self { backend, local, limits, stats, background }
    }

    /// Reads a body within its bounds.
    pub(super) async fn body(&self, body: Body) -> Result<Vec<u8>, (StatusCode, String)> {
        let limits = self.limits;
        // What announces itself as too long need not be waited for.
        let too_long = body.size_hint().lower() > limits.max_body as u64;
        let body = if too_long { Body::empty() } else { body };
        match tokio::time::timeout(limits.body_timeout, to_bytes(body, limits.max_body)).await {
            Ok(Ok(bytes)) if !too_long => Ok(bytes.to_vec()),
            Ok(_) => {
                self.stats.refused("body");
                let message =
                    format!("the body is longer than {} bytes or broke off", limits.max_body);
                Err((StatusCode::PAYLOAD_TOO_LARGE, message))
            }
            Err(_) => {
                self.stats.refused("body");
                let message = format!("the body did not arrive within {:?}", limits.body_timeout);
                Err((StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }
}

fn reading() -> Router<Arc<Api>> {
    Router::new()
        .route("/status", get(probes::status))
        .route("/status/{part}", get(probes::status_part))
        .route("/report", get(probes::full_report))
        .route("/metrics", get(probes::prometheus))
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
}

fn finish(router: Router<Arc<Api>>, api: Arc<Api>) -> Router {
    router
        .fallback(|uri: Uri| async move { not_found(uri.path()) })
        .method_not_allowed_fallback(|uri: Uri| async move { wrong_method(uri.path()) })
        // A broken handler is one failed request, not a dead agent: tokio catches
        // the panic with the connection's task.
        .layer(from_fn_with_state(Arc::clone(&api), guard))
        .layer(middleware::map_response(close_refused))
        .with_state(api)
}

/// A connection whose request was not read to its end cannot carry another.
async fn close_refused(mut response: Response) -> Response {
    let code = response.status();
    if code == StatusCode::PAYLOAD_TOO_LARGE || code == StatusCode::REQUEST_TIMEOUT {
        let close = axum::http::HeaderValue::from_static("close");
        response.headers_mut().insert(axum::http::header::CONNECTION, close);
    }
    response
}

/// The read-only listener.
pub(super) fn read_only(api: Arc<Api>) -> Router {
    finish(reading(), api)
}

/// The metrics listener.
pub(super) fn metrics_only(api: Arc<Api>) -> Router {
    finish(Router::new().route("/metrics", get(probes::prometheus)), api)
}

/// The local listener.
pub(super) fn all(api: Arc<Api>) -> Router {
    let router = reading()
        .route("/ip", get(weave::owned))
        .route("/ip/{id}", post(weave::allocate).get(weave::lookup).delete(weave::release))
        .route("/ip/{id}/{ip}", delete(weave::release_one))
        .route(
            "/ip/{id}/{ip}/{len}",
            put(weave::claim).post(weave::allocate_in).get(weave::lookup_in),
        )
        .route("/ipinfo/defaultsubnet", get(weave::default_subnet))
        .route("/ipinfo/tracker", get(weave::tracker))
        .route("/ring", get(weave::ring))
        .route("/connect", post(weave::connect))
        .route("/forget", post(weave::forget))
        .route("/expose/{ip}/{len}", post(weave::expose))
        .route("/peer", delete(weave::leave))
        .route("/peer/{name}", delete(weave::remove_peer))
        .route("/v1/attachments", post(v1::attach).get(v1::leases))
        .route("/v1/attachments/{container_id}/{ifname}", get(v1::attachment).delete(v1::detach))
        .route("/v1/gc", post(v1::gc))
        .route("/v1/ready", get(v1::ready))
        .route("/v1/status", get(v1::status))
        .route("/v1/config", get(v1::config))
        .route("/v1/policy", get(policy::status))
        .route("/v1/policy/explain", get(policy::explain))
        .route("/v1/peers/{name}", delete(v1::remove_peer))
        .route("/v1/ranges", post(v1::grow))
        .route("/v1/recover", post(v1::recover));
    finish(router, api)
}

/// 404, in Go's words where Weave's callers may look for them.
pub(super) fn not_found(path: &str) -> Response {
    error_for(path, StatusCode::NOT_FOUND, "not_found", "404 page not found")
}

/// 405.
pub(super) fn wrong_method(path: &str) -> Response {
    if path.starts_with("/v1/") {
        let code = StatusCode::METHOD_NOT_ALLOWED;
        return error_for(path, code, "bad_request", "this route does not know this method");
    }
    text(StatusCode::METHOD_NOT_ALLOWED, "").into_response()
}

/// All values of a form field, from urlencoded text.
pub(super) fn values(raw: &str, name: &str) -> Vec<String> {
    raw.split('&')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
        .collect()
}

/// First value of a query parameter.
pub(super) fn query(raw: Option<&str>, name: &str) -> Option<String> {
    values(raw.unwrap_or_default(), name).into_iter().next()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = |range: std::ops::Range<usize>| {
            let digits = tail.get(range).and_then(|d| std::str::from_utf8(d).ok())?;
            let good = digits.bytes().all(|b| b.is_ascii_hexdigit());
            good.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        };
        let (byte, used) = match (first, hex(0..2)) {
            (b'%', Some(byte)) => (byte, 2),
            (b'+', _) => (b' ', 0),
            (other, _) => (*other, 0),
        };
        bytes.push(byte);
        rest = &tail[used..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How long a caller of Weave's routes is kept waiting: `?wait=`, in seconds
/// or with a unit, at most a minute.
pub(super) fn patience(raw: Option<&str>) -> Result<Duration, String> {
    const USUAL: Duration = Duration::from_secs(10);
    const MOST: Duration = Duration::from_secs(60);
    let Some(text) = query(raw, "wait") else { return Ok(USUAL) };
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => crate::config::duration(&text).ok(),
    };
    let wait = parsed
        .ok_or_else(|| "wait: expected seconds or a duration, for example 5 or 500ms".to_owned())?;
    Ok(wait.min(MOST))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(values("peer=a&x=1&peer=b%3A6783&peer=c+d", "peer"), ["a", "b:6783", "c d"]);
        assert_eq!(values("p%65er=%zz%4", "peer"), ["%zz%4"]);
        assert!(values("", "peer").is_empty());
        assert_eq!(query(Some("skipNAT"), "skipNAT"), Some(String::new()));
    }

    #[test]
    fn waits() {
        assert_eq!(patience(None), Ok(Duration::from_secs(10)));
        assert_eq!(patience(Some("wait=3")), Ok(Duration::from_secs(3)));
        assert_eq!(patience(Some("wait=250ms")), Ok(Duration::from_millis(250)));
        assert_eq!(patience(Some("wait=9999")), Ok(Duration::from_secs(60)));
        assert!(patience(Some("wait=-1")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(text in "\\PC{0,40}|[%+&=0-9a-f]{0,40}") {
            let _ = values(&text, "peer");
            let _ = patience(Some(&text));
        }
    }
}

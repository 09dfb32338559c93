//! What every request must pass before a route sees it: no strangers' web
//! pages (Host, Origin), the token for changes, bounds, counting.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use weft_proto::api::TOKEN_HEADER;

use super::answer::error_for;
use super::routes::Api;
use super::stats::{ApiStats, method_of, route_of};
use super::token::Token;
use crate::config::Callers;

/// Why a request is turned away: a word for the counter, the code, a sentence.
struct Refusal(&'static str, StatusCode, &'static str);

/// Counts a client that hung up before its answer.
struct Watch<'a> {
    stats: &'a ApiStats,
    done: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.stats.refused("hung_up");
        }
    }
}

/// The checks, around all routes.
pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let mut watch = Watch { stats: &api.stats, done: false };
    let response = match check(&api, &request) {
        Err(Refusal(reason, code, message)) => {
            api.stats.refused(reason);
            error_for(&path, code, "forbidden", message)
        }
        // Weave answers HEAD like any other wrong method; axum would run the GET.
        Ok(()) if method == Method::HEAD => super::routes::wrong_method(&path),
        Ok(()) => {
            match tokio::time::timeout(api.limits.request_deadline, next.run(request)).await {
                Ok(response) => response,
                Err(_) => error_for(
                    &path,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not_ready",
                    "the request took too long and was given up",
                ),
            }
        }
    };
    watch.done = true;
    api.stats.answered(
        route_of(&path),
        method_of(&method),
        response.status().as_u16(),
        start.elapsed(),
    );
    response
}

fn check(api: &Api, request: &Request) -> Result<(), Refusal> {
    let Some(local) = &api.local else { return Ok(()) };
    check_host(request)?;
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Refusal(
            "origin",
            StatusCode::FORBIDDEN,
            "requests from web pages are refused",
        ));
    }
    let path = request.uri().path();
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let open = local.callers == Callers::Any && (path == "/ip" || path.starts_with("/ip/"));
    if reads || open || has_token(&local.token, request) {
        return Ok(());
    }
    Err(Refusal(
        "token",
        StatusCode::FORBIDDEN,
        "this request changes something and needs the local token: \
         send the content of the file `token` in the agent's RUN_DIR as header x-weft-token",
    ))
}

/// A name that somebody else's DNS points at us (DNS rebinding) is not ours.
fn check_host(request: &Request) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let missing = first.is_none() && request.version() != Version::HTTP_10;
    if missing || second.is_some() {
        let message = "one Host header is expected";
        return Err(Refusal("host", StatusCode::BAD_REQUEST, message));
    }
    let target = request.uri().authority().map(|a| a.as_str().as_bytes());
    let named = first.map(HeaderValue::as_bytes);
    if [target, named].into_iter().flatten().all(is_local_host) {
        return Ok(());
    }
    Err(Refusal(
        "host",
        StatusCode::FORBIDDEN,
        "the Host header must be an IP address or localhost",
    ))
}

fn is_local_host(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let host = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, rest)) => {
            return v6.parse::<std::net::Ipv6Addr>().is_ok() && (rest.is_empty() || is_port(rest));
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) if is_port(&format!(":{port}")) => host,
            Some(_) => return false,
            None => text,
        },
    };
    host.eq_ignore_ascii_case("localhost") || matches!(host.parse(), Ok(IpAddr::V4(_)))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| {
        digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok()
    })
}

fn has_token(token: &Token, request: &Request) -> bool {
    let headers = request.headers();
    let own = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes);
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    [own, bearer].into_iter().flatten().any(|given| token.matches(given))
}

#[cfg(test)]
mod tests {
    use super::is_local_host;

    #[test]
    fn hosts() {
        for good in
            ["127.0.0.1", "127.0.0.1:6784", "[::1]:6784", "[::1]", "localhost", "LocalHost:1"]
        {
            assert!(is_local_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:6784",
            "localhost.evil",
            "[::1",
            "[x]",
            "1.2.3.4:x",
            "",
            ":80",
            "::1",
            "127.0.0.1:99999",
            "localhost:80:80",
        ] {
            assert!(!is_local_host(bad.as_bytes()), "{bad}");
        }
    }
}

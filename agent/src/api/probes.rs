//! Probes, status pages, metrics: everything that only reads.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use super::answer::{failure, json, later, metrics as metrics_answer, ok};
use super::routes::{Api, not_found, query};
use crate::status::{metrics, report, weave};

/// The process answers.
pub(super) async fn healthz() -> Response {
    ok("ok\n")
}

/// ADD would be served.
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let readiness = api.backend.readiness();
    if readiness.ready {
        return ok("ok\n");
    }
    let reasons = readiness.reasons.join("\n");
    later(if reasons.is_empty() { "not ready yet" } else { &reasons })
}

/// Weave's `GET /status`: the same text, and 503 as long as no pod can be
/// served, since it is what readiness probes ask.
pub(super) async fn status(State(api): State<Arc<Api>>) -> Response {
    let text = weave::overview(&api.backend.status());
    if api.backend.readiness().ready { ok(text) } else { later(text.trim_end()) }
}

/// Weave's `GET /status/…`.
pub(super) async fn status_part(State(api): State<Arc<Api>>, Path(part): Path<String>) -> Response {
    let status = api.backend.status();
    match part.as_str() {
        "targets" => ok(weave::targets(&status)),
        "connections" => ok(weave::connections(&status)),
        "peers" => ok(weave::peers(&status)),
        "ipam" => ok(weave::ipam(&status)),
        _ => not_found("/status"),
    }
}

/// Weave's `GET /report`, its JSON form.
pub(super) async fn full_report(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    RawQuery(raw): RawQuery,
) -> Response {
    if query(raw.as_deref(), "format").is_some() {
        return failure(
            StatusCode::BAD_REQUEST,
            "Go templates are not supported: ask for JSON (Accept: application/json) \
             and pick from it, for example with jq",
        );
    }
    // Weave insists on the header; a JSON document is the only thing to be had here.
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|a| !a.contains("json") && !a.contains("*/*")) {
        return failure(StatusCode::NOT_ACCEPTABLE, "the report is application/json");
    }
    let status = api.backend.status();
    json(
        StatusCode::OK,
        &report::full(
            &status,
            &api.backend.readiness(),
            &api.backend.config(),
            &api.backend.leases(),
        ),
    )
}

/// Prometheus.
pub(super) async fn prometheus(State(api): State<Arc<Api>>) -> Response {
    let process = metrics::Process::read();
    metrics_answer(metrics::render(&api.backend.status(), &api.stats.snapshot(), process.as_ref()))
}

//! JSON under `/v1`: for the shim and for weft's own command line.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_proto::api::{AttachRequest, GcRequest};
use weft_proto::attachment::AttachmentKey;
use weft_proto::names::ADD_PATIENCE;

use super::answer::{api_error, json, no_content, v1_error, within};
use super::backend::BackendError;
use super::routes::{Api, query};

/// For what needs the cluster's agreement.
const CLUSTER: Duration = Duration::from_secs(30);

/// Query parameter by which an operator says that the lost voters are lost.
pub(crate) const CONSENT: &str = "yes-i-accept-the-loss";

pub(super) type Shared = State<Arc<Api>>;

/// Body of `POST /v1/ranges`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrowRequest {
    range: String,
}

pub(super) fn bad(message: impl Into<String>) -> Response {
    api_error(StatusCode::BAD_REQUEST, "bad_request", message)
}

pub(super) fn answer<T: Serialize>(result: Result<T, BackendError>) -> Response {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => v1_error(&error),
    }
}

fn done(result: Result<(), BackendError>) -> Response {
    match result {
        Ok(()) => no_content(),
        Err(error) => v1_error(&error),
    }
}

async fn read<T: DeserializeOwned>(api: &Api, request: Request) -> Result<T, Response> {
    let body = api
        .body(request.into_body())
        .await
        .map_err(|(code, message)| api_error(code, "bad_request", message))?;
    serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the body is not as expected: {error}")))
}

/// The kernel and the veth's alias bound what a key may hold.
fn check(key: &AttachmentKey) -> Result<(), &'static str> {
    let AttachmentKey { container_id, ifname } = key;
    let graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if container_id.is_empty() || container_id.len() > 255 || !graphic(container_id) {
        return Err("container_id: 1 to 255 printable ASCII characters are expected");
    }
    let odd = |b: u8| matches!(b, b'/' | b':');
    if ifname.is_empty() || ifname.len() > 15 || !graphic(ifname) || ifname.bytes().any(odd) {
        return Err("ifname: 1 to 15 printable ASCII characters without / and : are expected");
    }
    Ok(())
}

/// `POST /v1/attachments`.
pub(super) async fn attach(State(api): Shared, request: Request) -> Response {
    let mut request: AttachRequest = match read(&api, request).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    if let Err(why) = check(&request.key) {
        return bad(why);
    }
    let asked = request.wait_ms.map_or(ADD_PATIENCE, Duration::from_millis);
    let wait = asked.min(ADD_PATIENCE);
    request.wait_ms = u64::try_from(wait.as_millis()).ok();
    answer(within(wait, api.backend.attach(request)).await)
}

/// `GET /v1/attachments`.
pub(super) async fn leases(State(api): Shared) -> Response {
    json(StatusCode::OK, &api.backend.leases())
}

/// `GET /v1/attachments/{container_id}/{ifname}`.
pub(super) async fn attachment(
    State(api): Shared,
    Path((container_id, ifname)): Path<(String, String)>,
) -> Response {
    let key = AttachmentKey { container_id, ifname };
    match api.backend.attachment(&key) {
        Some(lease) => json(StatusCode::OK, &lease),
        None => no_lease(&key),
    }
}

/// `DELETE /v1/attachments/{container_id}/{ifname}`: 204, or 404 if there was none.
pub(super) async fn detach(
    State(api): Shared,
    Path((container_id, ifname)): Path<(String, String)>,
) -> Response {
    let key = AttachmentKey { container_id, ifname };
    match within(ADD_PATIENCE, api.backend.detach(key.clone())).await {
        Ok(true) => no_content(),
        Ok(false) => no_lease(&key),
        Err(error) => v1_error(&error),
    }
}

fn no_lease(key: &AttachmentKey) -> Response {
    v1_error(&BackendError::NotFound(format!("no lease of {key} on this node")))
}

/// `POST /v1/gc`.
pub(super) async fn gc(State(api): Shared, request: Request) -> Response {
    match read::<GcRequest>(&api, request).await {
        Ok(request) => answer(within(ADD_PATIENCE, api.backend.gc(request)).await),
        Err(response) => response,
    }
}

/// `GET /v1/ready`: 200 also if not ready; the body says it.
pub(super) async fn ready(State(api): Shared) -> Response {
    json(StatusCode::OK, &api.backend.readiness())
}

/// `GET /v1/status`.
pub(super) async fn status(State(api): Shared) -> Response {
    json(StatusCode::OK, &api.backend.status())
}

/// `GET /v1/config`.
pub(super) async fn config(State(api): Shared) -> Response {
    json(StatusCode::OK, &api.backend.config())
}

/// `DELETE /v1/peers/{name}`.
pub(super) async fn remove_peer(
    State(api): Shared,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Response {
    let force = query(raw.as_deref(), "force").as_deref() == Some("true");
    answer(
        within(CLUSTER, api.backend.remove_peer(name.clone(), force))
            .await
            .map(|addresses| serde_json::json!({ "peer": name, "addresses": addresses })),
    )
}

/// `POST /v1/recover?yes-i-accept-the-loss=true`: the consent is part of the
/// request, so that nothing does it by accident.
pub(super) async fn recover(State(api): Shared, RawQuery(raw): RawQuery) -> Response {
    if query(raw.as_deref(), CONSENT).as_deref() != Some("true") {
        return bad(format!(
            "this founds consensus again without the voters that cannot be reached; changes of the \
             ledger that only they know are lost. To do it: POST /v1/recover?{CONSENT}=true"
        ));
    }
    answer(
        within(CLUSTER, api.backend.recover())
            .await
            .map(|position| serde_json::json!({ "position": position })),
    )
}

/// `POST /v1/ranges`.
pub(super) async fn grow(State(api): Shared, request: Request) -> Response {
    let request: GrowRequest = match read(&api, request).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    match crate::config::range(&request.range) {
        Ok(range) => done(within(CLUSTER, api.backend.grow(range)).await),
        Err(why) => bad(format!("range: {why}; expected a network, for example 10.32.0.0/12")),
    }
}

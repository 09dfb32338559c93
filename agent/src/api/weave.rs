//! Weave's routes, with its texts and codes. Left out on purpose: waiting
//! without end, `cancelled` with 200, evicting live or unknown peers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use ipnet::IpNet;
use serde_json::json;

use super::answer::{failure, json as json_answer, later, no_content, ok, within};
use super::backend::BackendError;
use super::routes::{Api, patience, query, values};

/// Weave's id for "no id": the address is filed under its own text.
const NO_ID: &str = "_";
/// For what is done at once or not at all.
const SOON: Duration = Duration::from_secs(30);
/// For a claim nobody waits for any more.
const LONG: Duration = Duration::from_secs(600);
/// For a caller who wants an answer whatever it is.
const MOMENT: Duration = Duration::from_secs(1);

type Shared = State<Arc<Api>>;

fn bad(message: &str) -> Response {
    failure(StatusCode::BAD_REQUEST, message)
}

/// Weave says 400 to all that cannot be done; what can be done later is 503.
fn refused(error: &BackendError, prefix: &str) -> Response {
    let message = format!("{prefix}{error}");
    match error {
        BackendError::Exhausted(_) | BackendError::NotReady(_) => later(&message),
        BackendError::Internal(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, &message),
        _ => bad(&message),
    }
}

fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > 255 || id.chars().any(|c| c.is_control() || c == ' ') {
        return Err("invalid id: 1 to 255 characters without blanks are expected".to_owned());
    }
    Ok(())
}

fn address(ip: &str, len: &str) -> Result<IpNet, String> {
    format!("{ip}/{len}").parse().map_err(|_| format!("invalid CIDR address: {ip}/{len}"))
}

fn subnet(ip: &str, len: &str) -> Result<IpNet, String> {
    let net = address(ip, len)?;
    if net.trunc() != net {
        return Err(format!("invalid subnet - bits after network prefix are not all zero: {net}"));
    }
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return Err(format!("invalid subnet - smaller than minimum size 4: {net}"));
    }
    Ok(net)
}

/// `POST /ip/{id}`.
pub(super) async fn allocate(
    State(api): Shared,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Response {
    allocate_from(&api, id, None, raw.as_deref()).await
}

/// `POST /ip/{id}/{ip}/{len}`.
pub(super) async fn allocate_in(
    State(api): Shared,
    Path((id, ip, len)): Path<(String, String, String)>,
    RawQuery(raw): RawQuery,
) -> Response {
    match subnet(&ip, &len) {
        Ok(net) => allocate_from(&api, id, Some(net), raw.as_deref()).await,
        Err(error) => bad(&error),
    }
}

async fn allocate_from(api: &Api, id: String, net: Option<IpNet>, raw: Option<&str>) -> Response {
    let wait = match check_id(&id).and_then(|()| patience(raw)) {
        Ok(wait) => wait,
        Err(error) => return bad(&error),
    };
    match within(wait, api.backend.allocate(id, net, wait)).await {
        Ok(address) => ok(address.to_string()),
        Err(error) => refused(&error, ""),
    }
}

/// `GET /ip/{id}`.
pub(super) async fn lookup(State(api): Shared, Path(id): Path<String>) -> Response {
    found(&api, &id, None)
}

/// `GET /ip/{id}/{ip}/{len}`.
pub(super) async fn lookup_in(
    State(api): Shared,
    Path((id, ip, len)): Path<(String, String, String)>,
) -> Response {
    match subnet(&ip, &len) {
        Ok(net) => found(&api, &id, Some(net)),
        Err(error) => bad(&error),
    }
}

fn found(api: &Api, id: &str, net: Option<IpNet>) -> Response {
    let addresses: Vec<_> = api.backend.lookup(id, net).iter().map(ToString::to_string).collect();
    ok(addresses.join(" "))
}

/// `GET /ip`.
pub(super) async fn owned(State(api): Shared) -> Response {
    let owned: Vec<_> = api
        .backend
        .owned()
        .into_iter()
        .map(|(id, addrs)| json!({ "containerid": id, "addrs": addrs }))
        .collect();
    json_answer(StatusCode::OK, &json!({ "owned": owned }))
}

/// `PUT /ip/{id}/{ip}/{len}`.
pub(super) async fn claim(
    State(api): Shared,
    Path((id, ip, len)): Path<(String, String, String)>,
    RawQuery(raw): RawQuery,
) -> Response {
    let raw = raw.as_deref();
    let parsed = check_id(&id).and_then(|()| Ok((address(&ip, &len)?, patience(raw)?)));
    let (net, wait) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return bad(&error),
    };
    let anonymous = id == NO_ID;
    let id = if anonymous { net.addr().to_string() } else { id };
    let relaxed = query(raw, "noErrorOnUnknown").as_deref() == Some("true");
    let wait = if relaxed { wait.min(MOMENT) } else { wait };
    match within(wait, api.backend.claim(id.clone(), net, wait)).await {
        Ok(()) => no_content(),
        // Nobody to compare with: taken to be the same container.
        Err(BackendError::Conflict(_)) if anonymous => no_content(),
        Err(BackendError::NotReady(_)) if relaxed => {
            claim_in_background(&api, id, net);
            no_content()
        }
        Err(error) => refused(&error, "Unable to claim: "),
    }
}

fn claim_in_background(api: &Api, id: String, net: IpNet) {
    let Ok(slot) = Arc::clone(&api.background).try_acquire_owned() else {
        tracing::warn!(%id, %net, "too many claims wait already, this one is dropped");
        return;
    };
    let backend = Arc::clone(&api.backend);
    tokio::spawn(async move {
        if let Err(error) = within(LONG, backend.claim(id.clone(), net, LONG)).await {
            tracing::warn!(%id, %net, %error, "claim failed");
        }
        drop(slot);
    });
}

/// `DELETE /ip/{id}`.
pub(super) async fn release(State(api): Shared, Path(id): Path<String>) -> Response {
    match within(SOON, api.backend.release(&id)).await {
        Ok(0) | Err(BackendError::NotFound(_)) => bad(&format!("Delete: no addresses for {id}")),
        Ok(_) => no_content(),
        Err(error) => refused(&error, ""),
    }
}

/// `DELETE /ip/{id}/{ip}`.
pub(super) async fn release_one(
    State(api): Shared,
    Path((id, ip)): Path<(String, String)>,
) -> Response {
    let Ok(address) = ip.parse::<IpAddr>() else {
        return bad(&format!("Unable to free: invalid IP address: {ip}"));
    };
    match within(SOON, api.backend.release_one(&id, address)).await {
        Ok(()) => no_content(),
        Err(BackendError::NotFound(_)) => {
            bad(&format!("Unable to free: Free: address {address} not found for {id}"))
        }
        Err(error) => refused(&error, "Unable to free: "),
    }
}

/// `GET /ipinfo/defaultsubnet`.
pub(super) async fn default_subnet(State(api): Shared) -> Response {
    ok(api.backend.default_subnet().map_or_else(String::new, |net| net.to_string()))
}

/// `GET /ipinfo/tracker`: weft has no range trackers.
pub(super) async fn tracker() -> Response {
    ok("\n")
}

/// `GET /ring`.
pub(super) async fn ring(State(api): Shared, RawQuery(raw): RawQuery) -> Response {
    let wait = match patience(raw.as_deref()) {
        Ok(wait) => wait,
        Err(error) => return bad(&error),
    };
    match within(wait, api.backend.prime(wait)).await {
        Ok(()) => ok(""),
        Err(error) => refused(&error, ""),
    }
}

/// Query and body of a form together, as Go reads them.
async fn form(api: &Api, request: Request) -> Result<String, Response> {
    let mut fields = request.uri().query().unwrap_or_default().to_owned();
    let body =
        api.body(request.into_body()).await.map_err(|(code, message)| failure(code, &message))?;
    let body = String::from_utf8(body).map_err(|_| bad("the form is not UTF-8 text"))?;
    fields.push('&');
    fields.push_str(body.trim_end());
    Ok(fields)
}

/// `POST /connect`.
pub(super) async fn connect(State(api): Shared, request: Request) -> Response {
    let fields = match form(&api, request).await {
        Ok(fields) => fields,
        Err(response) => return response,
    };
    let replace = values(&fields, "replace").iter().any(|value| value == "true");
    match api.backend.connect(values(&fields, "peer"), replace) {
        Ok(()) => ok(""),
        Err(error) => refused(&error, ""),
    }
}

/// `POST /forget`.
pub(super) async fn forget(State(api): Shared, request: Request) -> Response {
    match form(&api, request).await {
        Ok(fields) => {
            api.backend.forget(values(&fields, "peer"));
            ok("")
        }
        Err(response) => response,
    }
}

/// `POST /expose/{ip}/{len}`.
pub(super) async fn expose(
    State(api): Shared,
    Path((ip, len)): Path<(String, String)>,
    request: Request,
) -> Response {
    let fields = match form(&api, request).await {
        Ok(fields) => fields,
        Err(response) => return response,
    };
    let skip_nat = match values(&fields, "skipNAT").first().map(String::as_str) {
        None | Some("" | "false" | "0" | "f" | "F" | "FALSE" | "False") => false,
        Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
        // Unlike Weave, which says 400 and does it all the same.
        Some(other) => return bad(&format!("skipNAT: expected true or false, got {other:?}")),
    };
    let net = match address(&ip, &len) {
        Ok(net) => net,
        Err(error) => return bad(&error),
    };
    match within(SOON, api.backend.expose(net, skip_nat)).await {
        Ok(()) => no_content(),
        Err(error) => refused(&error, ""),
    }
}

/// `DELETE /peer`.
pub(super) async fn leave(State(api): Shared) -> Response {
    match within(SOON, api.backend.leave()).await {
        Ok(()) => no_content(),
        Err(error) => refused(&error, ""),
    }
}

/// `DELETE /peer/{name}`.
pub(super) async fn remove_peer(
    State(api): Shared,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Response {
    let force = query(raw.as_deref(), "force").as_deref() == Some("true");
    match within(SOON, api.backend.remove_peer(name.clone(), force)).await {
        Ok(addresses) => ok(format!("{addresses} IPs taken over from {name}")),
        Err(error @ BackendError::NotFound(_)) => {
            failure(StatusCode::NOT_FOUND, &error.to_string())
        }
        Err(error @ BackendError::Conflict(_)) => failure(StatusCode::CONFLICT, &error.to_string()),
        Err(error) => refused(&error, ""),
    }
}

//! HTTP: connections, and the way from a request to its answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use axum::body::{Body, to_bytes};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc as commands, watch};
use tokio::task::JoinSet;

use super::catalog::{Catalog, Resource};
use super::controls::{Effect, Ledger, Logged, Rules};
use super::encode;
use super::error::ApiError;
use super::rbac::{self, Rights};
use super::request::{Form, Query, Route, Target, form};
use super::store::Store;
use super::verbs::{self, Verb};
use super::watch::Watch;

/// As real ones have it.
const MAX_BODY: usize = 3 << 20;

/// What the handle and the connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Mutex<Store>,
    pub(super) catalog: Mutex<Catalog>,
    pub(super) rules: Mutex<Rules>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) token: Option<String>,
    /// Everything is allowed, if there are none.
    pub(super) rights: Mutex<Option<Rights>>,
    pub(super) bookmark_period: Mutex<Duration>,
    /// The store's revision: something changed.
    pub(super) changed: watch::Sender<u64>,
    /// Bookmarks, now.
    pub(super) marks: watch::Sender<u64>,
    /// Ends of all watches.
    pub(super) cuts: watch::Sender<u64>,
}

/// A lock that a panicking test has not spoilt.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Does something to the store, and wakes the watches.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.store);
        let done = work(&mut store);
        let revision = store.revision();
        drop(store);
        self.changed.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        done
    }
}

/// What the server's thread is told.
pub(super) enum Command {
    /// Serve on this socket.
    Serve(std::net::TcpListener, mpsc::Sender<std::io::Result<()>>),
    /// Close the socket and all connections.
    Stop(mpsc::Sender<()>),
}

/// The server's thread. Ends when nobody can command it any more.
pub(super) async fn run(shared: Arc<Shared>, mut orders: commands::UnboundedReceiver<Command>) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => match order {
                Some(Command::Serve(socket, done)) => {
                    let ready = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
                    let _ = done.send(ready.map(|ready| listener = Some(ready)));
                }
                Some(Command::Stop(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                None => return,
            },
            accepted = accept => if let Ok((stream, from)) = accepted {
                connections.spawn(connection(Arc::clone(&shared), stream, from));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, from.ip(), request).await) }
    });
    // However it ends, the client has seen it.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn respond(
    code: u16,
    kind: &str,
    retry_after: Option<u64>,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut builder = Response::builder().status(code).header(CONTENT_TYPE, kind);
    if let Some(seconds) = retry_after {
        builder = builder.header(RETRY_AFTER, seconds);
    }
    builder.body(body.into()).unwrap_or_default()
}

fn refuse(error: &ApiError) -> Response<Body> {
    respond(error.code, "application/json", error.retry_after, error.status().to_string())
}

/// What answers paths that nobody serves; no `Status`, on real servers too.
fn no_page() -> Response<Body> {
    respond(404, "text/plain; charset=utf-8", None, "404 page not found\n")
}

async fn answer(shared: &Arc<Shared>, from: IpAddr, request: Request<Incoming>) -> Response<Body> {
    let header = |name| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let bearer = header(AUTHORIZATION);
    let token = bearer.strip_prefix("Bearer ");
    let (route, query) =
        (Route::parse(request.uri().path()), request.uri().query().unwrap_or_default().to_owned());
    let anybody = matches!(route, Some(Route::Health | Route::Version));
    if !anybody && shared.token.as_deref().is_some_and(|own| token != Some(own)) {
        lock(&shared.ledger).others += 1;
        return refuse(&ApiError::unauthorized());
    }
    let target = match route {
        Some(Route::Objects(target)) => target,
        other => {
            lock(&shared.ledger).others += 1;
            return discovery(&lock(&shared.catalog), other);
        }
    };
    let found = lock(&shared.catalog).find(&target.group, &target.version, &target.plural);
    let fits = |resource: &Resource| match (&target.namespace, &target.name) {
        (Some(_), _) => resource.namespaced,
        (None, Some(_)) => !resource.namespaced,
        (None, None) => true,
    };
    let Some(resource) = found.filter(|resource| fits(resource)) else {
        lock(&shared.ledger).others += 1;
        return no_page();
    };
    let query_values = Query::parse(&query);
    let verb = match Verb::of(request.method().as_str(), &target, &query_values) {
        Ok(verb) => verb,
        Err(error) => {
            lock(&shared.ledger).others += 1;
            return refuse(&error);
        }
    };
    let mut name = resource.qualified();
    if let Some(subresource) = &target.subresource {
        name = format!("{name}/{subresource}");
    }
    let asked = Asked {
        verb,
        resource,
        target,
        query: query_values,
        accept: header(ACCEPT),
        content_type: header(CONTENT_TYPE),
        name: name.clone(),
    };
    let response = objects(shared, &asked, request).await;
    lock(&shared.ledger).answered(Logged {
        from,
        verb,
        resource: name,
        namespace: asked.target.namespace,
        name: asked.target.name,
        query,
        accept: asked.accept,
        code: response.status().as_u16(),
    });
    response
}

/// A request about objects, understood as far as its head goes.
struct Asked {
    verb: Verb,
    resource: Arc<Resource>,
    target: Target,
    query: Query,
    accept: String,
    content_type: String,
    /// `PLURAL.GROUP/SUBRESOURCE`.
    name: String,
}

async fn objects(
    shared: &Arc<Shared>,
    asked: &Asked,
    request: Request<Incoming>,
) -> Response<Body> {
    let done = object_answer(shared, asked, request).await;
    let (response, bytes) = done.unwrap_or_else(|error| {
        let size = error.status().to_string().len();
        (refuse(&error), size)
    });
    lock(&shared.ledger).sent(asked.verb, &asked.name, bytes);
    response
}

/// The answer, and its length as far as it is known.
async fn object_answer(
    shared: &Arc<Shared>,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<(Response<Body>, usize), ApiError> {
    let effect = lock(&shared.rules).effect(asked.verb, &asked.name);
    let namespace = asked.target.namespace.as_deref();
    let object = asked.target.name.as_deref().unwrap_or_default();
    if let Some(Effect::Delay(time)) = effect {
        tokio::time::sleep(time).await;
    }
    if let Some(error) = effect.and_then(|e| e.error(asked.verb, &asked.name, namespace, object)) {
        return Err(error);
    }
    let plural = &asked.resource.plural;
    let below = asked.target.subresource.as_ref().map(|below| format!("{plural}/{below}"));
    let of_rbac = rbac::Asked {
        verb: asked.verb,
        group: &asked.resource.group,
        resource: below.as_ref().unwrap_or(plural),
        namespace,
        name: asked.target.name.as_deref(),
    };
    if lock(&shared.rights).as_mut().is_some_and(|rights| !rights.allow(&of_rbac)) {
        return Err(ApiError::forbidden(asked.verb.word(), &asked.name, namespace, object));
    }
    let form = form(&asked.accept)?;
    if asked.verb == Verb::Watch {
        let watch = Watch::open(shared, &asked.resource, &asked.target, &asked.query, form)?;
        return Ok((respond(200, "application/json", None, watch.body()), 0));
    }
    let body = to_bytes(Body::new(request.into_body()), MAX_BODY).await;
    let body = body.map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
    let (code, bytes) = written(shared, asked, form, &body)?;
    if effect == Some(Effect::Lose) {
        return Err(ApiError::other(504, None));
    }
    let size = bytes.len();
    Ok((respond(code, "application/json", None, bytes), size))
}

fn written(
    shared: &Shared,
    asked: &Asked,
    form: Form,
    body: &[u8],
) -> Result<(u16, Vec<u8>), ApiError> {
    let body = match body {
        [] => Value::Null,
        // Binary formats are refused by name, not for being no JSON.
        _ if asked.content_type.contains("protobuf") || asked.content_type.contains("cbor") => {
            return Err(ApiError::unsupported(&asked.content_type));
        }
        body => serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("the body is no JSON: {error}")))?,
    };
    let now = timestamp(SystemTime::now());
    let request = verbs::Request {
        verb: asked.verb,
        resource: &asked.resource,
        target: &asked.target,
        query: &asked.query,
        content_type: &asked.content_type,
        body,
        now: &now,
    };
    let answer = shared.change(|store| verbs::execute(store, &request))?;
    Ok(encode::answer(&answer, &asked.resource, form))
}

fn discovery(catalog: &Catalog, route: Option<Route>) -> Response<Body> {
    let value = match route {
        Some(Route::Health) => return respond(200, "text/plain", None, "ok"),
        Some(Route::Version) => {
            Some(json!({"major": "1", "minor": "30", "gitVersion": "v1.30.0-fake"}))
        }
        Some(Route::Versions) => {
            Some(json!({"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}))
        }
        Some(Route::Groups) => Some(catalog.groups()),
        Some(Route::Group(group)) => catalog.group(&group),
        Some(Route::Resources(group, version)) => catalog.resources(&group, &version),
        Some(Route::Objects(_)) | None => None,
    };
    value.map_or_else(no_page, |v| respond(200, "application/json", None, v.to_string()))
}

/// RFC 3339, whole seconds, UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Watches that are open now, by resource.
pub(super) fn open_watches(shared: &Shared) -> BTreeMap<String, usize> {
    let mut open = lock(&shared.ledger).watches.clone();
    open.retain(|_, count| *count > 0);
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ];
        for (seconds, expected) in table {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), expected);
        }
    }
}

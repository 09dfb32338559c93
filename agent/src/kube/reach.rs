//! Ways to the API server, when its address leads nowhere.
//!
//! The address that pods are given is a service's: it needs kube-proxy, which may not
//! run yet, or have lost its rules. The endpoints behind it are remembered and tried in
//! its stead. Only the TCP connection goes elsewhere: requests, and the name that the
//! certificate must have, stay those of the configured address, so that a machine that
//! took an old endpoint's address is refused.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Uri;
use hyper::header::{CONNECTION, HeaderValue};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tower_service::Service;

use super::access::Access;
use super::{connect, pace};

/// For the configured address, where no other is known.
const ALONE: Duration = Duration::from_secs(5);
/// For each address, where there are several.
const EACH: Duration = Duration::from_secs(2);
/// The next address is tried beside one that is not connected by then: a pod that
/// starts waits two seconds for what is asked of it.
const SLOW: Duration = Duration::from_millis(500);
/// So many endpoints are tried after the configured address.
const OTHERS: usize = 2;
/// The configured address is tried again after this, spread over half to one and a half.
const RETURN: Duration = Duration::from_secs(30);
/// So many endpoints are remembered.
pub(super) const MOST: usize = 16;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Configured,
    Endpoint(SocketAddr),
}

/// An endpoint that stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stand {
    endpoint: SocketAddr,
    /// From then on the configured address comes first again.
    again: Instant,
    /// It was connected to, but gave no answer.
    doubted: bool,
}

/// Which ways there are, and which one worked: pure.
#[derive(Debug, Default)]
struct Ways {
    endpoints: Vec<SocketAddr>,
    via: Option<Stand>,
}

impl Ways {
    /// In which order to try; `random` is from 0 to 1, so that agents spread.
    fn order(&self, now: Instant, random: f64) -> Vec<Way> {
        let mut others = self.endpoints.clone();
        if !others.is_empty() {
            let turn = (random.clamp(0.0, 1.0) * others.len() as f64) as usize;
            let turn = turn % others.len();
            others.rotate_left(turn);
        }
        let mut order = vec![Way::Configured];
        if let Some(via) = self.via {
            others.retain(|endpoint| *endpoint != via.endpoint);
            let at = if via.doubted { others.len() } else { 0 };
            others.insert(at, via.endpoint);
            if now < via.again {
                order.insert(0, Way::Endpoint(others.remove(0)));
                others.truncate(OTHERS - 1);
            }
        }
        order.extend(others.into_iter().take(OTHERS).map(Way::Endpoint));
        order
    }

    fn connected(&mut self, way: Way, now: Instant, random: f64) {
        self.via = match way {
            Way::Configured => None,
            Way::Endpoint(endpoint) => {
                let again = match self.via {
                    // Passed over on the way here, and not tried.
                    Some(via) if now < via.again => via.again,
                    _ => now + pace::spread(RETURN, random),
                };
                Some(Stand { endpoint, again, doubted: false })
            }
        };
    }

    fn doubt(&mut self, now: Instant) {
        if let Some(via) = &mut self.via {
            (via.again, via.doubted) = (now, true);
        }
    }

    fn returns(&self, now: Instant) -> bool {
        self.via.is_some_and(|via| now >= via.again)
    }
}

/// The ways to one API server. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    server: String,
    ways: Arc<Mutex<Ways>>,
}

impl Reach {
    /// To this configured address.
    pub(super) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), ways: Arc::default() }
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers these endpoints; none means that nothing is known of them.
    pub(super) fn remember(&self, endpoints: &[SocketAddr]) {
        if !endpoints.is_empty() {
            self.ways().endpoints = endpoints.iter().take(MOST).copied().collect();
        }
    }

    /// The endpoint that the last connection was made to, in place of the configured
    /// address.
    pub(super) fn via(&self) -> Option<SocketAddr> {
        self.ways().via.map(|via| via.endpoint)
    }

    /// No answer came: another endpoint may give one.
    pub(super) fn doubt(&self) {
        self.ways().doubt(Instant::now());
    }

    fn connected(&self, way: Way) {
        let mut ways = self.ways();
        let before = ways.via.map(|via| via.endpoint);
        ways.connected(way, Instant::now(), rand::random());
        let now = ways.via.map(|via| via.endpoint);
        drop(ways);
        match (before, now) {
            (None, Some(endpoint)) => tracing::warn!(
                server = self.server, %endpoint,
                "the API server's address does not answer: connected to one of its endpoints"
            ),
            (Some(_), None) => {
                tracing::info!(server = self.server, "connected to the API server's address again");
            }
            _ => {}
        }
    }
}

/// No way leads to the API server.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoConnection(String);

/// Makes TCP connections to whatever answers.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    reach: Reach,
}

impl Connector {
    pub(super) fn new(reach: Reach) -> Self {
        let mut tcp = HttpConnector::new();
        // TLS is the business of whoever wraps this.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Self { tcp, reach }
    }

    /// The first way that works; the next is tried when one fails, or is slow.
    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, NoConnection> {
        let mut order = self.reach.ways().order(Instant::now(), rand::random()).into_iter();
        let patience = if order.len() == 1 { ALONE } else { EACH };
        let mut tries = JoinSet::new();
        let mut failures = Vec::new();
        let mut next = order.next();
        loop {
            if let Some(way) = next.take() {
                tries.spawn(one(self.tcp.clone(), way, uri.clone(), patience));
            }
            tokio::select! {
                done = tries.join_next() => match done {
                    Some(Ok((way, Ok(stream)))) => {
                        self.reach.connected(way);
                        return Ok(stream);
                    }
                    Some(Ok((Way::Configured, Err(why)))) => failures.push(why),
                    Some(Ok((Way::Endpoint(endpoint), Err(why)))) => {
                        failures.push(format!("its endpoint {endpoint}: {why}"));
                    }
                    Some(Err(e)) => failures.push(e.to_string()),
                    None => return Err(NoConnection(failures.join("; "))),
                },
                () = tokio::time::sleep(SLOW), if order.len() > 0 => {}
            }
            next = order.next();
        }
    }
}

async fn one(
    mut tcp: HttpConnector,
    way: Way,
    configured: Uri,
    patience: Duration,
) -> (Way, Result<TokioIo<TcpStream>, String>) {
    let made = async {
        let target = match way {
            Way::Configured => configured,
            Way::Endpoint(endpoint) => {
                format!("http://{endpoint}").parse::<Uri>().map_err(|e| connect::chain(&e))?
            }
        };
        poll_fn(|cx| tcp.poll_ready(cx)).await.map_err(|e| connect::chain(&e))?;
        tcp.call(target).await.map_err(|e| connect::chain(&e))
    };
    let made = tokio::time::timeout(patience, made).await;
    (way, made.unwrap_or_else(|_| Err(format!("no connection within {} s", patience.as_secs()))))
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = NoConnection;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// Sends requests. One that goes through an endpoint for long enough is the last on its
/// connection: the next makes a new one, and so finds the way back.
#[derive(Clone)]
pub(super) struct Sender<C> {
    pub(super) client: legacy::Client<C, Body>,
    pub(super) reach: Reach,
    pub(super) access: Arc<Access>,
}

impl<C> Service<hyper::Request<Body>> for Sender<C>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    type Response = hyper::Response<hyper::body::Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.client.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        if let Err(why) = self.access.prepare(&mut parts.uri, &mut parts.headers) {
            return Box::pin(std::future::ready(Err(why.into())));
        }
        let mut request = hyper::Request::from_parts(parts, body);
        if self.reach.ways().returns(Instant::now()) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let answer = self.client.call(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6443))
    }

    fn ways(endpoints: &[u8]) -> Ways {
        Ways { endpoints: endpoints.iter().map(|n| endpoint(*n)).collect(), via: None }
    }

    #[test]
    fn there_and_back() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let (first, second, third) =
            (Way::Endpoint(endpoint(1)), Way::Endpoint(endpoint(2)), Way::Endpoint(endpoint(3)));
        assert_eq!(ways(&[]).order(start, 0.0), [Way::Configured]);
        let mut ways = ways(&[1, 2, 3]);
        assert_eq!(ways.order(start, 0.0), [Way::Configured, first, second]);
        assert_eq!(ways.order(start, 0.5), [Way::Configured, second, third]);
        ways.connected(second, start, 0.5);
        // For a while it comes first; then it is second.
        assert_eq!(ways.order(at(29), 0.0), [second, Way::Configured, first]);
        assert!(!ways.returns(at(29)) && ways.returns(at(30)));
        assert_eq!(ways.order(at(30), 0.0), [Way::Configured, second, first]);
        // Another stands in while it fails: that does not put off the way back.
        ways.connected(first, at(15), 0.5);
        assert!(ways.returns(at(30)));
        // Still the endpoint: for another while.
        ways.connected(second, at(30), 0.5);
        assert!(!ways.returns(at(59)));
        // It connects, and does not answer: others are tried before it.
        ways.doubt(at(31));
        assert_eq!(ways.order(at(31), 0.0), [Way::Configured, first, third]);
        ways.connected(Way::Configured, at(32), 0.5);
        assert_eq!((ways.via, ways.returns(at(1000))), (None, false));
    }

    proptest! {
        /// Each address once, few of them, the configured one always.
        #[test]
        fn tries_are_bounded(
            known in prop::collection::btree_set(0u8..20, 0..12),
            via in prop::option::of((0u8..25, 0u64..200, any::<bool>())),
            now in 0u64..200,
            random in 0.0..=1.0,
        ) {
            let start = Instant::now();
            let mut ways = ways(&known.iter().copied().collect::<Vec<_>>());
            ways.via = via.map(|(n, again, doubted)| Stand {
                endpoint: endpoint(n),
                again: start + Duration::from_secs(again),
                doubted,
            });
            let order = ways.order(start + Duration::from_secs(now), random);
            prop_assert!(order.contains(&Way::Configured));
            prop_assert!(order.len() <= 1 + OTHERS);
            prop_assert!(order.len() > OTHERS.min(known.len()));
            for (at, way) in order.iter().enumerate() {
                prop_assert!(!order[..at].contains(way), "{:?}", order);
            }
        }
    }
}

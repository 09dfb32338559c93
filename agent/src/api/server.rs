//! Listeners: bounded connections, bounded time for heads, bounded life.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Limits;
use super::backend::Backend;
use super::routes::{self, Api, Local};
use super::stats::ApiStats;
use super::token::Token;
use crate::config::Callers;

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// After an accept that failed for want of something (file descriptors).
const BREATH: Duration = Duration::from_millis(100);

/// What the local API needs besides the agent.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Whoever has it may change things.
    pub token: Token,
    /// Who may use `/ip` without it.
    pub callers: Callers,
    /// Bounds.
    pub limits: Limits,
    /// Counters, shared with the other listeners.
    pub stats: Arc<ApiStats>,
}

/// Where connections come from.
pub(super) trait Source: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Source for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Source for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves everything on `HTTP_ADDR`, and on the socket file if there is one, until
/// `shutdown` completes. Both have the same routes, checks and bounds.
pub async fn serve(
    listener: TcpListener,
    socket: Option<UnixListener>,
    backend: Arc<dyn Backend>,
    options: ApiOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    let ApiOptions { token, callers, limits, stats } = options;
    let local = Some(Local { token, callers });
    let api = Arc::new(Api::new(backend, local, limits, Arc::clone(&stats)));
    let router = routes::all(api);
    let (stop, stopping) = watch::channel(());
    let stopped = |mut stopping: watch::Receiver<()>| async move {
        let _ = stopping.changed().await;
    };
    let tcp =
        listen(listener, router.clone(), limits, Arc::clone(&stats), stopped(stopping.clone()));
    let unix = async {
        if let Some(socket) = socket {
            listen(socket, router, limits, stats, stopped(stopping)).await;
        }
    };
    let end = async {
        shutdown.await;
        drop(stop);
    };
    tokio::join!(tcp, unix, end);
}

/// Serves the read-only routes on `STATUS_ADDR` until `shutdown` completes.
pub async fn serve_status(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    limits: Limits,
    stats: Arc<ApiStats>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let api = Arc::new(Api::new(backend, None, limits, Arc::clone(&stats)));
    listen(listener, routes::read_only(api), limits, stats, shutdown).await;
}

/// Serves `/metrics` on `METRICS_ADDR` until `shutdown` completes.
pub async fn serve_metrics(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    limits: Limits,
    stats: Arc<ApiStats>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let api = Arc::new(Api::new(backend, None, limits, Arc::clone(&stats)));
    listen(listener, routes::metrics_only(api), limits, stats, shutdown).await;
}

async fn listen(
    listener: impl Source,
    router: Router,
    limits: Limits,
    stats: Arc<ApiStats>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.next() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            stats.refused("connections");
            continue;
        };
        let work = connection(stream, router.clone(), limits, stopping.clone());
        let stats = Arc::clone(&stats);
        connections.spawn(async move {
            let open = Open::new(&stats);
            work.await;
            drop((open, slot));
        });
    }
    // Nobody new; who is being served gets a moment, then all are dropped.
    drop(listener);
    stop.send_replace(true);
    let rest = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(limits.grace, rest).await;
}

/// Counts a connection as open, however it ends.
struct Open<'a>(&'a ApiStats);

impl<'a> Open<'a> {
    fn new(stats: &'a ApiStats) -> Self {
        stats.opened();
        Self(stats)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

pub(super) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    // Also for a client that never reads its answer: nobody keeps a slot for ever.
    let old = tokio::time::sleep(limits.connection_age);
    let done = tokio::select! {
        _ = &mut served => true,
        _ = stopping.wait_for(|stop| *stop) => false,
        () = old => false,
    };
    if !done {
        served.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(limits.grace, served).await;
    }
}

//! Doors for `tests/fuzz`: the bytes of one connection in, the answers out, through
//! the same server, router and checks as a socket's.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::backend::Backend;
use super::routes::{self, Api, Local};
use super::server::connection;
use super::{ApiStats, Limits, Token};
use crate::config::Callers;

/// Serves the local API to a client that sends `bytes`, then nothing more.
pub async fn serve_bytes(
    backend: Arc<dyn Backend>,
    token: Token,
    callers: Callers,
    bytes: &[u8],
) -> Vec<u8> {
    let limits = Limits::default();
    let local = Some(Local { token, callers });
    let api = Arc::new(Api::new(backend, local, limits, Arc::new(ApiStats::default())));
    let (client, server) = tokio::io::duplex(1 << 16);
    let (_stop, stopping) = watch::channel(false);
    let (mut reader, mut writer) = tokio::io::split(client);
    let send = async {
        // The server may hang up before it has read everything.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let mut answer = Vec::new();
    let receive = async { reader.read_to_end(&mut answer).await };
    let serve = connection(server, routes::all(api), limits, stopping);
    let _ = tokio::join!(send, receive, serve);
    answer
}

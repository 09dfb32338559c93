//! The local HTTP endpoint: Weave's routes, JSON under `/v1`, metrics.

mod answer;
pub mod backend;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod policy;
mod probes;
mod routes;
mod server;
mod socket;
mod stats;
mod token;
mod v1;
mod weave;

use std::time::Duration;

pub use server::{ApiOptions, serve, serve_metrics, serve_status};
pub use socket::{SocketError, socket};
pub use stats::{ApiStats, BUCKETS, HistogramSnapshot, StatsSnapshot};
pub use token::Token;
pub(crate) use v1::CONSENT;

/// Bounds of what one client can take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the head of a request, from its first byte or the connection's start.
    pub header_timeout: Duration,
    /// For the body of a request.
    pub body_timeout: Duration,
    /// Longest body.
    pub max_body: usize,
    /// Connections at one time; more are closed at once.
    pub max_connections: usize,
    /// For any request in all.
    pub request_deadline: Duration,
    /// Longest life of a connection.
    pub connection_age: Duration,
    /// For requests in flight when the agent stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            max_body: 64 * 1024,
            max_connections: 256,
            request_deadline: Duration::from_secs(70),
            connection_age: Duration::from_secs(600),
            grace: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! What the endpoint counts about itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency buckets, seconds.
pub const BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

type Requests = BTreeMap<(&'static str, &'static str, u16), u64>;

/// Counters of the endpoint; shared by its listeners.
#[derive(Debug, Default)]
pub struct ApiStats {
    requests: Mutex<Requests>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    add: Histogram,
    del: Histogram,
    connections: AtomicU64,
}

#[derive(Debug, Default)]
struct Histogram {
    // One more than bounds: what is above all of them.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Counts up to each bound of [`BUCKETS`], cumulative; the last is all.
    pub cumulative: Vec<u64>,
    /// Sum of all, seconds.
    pub sum: f64,
}

/// All counters at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatsSnapshot {
    /// By route, method, status code.
    pub requests: BTreeMap<(&'static str, &'static str, u16), u64>,
    /// By reason: what was turned away before any route saw it.
    pub refused: BTreeMap<&'static str, u64>,
    /// CNI ADD.
    pub add: HistogramSnapshot,
    /// CNI DEL.
    pub del: HistogramSnapshot,
    /// Open connections.
    pub connections: u64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn snapshot(&self) -> HistogramSnapshot {
        let mut total = 0;
        let cumulative = self
            .buckets
            .iter()
            .map(|bucket| {
                total += bucket.load(Ordering::Relaxed);
                total
            })
            .collect();
        let sum = Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        HistogramSnapshot { cumulative, sum }
    }
}

impl ApiStats {
    /// One request was answered.
    pub(crate) fn answered(
        &self,
        route: &'static str,
        method: &'static str,
        code: u16,
        took: Duration,
    ) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, method, code)).or_default() += 1;
        drop(requests);
        match (route, method) {
            ("/v1/attachments", "POST") => self.add.record(took),
            ("/v1/attachments", "DELETE") => self.del.record(took),
            _ => {}
        }
    }

    /// Something was turned away.
    pub(crate) fn refused(&self, reason: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(reason).or_default() += 1;
    }

    pub(super) fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// All counters now.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            requests: self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            add: self.add.snapshot(),
            del: self.del.snapshot(),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }
}

/// The route of a path, from a fixed set: what a client types must not grow the metrics.
pub(super) fn route_of(path: &str) -> &'static str {
    const ROUTES: &[&str] = &[
        "/v1/attachments",
        "/v1/gc",
        "/v1/ready",
        "/v1/status",
        "/v1/config",
        "/v1/peers",
        "/v1/ranges",
        "/v1/recover",
        "/ip",
        "/ipinfo",
        "/ring",
        "/peer",
        "/connect",
        "/forget",
        "/expose",
        "/status",
        "/report",
        "/metrics",
        "/healthz",
        "/readyz",
    ];
    ROUTES
        .iter()
        .find(|route| {
            path.strip_prefix(**route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .unwrap_or(&"other")
}

/// The method, from a fixed set.
pub(super) fn method_of(method: &axum::http::Method) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "HEAD"]
        .into_iter()
        .find(|known| method.as_str() == *known)
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_come_from_a_fixed_set() {
        assert_eq!(route_of("/ip/abc"), "/ip");
        assert_eq!(route_of("/ipinfo/tracker"), "/ipinfo");
        assert_eq!(route_of("/v1/attachments/a/b"), "/v1/attachments");
        assert_eq!(route_of("/ipx"), "other");
        assert_eq!(route_of("/"), "other");
    }

    #[test]
    fn histogram_is_cumulative() {
        let stats = ApiStats::default();
        for ms in [0, 3, 40, 60_000] {
            stats.answered("/v1/attachments", "POST", 200, Duration::from_millis(ms));
        }
        let add = stats.snapshot().add;
        assert_eq!(add.cumulative.len(), BUCKETS.len() + 1);
        assert_eq!((add.cumulative[0], add.cumulative[3], add.cumulative[6]), (1, 2, 3));
        assert_eq!(add.cumulative.last(), Some(&4));
        assert!((add.sum - 60.043).abs() < 1e-9);
    }
}

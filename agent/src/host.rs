//! What the cores take from the machine: wall clock, chance, tasks, blocking calls.
//!
//! Decisions get time and chance as values. The tasks around them ask here and
//! nowhere else, so that a simulation can answer from its seed (`sim`, tests
//! only). Everything below is what it looks like: the system's own.

#[cfg(test)]
pub(crate) use crate::sim::host::{blocking, now_ms, rng, spawn_in};
#[cfg(not(test))]
pub(crate) use machine::{blocking, now_ms, rng, spawn_in};

#[cfg(not(test))]
mod machine {
    use std::future::Future;
    use std::time::{SystemTime, UNIX_EPOCH};

    use tokio::task::{JoinError, JoinSet};

    pub(crate) use rand::rng;

    /// Unix time in milliseconds.
    pub(crate) fn now_ms() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// A task of this agent that ends with its set.
    pub(crate) fn spawn_in<F>(set: &mut JoinSet<F::Output>, future: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        set.spawn(future);
    }

    /// Work that may block, off the reactor. It is done to its end even if
    /// nobody waits for it any longer.
    pub(crate) async fn blocking<T, F>(work: F) -> Result<T, JoinError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        tokio::task::spawn_blocking(work).await
    }
}

//! When the memory of an earlier life is needed, and when this life's is written.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::api::{Condition, Health};

use super::core::{Source, SourceState};
use super::{Feed, memory};
use crate::files;
use crate::ipam_service::now_ms;

/// File below `STATE_DIR`, readable by its owner alone.
pub const FILE: &str = "policy.json";

/// A server that is just busy, or restarts, has this time to tell.
const SOON: Duration = Duration::from_secs(2);
/// One that answers slowly has this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two writes, for each MiB: the disk of a node in a large cluster, where
/// something always changes, is not to be worn out by this.
const PACE: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;
/// What did not change is written again after this: it says when it was true.
const REFRESH: Duration = Duration::from_secs(600);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// Is the memory needed? Pure.
///
/// A server that answers is waited for, with new pods closed: what it tells may
/// forbid more than what is remembered. One that fails, or says nothing at all,
/// is not.
pub(super) fn needed(sources: &[SourceState], since: Duration) -> bool {
    let waiting = || sources.iter().filter(|source| !source.complete);
    let failing = waiting().any(|source| source.trouble.is_some());
    let silent = sources.iter().all(|source| source.heard.is_none());
    since >= PATIENCE || since >= SOON && (failing || silent)
}

/// What is on the disk.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Changes of the memory that are in the file, and when it was written.
    written: Option<(u64, Instant)>,
    /// Its size.
    bytes: usize,
    /// When writing failed last, and why.
    trouble: Option<(Instant, String)>,
}

impl Kept {
    /// The file should be written now. Pure.
    fn due(&self, changes: u64, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.trouble.as_ref().is_some_and(|(then, _)| since(*then) < AGAIN) {
            return false;
        }
        let pace = PACE.mul_f64((self.bytes as f64 / MIB as f64).max(1.0));
        self.written
            .is_none_or(|(had, then)| since(then) >= if had == changes { REFRESH } else { pace })
    }

    fn outcome(&mut self, changes: u64, now: Instant, path: &Path, result: io::Result<usize>) {
        match result {
            Ok(bytes) => {
                (self.written, self.bytes, self.trouble) = (Some((changes, now)), bytes, None);
            }
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                if self.trouble.is_none() {
                    tracing::warn!("what is known of policy cannot be kept in {why}");
                }
                self.trouble = Some((now, why));
            }
        }
    }

    pub(super) fn condition(&self) -> Option<Condition> {
        let (_, why) = self.trouble.as_ref()?;
        Some(Condition {
            health: Health::Degraded,
            reason: "PolicyNotKept".to_owned(),
            message: format!(
                "what is known of policy cannot be written to {why}; it is enforced all the same"
            ),
            hint: "make room, or the directory writable: else an agent that starts while the API \
                   server is away isolates new pods"
                .to_owned(),
        })
    }
}

impl Feed {
    /// Writes what is known to `path`, at a bounded pace, for ever. `cluster` tells
    /// of which cluster it is, once that is known.
    pub async fn keep(self, path: Arc<Path>, cluster: impl Fn() -> Option<String>) {
        loop {
            tokio::time::sleep(PACE / 10).await;
            if let Some(cluster) = cluster()
                && let Some(job) = self.job(false)
            {
                let (feed, path) = (self.clone(), Arc::clone(&path));
                let write = move || feed.write(&job, &path, &cluster);
                // One that panics would be tried again, and has said why.
                let _ = tokio::task::spawn_blocking(write).await;
            }
        }
    }

    /// Writes what is not written yet, before the agent ends.
    pub fn keep_now(&self, path: &Path, cluster: &str) {
        if let Some(job) = self.job(true) {
            self.write(&job, path, cluster);
        }
    }

    /// What to write, if it is due; `last`: whatever is not written.
    fn job(&self, last: bool) -> Option<Job> {
        let state = self.shared.state();
        let changes = state.memory.changes;
        // Only what is whole: parts would pass for all.
        let due = if last {
            state.kept.written.is_none_or(|(had, _)| had != changes)
        } else {
            state.kept.due(changes, Instant::now())
        };
        (due && state.core.synced()).then(|| Job {
            changes,
            at_ms: now_ms(),
            objects: state.memory.snapshot(),
        })
    }

    fn write(&self, job: &Job, path: &Path, cluster: &str) {
        let content = memory::encode(&job.objects, cluster, job.at_ms);
        let result = files::replace(path, &content, files::PRIVATE).map(|()| content.len());
        if result.is_err() {
            // An older one would be believed, however long this lasts.
            let _ = std::fs::remove_file(path);
        }
        tracing::debug!(objects = job.objects.len(), bytes = content.len(), "policy kept");
        self.shared.state().kept.outcome(job.changes, Instant::now(), path, result);
    }
}

/// A snapshot.
struct Job {
    changes: u64,
    at_ms: u64,
    objects: Vec<(Source, Arc<str>)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::watch::Failure;

    fn source(complete: bool, failing: bool, heard: bool) -> SourceState {
        let now = Instant::now();
        SourceState {
            source: Source::Policies,
            complete,
            objects: 0,
            version: 0,
            trouble: failing.then(|| (now, Failure::Away("refused".into()))),
            heard: heard.then_some(now),
        }
    }

    #[test]
    fn a_server_that_answers_is_waited_for() {
        let needed = |sources: &[SourceState], s| needed(sources, Duration::from_secs(s));
        let (done, busy) = (source(true, false, true), source(false, false, true));
        let failing = source(false, true, false);
        assert!(!needed(&[done.clone(), busy.clone()], 29));
        assert!(needed(&[done.clone(), busy], 30));
        // One that restarts at the same moment is not given up at once.
        assert!(!needed(std::slice::from_ref(&failing), 1));
        assert!(needed(std::slice::from_ref(&failing), 2));
        assert!(needed(&[done.clone(), failing], 2));
        // Not even an error: the way to it swallows everything.
        assert!(needed(&[source(false, false, false)], 2));
        // What is complete may fail without harm to the rest.
        assert!(!needed(&[source(true, true, true), source(false, false, true)], 2));
    }

    #[test]
    fn writes_are_paced_and_a_full_disk_is_told_once() {
        let now = Instant::now();
        let after = |s| now + Duration::from_secs(s);
        let mut kept = Kept::default();
        assert!(kept.due(0, now));
        let path = Path::new("/x/policy.json");
        kept.outcome(1, now, path, Ok(4 * MIB));
        assert!(!kept.due(2, after(39)) && kept.due(2, after(40)));
        kept.outcome(1, now, path, Ok(4000));
        assert!(!kept.due(2, after(9)) && kept.due(2, after(10)));
        assert!(!kept.due(1, after(599)) && kept.due(1, after(600)));
        kept.outcome(2, after(10), path, Err(io::Error::from(io::ErrorKind::StorageFull)));
        assert!(!kept.due(2, after(39)) && kept.due(2, after(40)));
        let told = kept.condition().unwrap();
        assert!(told.reason == "PolicyNotKept" && told.message.contains("policy.json"), "{told:?}");
        kept.outcome(2, after(40), path, Ok(4000));
        assert!(kept.condition().is_none());
    }
}

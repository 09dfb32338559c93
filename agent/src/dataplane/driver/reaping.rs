//! When devices of released pods are removed, and that nobody finds one that is going.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft_proto::attachment::AttachmentKey;

use super::super::intent::Intent;
use super::super::model::Link;
use super::super::reaper;
use super::Driver;

/// Released veths are gathered this long.
pub(super) const REAP: Duration = Duration::from_millis(80);

/// A removal of devices under way, and whose they were.
pub(super) struct Reaping {
    worker: JoinHandle<()>,
    keys: BTreeSet<AttachmentKey>,
}

impl Reaping {
    /// One of those whose devices go is wanted again.
    fn is_back(&self, intent: &Intent) -> bool {
        self.keys.iter().any(|key| intent.pods.contains_key(key))
    }
}

impl Driver {
    /// Who asked for a device again must not find, and reuse, the one that is going.
    pub(super) fn wait_for_reaper(&mut self) {
        let Some(intent) = &self.intent else { return };
        if let Some(reaping) = self.reaping.take_if(|reaping| reaping.is_back(intent)) {
            let _ = reaping.worker.join();
        }
    }

    fn doomed(&self) -> Vec<u32> {
        let Some(intent) = self.intent.as_ref().filter(|intent| !intent.settling) else {
            return Vec::new();
        };
        let released = |link: &&Link| {
            link.alias.as_ref().is_some_and(|alias| !intent.pods.contains_key(&alias.key))
        };
        self.observed.links.values().filter(released).map(|link| link.index).collect()
    }

    pub(super) fn schedule_reap(&mut self) {
        if self.reap_at.is_none() && !self.doomed().is_empty() {
            self.reap_at = Some(Instant::now() + REAP);
        }
    }

    /// On a thread of its own: a removal holds its caller for many milliseconds.
    pub(super) fn reap(&mut self) {
        self.reap_at = None;
        if self.doomed().is_empty() {
            return;
        }
        if self.reaping.as_ref().is_some_and(|reaping| !reaping.worker.is_finished()) {
            self.reap_at = Some(Instant::now() + REAP);
            return;
        }
        let indexes = self.doomed();
        let mut keys = BTreeSet::new();
        self.observed.links.retain(|_, link| {
            let goes = indexes.contains(&link.index);
            keys.extend(link.alias.iter().filter(|_| goes).map(|alias| alias.key.clone()));
            !goes
        });
        let spawned = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
            if let Err(error) = reaper::reap(&indexes) {
                tracing::warn!(%error, count = indexes.len(), "released interfaces not deleted");
            }
        });
        match spawned {
            Ok(worker) => self.reaping = Some(Reaping { worker, keys }),
            Err(error) => tracing::warn!(%error, "released interfaces not deleted yet"),
        }
    }
}

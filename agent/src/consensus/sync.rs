//! Following the ledger: heads arrive, entries are pulled, new heads go on.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::IteratorRandom;
use tokio::sync::mpsc;
use weft_proto::frame::{Frame, Message};
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{Failure, LedgerDelta, LedgerHead, LedgerPull, LedgerSnapshot};

use super::core::Core;
use super::error::failure;
use super::recover::is_jump;
use super::replica::Pulled;

/// Patience for one pull.
const PULL: Duration = Duration::from_secs(5);
/// Whoever hears nothing asks somebody this often.
const IDLE: Duration = Duration::from_secs(5);
/// New heads go to so many members at once.
const FANOUT: usize = 4;
/// Position of who may have more, or not.
pub(crate) const UNKNOWN: u64 = u64::MAX;
/// Heads waiting to be looked at.
pub(crate) const QUEUE: usize = 256;

/// Pulls from who is further, until the agent stops.
pub(crate) async fn follow(core: Arc<Core>, mut heads: mpsc::Receiver<(NodeId, LedgerHead)>) {
    let mut idle = tokio::time::interval(IDLE);
    loop {
        let next = tokio::select! {
            () = core.stopped() => return,
            next = heads.recv() => next,
            _ = idle.tick() => core.somebody().map(|node| {
                (node, LedgerHead { cluster: core.replica.head().cluster, index: UNKNOWN })
            }),
        };
        if let Some((from, head)) = next {
            core.pull_towards(from, head).await;
        }
    }
}

/// Tells the hook and a few members of every new head, until the agent stops.
pub(crate) async fn spread(core: Arc<Core>) {
    let mut ledger = core.replica.subscribe();
    loop {
        let head = ledger.borrow_and_update().head();
        core.tell_head();
        if head.cluster.is_some()
            && let Ok(frame) = Frame::new(&head)
        {
            for node in core.some_members(FANOUT) {
                core.net.notify(node, frame.clone());
            }
        }
        tokio::select! {
            () = core.stopped() => return,
            changed = ledger.changed() => if changed.is_err() { return },
        }
    }
}

impl Core {
    fn some_members(&self, count: usize) -> Vec<NodeId> {
        let view = self.net.view();
        let me = self.net.me();
        view.members
            .keys()
            .filter(|node| **node != me && view.is_alive(**node))
            .copied()
            .choose_multiple(&mut crate::host::rng(), count)
    }

    fn somebody(&self) -> Option<NodeId> {
        self.some_members(1).pop()
    }

    /// True while the engine brings the entries by itself, up to `told`.
    fn engine_feeds(&self, told: u64) -> bool {
        self.running().is_some_and(|running| {
            // Before the first entries of its own cluster a seated node takes
            // nothing from outside: it would not know whose they are.
            (self.replica.head().cluster.is_none() && !self.founded_without_us())
                || (self.is_member(&running)
                    && running.is_led()
                    && (told == UNKNOWN || !is_jump(running.metrics().last_log_index, told)))
        })
    }

    /// Pulls from `from` until this replica has reached `head`, or it has no more.
    async fn pull_towards(&self, from: NodeId, head: LedgerHead) {
        loop {
            let ours = self.replica.head();
            let other =
                ours.cluster.is_some() && head.cluster.is_some() && ours.cluster != head.cluster;
            if head.index <= ours.index || other || self.engine_feeds(head.index) {
                return;
            }
            match self.pull(from, ours).await {
                Ok(now) if now.index > ours.index => {}
                Ok(_) => return,
                Err(why) => {
                    tracing::debug!(from = %from.short(), "ledger pull: {why}");
                    return;
                }
            }
        }
    }

    pub(crate) async fn pull(&self, from: NodeId, after: LedgerHead) -> Result<LedgerHead, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let ask = Frame::new(&LedgerPull { after }).map_err(|e| text(&e))?;
        let answer = self.net.call(from, ask, PULL).await.map_err(|e| text(&e))?;
        if answer.kind == LedgerSnapshot::KIND {
            let snapshot = answer.decode().map_err(|e| text(&e))?;
            return self.replica.take_peer_snapshot(snapshot).await.map_err(|e| text(&e));
        }
        let delta: LedgerDelta = answer.decode().map_err(|e| text(&e))?;
        if !delta.entries.is_empty() && delta.first != after.index + 1 {
            return Err(format!("asked for {}, got {}", after.index + 1, delta.first));
        }
        self.replica.take_delta(delta).await.map_err(|e| text(&e))
    }

    /// Serves a pull.
    pub(crate) async fn on_pull(&self, pull: LedgerPull) -> Result<Frame, Failure> {
        let internal = |e: weft_proto::frame::FrameError| failure(Failure::INTERNAL, e.to_string());
        match self.replica.serve(pull).await {
            Pulled::Delta(mut delta) => loop {
                match Frame::new(&delta) {
                    Ok(frame) => return Ok(frame),
                    // Very long entries: fewer of them.
                    Err(_) if delta.entries.len() > 1 => {
                        delta.entries.truncate(delta.entries.len() / 2);
                    }
                    Err(e) => return Err(internal(e)),
                }
            },
            Pulled::Snapshot(snapshot) => Frame::new(&snapshot).map_err(internal),
            Pulled::OtherCluster => {
                let ours = self.replica.head().cluster;
                Err(failure(
                    Failure::CLUSTER,
                    format!(
                        "this node belongs to cluster {}: two clusters share one mesh; give them different passwords or member lists",
                        ours.map_or_else(String::new, |id| id.to_string())
                    ),
                ))
            }
        }
    }

    /// A head somebody told.
    pub(crate) fn on_head(&self, from: NodeId, head: LedgerHead) {
        let ours = self.replica.head();
        if head.cluster.is_none() {
            return;
        }
        if ours.cluster.is_some() && ours.cluster != head.cluster {
            self.replica.note_foreign(from, head);
            return;
        }
        if head.index > ours.index {
            // A full queue drops the hint; the next digest repeats it.
            let _full = self.heads.try_send((from, head));
        }
    }
}

//! The ledger as this node publishes it, voter or not.
//!
//! Two sources feed it: the consensus engine (on voters) and pulls from other
//! nodes. Both bring committed entries only, so whichever is further wins, and
//! the replica never goes back. Entries are on disk before they are published:
//! a restart without a quorum knows every block it ever acted on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, watch};
use weft_ipam::ledger::Ledger;
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::ledger::Command;
use weft_proto::wire::v1::{LedgerDelta, LedgerHead, LedgerPull, LedgerSnapshot};

use super::error::StoreError;
use super::store::Db;

/// Entries kept to serve others.
const TAIL: usize = 4096;
/// Entries between two snapshots on disk.
const SNAPSHOT_EVERY: u64 = 1024;
/// Entries in one answer.
const DELTA: usize = 256;

/// Why entries were not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TakeError {
    /// They belong to another cluster.
    #[error("ledger entries of cluster {theirs} offered, this node is in cluster {ours}")]
    OtherCluster {
        /// Ours.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// They do not continue this replica.
    #[error("ledger entries from position {first} offered, this replica is at {at}")]
    Gap {
        /// First offered.
        first: u64,
        /// Here.
        at: u64,
    },
    /// They contradict themselves.
    #[error("ledger entries do not fit together: {0}")]
    Bad(String),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answer to a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// The entries that follow.
    Delta(LedgerDelta),
    /// Too far behind for entries.
    Snapshot(LedgerSnapshot),
    /// Another cluster.
    OtherCluster,
}

#[derive(Default)]
struct Tail {
    entries: VecDeque<Option<Command>>,
    /// Position of the last snapshot on disk.
    saved: u64,
}

/// See the module.
pub(crate) struct Replica {
    db: Db,
    /// Serialises writers; also what is served to others.
    tail: Mutex<Tail>,
    ledger: watch::Sender<Arc<Ledger>>,
    refused: AtomicU64,
}

fn text(cluster: Option<ClusterId>) -> String {
    cluster.map_or_else(|| "(none)".to_owned(), |id| id.to_string())
}

impl Replica {
    /// Loads the replica from disk.
    pub(crate) async fn load(db: Db) -> Result<Self, StoreError> {
        let saved = db.run(Db::load_replica).await?;
        let mut ledger = match saved.snapshot {
            None => Ledger::new(),
            Some(bytes) => {
                Ledger::decode(&bytes).map_err(|e| db.bad_replica(LedgerHead::default(), e))?
            }
        };
        let snapshot_at = ledger.head().index;
        let mut tail = Tail { entries: VecDeque::new(), saved: snapshot_at };
        let mut expected = None;
        for (at, entry) in saved.tail {
            if expected.is_some_and(|next| next != at) {
                return Err(db.bad_replica(ledger.head(), format!("entry {at} follows a gap")));
            }
            expected = Some(at + 1);
            if at > ledger.head().index {
                ledger.apply(at, entry.as_ref()).map_err(|e| db.bad_replica(ledger.head(), e))?;
            }
            tail.entries.push_back(entry);
        }
        if expected.is_some_and(|next| next != ledger.head().index + 1) {
            return Err(db.bad_replica(ledger.head(), "its entries end before its snapshot"));
        }
        let (sender, _) = watch::channel(Arc::new(ledger));
        Ok(Self { db, tail: Mutex::new(tail), ledger: sender, refused: AtomicU64::new(0) })
    }

    /// The ledger as published now.
    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.borrow().clone()
    }

    /// Told of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Ledger>> {
        self.ledger.subscribe()
    }

    /// Position and cluster.
    pub(crate) fn head(&self) -> LedgerHead {
        self.ledger.borrow().head()
    }

    /// How often entries of another cluster, or unfit ones, were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, error: TakeError) -> TakeError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        error
    }

    /// Counts a head of another cluster.
    pub(crate) fn note_foreign(&self, from: NodeId, head: LedgerHead) {
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                from = %from, cluster = %text(head.cluster), ours = %text(self.head().cluster),
                "a member of another cluster talks to this node; its ledger is refused"
            );
        }
    }

    fn check_cluster(&self, theirs: Option<ClusterId>) -> Result<(), TakeError> {
        let ours = self.head().cluster;
        if ours.is_some() && ours != theirs {
            return Err(
                self.refuse(TakeError::OtherCluster { ours: text(ours), theirs: text(theirs) })
            );
        }
        Ok(())
    }

    /// Takes entries from `first` on. Those already here are skipped.
    /// `cluster` is the cluster after the last of them.
    pub(crate) async fn take_entries(
        &self,
        cluster: Option<ClusterId>,
        first: u64,
        mut entries: Vec<Option<Command>>,
    ) -> Result<LedgerHead, TakeError> {
        let mut tail = self.tail.lock().await;
        let current = self.ledger();
        let at = current.head().index;
        if first > at + 1 {
            return Err(self.refuse(TakeError::Gap { first, at }));
        }
        let known = usize::try_from(at + 1 - first).unwrap_or(usize::MAX);
        if known >= entries.len() {
            return Ok(current.head());
        }
        self.check_cluster(cluster)?;
        entries.drain(..known);
        let mut next = (*current).clone();
        for (at, entry) in (at + 1..).zip(&entries) {
            next.apply(at, entry.as_ref())
                .map_err(|e| self.refuse(TakeError::Bad(e.to_string())))?;
        }
        let head = next.head();
        if head.cluster != cluster {
            return Err(self.refuse(TakeError::OtherCluster {
                ours: text(head.cluster),
                theirs: text(cluster),
            }));
        }
        let forget = head.index.saturating_sub(TAIL as u64).min(tail.saved);
        let snapshot = (head.index >= tail.saved + SNAPSHOT_EVERY).then(|| next.encode());
        if snapshot.is_some() {
            tail.saved = head.index;
        }
        let (save, from) = (entries.clone(), at + 1);
        self.db.run(move |db| db.save_tail(from, &save, forget, snapshot.as_deref())).await?;
        tail.entries.extend(entries);
        while tail.entries.len() > TAIL {
            tail.entries.pop_front();
        }
        self.ledger.send_replace(Arc::new(next));
        Ok(head)
    }

    /// Takes a whole ledger, if it is further than this one.
    pub(crate) async fn take_snapshot(
        &self,
        ledger: Ledger,
        bytes: Vec<u8>,
    ) -> Result<LedgerHead, TakeError> {
        let mut tail = self.tail.lock().await;
        self.check_cluster(ledger.cluster())?;
        let head = ledger.head();
        if head.index <= self.head().index {
            return Ok(self.head());
        }
        self.db.run(move |db| db.save_replica(&bytes)).await?;
        *tail = Tail { entries: VecDeque::new(), saved: head.index };
        self.ledger.send_replace(Arc::new(ledger));
        Ok(head)
    }

    /// Takes a delta of a peer: it must be of this cluster and continue exactly.
    pub(crate) async fn take_delta(&self, delta: LedgerDelta) -> Result<LedgerHead, TakeError> {
        if delta.entries.is_empty() {
            return Ok(self.head());
        }
        if delta.cluster.is_none() || delta.first == 0 {
            return Err(self.refuse(TakeError::Bad("entries without a cluster".to_owned())));
        }
        self.take_entries(delta.cluster, delta.first, delta.entries).await
    }

    /// Takes a snapshot of a peer.
    pub(crate) async fn take_peer_snapshot(
        &self,
        snapshot: LedgerSnapshot,
    ) -> Result<LedgerHead, TakeError> {
        let ledger = Ledger::decode(&snapshot.state)
            .map_err(|e| self.refuse(TakeError::Bad(e.to_string())))?;
        if ledger.head() != snapshot.head || snapshot.head.cluster.is_none() {
            return Err(self.refuse(TakeError::Bad("a snapshot with another head".to_owned())));
        }
        self.take_snapshot(ledger, snapshot.state).await
    }

    /// What follows `pull.after`.
    pub(crate) async fn serve(&self, pull: LedgerPull) -> Pulled {
        let tail = self.tail.lock().await;
        let ledger = self.ledger();
        let head = ledger.head();
        if pull.after.cluster.is_some() && pull.after.cluster != head.cluster {
            return Pulled::OtherCluster;
        }
        let first = pull.after.index + 1;
        let missing = head.index.saturating_sub(pull.after.index);
        let have = tail.entries.len() as u64;
        if missing > have {
            return Pulled::Snapshot(LedgerSnapshot { head, state: ledger.encode() });
        }
        let skip = usize::try_from(have - missing).unwrap_or(usize::MAX);
        let entries = tail.entries.iter().skip(skip).take(DELTA).cloned().collect();
        Pulled::Delta(LedgerDelta { cluster: head.cluster, first, entries })
    }
}

//! Everything consensus keeps on disk: one redb file.
//!
//! redb blocks; every access goes through [`Db::run`], off the reactor. All
//! commits are durable (fsync) unless said otherwise.

mod log;
mod machine;
#[cfg(test)]
mod tests;

#[cfg(not(test))]
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use weft_proto::id::{FoundingId, NodeId, RaftId};
use weft_proto::ledger::Command;
use weft_proto::wire::v1::LedgerHead;

pub(crate) use log::LogStore;
pub(crate) use machine::Machine;

#[cfg(test)]
use crate::sim::fs::{self, create_database, open_database};

use super::error::StoreError;
use super::types::{SnapshotMeta, Vote, decode, encode};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const TAIL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("tail");
const SEATS: TableDefinition<'_, &[u8; 16], &[u8; 16]> = TableDefinition::new("seats");

const OWNER: &str = "owner";
const RAFT_ID: &str = "raft-id";
const FOUNDING: &str = "founding";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot-meta";
const SNAPSHOT_DATA: &str = "snapshot-data";
const REPLICA: &str = "replica";

/// Bytes of the file that redb may keep in memory, where it otherwise keeps all of it: what
/// is read again is in memory already, as the ledger.
#[cfg(not(test))]
const CACHE: usize = 1 << 20;

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "consensus.redb";

/// Handle to the file, cheap to clone.
#[derive(Clone)]
pub(crate) struct Db {
    db: Arc<Database>,
    path: Arc<PathBuf>,
    /// The first access that the disk refused: redb takes no more after it.
    failed: Arc<OnceLock<StoreError>>,
}

/// The replica as it was last saved: a snapshot and what follows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SavedReplica {
    /// Snapshot of the ledger, encoded by `weft-ipam`.
    pub snapshot: Option<Vec<u8>>,
    /// (position, entry), in order; may begin before the snapshot.
    pub tail: Vec<(u64, Option<Command>)>,
}

/// Seat and founding of this node, once it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seated {
    /// Its seat.
    pub raft_id: RaftId,
    /// The founding it takes part in.
    pub founding: FoundingId,
}

/// What a store holds after a recovery.
pub(crate) struct Reset {
    /// New seat and founding.
    pub(crate) seated: Seated,
    /// Vote to start with.
    pub(crate) vote: Option<Vote>,
    /// Snapshot to start from.
    pub(crate) snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

impl Db {
    /// Opens the store in `state_dir`, or makes it. Blocking.
    pub(crate) fn open(state_dir: &Path, me: NodeId) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        if !fs::exists(&path).unwrap_or(false) {
            create(state_dir, &path, me)?;
        }
        // A damaged file must end as an error of ours, even where redb asserts.
        let opened = std::panic::catch_unwind(|| -> Result<Database, redb::Error> {
            let mut db = open_database(&path)?;
            if !db.check_integrity()? {
                return Err(redb::Error::Corrupted("integrity check failed".to_owned()));
            }
            Ok(db)
        });
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(redb::Error::DatabaseAlreadyOpen)) => return Err(StoreError::InUse(path)),
            Ok(Err(e)) => return Err(StoreError::Damaged { path, why: e.to_string() }),
            Err(_) => {
                return Err(StoreError::Damaged { path, why: "unreadable structure".to_owned() });
            }
        };
        let db = Self { db: Arc::new(db), path: Arc::new(path), failed: Arc::default() };
        let stored: Option<NodeId> = db.get_meta(OWNER)?;
        match stored {
            Some(stored) if stored == me => Ok(db),
            Some(stored) => Err(StoreError::OtherNode {
                path: (*db.path).clone(),
                stored: stored.to_string(),
                me: me.to_string(),
            }),
            None => Err(db.damaged("no owner is recorded")),
        }
    }

    /// Runs a blocking access on a blocking thread.
    pub(crate) async fn run<T, F>(&self, access: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    {
        let db = self.clone();
        match crate::host::blocking(move || access(&db)).await {
            Ok(result) => result,
            Err(e) => Err(self.refused("access", &e)),
        }
    }

    fn io(&self, what: &'static str, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Io { what, path: (*self.path).clone(), why: why.to_string() }
    }

    /// Why the store takes no more accesses, if so: it has to be opened again.
    pub(crate) fn failed(&self) -> Option<&StoreError> {
        self.failed.get()
    }

    /// An access that redb refused.
    fn refused(&self, what: &'static str, why: &dyn std::fmt::Display) -> StoreError {
        let error = self.io(what, why);
        // Only the first says what happened; the others that it did.
        let _known = self.failed.set(error.clone());
        error
    }

    fn damaged(&self, why: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: (*self.path).clone(), why: why.into() }
    }

    fn decode<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
        decode(bytes).map_err(|e| self.damaged(format!("{what}: {e}")))
    }

    fn encode<T: Serialize>(&self, what: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
        encode(value).map_err(|e| self.io(what, &e))
    }

    fn write<T>(
        &self,
        what: &'static str,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let step = || -> Result<T, redb::Error> {
            let mut txn = self.db.begin_write()?;
            txn.set_durability(durability)?;
            // With one phase, a newest commit that does not verify counts as torn, and the one
            // before it as the truth: a spoilt byte would take back a vote.
            txn.set_two_phase_commit(true);
            let out = change(&txn)?;
            txn.commit()?;
            Ok(out)
        };
        step().map_err(|e| self.refused(what, &e))
    }

    fn get_bytes(&self, key: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let step = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.db.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|v| v.value().to_vec()))
        };
        step().map_err(|e| self.refused(key, &e))
    }

    fn get_meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        self.get_bytes(key)?.map(|bytes| self.decode(key, &bytes)).transpose()
    }

    fn put_meta<T: Serialize>(
        &self,
        key: &'static str,
        value: &T,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let bytes = self.encode(key, value)?;
        self.write(key, durability, |txn| {
            txn.open_table(META)?.insert(key, bytes.as_slice())?;
            Ok(())
        })
    }

    /// Seat and founding of this node, if it took one.
    pub(crate) fn seated(&self) -> Result<Option<Seated>, StoreError> {
        let raft_id: Option<RaftId> = self.get_meta(RAFT_ID)?;
        let founding: Option<FoundingId> = self.get_meta(FOUNDING)?;
        match (raft_id, founding) {
            (Some(raft_id), Some(founding)) => Ok(Some(Seated { raft_id, founding })),
            (None, None) => Ok(None),
            _ => Err(self.damaged("a seat without its founding")),
        }
    }

    /// Takes a seat, for good.
    pub(crate) fn take_seat(&self, seated: Seated) -> Result<(), StoreError> {
        let raft_id = self.encode(RAFT_ID, &seated.raft_id)?;
        let founding = self.encode(FOUNDING, &seated.founding)?;
        self.write("take a seat", Durability::Immediate, |txn| {
            let mut meta = txn.open_table(META)?;
            meta.insert(RAFT_ID, raft_id.as_slice())?;
            meta.insert(FOUNDING, founding.as_slice())?;
            Ok(())
        })
    }

    /// Puts another life into the store: new seat, no log.
    pub(crate) fn reset(&self, reset: &Reset) -> Result<(), StoreError> {
        let raft_id = self.encode(RAFT_ID, &reset.seated.raft_id)?;
        let founding = self.encode(FOUNDING, &reset.seated.founding)?;
        let vote = reset.vote.map(|vote| self.encode(VOTE, &vote)).transpose()?;
        let snapshot = match &reset.snapshot {
            None => None,
            Some((meta, data)) => Some((self.encode(SNAPSHOT_META, meta)?, data)),
        };
        self.write("found again", Durability::Immediate, |txn| {
            txn.open_table(LOG)?.retain(|_, _| false)?;
            txn.open_table(SEATS)?.retain(|_, _| false)?;
            let mut meta = txn.open_table(META)?;
            for key in [VOTE, COMMITTED, PURGED, SNAPSHOT_META, SNAPSHOT_DATA] {
                meta.remove(key)?;
            }
            meta.insert(RAFT_ID, raft_id.as_slice())?;
            meta.insert(FOUNDING, founding.as_slice())?;
            if let Some(vote) = &vote {
                meta.insert(VOTE, vote.as_slice())?;
            }
            if let Some((about, data)) = &snapshot {
                meta.insert(SNAPSHOT_META, about.as_slice())?;
                meta.insert(SNAPSHOT_DATA, data.as_slice())?;
            }
            Ok(())
        })
    }

    /// Who was first heard in each seat.
    pub(crate) fn bindings(&self) -> Result<Vec<(RaftId, NodeId)>, StoreError> {
        let step = || -> Result<Vec<(RaftId, NodeId)>, redb::Error> {
            let table = self.db.begin_read()?.open_table(SEATS)?;
            let mut out = Vec::new();
            for row in table.iter()? {
                let (seat, node) = row?;
                out.push((RaftId(*seat.value()), NodeId(*node.value())));
            }
            Ok(out)
        };
        step().map_err(|e| self.refused("read seats", &e))
    }

    /// Binds seats to nodes, for good.
    pub(crate) fn bind(&self, pairs: &[(RaftId, NodeId)]) -> Result<(), StoreError> {
        self.write("bind a seat", Durability::Immediate, |txn| {
            let mut seats = txn.open_table(SEATS)?;
            for (seat, node) in pairs {
                seats.insert(&seat.0, &node.0)?;
            }
            Ok(())
        })
    }

    /// Saves entries the replica is about to publish; entries up to `forget` are dropped.
    pub(crate) fn save_tail(
        &self,
        first: u64,
        entries: &[Option<Command>],
        forget: u64,
        snapshot: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let rows: Vec<Vec<u8>> =
            entries.iter().map(|e| self.encode("entry", e)).collect::<Result<_, _>>()?;
        self.write("save the ledger", Durability::Immediate, |txn| {
            let mut tail = txn.open_table(TAIL)?;
            for (at, row) in (first..).zip(&rows) {
                tail.insert(at, row.as_slice())?;
            }
            tail.retain_in(..=forget, |_, _| false)?;
            if let Some(snapshot) = snapshot {
                txn.open_table(META)?.insert(REPLICA, snapshot)?;
            }
            Ok(())
        })
    }

    /// Replaces the replica by a snapshot.
    pub(crate) fn save_replica(&self, snapshot: &[u8]) -> Result<(), StoreError> {
        self.write("save the ledger", Durability::Immediate, |txn| {
            txn.open_table(TAIL)?.retain(|_, _| false)?;
            txn.open_table(META)?.insert(REPLICA, snapshot)?;
            Ok(())
        })
    }

    /// The replica as it was saved.
    pub(crate) fn load_replica(&self) -> Result<SavedReplica, StoreError> {
        let snapshot = self.get_bytes(REPLICA)?;
        let step = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = self.db.begin_read()?.open_table(TAIL)?;
            let mut out = Vec::new();
            for row in table.iter()? {
                let (at, bytes) = row?;
                out.push((at.value(), bytes.value().to_vec()));
            }
            Ok(out)
        };
        let rows = step().map_err(|e| self.refused("read the ledger", &e))?;
        let tail = rows
            .into_iter()
            .map(|(at, bytes)| Ok((at, self.decode("ledger entry", &bytes)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(SavedReplica { snapshot, tail })
    }

    /// An error for a saved ledger that does not fit together.
    pub(crate) fn bad_replica(&self, head: LedgerHead, why: impl std::fmt::Display) -> StoreError {
        self.damaged(format!("ledger at position {}: {why}", head.index))
    }
}

#[cfg(not(test))]
fn create_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

#[cfg(not(test))]
fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE).open(path)
}

/// Makes a complete store under another name first: a file under the real name
/// is always one that was once complete, so an empty one is damage.
fn create(state_dir: &Path, path: &Path, me: NodeId) -> Result<(), StoreError> {
    let fail =
        |what: &'static str, why: String| StoreError::Io { what, path: path.to_owned(), why };
    let fresh = state_dir.join(format!("{FILE}.new"));
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(fail("create", e.to_string()));
        }
        _ => {}
    }
    let owner = encode(&me).map_err(|e| fail("create", e.to_string()))?;
    let step = || -> Result<(), redb::Error> {
        let db = create_database(&fresh)?;
        crate::files::make_private(&fresh)?;
        let mut txn = db.begin_write()?;
        txn.set_two_phase_commit(true);
        txn.open_table(META)?.insert(OWNER, owner.as_slice())?;
        txn.open_table(LOG)?;
        txn.open_table(TAIL)?;
        txn.open_table(SEATS)?;
        txn.commit()?;
        Ok(())
    };
    step().map_err(|e| fail("create", e.to_string()))?;
    fs::rename(&fresh, path).map_err(|e| fail("create", e.to_string()))?;
    fs::File::open(state_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| fail("create", e.to_string()))
}

//! The replicated state machine: a ledger of its own, exactly at the engine's
//! applied position.
//!
//! What is applied goes on to the [`Replica`], which may already be further
//! (entries reach it by gossip too) and never goes back. The machine itself is
//! rebuilt at start from the last snapshot and the committed log.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use redb::Durability;
use weft_ipam::ledger::Ledger;
use weft_proto::id::RaftId;
use weft_proto::ledger::Command;

use super::{Db, META, SNAPSHOT_DATA, SNAPSHOT_META};
use crate::consensus::error::StoreError;
use crate::consensus::replica::Replica;
use crate::consensus::types::{
    Applied, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig, position,
};

/// [`RaftStateMachine`] over the ledger.
pub(crate) struct Machine {
    db: Db,
    replica: Arc<Replica>,
    ledger: Ledger,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// Loads the last snapshot.
    pub(crate) async fn load(db: Db, replica: Arc<Replica>) -> Result<Self, StoreError> {
        let saved = db.run(Db::load_snapshot).await?;
        let (meta, ledger) = match saved {
            None => (SnapshotMeta::default(), Ledger::new()),
            Some((meta, data)) => {
                let ledger = Ledger::decode(&data)
                    .map_err(|e| db.damaged(format!("snapshot of the ledger: {e}")))?;
                (meta, ledger)
            }
        };
        if ledger.head().index != position(meta.last_log_id.as_ref()) {
            return Err(db.damaged("the snapshot is not at the position it claims"));
        }
        // Stopped between saving a snapshot and publishing it.
        if ledger.head().index > replica.head().index {
            replica
                .take_snapshot(ledger.clone(), ledger.encode())
                .await
                .map_err(|e| db.damaged(format!("snapshot of the ledger: {e}")))?;
        }
        Ok(Self {
            db,
            replica,
            ledger,
            applied: meta.last_log_id,
            membership: meta.last_membership,
        })
    }
}

impl Db {
    fn load_snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
        let Some(meta) = self.get_meta(SNAPSHOT_META)? else { return Ok(None) };
        match self.get_bytes(SNAPSHOT_DATA)? {
            Some(data) => Ok(Some((meta, data))),
            None => Err(self.damaged("a snapshot without its data")),
        }
    }

    fn save_snapshot(&self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        let bytes = self.encode(SNAPSHOT_META, meta)?;
        self.write("save a snapshot", Durability::Immediate, |txn| {
            let mut table = txn.open_table(META)?;
            table.insert(SNAPSHOT_META, bytes.as_slice())?;
            table.insert(SNAPSHOT_DATA, data)?;
            Ok(())
        })
    }
}

fn snapshot_error(e: impl std::fmt::Display) -> StorageError {
    StorageIOError::<RaftId>::write_snapshot(None, AnyError::error(e)).into()
}

/// Makes a snapshot of the ledger as it was when the builder was made.
pub(crate) struct Builder {
    db: Db,
    ledger: Ledger,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let data = self.ledger.encode();
        let at = position(self.applied.as_ref());
        let term = self.applied.as_ref().map_or(0, |id| id.leader_id.term);
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{term}-{at}"),
        };
        let (saved_meta, saved) = (meta.clone(), data.clone());
        self.db
            .run(move |db| db.save_snapshot(&saved_meta, &saved))
            .await
            .map_err(snapshot_error)?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let first = self.ledger.head().index + 1;
        let mut answers = Vec::with_capacity(entries.len());
        let mut commands: Vec<Option<Command>> = Vec::with_capacity(entries.len());
        for entry in entries {
            let fail = |why: String| -> StorageError {
                StorageIOError::<RaftId>::apply(entry.log_id, AnyError::error(why)).into()
            };
            let command = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => Some(proposal.0),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            };
            let outcome = self
                .ledger
                .apply(position(Some(&entry.log_id)), command.as_ref())
                .map_err(|gap| fail(gap.to_string()))?;
            self.applied = Some(entry.log_id);
            answers.push(Applied(command.is_some().then_some(outcome)));
            commands.push(command);
        }
        self.replica
            .take_entries(self.ledger.cluster(), first, commands)
            .await
            .map_err(|e| StorageIOError::<RaftId>::write_state_machine(AnyError::error(e)))?;
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            db: self.db.clone(),
            ledger: self.ledger.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let ledger = Ledger::decode(&data).map_err(snapshot_error)?;
        if ledger.head().index != position(meta.last_log_id.as_ref()) {
            return Err(snapshot_error("the snapshot is not at the position it claims"));
        }
        let (saved_meta, saved) = (meta.clone(), data.clone());
        self.db
            .run(move |db| db.save_snapshot(&saved_meta, &saved))
            .await
            .map_err(snapshot_error)?;
        self.replica.take_snapshot(ledger.clone(), data).await.map_err(snapshot_error)?;
        self.ledger = ledger;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let saved = self
            .db
            .run(Db::load_snapshot)
            .await
            .map_err(|e| StorageIOError::<RaftId>::read_snapshot(None, AnyError::error(e)))?;
        Ok(saved.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

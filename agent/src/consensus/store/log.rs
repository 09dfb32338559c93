//! The consensus log and vote.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, OptionalSend, RaftLogReader, StorageIOError};
use redb::{Durability, ReadableDatabase, ReadableTable};
use weft_proto::id::RaftId;

use super::{COMMITTED, Db, LOG, META, PURGED, VOTE};
use crate::consensus::error::StoreError;
use crate::consensus::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// [`RaftLogStorage`] on the common file.
#[derive(Clone)]
pub(crate) struct LogStore {
    db: Db,
}

impl LogStore {
    /// The log in this file.
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }
}

fn read_error(e: &StoreError) -> StorageError {
    StorageIOError::<RaftId>::read_logs(AnyError::error(e)).into()
}

fn write_error(e: &StoreError) -> StorageError {
    StorageIOError::<RaftId>::write_logs(AnyError::error(e)).into()
}

fn owned(bound: Bound<&u64>) -> Bound<u64> {
    bound.cloned()
}

impl Db {
    /// The vote of this seat.
    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.get_meta(VOTE)
    }

    fn log_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<Vec<Entry>, StoreError> {
        let step = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.db.begin_read()?.open_table(LOG)?;
            let mut rows = Vec::new();
            for row in table.range::<u64>((from, to))? {
                rows.push(row?.1.value().to_vec());
            }
            Ok(rows)
        };
        let rows = step().map_err(|e| self.refused("read the log", &e))?;
        rows.iter().map(|bytes| self.decode("log entry", bytes)).collect()
    }

    fn log_state(&self) -> Result<LogState<TypeConfig>, StoreError> {
        let purged: Option<LogId> = self.get_meta(PURGED)?;
        let step = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.db.begin_read()?.open_table(LOG)?;
            let last = table.last()?.map(|(_, bytes)| bytes.value().to_vec());
            Ok(last)
        };
        let last = step().map_err(|e| self.refused("read the log", &e))?;
        let last = match last {
            None => purged,
            Some(bytes) => Some(self.decode::<Entry>("log entry", &bytes)?.log_id),
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    fn log_append(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let rows = entries
            .iter()
            .map(|e| Ok((e.log_id.index, self.encode("log entry", e)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.write("append to the log", Durability::Immediate, |txn| {
            let mut table = txn.open_table(LOG)?;
            for (index, bytes) in &rows {
                table.insert(index, bytes.as_slice())?;
            }
            Ok(())
        })
    }

    fn log_purge(&self, upto: LogId) -> Result<(), StoreError> {
        let bytes = self.encode(PURGED, &upto)?;
        self.write("purge the log", Durability::Immediate, |txn| {
            txn.open_table(META)?.insert(PURGED, bytes.as_slice())?;
            txn.open_table(LOG)?.retain_in(..=upto.index, |_, _| false)?;
            Ok(())
        })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let (from, to) = (owned(range.start_bound()), owned(range.end_bound()));
        self.db.run(move |db| db.log_range(from, to)).await.map_err(|e| read_error(&e))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.db.run(Db::log_state).await.map_err(|e| read_error(&e))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.db
            .run(move |db| db.put_meta(VOTE, &vote, Durability::Immediate))
            .await
            .map_err(|e| StorageIOError::write_vote(AnyError::error(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.db
            .run(Db::vote)
            .await
            .map_err(|e| StorageIOError::read_vote(AnyError::error(&e)).into())
    }

    /// Not durable by itself: it becomes so with the next commit, and losing
    /// it only means that entries are applied again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.db
            .run(move |db| db.put_meta(COMMITTED, &committed, Durability::None))
            .await
            .map_err(|e| write_error(&e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> =
            self.db.run(|db| db.get_meta(COMMITTED)).await.map_err(|e| read_error(&e))?;
        Ok(committed.flatten())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        match self.db.run(move |db| db.log_append(&entries)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(e) => {
                callback.log_io_completed(Err(std::io::Error::other(e.to_string())));
                Err(write_error(&e))
            }
        }
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.db
            .run(move |db| {
                db.write("truncate the log", Durability::Immediate, |txn| {
                    txn.open_table(LOG)?.retain_in(since.index.., |_, _| false)?;
                    Ok(())
                })
            })
            .await
            .map_err(|e| write_error(&e))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.db.run(move |db| db.log_purge(upto)).await.map_err(|e| write_error(&e))
    }
}

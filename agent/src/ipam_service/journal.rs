//! The lease store: a journal of leases taken and given back, in the run directory.
//!
//! The run directory is memory-backed and vanishes with a reboot, exactly like
//! the namespaces the leases belong to, so there is no fsync: a written line
//! survives every death of the agent. One JSON object a line; the journal is
//! rewritten in short form at start and whenever it has grown long.

use std::collections::BTreeMap;
#[cfg(not(test))]
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
#[cfg(not(test))]
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;

#[cfg(test)]
use crate::sim::fs::{self, File, OpenOptions};

/// Lines beyond the live leases after which the journal is rewritten.
const SLACK: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    /// A lease as it now is (replaces an earlier line of the same key).
    Put(LeaseInfo),
    /// Given back.
    Del(AttachmentKey),
    /// What follows is not everything: leases are being rebuilt from the
    /// kernel. Without it, an agent that died half way through would take its
    /// own fresh store for a whole one, and give addresses in use away.
    Rebuilding,
}

/// The store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("lease store {}: {what}: {source}; leases must be on disk before they are answered: free space on, or fix the rights of, its directory", .path.display())]
pub struct JournalError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Found {
    /// Live leases.
    pub leases: BTreeMap<AttachmentKey, LeaseInfo>,
    /// False if there was no store, or a damaged one: then the kernel is asked.
    pub intact: bool,
    /// Lines that did not parse.
    pub damaged: usize,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Bytes of whole lines in the file.
    length: u64,
    /// Leases are still being rebuilt.
    rebuilding: bool,
}

impl Journal {
    /// Reads what is there and opens the journal for writing, in short form.
    /// Unless what was found is intact, it counts as incomplete until
    /// [`Self::rebuilt`].
    pub fn open(path: &Path) -> Result<(Self, Found), JournalError> {
        let found = read(path)?;
        let rebuilding = !found.intact;
        let (file, length) = rewrite(path, found.leases.values(), rebuilding)?;
        let lines = found.leases.len();
        Ok((Self { path: path.to_owned(), file, lines, length, rebuilding }, found))
    }

    /// Every lease is known again.
    pub fn rebuilt<'a>(
        &mut self,
        leases: impl ExactSizeIterator<Item = &'a LeaseInfo>,
    ) -> Result<(), JournalError> {
        let before = std::mem::replace(&mut self.rebuilding, false);
        self.compact(leases).inspect_err(|_| self.rebuilding = before)
    }

    /// True if the file is no longer the one at its path: what is written into
    /// it now, nobody will ever read.
    pub fn is_lost(&self) -> bool {
        !self.file.metadata().is_ok_and(|m| m.nlink() > 0)
    }

    /// Writes down a lease. When this returns `Ok`, it outlives the agent.
    pub fn put(&mut self, lease: &LeaseInfo) -> Result<(), JournalError> {
        self.append(&Entry::Put(lease.clone()))
    }

    /// Writes down the end of a lease.
    pub fn del(&mut self, key: &AttachmentKey) -> Result<(), JournalError> {
        self.append(&Entry::Del(key.clone()))
    }

    /// True if the journal is worth rewriting with `live` leases.
    pub fn is_long(&self, live: usize) -> bool {
        self.lines > live + SLACK
    }

    /// Rewrites the journal in short form.
    pub fn compact<'a>(
        &mut self,
        leases: impl ExactSizeIterator<Item = &'a LeaseInfo>,
    ) -> Result<(), JournalError> {
        self.lines = leases.len();
        (self.file, self.length) = rewrite(&self.path, leases, self.rebuilding)?;
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let line = line(entry).map_err(|e| self.error("encode", e))?;
        // At the end of the last whole line: what a failed write has left
        // behind there is written over, and cannot spoil the next line.
        if let Err(e) = self.file.write_all_at(&line, self.length) {
            let _ = self.file.set_len(self.length);
            return Err(self.error("write", e));
        }
        self.length += line.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// From now on every write fails, as on a full disk.
    #[cfg(test)]
    pub(super) fn break_writes(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    /// Writes work again.
    #[cfg(test)]
    pub(super) fn mend_writes(&mut self) {
        self.file = OpenOptions::new().write(true).open(&self.path).unwrap();
    }

    fn error(&self, what: &'static str, source: io::Error) -> JournalError {
        JournalError { path: self.path.clone(), what, source }
    }
}

fn line(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

fn read(path: &Path) -> Result<Found, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(source) => {
            return Err(JournalError { path: path.to_owned(), what: "read", source });
        }
    };
    let mut found = Found { intact: true, ..Found::default() };
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Entry::Put(lease)) => {
                found.leases.insert(lease.key.clone(), lease);
            }
            Ok(Entry::Del(key)) => {
                found.leases.remove(&key);
            }
            Ok(Entry::Rebuilding) => found.intact = false,
            Err(_) => {
                found.damaged += 1;
                found.intact = false;
            }
        }
    }
    Ok(found)
}

fn rewrite<'a>(
    path: &Path,
    leases: impl Iterator<Item = &'a LeaseInfo>,
    rebuilding: bool,
) -> Result<(File, u64), JournalError> {
    let fail = |what| move |source| JournalError { path: path.to_owned(), what, source };
    let fresh = path.with_extension("new");
    let mut text = Vec::new();
    if rebuilding {
        text.extend(line(&Entry::Rebuilding).map_err(fail("encode"))?);
    }
    for lease in leases {
        text.extend(line(&Entry::Put(lease.clone())).map_err(fail("encode"))?);
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(fail("create"))?;
    file.write_all(&text).map_err(fail("write"))?;
    fs::rename(&fresh, path).map_err(fail("rename"))?;
    Ok((file, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str) -> LeaseInfo {
        LeaseInfo {
            key: AttachmentKey { container_id: id.into(), ifname: "eth0".into() },
            addresses: vec!["10.32.0.2".parse().unwrap()],
            pod: None,
            uid: None,
            since_ms: 1,
            host_ifname: "weftaaaaaaaaaaa".into(),
            port_mappings: vec![],
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn survives_reopen_and_a_torn_last_line() {
        let dir = scratch("torn");
        let path = dir.join("leases.json");
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert!(!found.intact && found.leases.is_empty());
        journal.rebuilt([].iter()).unwrap();
        journal.put(&lease("a")).unwrap();
        journal.put(&lease("b")).unwrap();
        journal.del(&lease("a").key).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        assert!(found.intact);
        assert_eq!(found.leases.keys().map(|k| k.container_id.as_str()).collect::<Vec<_>>(), ["b"]);

        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"put\":{\"container");
        fs::write(&path, torn).unwrap();
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!((found.intact, found.damaged, found.leases.len()), (false, 1, 1));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn incomplete_until_rebuilt() {
        let dir = scratch("rebuild");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.put(&lease("a")).unwrap();
        drop(journal);
        // A crash before the kernel was asked: the store must not look whole.
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert_eq!((found.intact, found.damaged, found.leases.len()), (false, 0, 1));
        journal.compact([&lease("a")].into_iter()).unwrap();
        drop(journal);
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert!(!found.intact);
        journal.rebuilt([&lease("a")].into_iter()).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!((found.intact, found.leases.len()), (true, 1));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_torn_write_does_not_spoil_the_next() {
        let dir = scratch("spoil");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.rebuilt([].iter()).unwrap();
        journal.put(&lease("a")).unwrap();
        // Half a line got out before the disk was full, and could not be cut off.
        journal.file.write_all_at(b"{\"put\":{\"contai", journal.length).unwrap();
        journal.break_writes();
        assert!(journal.put(&lease("b")).is_err());
        journal.mend_writes();
        journal.put(&lease("c")).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        let ids: Vec<_> = found.leases.keys().map(|k| k.container_id.as_str()).collect();
        assert_eq!((found.intact, ids), (true, vec!["a", "c"]));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn knows_when_its_file_is_gone() {
        let dir = scratch("gone");
        let path = dir.join("leases.json");
        let (journal, _) = Journal::open(&path).unwrap();
        assert!(!journal.is_lost());
        fs::remove_file(&path).unwrap();
        assert!(journal.is_lost());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn compacts() {
        let dir = scratch("compact");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for _ in 0..SLACK {
            journal.put(&lease("a")).unwrap();
            journal.del(&lease("a").key).unwrap();
        }
        assert!(journal.is_long(1));
        journal.compact([&lease("b")].into_iter()).unwrap();
        journal.put(&lease("c")).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!(found.leases.len(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}

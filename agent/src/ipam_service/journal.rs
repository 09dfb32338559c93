//! The lease store: a journal of leases taken and given back, in the run directory.
//!
//! The run directory is memory-backed and vanishes with a reboot, exactly like
//! the namespaces the leases belong to, so there is no fsync: a written line
//! survives every death of the agent. One JSON object a line, with its checksum;
//! the journal is rewritten in short form at start and whenever it has grown long.
//! Addresses given back stay in it with their time: an agent that starts anew must
//! not take them for never used, and hand out at once what others may still send to.

use std::collections::{BTreeMap, VecDeque};
#[cfg(not(test))]
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
#[cfg(not(test))]
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;

use crate::files::{seal, unseal};
#[cfg(test)]
use crate::sim::fs::{self, File, OpenOptions};

/// Lines beyond the live leases after which the journal is rewritten.
const SLACK: usize = 4096;
/// Ends of leases that outlive a rewriting: as many as interfaces can be waiting to be deleted.
const GONE: usize = 512;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    /// A lease as it now is (replaces an earlier line of the same key).
    Put(LeaseInfo),
    /// Given back.
    Del(Gone),
    /// As [`Gone::freed`], read only.
    Freed { address: IpAddr, at_ms: u64 },
    /// What follows is not everything: leases are being rebuilt from the
    /// kernel. Without it, an agent that died half way through would take its
    /// own fresh store for a whole one, and give addresses in use away.
    Rebuilding,
}

#[derive(Debug, Serialize, Deserialize)]
struct Gone {
    #[serde(flatten)]
    key: AttachmentKey,
    #[serde(default)]
    at_ms: u64,
    /// A free address that was used before; then the key is empty. To versions that know
    /// nothing of it, the line is the end of a lease that never was: no damage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freed: Option<IpAddr>,
}

impl Gone {
    fn of(key: &AttachmentKey, at_ms: u64) -> Self {
        Self { key: key.clone(), at_ms, freed: None }
    }

    fn address(address: IpAddr, at_ms: u64) -> Self {
        let key = AttachmentKey { container_id: String::new(), ifname: String::new() };
        Self { key, at_ms, freed: Some(address) }
    }
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
    /// Leases that have ended, the last ones: their interfaces may still be there.
    pub gone: VecDeque<AttachmentKey>,
    /// False if there was no store, or a damaged one: then the kernel is asked.
    pub intact: bool,
    /// Lines that did not parse.
    pub damaged: usize,
    /// Addresses given back and not used since, with the time, longest ago first.
    pub freed: Vec<(IpAddr, u64)>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    gone: VecDeque<AttachmentKey>,
    /// Lines since it was last rewritten.
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
        let gone = found.gone.clone();
        let text = text(&gone, found.leases.values(), &found.freed, rebuilding);
        let (file, length) = rewrite(path, text)?;
        Ok((Self { path: path.to_owned(), file, gone, lines: 0, length, rebuilding }, found))
    }

    /// Every lease is known again.
    pub fn rebuilt<'a>(
        &mut self,
        leases: impl Iterator<Item = &'a LeaseInfo>,
        freed: &[(IpAddr, u64)],
    ) -> Result<(), JournalError> {
        let before = std::mem::replace(&mut self.rebuilding, false);
        self.compact(leases, freed).inspect_err(|_| self.rebuilding = before)
    }

    /// True if the file is no longer the one at its path: what is written into
    /// it now, nobody will ever read.
    pub fn is_lost(&self) -> bool {
        !self.file.metadata().is_ok_and(|m| m.nlink() > 0)
    }

    /// Writes down a lease. When this returns `Ok`, it outlives the agent.
    pub fn put(&mut self, lease: &LeaseInfo) -> Result<(), JournalError> {
        self.append(&Entry::Put(lease.clone()))?;
        self.gone.retain(|gone| *gone != lease.key);
        Ok(())
    }

    /// Writes down the end of a lease.
    pub fn del(&mut self, key: &AttachmentKey, at_ms: u64) -> Result<(), JournalError> {
        self.append(&Entry::Del(Gone::of(key, at_ms)))?;
        note_gone(&mut self.gone, key.clone());
        Ok(())
    }

    /// True if the journal is worth rewriting with `live` leases.
    pub fn is_long(&self, live: usize) -> bool {
        self.lines > live + GONE + SLACK
    }

    /// Rewrites the journal in short form.
    pub fn compact<'a>(
        &mut self,
        leases: impl Iterator<Item = &'a LeaseInfo>,
        freed: &[(IpAddr, u64)],
    ) -> Result<(), JournalError> {
        let text = text(&self.gone, leases, freed, self.rebuilding);
        (self.file, self.length) = rewrite(&self.path, text)?;
        self.lines = 0;
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
    Ok(seal(&serde_json::to_vec(entry)?))
}

fn note_gone(gone: &mut VecDeque<AttachmentKey>, key: AttachmentKey) {
    gone.retain(|old| *old != key);
    gone.push_back(key);
    if gone.len() > GONE {
        gone.pop_front();
    }
}

fn read(path: &Path) -> Result<Found, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(source) => {
            return Err(JournalError { path: path.to_owned(), what: "read", source });
        }
    };
    Ok(Found::parse(&bytes))
}

impl Found {
    /// Reads the text of a store. A line that does not parse spoils no other.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut found = Self { intact: true, ..Self::default() };
        let mut freed = Freed::default();
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            match unseal(line).and_then(|json| Ok(serde_json::from_slice(json)?)) {
                Ok(Entry::Put(lease)) => {
                    found.gone.retain(|gone| *gone != lease.key);
                    let now = lease.addresses.clone();
                    let before = found.leases.insert(lease.key.clone(), lease);
                    for address in before.into_iter().flat_map(|lease| lease.addresses) {
                        freed.add(address, 0);
                    }
                    now.iter().for_each(|address| freed.used(address));
                }
                Ok(
                    Entry::Del(Gone { freed: Some(address), at_ms, .. })
                    | Entry::Freed { address, at_ms },
                ) => freed.add(address, at_ms),
                Ok(Entry::Del(Gone { key, at_ms, freed: None })) => {
                    let lease = found.leases.remove(&key);
                    for address in lease.into_iter().flat_map(|lease| lease.addresses) {
                        freed.add(address, at_ms);
                    }
                    note_gone(&mut found.gone, key);
                }
                Ok(Entry::Rebuilding) => found.intact = false,
                Err(_) => {
                    found.damaged += 1;
                    found.intact = false;
                }
            }
        }
        found.freed = freed.in_order();
        found
    }
}

/// The text of a store in short form.
pub fn text<'a>(
    gone: &VecDeque<AttachmentKey>,
    leases: impl Iterator<Item = &'a LeaseInfo>,
    freed: &[(IpAddr, u64)],
    rebuilding: bool,
) -> io::Result<Vec<u8>> {
    let mut text = if rebuilding { line(&Entry::Rebuilding)? } else { Vec::new() };
    for key in gone {
        // What it had is among the freed ones, or in use again.
        text.extend(line(&Entry::Del(Gone::of(key, 0)))?);
    }
    for lease in leases {
        text.extend(line(&Entry::Put(lease.clone()))?);
    }
    for (address, at_ms) in freed {
        text.extend(line(&Entry::Del(Gone::address(*address, *at_ms)))?);
    }
    Ok(text)
}

/// What of the addresses in a journal is free, in the order of freeing.
#[derive(Default)]
struct Freed {
    at: BTreeMap<IpAddr, (usize, u64)>,
    order: usize,
    latest_ms: u64,
}

impl Freed {
    /// No earlier than what was freed before it, whatever the clock said.
    fn add(&mut self, address: IpAddr, at_ms: u64) {
        self.latest_ms = self.latest_ms.max(at_ms);
        self.order += 1;
        self.at.insert(address, (self.order, self.latest_ms));
    }

    fn used(&mut self, address: &IpAddr) {
        self.at.remove(address);
    }

    fn in_order(self) -> Vec<(IpAddr, u64)> {
        let mut all: Vec<_> = self.at.into_iter().collect();
        all.sort_unstable_by_key(|(_, (order, _))| *order);
        all.into_iter().map(|(address, (_, at_ms))| (address, at_ms)).collect()
    }
}

fn rewrite(path: &Path, text: io::Result<Vec<u8>>) -> Result<(File, u64), JournalError> {
    let fail = |what| move |source| JournalError { path: path.to_owned(), what, source };
    let fresh = path.with_extension("new");
    let text = text.map_err(fail("encode"))?;
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
        journal.rebuilt([].iter(), &[]).unwrap();
        journal.put(&lease("a")).unwrap();
        journal.put(&lease("b")).unwrap();
        journal.del(&lease("a").key, 5).unwrap();
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
        journal.compact([&lease("a")].into_iter(), &[]).unwrap();
        drop(journal);
        let (mut journal, found) = Journal::open(&path).unwrap();
        assert!(!found.intact);
        journal.rebuilt([&lease("a")].into_iter(), &[]).unwrap();
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
        journal.rebuilt([].iter(), &[]).unwrap();
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
    fn remembers_what_was_freed() {
        let dir = scratch("freed");
        let path = dir.join("leases.json");
        let with = |id: &str, address: &str| LeaseInfo {
            addresses: vec![address.parse().unwrap()],
            ..lease(id)
        };
        let (a, b, c) = (with("a", "10.32.0.2"), with("b", "10.32.0.3"), with("c", "10.32.0.2"));
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.rebuilt([].iter(), &[]).unwrap();
        for lease in [&a, &b] {
            journal.put(lease).unwrap();
        }
        journal.del(&b.key, 100).unwrap();
        // The clock was set back; the order stays.
        journal.del(&a.key, 70).unwrap();
        drop(journal);
        let freed = vec![(b.addresses[0], 100), (a.addresses[0], 100)];
        for _ in 0..2 {
            let (_, found) = Journal::open(&path).unwrap();
            assert_eq!((found.intact, &found.freed), (true, &freed));
        }
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.put(&c).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!(found.freed, [(b.addresses[0], 100)]);
        // As written by an agent that did not note the time.
        let old = b"{\"del\":{\"container_id\":\"c\",\"ifname\":\"eth0\"}}\n";
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(old);
        fs::write(&path, text).unwrap();
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!(found.freed, [(b.addresses[0], 100), (c.addresses[0], 100)]);
        fs::remove_dir_all(dir).unwrap();
    }

    /// The store as the first versions read it; with a line they do not know, they would
    /// rebuild the leases from the kernel, which does not know of host ports.
    #[test]
    fn earlier_versions_read_every_line() {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Old {
            Put(LeaseInfo),
            Del(AttachmentKey),
            Rebuilding,
        }
        let ended = VecDeque::from([lease("b").key]);
        let freed = [("10.32.0.9".parse().unwrap(), 5), ("fd00::9".parse().unwrap(), 6)];
        let text = text(&ended, [lease("a")].iter(), &freed, true).unwrap();
        let (mut live, mut ends, mut marks) = (Vec::new(), Vec::new(), 0);
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line).unwrap() {
                Old::Put(lease) => live.push(lease),
                Old::Del(key) => ends.push(key),
                Old::Rebuilding => marks += 1,
            }
        }
        assert_eq!((live, marks), (vec![lease("a")], 1));
        ends.retain(|key| !key.container_id.is_empty());
        assert_eq!(ends, [lease("b").key]);
        let found = Found::parse(&text);
        assert_eq!((found.damaged, found.freed, found.gone), (0, freed.to_vec(), ended));
        // For a while this had a name of its own.
        let found = Found::parse(b"{\"freed\":{\"address\":\"10.32.0.9\",\"at_ms\":5}}\n");
        assert_eq!((found.damaged, found.freed), (0, vec![freed[0]]));
    }

    #[test]
    fn compacts() {
        let dir = scratch("compact");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for _ in 0..(SLACK + GONE) {
            journal.put(&lease("a")).unwrap();
            journal.del(&lease("a").key, 5).unwrap();
        }
        assert!(journal.is_long(1));
        journal.compact([&lease("b")].into_iter(), &[]).unwrap();
        journal.put(&lease("c")).unwrap();
        drop(journal);
        let (_, found) = Journal::open(&path).unwrap();
        assert_eq!(found.leases.len(), 2);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_last_ends_outlive_a_rewriting() {
        let dir = scratch("ends");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.rebuilt([].iter(), &[]).unwrap();
        for id in ["a", "b"] {
            journal.put(&lease(id)).unwrap();
            journal.del(&lease(id).key, 5).unwrap();
        }
        journal.put(&lease("a")).unwrap();
        for _ in 0..2 {
            let (_, found) = Journal::open(&path).unwrap();
            assert!(found.intact);
            assert_eq!(found.gone, [lease("b").key]);
            assert_eq!(found.leases.keys().collect::<Vec<_>>(), [&lease("a").key]);
        }
        fs::remove_dir_all(dir).unwrap();
    }

    /// With one digit changed, another address would be somebody's.
    #[test]
    fn a_spoilt_byte_is_damage_or_nothing() {
        let dir = scratch("flip");
        let path = dir.join("leases.json");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.rebuilt([].iter(), &[]).unwrap();
        journal.put(&lease("a")).unwrap();
        journal.put(&lease("b")).unwrap();
        let good = fs::read(&path).unwrap();
        let whole = [lease("a"), lease("b")];
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                fs::write(&path, bytes).unwrap();
                let found = read(&path).unwrap();
                assert!(found.leases.values().all(|l| whole.contains(l)), "byte {at} bit {bit}");
                assert!(!found.intact || found.leases.len() == 2, "byte {at} bit {bit}");
            }
        }
        fs::remove_dir_all(dir).unwrap();
    }
}

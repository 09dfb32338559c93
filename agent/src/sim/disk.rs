//! A machine's disk in memory: what was written and what was synced are two
//! things, names and contents are two things, and both can be lost apart.
//!
//! - The agent dies: everything written stays.
//! - Power loss: names as of the last sync of their directory, or as written;
//!   contents as last synced, plus any part of what was written since, torn at
//!   512 bytes. `run/` is memory and is gone.
//! - A handle of a dead process changes nothing any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rand::Rng;

use super::host::rng;

/// Smallest part of a write that a power loss keeps or loses as a whole.
const SECTOR: usize = 512;

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn apply(data: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, bytes) => {
            if data.len() < at + bytes.len() {
                data.resize(at + bytes.len(), 0);
            }
            data[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::Length(length) => data.resize(*length, 0),
    }
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Change>,
}

/// A file, whatever its names.
pub(crate) type FileId = u64;

#[derive(Clone, Default)]
struct Files {
    names: BTreeMap<PathBuf, FileId>,
    synced_names: BTreeMap<PathBuf, FileId>,
    contents: BTreeMap<FileId, Content>,
    next: FileId,
}

#[derive(Default)]
struct State {
    files: Files,
    /// Counts lives of the agent: handles of an earlier one are dead.
    life: u64,
    full: bool,
    slow: Duration,
    /// Writes and syncs until the power fails.
    fuse: Option<u64>,
    syncs: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
    /// The power has failed: nothing of this machine runs any more.
    dark: AtomicBool,
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

fn dead() -> io::Error {
    io::Error::other("the power has failed")
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn in_memory(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "run")
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Before everything that changes the disk.
    fn spend(&self, state: &mut State) -> io::Result<()> {
        match &mut state.fuse {
            Some(0) => return Err(dead()),
            Some(left) => *left -= 1,
            None => {}
        }
        self.dark.store(state.fuse == Some(0), Ordering::Relaxed);
        Ok(())
    }

    /// How long the next access takes.
    pub(crate) fn delay(&self) -> Duration {
        let most = self.lock().slow;
        if most.is_zero() { most } else { most.mul_f64(rng().random()) }
    }

    /// Every access takes up to so long.
    pub(crate) fn slow(&self, most: Duration) {
        self.lock().slow = most;
    }

    /// No room left, or room again.
    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lock().full
    }

    /// The power fails after so many more changes.
    pub(crate) fn set_fuse(&self, changes: u64) {
        self.lock().fuse = Some(changes);
        self.dark.store(changes == 0, Ordering::Relaxed);
    }

    /// It will not fail.
    pub(crate) fn clear_fuse(&self) {
        self.lock().fuse = None;
        self.dark.store(false, Ordering::Relaxed);
    }

    /// True once the power has failed.
    pub(crate) fn burnt(&self) -> bool {
        self.dark.load(Ordering::Relaxed)
    }

    /// How often something was synced.
    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The agent is dead: its handles are, too.
    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.life += 1;
    }

    /// What is left after a power loss.
    pub(crate) fn power_loss(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.fuse = None;
        self.dark.store(false, Ordering::Relaxed);
        let mut rng = rng();
        let files = &mut state.files;
        if rng.random_bool(0.5) {
            files.names = files.synced_names.clone();
        } else {
            files.synced_names = files.names.clone();
        }
        files.names.retain(|path, _| !in_memory(path));
        files.synced_names.retain(|path, _| !in_memory(path));
        for content in files.contents.values_mut() {
            let mut left = std::mem::take(&mut content.synced);
            let since = std::mem::take(&mut content.since);
            match rng.random_range(0..4) {
                0 => {}
                1 => since.iter().for_each(|change| apply(&mut left, change)),
                // Up to one of them, which is torn.
                2 if !since.is_empty() => {
                    let last = rng.random_range(0..since.len());
                    since[..last].iter().for_each(|change| apply(&mut left, change));
                    scatter(&mut left, &since[last]);
                }
                _ => since.iter().for_each(|change| scatter(&mut left, change)),
            }
            content.now.clone_from(&left);
            content.synced = left;
        }
        files.tidy();
    }

    /// Everything under a directory is gone.
    pub(crate) fn wipe(&self, directory: &Path) {
        let mut state = self.lock();
        state.files.names.retain(|path, _| !path.starts_with(directory));
        state.files.synced_names.retain(|path, _| !path.starts_with(directory));
        state.files.tidy();
    }
}

/// Keeps each sector of a write, or not.
fn scatter(data: &mut Vec<u8>, change: &Change) {
    let mut rng = rng();
    match change {
        Change::Length(_) if rng.random() => apply(data, change),
        Change::Length(_) => {}
        Change::Write(at, bytes) => {
            let mut from = 0;
            while from < bytes.len() {
                let to = (from + SECTOR - (at + from) % SECTOR).min(bytes.len());
                if rng.random() {
                    apply(data, &Change::Write(at + from, bytes[from..to].to_vec()));
                }
                from = to;
            }
        }
    }
}

impl Files {
    fn tidy(&mut self) {
        let (names, synced) = (&self.names, &self.synced_names);
        self.contents.retain(|id, _| names.values().chain(synced.values()).any(|n| n == id));
    }
}

/// What the file system offers.
impl Disk {
    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.lock().files.names.contains_key(path)
    }

    pub(crate) fn find(&self, path: &Path) -> io::Result<FileId> {
        self.lock().files.names.get(path).copied().ok_or_else(gone)
    }

    pub(crate) fn create(&self, path: &Path) -> io::Result<FileId> {
        let mut state = self.lock();
        self.spend(&mut state)?;
        if state.full {
            return Err(full());
        }
        let files = &mut state.files;
        if let Some(id) = files.names.get(path) {
            return Ok(*id);
        }
        files.next += 1;
        let id = files.next;
        files.names.insert(path.to_owned(), id);
        files.contents.insert(id, Content::default());
        Ok(id)
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        self.spend(&mut state)?;
        state.files.names.remove(path).map(drop).ok_or_else(gone)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        self.spend(&mut state)?;
        let id = state.files.names.remove(from).ok_or_else(gone)?;
        state.files.names.insert(to.to_owned(), id);
        Ok(())
    }

    /// Names in a directory are on disk from now on.
    pub(crate) fn sync_names(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.lock();
        self.spend(&mut state)?;
        state.syncs += 1;
        let files = &mut state.files;
        files.synced_names.retain(|path, _| path.parent() != Some(directory));
        let now = files.names.iter().filter(|(path, _)| path.parent() == Some(directory));
        let now: Vec<_> = now.map(|(path, id)| (path.clone(), *id)).collect();
        files.synced_names.extend(now);
        Ok(())
    }

    pub(crate) fn life(&self) -> u64 {
        self.lock().life
    }

    /// How many names a file has.
    pub(crate) fn links(&self, id: FileId) -> u64 {
        self.lock().files.names.values().filter(|known| **known == id).count() as u64
    }

    pub(crate) fn len(&self, id: FileId) -> usize {
        self.lock().files.contents.get(&id).map_or(0, |c| c.now.len())
    }

    pub(crate) fn read(&self, id: FileId, at: usize, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let now = state.files.contents.get(&id).map_or(&[][..], |c| &c.now);
        let part = now.get(at..at + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    pub(crate) fn write(&self, life: u64, id: FileId, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.change(life, id, Change::Write(at, bytes.to_vec()))
    }

    pub(crate) fn set_len(&self, life: u64, id: FileId, length: usize) -> io::Result<()> {
        self.change(life, id, Change::Length(length))
    }

    fn change(&self, life: u64, id: FileId, change: Change) -> io::Result<()> {
        let mut state = self.lock();
        if state.life != life {
            return Ok(());
        }
        self.spend(&mut state)?;
        if state.full {
            return Err(full());
        }
        let Some(content) = state.files.contents.get_mut(&id) else { return Ok(()) };
        apply(&mut content.now, &change);
        content.since.push(change);
        Ok(())
    }

    pub(crate) fn sync(&self, life: u64, id: FileId) -> io::Result<()> {
        let mut state = self.lock();
        if state.life != life {
            return Ok(());
        }
        self.spend(&mut state)?;
        state.syncs += 1;
        if let Some(content) = state.files.contents.get_mut(&id) {
            for change in std::mem::take(&mut content.since) {
                apply(&mut content.synced, &change);
            }
        }
        Ok(())
    }
}

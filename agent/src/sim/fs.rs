//! The part of `std::fs` that what must be simulated uses. Paths under
//! `/weft-sim/` are on simulated disks, all others are the system's.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use std::fs::{DirBuilder, Permissions, read_dir, remove_dir};
#[cfg(test)]
pub(crate) use std::fs::{create_dir, create_dir_all, remove_dir_all, write};

use redb::{Database, DatabaseError, StorageBackend};

use super::disk::{Disk, FileId};
use super::machine;

/// Where simulated disks are mounted.
pub(crate) const MOUNT: &str = "/weft-sim";

fn disk(path: &Path) -> Option<Arc<Disk>> {
    let place = path.strip_prefix(MOUNT).ok()?;
    let number = place.components().next()?.as_os_str().to_str()?.parse().ok()?;
    machine::disk(number)
}

pub(crate) fn exists(path: &Path) -> io::Result<bool> {
    match disk(path) {
        Some(disk) => Ok(disk.exists(path)),
        None => fs::exists(path),
    }
}

/// Of a simulated file only its rights are of interest: everybody may read it.
pub(crate) fn metadata(path: impl AsRef<Path>) -> io::Result<fs::Metadata> {
    match disk(path.as_ref()) {
        Some(disk) => disk.find(path.as_ref()).and_then(|_| fs::metadata("/dev/null")),
        None => fs::metadata(path),
    }
}

pub(crate) fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    match disk(path.as_ref()) {
        Some(disk) => disk.remove(path.as_ref()),
        None => fs::remove_file(path),
    }
}

pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    match disk(from.as_ref()) {
        Some(disk) => disk.rename(from.as_ref(), to.as_ref()),
        None => fs::rename(from, to),
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let Some(disk) = disk(path.as_ref()) else { return fs::read(path) };
    let id = disk.find(path.as_ref())?;
    let mut out = vec![0; disk.len(id)];
    disk.read(id, 0, &mut out)?;
    Ok(out)
}

pub(crate) fn set_permissions(path: &Path, permissions: Permissions) -> io::Result<()> {
    if disk(path).is_some() { Ok(()) } else { fs::set_permissions(path, permissions) }
}

/// A file (or a directory, to sync it).
#[derive(Debug)]
pub(crate) enum File {
    System(fs::File),
    Simulated(Handle),
    Directory(PathBuf),
}

/// A file on a simulated disk, opened in one life of the agent.
#[derive(Clone)]
pub(crate) struct Handle {
    disk: Arc<Disk>,
    id: FileId,
    life: u64,
    /// Where the next sequential write goes.
    at: usize,
    readonly: bool,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is asked of a file's metadata.
pub(crate) struct Metadata {
    links: u64,
}

impl Metadata {
    pub(crate) fn nlink(&self) -> u64 {
        self.links
    }
}

impl File {
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let Some(disk) = disk(path) else { return fs::File::open(path).map(Self::System) };
        match disk.find(path) {
            Ok(id) => {
                let life = disk.life();
                Ok(Self::Simulated(Handle { disk, id, life, at: 0, readonly: true }))
            }
            Err(_) => Ok(Self::Directory(path.to_owned())),
        }
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        match self {
            Self::System(file) => file.sync_all(),
            Self::Simulated(h) => h.disk.sync(h.life, h.id),
            Self::Directory(path) => disk(path).map_or(Ok(()), |disk| disk.sync_names(path)),
        }
    }

    pub(crate) fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        match self {
            Self::System(file) => file.set_permissions(permissions),
            Self::Simulated(_) | Self::Directory(_) => Ok(()),
        }
    }

    pub(crate) fn set_len(&self, length: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.set_len(length),
            Self::Simulated(h) => h.disk.set_len(h.life, h.id, length as usize),
            Self::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.write_all_at(bytes, at),
            Self::Simulated(h) if h.readonly => Err(io::ErrorKind::PermissionDenied.into()),
            Self::Simulated(h) => h.disk.write(h.life, h.id, at as usize, bytes),
            Self::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        match self {
            Self::System(file) => Ok(Metadata { links: file.metadata()?.nlink() }),
            Self::Simulated(h) => Ok(Metadata { links: h.disk.links(h.id) }),
            Self::Directory(_) => Ok(Metadata { links: 1 }),
        }
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::System(file) => file.write(bytes),
            Self::Simulated(h) => {
                h.disk.write(h.life, h.id, h.at, bytes)?;
                h.at += bytes.len();
                Ok(bytes.len())
            }
            Self::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a file is opened.
pub(crate) struct OpenOptions {
    system: fs::OpenOptions,
    create: bool,
    create_new: bool,
    truncate: bool,
}

impl OpenOptions {
    pub(crate) fn new() -> Self {
        let system = fs::OpenOptions::new();
        Self { system, create: false, create_new: false, truncate: false }
    }

    pub(crate) fn write(&mut self, on: bool) -> &mut Self {
        self.system.write(on);
        self
    }

    pub(crate) fn create(&mut self, on: bool) -> &mut Self {
        self.system.create(on);
        self.create = on;
        self
    }

    pub(crate) fn create_new(&mut self, on: bool) -> &mut Self {
        self.system.create_new(on);
        self.create_new = on;
        self
    }

    pub(crate) fn truncate(&mut self, on: bool) -> &mut Self {
        self.system.truncate(on);
        self.truncate = on;
        self
    }

    pub(crate) fn mode(&mut self, mode: u32) -> &mut Self {
        self.system.mode(mode);
        self
    }

    pub(crate) fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let Some(disk) = disk(path) else { return self.system.open(path).map(File::System) };
        if self.create_new && disk.exists(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = if self.create || self.create_new { disk.create(path)? } else { disk.find(path)? };
        let life = disk.life();
        if self.truncate {
            disk.set_len(life, id, 0)?;
        }
        Ok(File::Simulated(Handle { disk, id, life, at: 0, readonly: false }))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.len(self.id) as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(self.id, offset as usize, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.set_len(self.life, self.id, length as usize)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync(self.life, self.id)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(self.life, self.id, offset as usize, bytes)
    }
}

/// See `Database::create`.
pub(crate) fn create_database(path: &Path) -> Result<Database, DatabaseError> {
    let Some(disk) = disk(path) else { return Database::create(path) };
    let (id, life) = (disk.create(path)?, disk.life());
    Database::builder().create_with_backend(Handle { disk, id, life, at: 0, readonly: false })
}

/// See `Database::open`.
pub(crate) fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    let Some(disk) = disk(path) else { return Database::open(path) };
    let (id, life) = (disk.find(path)?, disk.life());
    if disk.len(id) == 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    Database::builder().create_with_backend(Handle { disk, id, life, at: 0, readonly: false })
}

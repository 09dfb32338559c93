//! Writing files whole: after a crash there is the old one or the new one.

#[cfg(not(test))]
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
#[cfg(not(test))]
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;

#[cfg(test)]
use crate::sim::fs::{self, DirBuilder, File, OpenOptions, Permissions};

/// Nobody but the owner.
pub(crate) const PRIVATE: u32 = 0o600;

/// Replaces a file: temporary file in the same directory, fsync, rename, fsync
/// of the directory. Runtimes that watch the directory see a rename into place.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.weft-new"));
    let written = write_new(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask can only take away; be exact.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces a private file by JSON of `value`.
pub(crate) fn replace_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec_pretty(value)?, PRIVATE)
}

/// Makes a directory for the owner alone. One that exists stays as it is: it
/// may be shared, and every file in it is private by itself.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a directory with all that is in it. One that is a mount point, as in
/// a container, can only be emptied.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if mounted(&e) => Ok(()),
        other => other,
    }
}

/// A mount point, or one in a root that is read-only.
fn mounted(error: &io::Error) -> bool {
    [io::ErrorKind::ResourceBusy, io::ErrorKind::ReadOnlyFilesystem].contains(&error.kind())
}

/// Takes everybody else's rights from a file; true if they had any.
pub(crate) fn make_private(path: &Path) -> io::Result<bool> {
    let open = fs::metadata(path)?.permissions().mode() & 0o077 != 0;
    if open {
        fs::set_permissions(path, Permissions::from_mode(PRIVATE))?;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_private_and_nothing_left_over() {
        let dir = std::env::temp_dir().join(format!("weft-files-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        private_dir(&dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        let path = dir.join("file");
        // A crash in between left this.
        fs::write(dir.join(".file.weft-new"), "half").unwrap();
        replace(&path, b"one", 0o644).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"one".to_vec(), 0o644));
        assert!(make_private(&path).unwrap() && !make_private(&path).unwrap());
        replace_json(&path, &[1, 2]).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(serde_json::from_slice::<[u8; 2]>(&fs::read(&path).unwrap()).unwrap(), [1, 2]);
        fs::create_dir(dir.join("taken")).unwrap();
        replace(&dir.join("taken"), b"x", 0o600).unwrap_err();
        let mut left: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["file", "taken"]);
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        remove_dir(&dir).unwrap();
        assert!(!dir.exists() && Path::new("/etc/passwd").exists());
    }
}

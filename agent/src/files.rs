//! Writing files whole: after a crash there is the old one or the new one.

#[cfg(not(test))]
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
#[cfg(not(test))]
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
/// It is sealed, see [`seal`].
pub(crate) fn replace_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &seal(&serde_json::to_vec_pretty(value)?), PRIVATE)
}

/// What [`replace_json`] wrote; `None` if there is no file. A file that is not what was
/// written is an error of kind `InvalidData`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(unseal(&bytes)?);
            value.map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// JSON with its checksum behind it. JSON alone would not do: with one digit changed it is
/// still JSON. The checksum is written in blanks, 0 as a space, 1 as a tab: every reader of
/// JSON, and an earlier version of the agent, takes the text as ever.
pub(crate) fn seal(json: &[u8]) -> Vec<u8> {
    [json, &checksum(json), b"\n"].concat()
}

/// The JSON of a sealed text. Text without blanks at its end was written by an earlier
/// version, and is taken for what it is.
pub(crate) fn unseal(text: &[u8]) -> io::Result<&[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let blanks = text.iter().rev().take_while(|byte| BLANKS.contains(byte)).count();
    let (json, seal) = text.split_at(text.len() - blanks);
    if blanks == 0 || seal == checksum(json) {
        return Ok(json);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not fit"))
}

const BLANKS: [u8; 2] = *b" \t";

/// 32 bits.
fn checksum(bytes: &[u8]) -> Vec<u8> {
    let hash = digest(&SHA256, bytes);
    let bits = hash.as_ref().iter().take(4).flat_map(|byte| (0..8).map(move |n| byte >> n & 1));
    bits.map(|bit| BLANKS[usize::from(bit)]).collect()
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
        assert_eq!(read_json::<[u8; 2]>(&path).unwrap(), Some([1, 2]));
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

    #[test]
    fn whatever_happens_to_a_sealed_text_is_seen() {
        let json = serde_json::to_vec_pretty(&["10.32.0.4/30", "x"]).unwrap();
        let sealed = seal(&json);
        assert_eq!(unseal(&sealed).unwrap(), json);
        let parse = |text: &[u8]| -> Option<Vec<String>> {
            unseal(text).ok().and_then(|json| serde_json::from_slice(json).ok())
        };
        let whole = parse(&sealed);
        // What an earlier version wrote, and what it reads.
        assert_eq!(parse(&json), whole);
        assert_eq!(serde_json::from_slice::<Vec<String>>(&sealed).ok(), whole);
        for at in 0..sealed.len() {
            let cut = parse(&sealed[..at]);
            assert!(cut.is_none() || cut == whole, "cut at {at}");
            for flip in 0..8 {
                let mut spoilt = sealed.clone();
                spoilt[at] ^= 1 << flip;
                let found = parse(&spoilt);
                assert!(found.is_none() || found == whole, "bit {flip} of byte {at}");
            }
        }
    }
}

//! The kept corpus: `corpus/TARGET/*`, small files that reach something of their own,
//! and an input for every fault that was ever found.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Target;

/// Where a target's inputs are kept.
pub fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Name and bytes of every kept input, sorted by name.
pub fn kept(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut out = Vec::new();
    let entries = match fs::read_dir(directory(target)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        out.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    out.sort();
    Ok(out)
}

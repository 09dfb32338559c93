//! The image's one layer.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::{Program, sha256};

/// A layer in both forms.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) tar: Vec<u8>,
    /// Digest of `tar`: identifies the layer in the configuration.
    pub(crate) diff_id: String,
    pub(crate) gzip: Vec<u8>,
}

impl Layer {
    /// The programs in `directory`, and the directories above them. No other
    /// directory: one that is not mounted must not seem to be there.
    pub(crate) fn build(directory: &str, programs: &[Program], mtime: u64) -> Result<Self> {
        let mut tar = Builder::new(Vec::new());
        let mut above: Vec<&Path> =
            Path::new(directory).ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for path in above {
            add(&mut tar, &format!("{}/", path.display()), Kind::Directory, &[], mtime)?;
        }
        for program in programs {
            let path = format!("{directory}/{}", program.name);
            add(&mut tar, &path, Kind::Program, &program.bytes, mtime)?;
        }
        let tar = tar.into_inner().context("cannot end the layer")?;
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        Ok(Self { diff_id: sha256(&tar), gzip: gzip.finish()?, tar })
    }
}

/// What an entry of an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Program,
    File,
}

/// Adds an entry that says nothing of who made it, and when.
pub(crate) fn add(
    tar: &mut Builder<Vec<u8>>,
    path: &str,
    kind: Kind,
    content: &[u8],
    mtime: u64,
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(if kind == Kind::Directory {
        EntryType::Directory
    } else {
        EntryType::Regular
    });
    header.set_mode(if kind == Kind::File { 0o644 } else { 0o755 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("cannot add {path} to the archive"))
}

//! Whose state directory this is.
//!
//! It holds a key and blocks: two nodes that start from copies of one (a machine image that
//! was taken of a running node) would give out the same addresses, each without asking. So
//! the name of its node is in it, and a node of another name does not start from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the file in STATE_DIR.
pub(super) const FILE: &str = "owner";

/// What the file says. Later versions may say more.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    /// `NODE_NAME`.
    node: String,
}

/// The directory is not this node's.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnerError {
    #[error(
        "{} is the state of node `{owner}`, and this node is `{name}`. Nothing was changed: two \
         nodes with one state would give out the same addresses. Was it copied, with a machine \
         image perhaps? Then move it away, and this node joins as a new one. Was the node \
         renamed? Then either set NODE_NAME={owner}, or let another node run `agent rmpeer \
         {owner}`, and move it away",
        .dir.display()
    )]
    Other { dir: PathBuf, owner: String, name: String },
    #[error("cannot {what} {}: {source}; is STATE_DIR writable?", .path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

/// Refuses the state of another node; else it is this node's from now on.
pub(super) fn admit(state_dir: &Path, name: &str) -> Result<(), OwnerError> {
    let path = state_dir.join(FILE);
    let found: Option<Owner> = match files::read_json(&path) {
        // Whoever reads the other files will name what is damaged.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            tracing::warn!("{}: {e}; it counts as absent", path.display());
            None
        }
        other => other.map_err(|source| io("read", &path, source))?,
    };
    match found {
        Some(owner) if owner.node == name => Ok(()),
        // Without a key there is nobody it could be.
        Some(owner) if state_dir.join("identity.key").exists() => Err(OwnerError::Other {
            dir: state_dir.to_owned(),
            owner: owner.node,
            name: name.to_owned(),
        }),
        _ => {
            let owner = Owner { node: name.to_owned() };
            files::replace_json(&path, &owner).map_err(|source| io("write", &path, source))
        }
    }
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> OwnerError {
    OwnerError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_copy_under_another_name_is_refused_and_left_as_it_is() {
        let dir = std::env::temp_dir().join(format!("weft-owner-{}", std::process::id()));
        files::private_dir(&dir).unwrap();
        let path = dir.join(FILE);
        let read = || files::read_json::<Owner>(&path).unwrap().unwrap().node;
        // Not used by anybody yet: an image may have the directory.
        admit(&dir, "a").unwrap();
        admit(&dir, "b").unwrap();
        assert_eq!(read(), "b");
        fs::write(dir.join("identity.key"), "key").unwrap();
        admit(&dir, "b").unwrap();
        let text = admit(&dir, "c").unwrap_err().to_string();
        for part in ["node `b`", "this node is `c`", "NODE_NAME=b", dir.to_str().unwrap()] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(read(), "b");
        // Written by a version that did not say whose it is, or spoilt: it is taken over.
        fs::write(&path, "{").unwrap();
        admit(&dir, "c").unwrap();
        assert_eq!(read(), "c");
        fs::remove_dir_all(dir).unwrap();
    }
}

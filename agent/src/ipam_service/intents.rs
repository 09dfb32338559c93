//! Parts of our blocks that are promised to another node.
//!
//! Between "withheld here" and "transferred in the ledger" lies a commit whose
//! outcome may stay unknown for a while. A promise is on disk before it is
//! proposed, so that no life of the agent allocates from it before the ledger
//! has said whose it is.

#[cfg(not(test))]
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_proto::id::NodeId;

use crate::files;
#[cfg(test)]
use crate::sim::fs;

/// One promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// What.
    pub prefix: IpNet,
    /// To whom.
    pub to: NodeId,
}

/// The file of promises.
#[derive(Debug)]
pub struct Promises {
    path: PathBuf,
    open: Vec<Promise>,
}

/// The file of promises cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; addresses promised to other nodes are kept there: free space on, or fix the rights of, its directory", .path.display())]
pub struct PromiseError {
    path: PathBuf,
    source: io::Error,
}

impl Promises {
    /// Reads the promises of an earlier life.
    pub fn open(path: &Path) -> Result<Self, PromiseError> {
        let fail = |source| PromiseError { path: path.to_owned(), source };
        let open = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| fail(e.into()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(fail(e)),
        };
        Ok(Self { path: path.to_owned(), open })
    }

    /// Promises not yet settled.
    pub fn open_promises(&self) -> &[Promise] {
        &self.open
    }

    /// Writes a promise down; on disk when this returns.
    pub fn add(&mut self, promise: Promise) -> Result<(), PromiseError> {
        let mut next = self.open.clone();
        next.push(promise);
        self.store(next)
    }

    /// Strikes a promise whose outcome is known.
    pub fn settle(&mut self, promise: Promise) -> Result<(), PromiseError> {
        let next = self.open.iter().copied().filter(|p| *p != promise).collect();
        self.store(next)
    }

    fn store(&mut self, next: Vec<Promise>) -> Result<(), PromiseError> {
        files::replace_json(&self.path, &next)
            .map_err(|source| PromiseError { path: self.path.clone(), source })?;
        self.open = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_survive() {
        let dir = std::env::temp_dir().join(format!("weft-promises-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("promises.json");
        let promise = Promise { prefix: "10.0.0.4/30".parse().unwrap(), to: NodeId([7; 16]) };
        let mut promises = Promises::open(&path).unwrap();
        promises.add(promise).unwrap();
        let mut again = Promises::open(&path).unwrap();
        assert_eq!(again.open_promises(), [promise]);
        again.settle(promise).unwrap();
        assert!(Promises::open(&path).unwrap().open_promises().is_empty());
        fs::write(&path, "{").unwrap();
        assert!(Promises::open(&path).unwrap_err().to_string().contains("promises.json"));
        fs::remove_dir_all(dir).unwrap();
    }
}

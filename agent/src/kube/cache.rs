//! What is kept in `STATE_DIR`, so that a start does not wait for the API server.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_proto::id::{ClusterId, NodeId};

use crate::files;

/// File below `STATE_DIR`, readable by its owner alone.
pub(crate) const FILE: &str = "kubernetes.json";

/// What was last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Cluster keys; the first signs.
    pub keys: Vec<String>,
    /// The cluster this node is a member of.
    pub cluster: Option<ClusterId>,
    /// Name of its founder.
    pub founder: Option<String>,
    /// Addresses of voters.
    pub contacts: Vec<String>,
    /// This Node's InternalIPs.
    pub addresses: Vec<IpAddr>,
    /// The API server's own addresses, behind that of its service.
    pub endpoints: Vec<SocketAddr>,
    /// Members that were seen to have a Node (voters know).
    pub had_node: BTreeSet<NodeId>,
}

/// The cache and its file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    cache: Cache,
}

impl Store {
    /// Reads it; a damaged one is as good as none.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let cache = files::read_json(&path).unwrap_or_else(|e| {
            tracing::warn!("{}: {e}; the API server is asked again", path.display());
            None
        });
        Self { path, cache: cache.unwrap_or_default() }
    }

    /// What it holds.
    pub fn get(&self) -> &Cache {
        &self.cache
    }

    /// Changes it; written only if something is new.
    pub fn change(&mut self, change: impl FnOnce(&mut Cache)) -> io::Result<()> {
        let mut next = self.cache.clone();
        change(&mut next);
        if next != self.cache {
            files::replace_json(&self.path, &next)?;
            self.cache = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_private_and_survives_damage() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("weft-kube-cache-{}", std::process::id()));
        files::private_dir(&dir).unwrap();
        let mut store = Store::open(&dir);
        store.change(|c| c.keys = vec!["secret".into()]).unwrap();
        store.change(|c| c.cluster = Some(ClusterId([1; 16]))).unwrap();
        assert_eq!(Store::open(&dir).get(), store.get());
        let path = dir.join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Store::open(&dir).get(), &Cache::default());
        std::fs::write(&path, r#"{"keys":["a"],"later":1}"#).unwrap();
        assert_eq!(Store::open(&dir).get().keys, ["a"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

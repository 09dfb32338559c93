//! The key that is this node: made once, kept in the state directory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use weft_proto::id::NodeId;

use crate::files;

/// Longest key file that is read: a PKCS#8 Ed25519 key has about 85 bytes.
const MAX_FILE: u64 = 4096;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file exists and is not a key. It is left alone: it may be all that
    /// is left of the node's identity.
    #[error(
        "{path} is not an Ed25519 key ({why}); restore it from a backup, or move it away to start as a new node"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read or written.
    #[error("cannot {what} {path}: {source}; check the state directory")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No randomness to make a key of.
    #[error("cannot make a key: the system gives no random bytes")]
    Random,
}

/// An Ed25519 key pair and the node id that follows from it.
#[derive(Clone)]
pub struct Identity {
    pkcs8: Vec<u8>,
    public: [u8; 32],
    node: NodeId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the private half.
        f.debug_struct("Identity").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The node id of a raw Ed25519 public key.
pub fn node_id(public: &[u8; 32]) -> NodeId {
    let hash = digest(&SHA256, public);
    let mut id = [0; 16];
    id.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    NodeId(id)
}

impl Identity {
    /// The identity kept at `path`; made and kept there if there is no such file.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        let io = |what: &'static str| {
            let path = path.to_owned();
            move |source| IdentityError::Io { what, path, source }
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_FILE => Err(IdentityError::Corrupt {
                path: path.to_owned(),
                why: format!("{} bytes long", meta.len()),
            }),
            Ok(_) => {
                if files::make_private(path).map_err(io("protect"))? {
                    tracing::warn!(
                        "{} could be read by others: it is private now, but whoever copied it can \
                         speak as this node; if in doubt, remove the node and start with a new key",
                        path.display()
                    );
                }
                Self::from_pkcs8(std::fs::read(path).map_err(io("read"))?)
                    .map_err(|why| IdentityError::Corrupt { path: path.to_owned(), why })
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let identity = Self::generate()?;
                identity.store(path).map_err(io("write"))?;
                Ok(identity)
            }
            Err(e) => Err(io("read")(e)),
        }
    }

    /// A new identity that is kept nowhere.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| IdentityError::Random)?;
        Self::from_pkcs8(key.as_ref().to_vec()).map_err(|_| IdentityError::Random)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|e| e.to_string())?;
        let public: [u8; 32] = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| "public key of odd length".to_owned())?;
        Ok(Self { pkcs8, public, node: node_id(&public) })
    }

    fn store(&self, path: &Path) -> std::io::Result<()> {
        files::private_dir(path.parent().unwrap_or(Path::new(".")))?;
        files::replace(path, &self.pkcs8, files::PRIVATE)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The raw public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The private key, for TLS.
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-identity-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn is_made_once_and_kept_private() {
        let dir = scratch("keep");
        let path = dir.join("key");
        let first = Identity::load_or_create(&path).unwrap();
        let again = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.node(), again.node());
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&path, open).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().node(), first.node());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let expected = digest(&SHA256, first.public());
        assert_eq!(first.node().0, expected.as_ref()[..16]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_corrupt_file_is_named_and_left_alone() {
        let dir = scratch("corrupt");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("key");
        for bytes in [&b""[..], b"rubbish", &[0x30; 9000]] {
            std::fs::write(&path, bytes).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("key"));
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}

//! The local API's socket file: the shim's way to it. Connecting to it costs a tenth of
//! what TCP does on loopback, and only root gets through to it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use weft_proto::names::SOCKET_FILE;

use crate::files;

/// There is no socket file.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {source}; is RUN_DIR writable, and its path shorter than 90 bytes?", .path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// Listens on the socket file of a run directory, in place of one that an earlier agent
/// left: whoever asks meanwhile finds the one or the other. The file outlives the agent;
/// who connects to it then is refused, as without it.
pub fn socket(run_dir: &Path) -> Result<UnixListener, SocketError> {
    let path = run_dir.join(SOCKET_FILE);
    let fresh = run_dir.join(format!("{SOCKET_FILE}.new"));
    let listen = || {
        files::private_dir(run_dir)?;
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(files::PRIVATE))?;
        fs::rename(&fresh, &path)?;
        Ok(listener)
    };
    listen().map_err(|source| SocketError { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn it_is_private_and_takes_the_place_of_an_earlier_one() {
        let dir = std::env::temp_dir().join(format!("weft-socket-{}", std::process::id()));
        let run = dir.join("run");
        let earlier = socket(&run).unwrap();
        let listener = socket(&run).unwrap();
        let path = run.join(SOCKET_FILE);
        let meta = fs::metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o077, 0);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        drop(earlier);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(listener);
        let refused = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let names: Vec<_> = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [SOCKET_FILE]);
        fs::remove_dir_all(&dir).unwrap();
        // A path that no socket can have is an error that says so.
        let long = socket(&dir.join("x".repeat(120))).unwrap_err().to_string();
        assert!(long.contains("RUN_DIR"), "{long}");
        let _ = fs::remove_dir_all(&dir);
    }
}

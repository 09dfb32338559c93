//! Network namespaces. The process has one thread, so entering one is safe.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};
use weft_proto::cni::{CniError, code};

/// The container's namespace, and the way back.
#[derive(Debug)]
pub(crate) struct Sandbox {
    inside: File,
    home: File,
    path: String,
}

const HOME: &str = "/proc/self/ns/net";

impl Sandbox {
    /// Opens the namespace at `path`. Code 8 if it is none, or the node's own.
    pub(crate) fn open(path: &str) -> Result<Self, CniError> {
        let bad = |error: &dyn std::fmt::Display| {
            CniError::new(
                code::INVALID_NETNS,
                format!("CNI_NETNS {path:?} cannot be opened: {error}"),
            )
            .details("the container may be gone already")
        };
        let inside = File::open(path).map_err(|error| bad(&error))?;
        let home = File::open(HOME).map_err(|error| bad(&error))?;
        let (a, b) = (
            inside.metadata().map_err(|error| bad(&error))?,
            home.metadata().map_err(|error| bad(&error))?,
        );
        if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
            return Err(CniError::new(
                code::INVALID_NETNS,
                format!("CNI_NETNS {path:?} is the node's own network namespace"),
            )
            .details("weft attaches containers that have a network namespace of their own"));
        }
        let sandbox = Self { inside, home, path: path.to_owned() };
        // Anything but a network namespace is noticed here, before an address is taken.
        sandbox.run(|| Ok(()))?;
        Ok(sandbox)
    }

    /// For IFLA_NET_NS_FD.
    pub(crate) fn fd(&self) -> RawFd {
        self.inside.as_raw_fd()
    }

    /// Runs `work` inside. What it opens there stays there.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Result<T, CniError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            CniError::new(
                code::INVALID_NETNS,
                format!("{what} network namespace {:?}: {error}", self.path),
            )
        };
        setns(self.inside.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("cannot enter", &error))?;
        let result = work();
        setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("cannot come back from", &error))?;
        result.map_err(|error| failed("in", &error))
    }
}

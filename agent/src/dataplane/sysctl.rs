//! Kernel parameters below `/proc/sys`. Reading and writing concern the
//! network namespace of the calling thread.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};

use super::netlink::socket::Refused;

/// Where `/proc/sys` can be written, asked in this order. That of a container is
/// read-only, and nothing can be mounted over it; so the host's is mounted elsewhere.
const ROOTS: [&str; 2] = ["/host/proc/sys", "/proc/sys"];

/// Those of `paths` that exist.
pub(crate) fn read(paths: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
    paths
        .into_iter()
        .filter_map(|path| {
            let value = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
            Some((path, value.trim().to_owned()))
        })
        .collect()
}

/// Writes one; a parameter that this kernel does not have needs no value.
pub(crate) fn write(path: &str, value: &str) -> Result<(), Refused> {
    for root in ROOTS {
        match std::fs::write(format!("{root}/{path}"), value) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other.map_err(refused),
        }
    }
    Ok(())
}

fn refused(error: Error) -> Refused {
    let locked = [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied];
    let text = if locked.contains(&error.kind()) {
        "in a container, mount the host's /proc/sys/net as /host/proc/sys/net".to_owned()
    } else {
        String::new()
    };
    Refused { text, ..Refused::from(error) }
}

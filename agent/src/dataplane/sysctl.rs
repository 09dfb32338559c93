//! Kernel parameters below `/proc/sys`. Reading and writing concern the
//! network namespace of the calling thread.

use std::collections::BTreeMap;

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
pub(crate) fn write(path: &str, value: &str) -> std::io::Result<()> {
    match std::fs::write(format!("/proc/sys/{path}"), value) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

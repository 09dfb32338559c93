//! The manifests in `deploy` and `examples`, as objects.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// A file of this repository.
pub fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The text of a file of this repository.
pub fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(path(file)).with_context(|| format!("cannot read {file}"))
}

/// The objects in it.
pub fn documents(path: &str) -> Result<Vec<Value>> {
    let found: Vec<Value> = serde_saphyr::from_multiple(&read(path)?)?;
    Ok(found.into_iter().filter(|document| !document.is_null()).collect())
}

//! Where the binaries under test are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Directory of the binaries; wins over all guesses.
const VARIABLE: &str = "WEFT_BIN_DIR";
/// Directory of the binaries of an earlier version.
const PREVIOUS: &str = "WEFT_PREVIOUS_BIN_DIR";

/// The `agent` binary.
pub fn agent() -> Result<PathBuf> {
    find("agent")
}

/// The `weft` plugin.
pub fn shim() -> Result<PathBuf> {
    find("weft")
}

/// The directory that holds both.
pub fn directory() -> Result<PathBuf> {
    Ok(agent()?.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// The directory that holds both of an earlier version: `make test-upgrade` gets them.
pub fn previous() -> Result<PathBuf> {
    let directory = std::env::var_os(PREVIOUS).map(PathBuf::from).with_context(|| {
        format!("{PREVIOUS} names no programs of an earlier version: run `make test-upgrade`")
    })?;
    for name in ["agent", "weft"] {
        let path = directory.join(name);
        if !path.is_file() {
            bail!("{PREVIOUS} is set, but {} is not there", path.display());
        }
    }
    Ok(directory)
}

fn find(name: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(directory).join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{VARIABLE} is set, but {} is not there", path.display());
    }
    // Tests lie in target[/TRIPLE]/PROFILE/deps, programs one up.
    let own = std::env::current_exe()?;
    let profile = own
        .ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .unwrap_or(&own);
    let release = profile.with_file_name("release");
    for directory in [profile, release.as_path()] {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("no `{name}` beside {}: run `make build` first, or set {VARIABLE}", profile.display())
}

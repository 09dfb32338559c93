//! The number of a life of the agent.

#[cfg(not(test))]
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::files;
use crate::host::now_ms;
#[cfg(test)]
use crate::sim::fs;

/// A number for this life of the agent that is greater than that of every
/// earlier one, also after the clock was set back.
pub(crate) fn session(state_dir: &Path) -> Result<u64> {
    let path = state_dir.join("session");
    let last: u64 = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let session = now_ms().max(last.saturating_add(1));
    files::replace_json(&path, &session)
        .with_context(|| format!("cannot write {}; is STATE_DIR writable?", path.display()))?;
    Ok(session)
}

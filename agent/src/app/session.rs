//! The number of a life of the agent.

use std::path::Path;

use anyhow::{Context, Result};

use crate::files;
use crate::host::now_ms;

/// A number for this life of the agent that is greater than that of every
/// earlier one, also after the clock was set back.
pub(crate) fn session(state_dir: &Path) -> Result<u64> {
    let path = state_dir.join("session");
    let last = files::read_json(&path).unwrap_or_else(|e| {
        tracing::warn!("{}: {e}; this life is numbered by clock and ledger", path.display());
        None
    });
    let last: u64 = last.unwrap_or(0);
    let session = now_ms().max(last.saturating_add(1));
    files::replace_json(&path, &session)
        .with_context(|| format!("cannot write {}; is STATE_DIR writable?", path.display()))?;
    Ok(session)
}

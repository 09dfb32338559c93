//! Waiting for conditions: the only way a test may wait.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` is true; returns how long that took. An error of the
/// condition counts as "not yet", and is shown if time runs out.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let last = condition();
        match last {
            Ok(true) => return Ok(start.elapsed()),
            _ if start.elapsed() < patience => std::thread::sleep(POLL),
            Ok(false) => bail!("waited {patience:?} in vain for: {what}"),
            Err(error) => bail!("waited {patience:?} in vain for: {what}; last error: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_shown_when_time_runs_out() {
        let error = wait_until("godot", Duration::ZERO, || bail!("not today")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("godot") && text.contains("not today"), "{text}");
        assert!(wait_until("now", Duration::ZERO, || Ok(true)).is_ok());
    }
}

//! How often to ask: thousands of agents must not be a load, nor come at once.

use std::time::Duration;

/// Between two rounds on a healthy node, by the size of the cluster: all agents
/// together make at most ten rounds a second.
pub fn round(members: usize) -> Duration {
    let millis = u64::try_from(members).unwrap_or(u64::MAX).saturating_mul(100);
    Duration::from_millis(millis.clamp(10_000, 600_000))
}

/// Spread over half to one and a half of it; `random` is from 0 to 1.
pub fn spread(pause: Duration, random: f64) -> Duration {
    pause.mul_f64(0.5 + random.clamp(0.0, 1.0))
}

/// Where every node finds the same at once and has something to write: this
/// node's place in a queue of at most ten a second. `random` is from 0 to 1.
pub fn place(members: usize, random: f64) -> Duration {
    let millis = u64::try_from(members).unwrap_or(u64::MAX).saturating_mul(100).min(600_000);
    Duration::from_millis(millis).mul_f64(random.clamp(0.0, 1.0))
}

/// After so many failures in a row: from half a second, doubling to half a minute.
pub fn after_failures(failures: u32, random: f64) -> Duration {
    let steps = failures.saturating_sub(1).min(6);
    spread(Duration::from_millis(500 << steps), random)
}

/// Longest pause, before jitter, of a watch that voters keep, at most a dozen of them: an
/// outage is over for them some seconds after its end.
pub const WATCH: Duration = Duration::from_secs(8);

/// While nobody listens there, after so many tries in a row: a start is ready soon
/// after the server is. From a quarter of a second, doubling to two; spread, never
/// more than three.
pub fn while_unconnected(tries: u32, random: f64) -> Duration {
    let steps = tries.saturating_sub(1).min(3);
    spread(Duration::from_millis(250 << steps), random)
}

/// How long a first start waits after a failure. What counts towards longer pauses
/// is what the server answered, or did not, and not that it was yet to come.
#[derive(Debug, Default)]
pub struct FirstStart {
    unconnected: u32,
    failures: u32,
}

impl FirstStart {
    /// The pause after one more failure.
    pub fn after(&mut self, unconnected: bool, random: f64) -> Duration {
        if unconnected {
            self.failures = 0;
            self.unconnected = self.unconnected.saturating_add(1);
            while_unconnected(self.unconnected, random)
        } else {
            self.unconnected = 0;
            self.failures = self.failures.saturating_add(1);
            after_failures(self.failures, random)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_clusters_are_quick_and_large_ones_gentle() {
        assert_eq!(round(3), Duration::from_secs(10));
        assert_eq!(round(5000), Duration::from_secs(500));
        assert_eq!(round(usize::MAX), Duration::from_secs(600));
    }

    #[test]
    fn a_server_that_is_slow_to_come_is_found_soon() {
        let mut pace = FirstStart::default();
        let pauses: Vec<_> = (0..100).map(|_| pace.after(true, 1.0)).collect();
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(3)), "{pauses:?}");
        // Its first answers may be errors: those count from the first of them.
        assert_eq!(pace.after(false, 0.5), Duration::from_millis(500));
        assert_eq!(pace.after(false, 0.5), Duration::from_secs(1));
        assert!((0..10).map(|_| pace.after(false, 0.5)).last() >= Some(Duration::from_secs(30)));
        assert!(pace.after(true, 0.0) >= Duration::from_millis(125));
    }

    proptest! {
        #[test]
        fn pauses_are_bounded(failures: u32, random in 0.0..=1.0) {
            let pause = after_failures(failures, random);
            prop_assert!(pause >= Duration::from_millis(250) && pause <= Duration::from_secs(48));
        }
    }
}

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

    proptest! {
        #[test]
        fn pauses_are_bounded(failures: u32, random in 0.0..=1.0) {
            let pause = after_failures(failures, random);
            prop_assert!(pause >= Duration::from_millis(250) && pause <= Duration::from_secs(48));
        }
    }
}

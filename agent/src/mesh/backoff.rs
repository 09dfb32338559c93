//! When to try again: a pure function of the number of failures and a random number.

use std::time::Duration;

/// First pause.
const START: Duration = Duration::from_millis(250);
/// Longest pause before jitter.
const CAP: Duration = Duration::from_secs(15);
/// Growth per failure.
const FACTOR: f64 = 1.6;

/// Pause after `failures` failures in a row (1 = the first). `random` in 0..1
/// spreads it over half to one and a half times the nominal pause, so that
/// many nodes do not knock in step.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let exponent = i32::try_from(failures.saturating_sub(1).min(64)).unwrap_or(64);
    let nominal = (START.as_secs_f64() * FACTOR.powi(exponent)).min(CAP.as_secs_f64());
    Duration::from_secs_f64(nominal * (0.5 + random.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grows_from_start_to_cap() {
        assert_eq!(pause(1, 0.5), START);
        assert_eq!(pause(2, 0.5), Duration::from_millis(400));
        assert_eq!(pause(100, 0.5), CAP);
        assert_eq!(pause(u32::MAX, 0.5), CAP);
    }

    proptest! {
        #[test]
        fn is_bounded_and_monotonic(failures in 0..1000u32, random in 0.0..1.0f64) {
            let now = pause(failures, random);
            prop_assert!(now >= START / 2 && now <= CAP * 3 / 2);
            prop_assert!(pause(failures + 1, random) >= now);
        }
    }
}

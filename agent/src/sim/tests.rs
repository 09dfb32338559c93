//! The simulator as tests: the one that `make sim` runs, and a few seeds of it.

use super::campaign::{campaign, regressions};
use super::run::run;
use super::schedule::Schedule;

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=3 {
        let schedule = Schedule::generate(seed, 5);
        let (a, b) = (run(&schedule, true), run(&schedule, true));
        for (x, y) in a.lines.iter().zip(&b.lines) {
            assert_eq!(x, y, "seed {seed}");
        }
        assert_eq!((a.hash, a.time), (b.hash, b.time), "seed {seed}");
    }
}

#[test]
fn what_failed_once_does_not_fail_again() {
    for schedule in regressions() {
        assert_eq!(run(&schedule, false).broken, None, "{schedule}");
    }
}

#[test]
#[ignore = "make sim"]
fn sim() {
    campaign();
}

//! Every target on its kept corpus, then on mutations of it.
//!
//! `FUZZ_SECONDS` is the budget of all targets together (20 by default), `FUZZ_TARGET`
//! picks one, `FUZZ_SEED` repeats a run. An input that fails is written to
//! `target/fuzz/failures`; kept under `tests/fuzz/corpus/TARGET`, it is tried for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weft_fuzz::{TARGETS, Target, corpus, mutate};

/// Memory of this process, at most: inputs are small, so must be what comes of them.
const MOST_KIB: u64 = 512 << 10;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not understood")))
}

fn failures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/failures")
}

/// Runs one input; a failure is kept and told.
fn run(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return;
    }
    let file = failures().join(format!("{}-{}", target.name, what.replace('/', "-")));
    std::fs::create_dir_all(failures()).unwrap();
    std::fs::write(&file, input).unwrap();
    panic!(
        "target {} fails on {what}: {} bytes, kept in {}",
        target.name,
        input.len(),
        file.display()
    );
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_is_kept_and_mutations_of_it() {
    let seconds: u64 = variable("FUZZ_SECONDS").unwrap_or(20);
    let seed: u64 = variable("FUZZ_SEED").unwrap_or_else(|| rand::rng().random());
    let only: Option<String> = variable("FUZZ_TARGET");
    println!("FUZZ_SEED={seed}");
    let targets: Vec<_> =
        TARGETS.iter().filter(|t| only.as_ref().is_none_or(|name| name == t.name)).collect();
    assert!(!targets.is_empty(), "FUZZ_TARGET={} is no target", only.unwrap_or_default());
    let share = Duration::from_secs(seconds) / u32::try_from(targets.len()).unwrap();
    for (number, target) in (0..).zip(targets) {
        let mut inputs = (target.seeds)();
        for (at, input) in inputs.iter().enumerate() {
            run(target, input, &format!("seed-{at}"));
        }
        for (name, input) in corpus::kept(target).unwrap() {
            run(target, &input, &name);
            inputs.push(input);
        }
        assert!(!inputs.is_empty(), "{} has nothing to start from", target.name);
        let (start, mut tried) = (Instant::now(), 0_u64);
        let mut dice = StdRng::seed_from_u64(seed.wrapping_add(number));
        while start.elapsed() < share {
            let input = mutate::mutate(&inputs, target.longest, &mut dice);
            run(target, &input, &format!("{seed}-{tried}"));
            tried += 1;
        }
        println!("{:<16} {:>4} kept, {tried:>7} mutations", target.name, inputs.len());
    }
    let peak = peak_kib();
    println!("peak of memory {} MiB", peak >> 10);
    assert!(peak < MOST_KIB, "{peak} KiB");
}

/// A target that is not in the table any more leaves nothing behind.
#[test]
fn the_corpus_is_of_targets_that_exist_and_small() {
    let root = corpus::directory(&TARGETS[0]).parent().unwrap().to_owned();
    let mut bytes = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = weft_fuzz::target(&name).unwrap_or_else(|| panic!("{name} is no target"));
        bytes += corpus::kept(target).unwrap().iter().map(|(_, b)| b.len()).sum::<usize>();
    }
    println!("{} KiB kept", bytes >> 10);
    assert!(bytes < 1 << 20, "{bytes} bytes: minimise it");
}

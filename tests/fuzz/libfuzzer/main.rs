//! The targets under libFuzzer; `FUZZ_TARGET` says which. The inputs that the code
//! makes by itself are put where `FUZZ_SEEDS_TO` says, before libFuzzer looks there.
#![no_main]
#![allow(clippy::panic, reason = "without a target there is nothing to do")]

use std::path::Path;
use std::sync::OnceLock;

use weft_fuzz::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn prepare() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target =
        weft_fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name} is no target"));
    if let Ok(directory) = std::env::var("FUZZ_SEEDS_TO") {
        for (at, seed) in (target.seeds)().iter().enumerate() {
            let file = Path::new(&directory).join(format!("seed-{at}"));
            if let Err(e) = std::fs::write(&file, seed) {
                panic!("{}: {e}", file.display());
            }
        }
    }
    let _ = TARGET.set(target);
}

libfuzzer_sys::fuzz_target!(
    init: prepare(),
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            if bytes.len() <= target.longest {
                (target.run)(bytes);
            }
        }
    }
);

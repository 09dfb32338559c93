//! What a fault test has to say: one line, in the output and in a file of all of them.

use std::io::Write;
use std::time::Duration;

/// Collects the lines of a run, below `target`.
const FILE: &str = "weft-faults.md";

/// Prints `broken → held → repair`, and appends it as a row of a table to
/// `target/weft-faults.md`: what `docs/faults.md` is written from.
pub fn told(broken: &str, held: &str, repair: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    println!("{broken} → {held} → {repair}");
    let own = std::env::current_exe().unwrap_or_default();
    let Some(target) = own.ancestors().find(|path| path.ends_with("target")) else { return };
    let file = std::fs::File::options().create(true).append(true).open(target.join(FILE));
    if let Ok(mut file) = file {
        // One write: tests run side by side.
        let row = format!("| {broken} | {held} | {repair} | `{test}` |\n");
        let _ = file.write_all(row.as_bytes());
    }
}

/// A duration as people say it.
pub fn took(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => format!("{s:.1} s"),
    }
}

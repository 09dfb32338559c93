//! Small helpers of the renderings.

use std::fmt::Display;

/// What came from other machines, fit for a terminal: no control characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `id(name)`, as Weave writes peers; the id shortened.
pub(super) fn peer(id: &str, name: &str) -> String {
    let short: String = id.chars().take(8).collect();
    format!("{}({})", clean(&short), clean(name))
}

/// Comma separated, or `none`.
pub(super) fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Microseconds as milliseconds.
pub(super) fn millis(us: u64) -> String {
    format!("{}.{}ms", us / 1000, us % 1000 / 100)
}

/// `3d4h`, `5m2s`: two units are enough.
pub(super) fn span(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s}s"),
        (0, ..) => format!("{h}h{m}m"),
        _ => format!("{d}d{h}h"),
    }
}

/// `1 lease`, `2 leases`.
pub(crate) fn count(number: impl Display, word: &str) -> String {
    let number = number.to_string();
    let plural = if number == "1" { "" } else { "s" };
    format!("{number} {word}{plural}")
}

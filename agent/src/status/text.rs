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

/// Milliseconds since 1970 as `2026-02-24 11:55:03 UTC`.
pub(super) fn moment(ms: u64) -> String {
    let (days, s) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days of a year that begins in March: the leap day is the last one.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    format!(
        "{year:04}-{month:02}-{of_month:02} {:02}:{:02}:{:02} UTC",
        s / 3600,
        s / 60 % 60,
        s % 60
    )
}

/// `1 lease`, `2 leases`.
pub(crate) fn count(number: impl Display, word: &str) -> String {
    let number = number.to_string();
    let plural = if number == "1" { "" } else { "s" };
    format!("{number} {word}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_clocks_do() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(seconds * 1000), text);
        }
        assert!(moment(u64::MAX).ends_with("UTC"));
    }
}

//! Ratios measured side by side, several times, and what is wanted of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a ratio shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Wanted {
    /// Whether a ratio is so.
    pub fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}

/// One line of a benchmark's table.
#[derive(Debug, Clone)]
pub struct Ratio {
    /// Short and stable: the baseline knows it by this.
    pub name: &'static str,
    /// In words: what over what.
    pub what: &'static str,
    /// One per round.
    pub rounds: Vec<f64>,
    /// What it shall be.
    pub wanted: Wanted,
}

/// The figures below which such shares of all lie (nearest); not a number of none.
pub fn quantiles<const N: usize>(figures: impl Iterator<Item = f64>, shares: [f64; N]) -> [f64; N] {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    shares.map(|share| {
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    })
}

/// The median of some figures; not a number of none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

impl Ratio {
    /// What counts.
    pub fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// The smallest and the largest.
    pub fn range(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64| self.rounds.iter().copied().fold(f64::NAN, f);
        (fold(f64::min), fold(f64::max))
    }

    /// Whether it is as wanted.
    pub fn is_ok(&self) -> bool {
        self.wanted.holds(self.median())
    }

    fn to_json(&self) -> Value {
        let (min, max) = self.range();
        let (at_least, at_most) = match self.wanted {
            Wanted::AtLeast(bound) => (Some(bound), None),
            Wanted::AtMost(bound) => (None, Some(bound)),
        };
        json!({
            "name": self.name, "what": self.what, "ok": self.is_ok(),
            "median": self.median(), "min": min, "max": max, "rounds": self.rounds,
            "at_least": at_least, "at_most": at_most,
        })
    }
}

/// Prints ratios as a table: what came out, what was wanted.
pub fn print(ratios: &[Ratio]) {
    println!("{:<66} {:>7} {:>16} {:>9}", "ratio", "median", "[min, max]", "wanted");
    for ratio in ratios {
        let (min, max) = ratio.range();
        println!(
            "{:<66} {:>7.2} {:>16} {:>9}  {}",
            ratio.what,
            ratio.median(),
            format!("[{min:.2}, {max:.2}]"),
            ratio.wanted.to_string(),
            if ratio.is_ok() { "ok" } else { "short" },
        );
    }
}

/// Where the figures of a benchmark are kept: `bench/NAME.json` in the target directory.
pub fn path(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let target = own.ancestors().find(|path| path.ends_with("target"));
    target.unwrap_or(Path::new("target")).join("bench").join(name).with_extension("json")
}

/// Writes figures, and says where.
pub fn save(path: &Path, figures: &Value) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(failed)?;
    }
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(path, text).with_context(failed)?;
    println!("written to {}", path.display());
    Ok(())
}

/// Writes ratios, and absolute figures beside them that are only shown.
pub fn write(path: &Path, ratios: &[Ratio], figures: &Value) -> Result<()> {
    let ratios: Vec<Value> = ratios.iter().map(Ratio::to_json).collect();
    save(path, &json!({ "ratios": ratios, "figures": figures }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts() {
        let mut ratio = Ratio {
            name: "r",
            what: "a over b",
            rounds: vec![9.0, 1.0, 6.5],
            wanted: Wanted::AtLeast(6.0),
        };
        assert!(ratio.is_ok() && ratio.range() == (1.0, 9.0));
        ratio.rounds.push(5.0);
        assert_eq!(ratio.median(), 5.75);
        assert!(!ratio.is_ok());
        ratio.wanted = Wanted::AtMost(5.75);
        assert!(ratio.is_ok());
        ratio.rounds.clear();
        assert!(!ratio.is_ok(), "nothing measured is not good");
    }
}

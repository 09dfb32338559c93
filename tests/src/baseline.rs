//! What benchmarks gave when somebody last looked: the guard against getting slower.
//!
//! Kept are ratios and instruction counts, never times: they mean the same on the next
//! machine. Each figure may be worse by its slack before it counts as a regression.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A ratio "theirs over ours".
    Higher,
    /// A ratio "ours over theirs", a count.
    Lower,
}

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// As measured.
    pub value: f64,
    /// Which way is better.
    pub better: Better,
    /// How much worse is still noise: 0.3 is 30 percent.
    pub slack: f64,
}

impl Figure {
    /// How much worse `now` is than this: 0.5 is half as much again; negative is better.
    pub fn worse(&self, now: f64) -> f64 {
        match self.better {
            Better::Higher => self.value / now - 1.0,
            Better::Lower => now / self.value - 1.0,
        }
    }

    /// Whether `now` is worse by more than noise. What could not be measured is.
    pub fn is_regression(&self, now: f64) -> bool {
        let worse = self.worse(now);
        worse.is_nan() || worse > self.slack
    }
}

/// Figures by name.
pub type Figures = BTreeMap<String, Figure>;

/// The file, below the repository.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/baseline.json")
}

/// Reads a baseline.
pub fn parse(text: &str) -> Result<Figures> {
    let json: Value = serde_json::from_str(text)?;
    let entries = json.as_object().context("a baseline is an object of figures")?;
    let figure = |(name, entry): (&String, &Value)| {
        let number = |field: &str| {
            entry.get(field).and_then(Value::as_f64).with_context(|| format!("{name}: no {field}"))
        };
        let better = match entry.get("better").and_then(Value::as_str) {
            Some("higher") => Better::Higher,
            Some("lower") => Better::Lower,
            other => bail!("{name}: better is {other:?}, not \"higher\" or \"lower\""),
        };
        Ok((name.clone(), Figure { value: number("value")?, better, slack: number("slack")? }))
    };
    entries.iter().map(figure).collect()
}

/// The text of a baseline.
pub fn text(figures: &Figures) -> String {
    let entry = |figure: &Figure| {
        let better = if figure.better == Better::Higher { "higher" } else { "lower" };
        json!({ "value": figure.value, "better": better, "slack": figure.slack })
    };
    let all: serde_json::Map<_, _> =
        figures.iter().map(|(name, figure)| (name.clone(), entry(figure))).collect();
    format!("{:#}\n", Value::Object(all))
}

/// The line of one figure, and whether it is as good as it was.
pub fn judge(name: &str, before: Option<&Figure>, now: Option<&Figure>) -> (String, bool) {
    let number = |value: f64| {
        if value.abs() < 1000.0 { format!("{value:.2}") } else { format!("{value:.0}") }
    };
    match (before, now) {
        (Some(before), Some(now)) => {
            let bad = before.is_regression(now.value);
            let line = format!(
                "{name:<28} was {:>10}, is {:>10}: {:>+6.1} % worse, {:.0} % allowed  {}",
                number(before.value),
                number(now.value),
                before.worse(now.value) * 100.0,
                before.slack * 100.0,
                if bad { "REGRESSED" } else { "ok" },
            );
            (line, !bad)
        }
        (Some(before), None) => {
            let was = number(before.value);
            (format!("{name:<28} was {was:>10}, and was not measured  REGRESSED"), false)
        }
        (None, Some(now)) => {
            (format!("{name:<28} is {:>10}: not in the baseline yet", number(now.value)), true)
        }
        (None, None) => (String::new(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO: Figure = Figure { value: 6.0, better: Better::Higher, slack: 0.3 };
    const COUNT: Figure = Figure { value: 1000.0, better: Better::Lower, slack: 0.05 };

    #[test]
    fn worse_than_noise() {
        assert!(!RATIO.is_regression(6.0) && !RATIO.is_regression(60.0));
        assert!(!RATIO.is_regression(4.7) && RATIO.is_regression(4.5));
        assert!(!COUNT.is_regression(10.0) && !COUNT.is_regression(1040.0));
        assert!(COUNT.is_regression(1060.0));
        assert!(COUNT.is_regression(f64::NAN) && RATIO.is_regression(f64::NAN));
    }

    #[test]
    fn what_is_missing_is_no_success() {
        assert!(!judge("r", Some(&RATIO), None).1);
        assert!(judge("r", None, Some(&RATIO)).1);
        let (line, ok) = judge("r", Some(&RATIO), Some(&Figure { value: 3.0, ..RATIO }));
        assert!(!ok && line.contains("+100.0 % worse"), "{line}");
    }

    #[test]
    fn written_and_read() {
        let figures = Figures::from([("a".to_owned(), RATIO), ("b".to_owned(), COUNT)]);
        assert_eq!(parse(&text(&figures)).unwrap(), figures);
        for bad in ["[]", "{\"a\": {}}", "{\"a\": {\"value\": 1, \"slack\": 1, \"better\": \"\"}}"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

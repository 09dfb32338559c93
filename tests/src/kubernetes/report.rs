//! Named steps, what they measured, and a table at the end.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Only steps whose name contains one of these words run; comma separated.
const ONLY: &str = "WEFT_E2E_ONLY";

/// Steps of one test.
#[derive(Debug)]
pub struct Report {
    title: String,
    start: Instant,
    rows: Vec<Row>,
    only: Vec<String>,
}

#[derive(Debug)]
struct Row {
    name: String,
    took: Duration,
    /// What was measured, or what went wrong.
    outcome: Result<String, String>,
}

impl Report {
    /// An empty one.
    pub fn new(title: &str) -> Self {
        let only = std::env::var(ONLY).unwrap_or_default();
        let only = only.split(',').map(str::trim).filter(|word| !word.is_empty());
        let only = only.map(str::to_owned).collect();
        println!("{title}");
        Self { title: title.to_owned(), start: Instant::now(), rows: Vec::new(), only }
    }

    /// A step without which nothing that follows makes sense.
    pub fn must<T>(&mut self, name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        let start = Instant::now();
        let (value, outcome) = match work() {
            Ok((value, measured)) => (Ok(value), Ok(measured)),
            Err(error) => {
                let text = format!("{error:#}");
                (Err(error), Err(text))
            }
        };
        self.add(name, start.elapsed(), outcome);
        if value.is_err() {
            self.print();
        }
        value
    }

    /// A step that may fail without stopping the others; what fails is tried once more, for
    /// these are real programs on a machine that others use, too. Returns whether it went
    /// well at last; steps that were not asked for are left out, and did.
    pub fn step(&mut self, name: &str, mut work: impl FnMut() -> Result<String>) -> bool {
        if !self.only.is_empty() && !self.only.iter().any(|word| name.contains(word)) {
            println!("          left out: {name}");
            return true;
        }
        let start = Instant::now();
        let outcome = work().or_else(|first| {
            println!("          once more: {name}: {first:#}");
            work().map(|measured| format!("{measured}; FLAKY, the first try: {first}"))
        });
        let fine = outcome.is_ok();
        self.add(name, start.elapsed(), outcome.map_err(|error| format!("{error:#}")));
        fine
    }

    fn add(&mut self, name: &str, took: Duration, outcome: Result<String, String>) {
        let (word, text) = match &outcome {
            Ok(text) => ("ok  ", text),
            Err(text) => ("FAIL", text),
        };
        println!("[{:7.2}s] {word} {name}: {text}", self.start.elapsed().as_secs_f64());
        self.rows.push(Row { name: name.to_owned(), took, outcome });
    }

    fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let mut text = format!("\n{}\n", self.title);
        let _ = writeln!(text, "  {:6}  {:width$}  {:>7}  MEASURED", "", "WHAT", "TIME");
        for row in &self.rows {
            let (word, outcome) = match &row.outcome {
                Ok(measured) => ("ok", measured.as_str()),
                // The rest was printed when it happened.
                Err(error) => ("FAILED", error.lines().next().unwrap_or_default()),
            };
            let seconds = row.took.as_secs_f64();
            let _ = writeln!(text, "  {word:6}  {:width$}  {seconds:6.1}s  {outcome}", row.name);
        }
        text
    }

    fn print(&self) {
        println!("{}", self.table());
    }

    /// Prints the table; fails if a step did.
    pub fn finish(self) -> Result<()> {
        self.print();
        let failed = self.rows.iter().filter(|row| row.outcome.is_err()).count();
        if failed > 0 {
            bail!("{failed} of {} steps failed: see the table above", self.rows.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_report_and_is_in_the_table() {
        let mut report = Report::new("title");
        assert!(report.step("good", || Ok("42 pods".into())));
        assert!(!report.step("bad", || bail!("first line\nsecond line")));
        let table = report.table();
        assert!(table.contains("42 pods") && table.contains("FAILED"), "{table}");
        assert!(table.contains("first line") && !table.contains("second line"), "{table}");
        assert!(report.finish().is_err());
    }
}

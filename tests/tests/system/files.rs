//! House rules that no compiler checks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use weft_tests::Result;

const LONGEST: usize = 700;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn no_source_file_is_too_long() -> Result {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut found)?;
    ensure!(found.len() > 20, "the sources are there");
    let mut long = Vec::new();
    for path in found {
        let lines = std::fs::read_to_string(&path)?.lines().count();
        if lines > LONGEST {
            long.push(format!("{}: {lines} lines, more than {LONGEST}", path.display()));
        }
    }
    ensure!(long.is_empty(), "split them by what changes together:\n{}", long.join("\n"));
    Ok(())
}

/// Reasons of conditions in one source file: the first text after the word.
fn reasons(source: &str) -> Vec<&str> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    // The type of a field has no text of its own.
    let places = ["condition(", "reason: "].into_iter().flat_map(|word| code.split(word).skip(1));
    places
        .filter(|rest| !rest.starts_with("String"))
        .filter_map(|rest| rest.split('"').nth(1))
        .filter(|text| text.len() > 4 && text.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|text| text.chars().all(|c| c.is_ascii_alphanumeric()))
        .collect()
}

#[test]
fn every_condition_has_its_row_in_the_readme() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let rows: BTreeSet<_> = readme
        .split("## Troubleshooting")
        .nth(1)
        .and_then(|text| text.split("\n## ").next())
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    let mut files = Vec::new();
    sources(&root.join("agent/src"), &mut files)?;
    let mut used = BTreeSet::new();
    for path in files {
        let for_tests = ["tests", "tests.rs", "sample.rs"];
        if path.strip_prefix(&root)?.iter().any(|part| for_tests.iter().any(|name| part == *name)) {
            continue;
        }
        used.extend(reasons(&std::fs::read_to_string(path)?).into_iter().map(str::to_owned));
    }
    ensure!(used.len() > 20, "conditions are found: {used:?}");
    let unknown: Vec<_> = used.difference(&rows).collect();
    ensure!(unknown.is_empty(), "README.md, Troubleshooting, has no row for {unknown:?}");
    let gone: Vec<_> = rows.difference(&used).collect();
    ensure!(gone.is_empty(), "README.md, Troubleshooting, explains what is never said: {gone:?}");
    Ok(())
}

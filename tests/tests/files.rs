//! House rules that no compiler checks.

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

//! The patches of `tests/mutants` still fit the source they break.

use std::fs;
use std::path::Path;

/// The text a hunk expects, without the lines it adds.
fn expected(hunk: &str) -> String {
    let lines = hunk.lines().filter(|line| !line.starts_with('+'));
    lines.map(|line| format!("{}\n", line.get(1..).unwrap_or_default())).collect()
}

#[test]
fn every_mutant_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(root.join("tests/mutants")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "patch") {
            continue;
        }
        count += 1;
        let patch = fs::read_to_string(&path).unwrap();
        let mut hunks = 0;
        for part in patch.split("--- a/").skip(1) {
            let file = part.lines().next().unwrap();
            let source = fs::read_to_string(root.join(file)).unwrap();
            // "@@ -1,2 +1,3 @@", then the lines.
            for hunk in part.split("\n@@ ").skip(1) {
                let (_, hunk) = hunk.split_once('\n').unwrap();
                assert!(
                    source.contains(&expected(hunk)),
                    "{} no longer fits {file}: make the patch anew",
                    path.display()
                );
                hunks += 1;
            }
        }
        assert!(hunks > 0, "{} changes nothing", path.display());
    }
    assert!(count >= 10, "{count} mutants only");
}

//! The form of the files in STATE_DIR and RUN_DIR: an agent that is older than what it
//! finds must not guess.
//!
//! The number goes up when a release writes something its predecessor cannot read. It is
//! written before the first such file, so an agent that knows less ends by name, before it
//! has touched anything. Where there is no number, the files are of form 1.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// The newest form this version reads, and the one it writes.
const FORM: u32 = 1;
/// Name of the file in STATE_DIR.
pub(super) const FILE: &str = "form";

/// What the file says. Later versions may say more.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    form: u32,
    /// The version that raised it.
    weft: String,
}

/// The files cannot be used by this version.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormError {
    #[error(
        "{} says that weft {writer} wrote the files here, in form {form}; this is weft {}, which \
         reads forms up to {FORM}. Nothing was changed: start weft {writer} or newer on this \
         node. A downgrade over this change is possible only as a new node: let another node \
         run `agent rmpeer`, then move the directory away",
        .path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, form: u32, writer: String },
    #[error("cannot {what} {}: {source}; is STATE_DIR writable?", .path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

/// Refuses files of a form unknown here; else they are of ours from now on.
pub(super) fn admit(state_dir: &Path) -> Result<(), FormError> {
    let path = state_dir.join(FILE);
    let found: Option<Mark> = match files::read_json(&path) {
        // Whoever reads the other files will name what it does not understand.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            tracing::warn!("{}: {e}; it counts as absent", path.display());
            None
        }
        other => other.map_err(|source| io("read", &path, source))?,
    };
    match found {
        Some(mark) if mark.form > FORM => {
            Err(FormError::Newer { path, form: mark.form, writer: mark.weft })
        }
        Some(mark) if mark.form == FORM => Ok(()),
        _ => {
            let mark = Mark { form: FORM, weft: env!("CARGO_PKG_VERSION").to_owned() };
            files::replace_json(&path, &mark).map_err(|source| io("write", &path, source))
        }
    }
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> FormError {
    FormError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_newer_is_refused_and_left_as_it_is() {
        let dir = std::env::temp_dir().join(format!("weft-form-{}", std::process::id()));
        files::private_dir(&dir).unwrap();
        let path = dir.join(FILE);
        let read = || files::read_json::<Mark>(&path).unwrap().unwrap();
        admit(&dir).unwrap();
        assert_eq!(read().form, FORM);
        for older in ["{", r#"{"form":0,"weft":"0.0.1"}"#] {
            fs::write(&path, older).unwrap();
            admit(&dir).unwrap();
            assert_eq!(read().form, FORM);
        }
        let newer = r#"{"form":2,"weft":"7.8.9","more":true}"#;
        fs::write(&path, newer).unwrap();
        let text = admit(&dir).unwrap_err().to_string();
        for part in ["form 2", "weft 7.8.9", "up to 1", path.to_str().unwrap()] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), newer);
        fs::remove_dir_all(dir).unwrap();
    }
}

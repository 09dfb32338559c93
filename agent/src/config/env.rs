//! Where configuration comes from, injected so that tests set nothing global.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The outside world, as far as configuration reads it.
pub trait Env {
    /// A variable, if it is set (to anything, also to nothing).
    fn get(&self, name: &str) -> Option<String>;
    /// A file named by a variable (`PASSWORD_FILE`).
    fn read_file(&self, path: &Path) -> io::Result<String>;
    /// The machine's host name.
    fn hostname(&self) -> Option<String>;
}

/// The process's own environment.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn get(&self, name: &str) -> Option<String> {
        // Lossy: a value that is not UTF-8 must be refused as malformed, not taken for unset.
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn read_file(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn hostname(&self) -> Option<String> {
        nix::unistd::gethostname().ok()?.into_string().ok()
    }
}

/// An environment made of values: for tests, and for the lab's agents.
#[derive(Debug, Clone, Default)]
pub struct MapEnv {
    /// Variables.
    pub vars: BTreeMap<String, String>,
    /// Files by path.
    pub files: BTreeMap<String, String>,
    /// Host name.
    pub hostname: Option<String>,
}

impl MapEnv {
    /// From name and value pairs, on a host called `host`.
    pub fn new<'a>(vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self {
            vars: vars.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            files: BTreeMap::new(),
            hostname: Some("host".to_owned()),
        }
    }
}

impl Env for MapEnv {
    fn get(&self, name: &str) -> Option<String> {
        self.vars.get(name).cloned()
    }

    fn read_file(&self, path: &Path) -> io::Result<String> {
        self.files
            .get(&path.to_string_lossy().into_owned())
            .cloned()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn hostname(&self) -> Option<String> {
        self.hostname.clone()
    }
}

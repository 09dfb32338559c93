//! Nothing stays behind: a registry of labs, and the removal of one.
//!
//! A lab writes its entry before it creates anything, so whoever comes next can
//! remove what a crashed lab left.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::netns;
use super::topology::prefix;

const REGISTRY: &str = "/run/weft-lab";
/// How long processes may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// One lab, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the lab.
    pub name: String,
    /// Process that runs it.
    pub owner: i32,
    /// When that process started, in clock ticks since boot: pids come back.
    pub owner_start: u64,
    /// Meant to outlive its owner.
    pub keep: bool,
    /// State, run directories and logs of the agents.
    pub directory: PathBuf,
}

impl Entry {
    /// Enters a lab of this process. Fails if a lab of that name is there.
    pub fn register(name: &str, keep: bool) -> Result<Self> {
        let _lock = lock()?;
        if let Some(other) = load().into_iter().find(|entry| entry.name == name) {
            anyhow::bail!(
                "a lab named `{name}` is there (process {}): choose another --name, or remove it with `agent lab --down --name {name}`",
                other.owner
            );
        }
        let owner = std::process::id().cast_signed();
        let directory = Path::new(REGISTRY).join(format!("{name}.d"));
        // Nobody's now: the entry goes first on the way in, and last on the way out.
        let _ = fs::remove_dir_all(&directory);
        let entry = Self {
            name: name.to_owned(),
            owner,
            owner_start: start_time(owner).unwrap_or(0),
            keep,
            directory,
        };
        fs::write(entry.file(), serde_json::to_vec_pretty(&entry)?)
            .with_context(|| format!("cannot write {}", entry.file().display()))?;
        fs::create_dir_all(&entry.directory)
            .with_context(|| format!("cannot make {}", entry.directory.display()))?;
        Ok(entry)
    }

    fn file(&self) -> PathBuf {
        Path::new(REGISTRY).join(format!("{}.json", self.name))
    }

    fn orphaned(&self) -> bool {
        !self.keep && start_time(self.owner) != Some(self.owner_start)
    }

    /// Removes the lab: processes, namespaces, files. Goes on after errors and
    /// returns them all.
    pub fn remove(&self) -> Vec<String> {
        let mut errors = Vec::new();
        let spaces = netns::list(&prefix(&self.name));
        end_processes(&spaces);
        for space in &spaces {
            if let Err(error) = space.delete() {
                errors.push(format!("{error:#}"));
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != ErrorKind::NotFound
        {
            errors.push(format!("cannot remove {}: {error}", self.directory.display()));
        }
        // An entry whose lab is not wholly gone stays, for the next try.
        if errors.is_empty()
            && let Err(error) = fs::remove_file(self.file())
            && error.kind() != ErrorKind::NotFound
        {
            errors.push(format!("cannot remove {}: {error}", self.file().display()));
        }
        errors
    }
}

/// Ends every process inside `spaces`: asked first, then made to.
fn end_processes(spaces: &[netns::Netns]) {
    let processes = || -> Vec<i32> { spaces.iter().flat_map(netns::Netns::processes).collect() };
    let signal = |pids: &[i32], signal: Signal| {
        for pid in pids {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    };
    let mut left = processes();
    signal(&left, Signal::SIGTERM);
    // A stopped process hears nothing but these two.
    signal(&left, Signal::SIGCONT);
    let deadline = Instant::now() + GRACE;
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        left = processes();
    }
    signal(&left, Signal::SIGKILL);
    let deadline = Instant::now() + GRACE;
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        left = processes();
    }
}

/// Removes labs whose process died without doing it. Returns their names.
pub fn reap() -> Result<Vec<String>> {
    let _lock = lock()?;
    let orphans: Vec<_> = load().into_iter().filter(Entry::orphaned).collect();
    for orphan in &orphans {
        for error in orphan.remove() {
            err!("left-overs of lab {}: {error}", orphan.name);
        }
    }
    Ok(orphans.into_iter().map(|entry| entry.name).collect())
}

/// All labs on this machine.
pub fn labs() -> Result<Vec<Entry>> {
    let _lock = lock()?;
    Ok(load())
}

/// Ends the process that runs the lab, if any, then removes what is left.
pub fn down(entry: &Entry) -> Vec<String> {
    let alive = || start_time(entry.owner) == Some(entry.owner_start);
    if !entry.keep && alive() && entry.owner != std::process::id().cast_signed() {
        let _ = kill(Pid::from_raw(entry.owner), Signal::SIGTERM);
        let deadline = Instant::now() + GRACE + GRACE;
        while alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    entry.remove()
}

fn load() -> Vec<Entry> {
    let Ok(files) = fs::read_dir(REGISTRY) else { return Vec::new() };
    files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .collect()
}

fn lock() -> Result<File> {
    fs::create_dir_all(REGISTRY)
        .with_context(|| format!("cannot make {REGISTRY}: a lab needs root"))?;
    let path = Path::new(REGISTRY).join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Field 22 of `/proc/PID/stat`; `None` for the dead, zombies included.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a file name in parentheses, and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_has_a_start_time() {
        assert!(start_time(std::process::id().cast_signed()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn orphans_are_those_whose_process_is_gone() {
        let owner = std::process::id().cast_signed();
        let mine = Entry {
            name: "x".into(),
            owner,
            owner_start: start_time(owner).unwrap(),
            keep: false,
            directory: PathBuf::new(),
        };
        assert!(!mine.orphaned());
        let recycled = Entry { owner_start: mine.owner_start + 1, ..mine.clone() };
        assert!(recycled.orphaned());
        assert!(!Entry { keep: true, ..recycled }.orphaned());
    }
}

//! What belongs to one run: names, directories, and their removal.
//!
//! Namespaces and processes are in the registry of labs, so anybody's clean-up
//! finds them. Disks and control groups are found by the lab's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use weft_agent::lab::cleanup::{self, Entry};
use weft_agent::lab::netns::{self, Netns};
use weft_agent::lab::topology::prefix;

use crate::wait_until;

/// On a disk, not in memory: images, containers and logs.
const DISKS: &str = "/var/tmp/weft-kubernetes";
const CGROUPS: &str = "/sys/fs/cgroup";

static HOMES: AtomicUsize = AtomicUsize::new(0);

/// One run. All of it is removed on drop; what a killed run leaves, the next
/// one removes.
#[derive(Debug)]
pub struct Home {
    entry: Entry,
    disk: PathBuf,
}

impl Home {
    /// Registers a run of this process.
    pub fn new() -> Result<Self> {
        netns::check_host().context("Kubernetes tests do not run without root")?;
        reap()?;
        let name = format!("k{}.{}", std::process::id(), HOMES.fetch_add(1, Ordering::Relaxed));
        let entry = Entry::register(&name, false)?;
        let home = Self { disk: Path::new(DISKS).join(&name), entry };
        fs::create_dir_all(&home.disk)
            .with_context(|| format!("cannot make {}", home.disk.display()))?;
        Ok(home)
    }

    /// A namespace of this run; it has still to be made.
    pub fn netns(&self, part: &str) -> Netns {
        Netns::named(format!("{}{part}", prefix(&self.entry.name)))
    }

    /// Name of a control group of this run.
    pub fn cgroup(&self, part: &str) -> String {
        format!("{}{part}", prefix(&self.entry.name))
    }

    /// A directory of this run, made if need be.
    pub fn directory(&self, part: &str) -> Result<PathBuf> {
        let path = self.disk.join(part);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Where everything of this run is.
    pub fn disk(&self) -> &Path {
        &self.disk
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut errors = self.entry.remove();
        errors.extend(remove(&self.entry.name));
        for error in errors {
            eprintln!("{error}");
        }
    }
}

/// Removes runs whose process died without doing it.
fn reap() -> Result<()> {
    cleanup::reap()?;
    // What was registered after this look has its process, and so its entry.
    let disks = names(Path::new(DISKS));
    let known: BTreeSet<_> = cleanup::labs()?.into_iter().map(|entry| entry.name).collect();
    for name in disks {
        if !known.contains(&name) {
            for error in remove(&name) {
                eprintln!("left-overs of run {name}: {error}");
            }
        }
    }
    Ok(())
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Control groups and disk of a run whose processes are gone.
fn remove(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let hierarchies = names(Path::new(CGROUPS));
    let roots = hierarchies.iter().map(|h| Path::new(CGROUPS).join(h));
    for root in roots.chain([PathBuf::from(CGROUPS)]) {
        for group in names(&root).iter().filter(|group| group.starts_with(&prefix(name))) {
            if let Err(error) = remove_cgroup(&root.join(group)) {
                errors.push(format!("{error:#}"));
            }
        }
    }
    let disk = Path::new(DISKS).join(name);
    if disk.exists()
        && let Err(error) = fs::remove_dir_all(&disk)
    {
        errors.push(format!("cannot remove {}: {error}", disk.display()));
    }
    errors
}

/// Removes a control group and those below it. Processes that were just killed
/// are in there until the kernel is done with them.
pub fn remove_cgroup(group: &Path) -> Result<()> {
    if !group.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    wait_until(&format!("removal of {}", group.display()), Duration::from_secs(20), || {
        match fs::remove_dir(group) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(true),
        }
    })
    .map(drop)
}

/// Removes one control group of this name in every hierarchy.
pub fn remove_cgroups(name: &str) -> Result<()> {
    for hierarchy in names(Path::new(CGROUPS)) {
        remove_cgroup(&Path::new(CGROUPS).join(hierarchy).join(name))?;
    }
    remove_cgroup(&Path::new(CGROUPS).join(name))
}

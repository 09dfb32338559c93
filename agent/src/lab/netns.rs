//! Network namespaces: making them, and running code inside one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::topology::Topology;

const DIRECTORY: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name, whether it exists or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }

    /// Opens it, for `setns`.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("no network namespace {}", self.name))
    }

    /// Runs `work` in a thread inside the namespace. What it opens stays there
    /// for good, so sockets may be returned and used anywhere.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET)?;
                    Ok::<_, nix::Error>(work())
                })
                .join()
        })
        .map_err(|_| anyhow::anyhow!("work inside network namespace {} panicked", self.name))?
        .with_context(|| format!("cannot enter network namespace {}", self.name))
    }

    /// `ip -n NAME -batch`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(&["-n", &self.name], batch)
    }

    /// Runs a command inside; fails with its standard error if it does.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        let Some((program, arguments)) = argv.split_first() else { bail!("no command") };
        let output = self
            .run(|| Command::new(program).args(arguments).stdin(Stdio::null()).output())?
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!(
                "`{}` in {}: {}: {}",
                argv.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes it, with loopback up.
    pub fn create(&self) -> Result<()> {
        ip(&[], &format!("netns add {}\n", self.name))?;
        self.ip("link set lo up\n")
    }

    /// Removes its name; the kernel removes the rest once nobody is inside.
    pub fn delete(&self) -> Result<()> {
        ip(&[], &format!("netns del {}\n", self.name))
    }

    /// Processes inside, without this one.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(own) = std::fs::metadata(self.path()) else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let me = std::process::id().cast_signed();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != me)
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|net| (net.dev(), net.ino()) == (own.dev(), own.ino()))
            })
            .collect()
    }
}

/// Names of all namespaces that start with `prefix`.
pub fn list(prefix: &str) -> Vec<Netns> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names.into_iter().map(Netns::named).collect()
}

/// Runs `ip -batch` on `batch`; an error names the line.
pub fn ip(options: &[&str], batch: &str) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `ip`: install iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).context("cannot talk to `ip -batch`")?;
    }
    let output = child.wait_with_output().context("`ip -batch` vanished")?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // "Command failed -:3" names the line of the batch.
    let line = errors
        .rsplit_once("-:")
        .and_then(|(_, number)| number.trim().parse::<usize>().ok())
        .and_then(|number| batch.lines().nth(number.saturating_sub(1)));
    bail!("`ip {} {}` failed: {}", options.join(" "), line.unwrap_or("-batch"), errors.trim());
}

/// Makes the namespaces and links of a lab, without agents.
pub fn build(plan: &Topology) -> Result<()> {
    ip(&[], &plan.namespaces())?;
    Netns::named(&plan.underlay).ip(&plan.underlay_links())?;
    for node in &plan.nodes {
        Netns::named(&node.netns).ip(&plan.node_links(node))?;
        for pod in &node.pods {
            Netns::named(&pod.netns).ip("link set lo up\n")?;
        }
    }
    Ok(())
}

/// Fails, saying what to do, if this machine or user cannot run a lab.
pub fn check_host() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run it with sudo");
    }
    if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
        bail!("`ip` is missing: install iproute2 (`make lab` does it for you)");
    }
    Ok(())
}

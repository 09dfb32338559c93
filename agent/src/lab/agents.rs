//! Agents of a lab: real processes, one in each node's namespace.

#![allow(unsafe_code, reason = "a child enters its namespace between fork and exec")]

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_proto::api::{Readiness, Status};
use weft_proto::names;

use super::http;
use super::netns::Netns;

/// Lines of an agent's log that go with an error.
const TAIL: usize = 8;
/// Longest line shown of it.
const WIDTH: usize = 240;

/// How to start one agent.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// The binary.
    pub exe: PathBuf,
    /// Where it runs.
    pub netns: Netns,
    /// `NODE_NAME`.
    pub name: String,
    /// `NODE_IP`.
    pub address: IpAddr,
    /// `KUBE_PEERS`.
    pub peers: String,
    /// `IPALLOC_RANGE`.
    pub range: String,
    /// Holds its state, run and CNI directories.
    pub directory: PathBuf,
    /// Its standard output and error, appended.
    pub log: PathBuf,
    /// More environment, winning over the above.
    pub env: Vec<(String, String)>,
    /// Die with the thread that starts it.
    pub die_with_parent: bool,
}

impl AgentSpec {
    /// `RUN_DIR`.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// `STATE_DIR`.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// `CNI_CONF_DIR`.
    pub fn conf_dir(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    /// `CNI_BIN_DIR`.
    pub fn bin_dir(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// Where it answers, inside its namespace.
    pub fn http(&self) -> SocketAddr {
        self.env
            .iter()
            .rev()
            .find(|(name, _)| name == "HTTP_ADDR")
            .map_or(names::HTTP_ADDR, |(_, value)| value.as_str())
            .parse()
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 6784)))
    }

    /// The command, complete but for the namespace: nothing of the caller's own
    /// environment that could configure an agent.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.exe);
        command.env_clear();
        for name in ["PATH", "RUST_BACKTRACE", "RUST_LOG", "TZ", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("NODE_NAME", &self.name)
            .env("NODE_IP", self.address.to_string())
            .env("KUBE_PEERS", &self.peers)
            .env("IPALLOC_RANGE", &self.range)
            .env("STATE_DIR", self.state_dir())
            .env("RUN_DIR", self.run_dir())
            .env("CNI_CONF_DIR", self.conf_dir())
            .env("CNI_BIN_DIR", self.bin_dir())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Starts it. The last lines of its log tell how it went.
    pub fn start(self) -> Result<Agent> {
        for directory in [self.state_dir(), self.run_dir(), self.conf_dir(), self.bin_dir()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        if let Some(parent) = self.log.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let child = self.spawn()?;
        Ok(Agent { spec: self, child })
    }

    fn spawn(&self) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let netns = self.netns.open()?;
        let die = self.die_with_parent;
        let mut command = self.command();
        command.stdout(log.try_clone()?).stderr(log);
        // SAFETY: between fork and exec only system calls are made (setns,
        // setsid, prctl), on values that were ready before the fork.
        unsafe {
            command.pre_exec(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                nix::unistd::setsid()?;
                if die {
                    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                }
                Ok(())
            });
        }
        command.spawn().with_context(|| {
            format!("cannot start {}: build it first, or give --agent", self.exe.display())
        })
    }
}

/// A running (or dead) agent.
#[derive(Debug)]
pub struct Agent {
    /// How it was started.
    pub spec: AgentSpec,
    child: Child,
}

impl Agent {
    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Its exit, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("cannot signal agent {}", self.spec.name))
    }

    /// `kill -9`, and waits for its end.
    pub fn kill9(&mut self) -> Result<()> {
        if self.ended().is_none() {
            self.signal(Signal::SIGKILL)?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; the exit status, or an error (and SIGKILL) if it takes longer than `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill9()?;
                anyhow::bail!("agent {} did not stop within {patience:?}", self.spec.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again, with the same directories.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9()?;
        self.child = self.spec.spawn()?;
        Ok(())
    }

    /// One HTTP request to it.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<http::Response> {
        let token = fs::read_to_string(self.spec.run_dir().join(names::TOKEN_FILE)).ok();
        let address = self.spec.http();
        self.spec
            .netns
            .run(|| http::request(address, method, path, token.as_deref().map(str::trim), body))?
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Status> {
        self.request("GET", "/v1/status", b"")?.json()
    }

    /// `GET /v1/ready`.
    pub fn readiness(&self) -> Result<Readiness> {
        self.request("GET", "/v1/ready", b"")?.json()
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    /// The last lines of its log, and where the rest is.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<String> =
            log.lines().map(|line| line.chars().take(WIDTH).collect()).collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        format!(
            "last lines of {}'s log ({}):\n    {}",
            self.spec.name,
            self.spec.log.display(),
            tail.join("\n    ")
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.spec.die_with_parent {
            let _ = self.kill9();
        }
    }
}

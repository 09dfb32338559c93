//! Long-running programs that end with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use weft_agent::lab::netns::Netns;

/// How much of a log goes with an error.
const TAIL: usize = 12;

/// A program with a log. It is killed when dropped, and by the kernel when the
/// thread that started it ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `argv` inside `netns` (without: here), its output appended to `log`.
    pub fn start(
        netns: Option<&Netns>,
        log: &Path,
        argv: &[String],
        env: &[(&str, String)],
    ) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(netns) = netns {
            command.arg("nsenter").arg(format!("--net={}", netns.path().display()));
        }
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let name = argv.first().cloned().unwrap_or_default();
        let child = command
            .args(argv)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot run setpriv and nsenter: install util-linux")?;
        Ok(Self { name, log: log.to_path_buf(), child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the end of its log, if it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended: {status}\n{}", self.name, tail(&self.log));
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last: Vec<_> = lines.iter().skip(lines.len().saturating_sub(TAIL)).copied().collect();
    format!("{}:\n  {}", log.display(), last.join("\n  "))
}

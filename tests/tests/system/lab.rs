//! `agent lab` itself: judged from outside, by its exit code and what it leaves.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_agent::lab::netns;
use weft_agent::lab::topology::prefix;
use weft_tests::{Result, binaries, wait_until};

struct Lab {
    name: String,
}

impl Lab {
    fn new(what: &str) -> Self {
        Self { name: format!("t{}{what}", std::process::id()) }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::agent()?);
        command.args(["lab", "--name", &self.name]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments)?.output()?;
        println!("{}", String::from_utf8_lossy(&output.stdout));
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    fn namespaces(&self) -> usize {
        netns::list(&prefix(&self.name)).len()
    }

    fn assert_gone(&self) -> Result {
        let left = netns::list(&prefix(&self.name));
        ensure!(left.is_empty(), "left behind: {left:?}");
        let files: Vec<_> = std::fs::read_dir("/run/weft-lab")?
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .filter(|file| file.starts_with(&format!("{}.", self.name)))
            .collect();
        ensure!(files.is_empty(), "left behind: {files:?}");
        let tag = format!("/run/weft-lab/{}.d", self.name);
        let alive: Vec<_> = std::fs::read_dir("/proc")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                std::fs::read(path.join("environ"))
                    .is_ok_and(|e| e.windows(tag.len()).any(|part| part == tag.as_bytes()))
            })
            .collect();
        ensure!(alive.is_empty(), "processes left behind: {alive:?}");
        Ok(())
    }

    fn end(&self, mut child: Child, signal: Signal) -> Result<Option<i32>> {
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        let mut code = None;
        wait_until("the end of the lab", Duration::from_secs(15), || {
            let status = child.try_wait()?;
            code = status.and_then(|status| status.code());
            Ok(status.is_some())
        })?;
        Ok(code)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(&["--down"]).map(|mut command| command.output());
    }
}

#[test]
fn three_nodes_six_pods_thirty_pairs() -> Result {
    let lab = Lab::new("c");
    let start = Instant::now();
    let output = lab.run(&["--check"])?;
    println!("make lab ARGS=--check: {:?}", start.elapsed());
    ensure!(output.status.success(), "{}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("30/30 pairs reachable"), "30 pairs");
    lab.assert_gone()
}

#[test]
fn ten_nodes_forty_pods() -> Result {
    let lab = Lab::new("t");
    let start = Instant::now();
    let output = lab.run(&["--check", "--nodes", "10", "--pods", "4"])?;
    println!("10 nodes, 40 pods: {:?}", start.elapsed());
    ensure!(output.status.success(), "{}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("1560/1560 pairs reachable"), "1560 pairs");
    lab.assert_gone()
}

#[test]
fn interrupted_at_any_moment_it_leaves_nothing() -> Result {
    for (at, when) in [0, 1, 4, 7].into_iter().enumerate() {
        let lab = Lab::new(&format!("i{at}"));
        let child = lab.command(&[])?.spawn()?;
        // The more namespaces there are, the further it is.
        wait_until(
            "a lab in the making",
            Duration::from_secs(10),
            || Ok(lab.namespaces() >= when),
        )?;
        let code = lab.end(child, if at % 2 == 0 { Signal::SIGINT } else { Signal::SIGTERM })?;
        println!("{:?} after {when} namespaces: exit {code:?}", lab.name);
        lab.assert_gone().with_context(|| format!("interrupted after {when} namespaces"))?;
    }
    Ok(())
}

#[test]
fn what_a_crashed_lab_leaves_is_removed_by_the_next() -> Result {
    let lab = Lab::new("k");
    let child = lab.command(&[])?.spawn()?;
    wait_until("a lab in the making", Duration::from_secs(10), || Ok(lab.namespaces() > 3))?;
    lab.end(child, Signal::SIGKILL)?;
    ensure!(lab.namespaces() > 3, "a crash leaves something");
    let other = Lab::new("o");
    other.run(&["--down"])?;
    lab.assert_gone()
}

#[test]
fn a_kept_lab_runs_until_taken_down() -> Result {
    let lab = Lab::new("p");
    let output = lab.run(&["--keep", "--nodes", "2", "--pods", "1"])?;
    ensure!(output.status.success(), "{}", output.status);
    ensure!(lab.namespaces() == 5, "{} namespaces", lab.namespaces());
    let second = lab.run(&["--check"])?;
    ensure!(!second.status.success(), "a second lab of the same name");
    let agents = netns::list(&format!("{}n1", prefix(&lab.name)));
    ensure!(agents.iter().any(|space| !space.processes().is_empty()), "its agents run");
    ensure!(lab.run(&["--down"])?.status.success());
    lab.assert_gone()
}

#[test]
fn bad_arguments_change_nothing() -> Result {
    let lab = Lab::new("b");
    for arguments in [
        &["--nodes", "0"][..],
        &["--nodes", "300"],
        &["--base", "nowhere"],
        &["--agent", "/nowhere/agent"],
        &["--shim", "/nowhere/weft"],
    ] {
        let output = lab.run(arguments)?;
        ensure!(!output.status.success(), "{arguments:?} was accepted");
        ensure!(!output.stderr.is_empty(), "{arguments:?} was refused without a word");
        lab.assert_gone()?;
    }
    Ok(())
}

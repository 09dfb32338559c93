//! Full and read-only disks: what cannot be kept is refused by name, what was
//! answered is kept, and all is well again once there is space.
//!
//! The disks are small tmpfs mounts in a mount namespace of the test's thread.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use weft_tests::apiserver::objects;
use weft_tests::{Cluster, Pod, Result, audit, wait_until};

fn run(argv: &[&str]) -> Result {
    let output = Command::new(argv[0]).args(&argv[1..]).output()?;
    ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs `test` in a thread with mounts of its own; they vanish with it.
fn with_own_mounts(test: fn() -> Result) -> Result {
    let name = std::thread::current().name().unwrap_or("disks").to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(test)?;
    thread.join().map_err(|_| anyhow!("the test panicked"))?
}

/// A small disk, until dropped.
struct Disk(String);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(&["umount", "-l", &self.0]);
    }
}

fn mount(path: &Path) -> Result<Disk> {
    std::fs::create_dir_all(path)?;
    let path = path.to_str().context("a path")?;
    run(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path])?;
    Ok(Disk(path.to_owned()))
}

fn own_mounts() -> Result {
    unshare(CloneFlags::CLONE_NEWNS)?;
    run(&["mount", "--make-rprivate", "/"])
}

/// Fills a disk to the last byte.
fn fill(disk: &Path) -> Result {
    let mut file = File::create(disk.join("filler"))?;
    let mut size = 65536;
    while size > 0 {
        match file.write(&vec![1; size]) {
            Ok(n) if n > 0 => {}
            _ => size /= 2,
        }
    }
    Ok(())
}

fn empty(disk: &Path) -> Result {
    Ok(std::fs::remove_file(disk.join("filler"))?)
}

#[test]
fn a_full_run_directory_loses_nothing() -> Result {
    with_own_mounts(|| {
        let mut cluster = Cluster::builder().nodes(1).stopped().start()?;
        // Names of namespaces are mounts, too: they are made before.
        let plans: Vec<_> = (0..60).map(|_| cluster.node(1).sandbox()).collect::<Result<_>>()?;
        let mut plans = plans.into_iter();
        own_mounts()?;
        let run = cluster.node(1).spec().run_dir();
        let _disk = mount(&run)?;
        cluster.node_mut(1).restart()?;
        let node = cluster.node(1);
        let mut add = || Pod::attach(node.shim(), plans.next().context("sandboxes")?);
        let mut pods = vec![add()?, add()?];

        fill(&run)?;
        // A started page may hold a few more lines.
        let refused = loop {
            match add() {
                Ok(pod) => pods.push(pod),
                Err(error) => break error.to_string(),
            }
        };
        ensure!(refused.contains("lease store") && refused.contains("free space"), "{refused}");
        audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
        // A DEL succeeds, and is not forgotten.
        let gone = pods.remove(0);
        gone.shim.pod("DEL", &gone.plan)?.ok("DEL on a full disk")?;

        // kill -9 and a start on the full disk: up, or a named refusal.
        let status = node.status()?;
        ensure!(status.ipam.leases > 0, "{status:?}");
        cluster.node_mut(1).start()?;
        let node = cluster.node_mut(1);
        if node.wait_ready(Duration::from_secs(3)).is_err() {
            let log = node.log();
            ensure!(!log.contains("panicked"), "{log}");
            ensure!(log.contains("lease store") || log.contains("RUN_DIR"), "{log}");
        }
        empty(&run)?;
        node.restart()?;
        pods.push(Pod::attach(node.shim(), plans.next().context("sandboxes")?)?);
        gone.shim.pod("DEL", &gone.plan)?.ok("DEL again")?;
        audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
        cluster.assert_unique(&pods)?;
        cluster.assert_reachable(&pods).map(drop)
    })
}

#[test]
fn a_full_state_directory_stops_only_new_decisions() -> Result {
    with_own_mounts(|| {
        let mut cluster = Cluster::builder().nodes(3).stopped().start()?;
        let plans: Vec<_> = (0..8).map(|_| cluster.node(1).sandbox()).collect::<Result<_>>()?;
        let mut plans = plans.into_iter();
        own_mounts()?;
        let mut disks = Vec::new();
        for node in 1..=3 {
            disks.push(mount(&cluster.node(node).spec().state_dir())?);
            cluster.node_mut(node).start()?;
        }
        cluster.wait_ready()?;
        let mut pods = Vec::new();
        let mut add = |cluster: &Cluster| -> Result {
            pods.push(Pod::attach(cluster.node(1).shim(), plans.next().context("sandboxes")?)?);
            Ok(())
        };
        add(&cluster)?;
        let grow = |cluster: &Cluster, node: usize, range: &str| {
            let body = format!("{{\"range\":\"{range}\"}}");
            cluster.node(node).request("POST", "/v1/ranges", body.as_bytes())
        };
        // One disk is full: the other two decide.
        fill(&cluster.node(1).spec().state_dir())?;
        wait_until("a decision of two", Duration::from_secs(20), || {
            let answer = grow(&cluster, 2, "10.64.0.0/16")?;
            ensure!(answer.code == 200 || answer.code == 204, "{answer:?}");
            Ok(true)
        })?;
        add(&cluster)?;
        // All disks are full: nothing is decided, pods start.
        for node in 2..=3 {
            fill(&cluster.node(node).spec().state_dir())?;
        }
        let mut refused = None;
        for number in 0..1000_usize {
            let answer = grow(&cluster, 2, &format!("10.{}.0.0/16", 65 + number % 8))?;
            if answer.code >= 500 {
                refused = Some((number, answer.text()));
                break;
            }
        }
        let (after, refused) = refused.context("a full disk takes no thousand entries")?;
        println!("refused after {after} entries: {refused}");
        add(&cluster)?;
        for node in 1..=3 {
            empty(&cluster.node(node).spec().state_dir())?;
        }
        wait_until("decisions again", Duration::from_secs(30), || {
            let answer = grow(&cluster, 3, "10.80.0.0/16")?;
            ensure!(answer.code == 200 || answer.code == 204, "{answer:?}");
            Ok(true)
        })?;
        add(&cluster)?;
        cluster.wait_one_ledger()?;
        audit::wait_exactly(cluster.node(1), &pods.iter().collect::<Vec<_>>())?;
        // Everybody is at work again, and an agent killed now has lost nothing.
        cluster.node_mut(2).restart()?;
        cluster.wait_one_ledger()?;
        for node in cluster.nodes() {
            ensure!(!node.log().contains("panicked"), "{}", node.log());
        }
        Ok(())
    })
}

#[test]
fn a_disk_that_cannot_keep_policy_is_named() -> Result {
    with_own_mounts(|| {
        let mut cluster = Cluster::builder().nodes(1).kubernetes().stopped().start()?;
        let plan = cluster.node(1).sandbox()?;
        own_mounts()?;
        let state = cluster.node(1).spec().state_dir();
        let _disk = mount(&state)?;
        cluster.node_mut(1).restart()?;
        let file = state.join("policy.json");
        let patience = Duration::from_secs(60);
        let node = cluster.node(1);
        let named = || -> Result<bool> {
            Ok(node.status()?.conditions.iter().any(|c| c.reason == "PolicyNotKept"))
        };
        wait_until("what is known of policy on the disk", patience, || Ok(file.exists()))?;
        fill(&state)?;
        cluster.api()?.put(&objects::namespace("news", &[]))?;
        wait_until("the condition", patience, named)?;
        // It would be out of date by now.
        ensure!(!file.exists(), "an old file is left");
        // It matters to nobody else.
        Pod::attach(node.shim(), plan)?;
        empty(&state)?;
        wait_until("the condition to go", patience, || Ok(!named()?))?;
        ensure!(std::fs::read_to_string(&file)?.contains("news"));
        Ok(())
    })
}

#[test]
fn a_read_only_state_directory_is_named() -> Result {
    with_own_mounts(|| {
        let mut cluster = Cluster::builder().nodes(1).stopped().start()?;
        own_mounts()?;
        let state = cluster.node(1).spec().state_dir();
        let _disk = mount(&state)?;
        cluster.node_mut(1).restart()?;
        let remount = |mode: &str| {
            run(&["mount", "-o", &format!("remount,{mode}"), state.to_str().unwrap_or_default()])
        };
        cluster.node_mut(1).kill9()?;
        remount("ro")?;
        let node = cluster.node_mut(1);
        node.start()?;
        let code = node.wait_exit(Duration::from_secs(10))?;
        let log = node.log();
        ensure!(code.is_some_and(|code| code != 0), "exit {code:?}: {log}");
        ensure!(log.contains("STATE_DIR") && !log.contains("panicked"), "{log}");
        remount("rw")?;
        node.restart().map(drop)
    })
}

//! The same attachment again and again, agents that die at bad moments, full
//! disks, spoiled files: nothing leaks, nothing is given out twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::topology::PodPlan;
use weft_tests::dice::Dice;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Node, Pod, Result, audit};

fn join<T: Send>(work: Vec<impl FnOnce() -> Result<T> + Send>) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = work.into_iter().map(|work| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().map_err(|_| anyhow!("a worker panicked"))?).collect()
    })
}

/// One sandbox, attached and detached in the orders a runtime may use.
fn same_key(node: &Node, plan: &PodPlan, dice: &mut Dice, rounds: usize) -> Result<Option<Pod>> {
    let shim = node.shim();
    let mut attached: Option<Pod> = None;
    for _ in 0..rounds {
        let (verbs, again) = match dice.below(5) {
            0 => (["DEL", "ADD"].as_slice(), 0),
            1 => (["DEL", "DEL", "ADD"].as_slice(), 0),
            2 => (["ADD", "ADD"].as_slice(), 1),
            3 => (["DEL", "ADD", "DEL", "ADD", "DEL", "ADD"].as_slice(), 0),
            _ => (["DEL"].as_slice(), 0),
        };
        for verb in verbs {
            let what = format!("{verb} of {} (round of {verbs:?}, {again})", plan.name);
            match *verb {
                "ADD" => {
                    let pod = Pod::attach(shim.clone(), plan.clone()).context(what)?;
                    if let Some(before) = &attached {
                        ensure!(before.address() == pod.address(), "ADD again is the same ADD");
                    }
                    attached = Some(pod);
                }
                _ => {
                    shim.pod("DEL", plan)?.ok(&what)?;
                    attached = None;
                }
            }
        }
        if dice.below(3) == 0 {
            // The released device of the last round goes about now.
            std::thread::sleep(Duration::from_millis(dice.below(120) as u64));
        }
    }
    Ok(attached)
}

#[test]
fn the_same_key_again_and_again_leaks_nothing() -> Result {
    let mut dice = Dice::new("the_same_key_again");
    let cluster = Cluster::builder().nodes(2).start()?;
    let node = cluster.node(1);
    let far = cluster.node(2).add_pod()?;
    let plan = node.sandbox()?;
    for _ in 0..60 {
        let pod = Pod::attach(node.shim(), plan.clone())?;
        node.shim().pod("DEL", &plan)?.ok("DEL")?;
        drop(pod);
    }
    let pod = Pod::attach(node.shim(), plan)?;
    audit::wait_exactly(node, &[&pod])?;
    pod.wait_ping(far.address(), Duration::from_secs(5))?;
    pod.detach()?;

    let plans: Vec<_> = (0..12).map(|_| node.sandbox()).collect::<Result<_>>()?;
    let work: Vec<_> = plans
        .iter()
        .map(|plan| {
            let mut dice = dice.split();
            move || same_key(node, plan, &mut dice, 8)
        })
        .collect();
    let pods: Vec<_> = join(work)?.into_iter().flatten().collect();
    audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
    for pod in &pods {
        far.wait_ping(pod.address(), Duration::from_secs(5))
            .with_context(|| format!("of {pods:?}"))?;
    }
    // No device of a living pod was doomed by its predecessor.
    std::thread::sleep(Duration::from_millis(300));
    audit::exactly(node, &pods.iter().collect::<Vec<_>>())?;
    // The same things were repaired many times, and nobody but the runtime did it.
    let conditions = node.status()?.conditions;
    ensure!(conditions.iter().all(|c| c.reason != "KernelFight"), "{conditions:?}");
    Ok(())
}

/// Pods come and go on a node until told to stop. What fails is undone as a
/// runtime would: DEL, and once more while that fails.
fn churn(node: &Node, stop: &AtomicBool, dice: &mut Dice) -> Result<Vec<Pod>> {
    let mut pods: Vec<Pod> = Vec::new();
    let (mut done, mut failed) = (0, 0);
    let detach = |plan: &PodPlan| -> Result {
        node.shim().pod("DEL", plan)?.ok(&format!("DEL of {}", plan.name))?;
        Netns::named(&plan.netns).delete()
    };
    while !stop.load(Ordering::Relaxed) {
        if pods.len() > 6 || (!pods.is_empty() && dice.below(2) == 0) {
            let gone = pods.swap_remove(dice.below(pods.len()));
            detach(&gone.plan)?;
            continue;
        }
        let plan = node.sandbox()?;
        match Pod::attach(node.shim(), plan.clone()) {
            Ok(pod) => {
                pods.push(pod);
                done += 1;
            }
            Err(_) => {
                detach(&plan)?;
                failed += 1;
            }
        }
    }
    println!("{}: {done} attached, {failed} failed and undone", node.plan.name);
    ensure!(done > 0, "no pod came through on {}", node.plan.name);
    Ok(pods)
}

/// After all that: every pod has one address of its own and all that belongs to it.
fn whole(cluster: &mut Cluster, pods: &[Vec<Pod>]) -> Result {
    cluster.wait_ready()?;
    cluster.wait_one_ledger()?;
    for (node, pods) in cluster.nodes().iter().zip(pods) {
        audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
    }
    cluster.assert_unique(&pods.concat())?;
    for node in cluster.nodes() {
        let log = node.log();
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            bail!("{} panicked: {line}", node.plan.name);
        }
    }
    // One of each node to all of the others.
    let first: Vec<_> = pods.iter().filter_map(|pods| pods.first()).collect();
    for from in first {
        for to in pods.iter().flatten() {
            if from.address() != to.address() {
                from.wait_ping(to.address(), Duration::from_secs(10))?;
            }
        }
    }
    Ok(())
}

/// Runs `havoc` on the agents while pods come and go on all nodes; how long it took after
/// the last of it till all was whole.
fn under_churn(
    cluster: &mut Cluster,
    dice: &mut Dice,
    havoc: impl FnOnce(&mut Cluster, &mut Dice) -> Result,
) -> Result<Duration> {
    // A second view of the nodes for the churning threads: names only.
    let views: Vec<_> = cluster.nodes().iter().map(Node::view).collect();
    let stop = AtomicBool::new(false);
    let pods = std::thread::scope(|scope| {
        let workers: Vec<_> = views
            .iter()
            .map(|node| {
                let (mut dice, stop) = (dice.split(), &stop);
                scope.spawn(move || churn(node, stop, &mut dice))
            })
            .collect();
        let done = havoc(cluster, dice);
        stop.store(true, Ordering::Relaxed);
        let pods: Result<Vec<_>> = workers
            .into_iter()
            .map(|w| w.join().map_err(|_| anyhow!("a worker panicked"))?)
            .collect();
        done.and(pods)
    })?;
    let start = Instant::now();
    whole(cluster, &pods)?;
    Ok(start.elapsed())
}

#[test]
fn kill_9_at_random_moments_under_churn() -> Result {
    let mut dice = Dice::new("kill_9");
    let kills = std::env::var("WEFT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let mut cluster = Cluster::builder().start()?;
    let settled = under_churn(&mut cluster, &mut dice, |cluster, dice| {
        for _ in 0..kills {
            let number = 1 + dice.below(3);
            // From the first instruction to an agent at work.
            std::thread::sleep(Duration::from_millis(dice.below(350) as u64));
            cluster.node_mut(number).start()?;
        }
        Ok(())
    })?;
    told(
        &format!("{kills} times kill -9 of some agent at a random moment, pods come and go"),
        "leases, interfaces, routes, neighbours, rules and addresses inside pods agree, none twice",
        &format!("ready, audited and all reached {} after the last", took(settled)),
    );
    Ok(())
}

#[test]
fn frozen_agents_and_a_dead_cluster_under_churn() -> Result {
    let mut dice = Dice::new("frozen");
    let mut cluster = Cluster::builder().start()?;
    let settled = under_churn(&mut cluster, &mut dice, |cluster, dice| {
        let number = 1 + dice.below(3);
        cluster.node(number).freeze()?;
        std::thread::sleep(Duration::from_secs(8));
        cluster.node(number).thaw()?;
        for node in 1..=3 {
            cluster.node_mut(node).kill9()?;
        }
        let first = dice.below(3);
        for step in [0, 2, 1] {
            std::thread::sleep(Duration::from_millis(dice.below(700) as u64));
            cluster.node_mut(1 + (first + step) % 3).start()?;
        }
        cluster.wait_ready()?;
        Ok(())
    })?;
    told(
        "an agent stopped for 8 s, then all killed and started one by one, pods come and go",
        "as above",
        &format!("audited and all reached {} after the last", took(settled)),
    );
    Ok(())
}

/// What the spoiling of a file may lead to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Recovers,
    Refuses,
}

#[test]
fn spoiled_files_are_recovered_or_named() -> Result {
    let mut cluster = Cluster::builder().nodes(1).start()?;
    let pods = cluster.add_pods(2)?;
    let (run, state) = (cluster.node(1).spec().run_dir(), cluster.node(1).spec().state_dir());
    let files = [
        (run.join("leases.json"), Then::Recovers),
        (run.join("token"), Then::Recovers),
        (state.join("session"), Then::Recovers),
        (state.join("peers.json"), Then::Recovers),
        (state.join("promises.json"), Then::Refuses),
        (state.join("identity.key"), Then::Refuses),
        (state.join("consensus.redb"), Then::Refuses),
    ];
    for (path, then) in &files {
        cluster.node_mut(1).kill9()?;
        let whole = std::fs::read(path).ok();
        let text = whole.clone().unwrap_or_else(|| b"[]".to_vec());
        let half = text[..text.len() / 2].to_vec();
        let noise: Vec<u8> = text.iter().enumerate().map(|(at, b)| b ^ (at as u8) | 0x80).collect();
        for spoiled in [half, noise, vec![0; text.len().max(64)], b"\xff{]\n".to_vec()] {
            std::fs::write(path, &spoiled)?;
            let node = cluster.node_mut(1);
            std::fs::write(&node.spec().log, "")?;
            node.start()?;
            let what = || format!("{} spoiled by {} bytes", path.display(), spoiled.len());
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
            match then {
                Then::Recovers => {
                    node.wait_ready(Duration::from_secs(20)).with_context(what)?;
                    node.add_pod().and_then(|pod| pod.detach()).with_context(what)?;
                    audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())
                        .with_context(what)?;
                }
                Then::Refuses => {
                    let code = node.wait_exit(Duration::from_secs(20)).with_context(what)?;
                    ensure!(code.is_some_and(|code| code != 0), "{}: exit {code:?}", what());
                    ensure!(node.log().contains(name), "{}: {}", what(), node.log());
                }
            }
            ensure!(!node.log().contains("panicked"), "{}: {}", what(), node.log());
            node.kill9()?;
        }
        if *then == Then::Refuses {
            // Whatever was there is not made worse by the refusal.
            match whole {
                Some(whole) => std::fs::write(path, whole)?,
                None => std::fs::remove_file(path)?,
            }
        }
        let node = cluster.node_mut(1);
        node.restart()?;
        audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

#[test]
fn a_reboot_leaves_blocks_and_nothing_else() -> Result {
    let mut cluster = Cluster::builder().nodes(2).start()?;
    let far = cluster.node(2).add_pod()?;
    let gone = (0..4).map(|_| cluster.node(1).add_pod()).collect::<Result<Vec<_>>>()?;
    let blocks = cluster.node(1).status()?.ipam.blocks;
    cluster.node_mut(1).kill9()?;
    for pod in &gone {
        pod.netns().delete()?;
    }
    let node = cluster.node_mut(1);
    for device in node.veths()?.iter().map(String::as_str).chain(["weft", "weft-vx"]) {
        // The kernel may have been faster with those whose namespace went.
        let _ = node.exec(&["ip", "link", "del", device]);
    }
    node.exec(&["nft", "flush", "ruleset"])?;
    let _ = node.exec(&["ip", "nexthop", "flush", "proto", "117"]);
    let _ = node.exec(&["ip", "route", "flush", "proto", "117"]);
    std::fs::remove_dir_all(node.spec().run_dir())?;
    node.restart()?;
    let kept = node.status()?.ipam.blocks;
    ensure!(kept == blocks, "blocks {blocks:?} are kept, now {kept:?}");
    audit::wait_exactly(node, &[])?;
    let pods = [node.add_pod()?, node.add_pod()?];
    audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())?;
    for pod in &pods {
        pod.wait_ping(far.address(), Duration::from_secs(10))?;
        far.wait_ping(pod.address(), Duration::from_secs(10))?;
    }
    // Late DELs of pods from before the reboot.
    for pod in &gone {
        pod.shim.pod("DEL", &pod.plan)?.ok("a late DEL")?;
    }
    audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>()).map(drop)
}

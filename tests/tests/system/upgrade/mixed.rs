//! A mesh that stays mixed: whoever leads, all that members do with each other works.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use weft_tests::{Cluster, Node, Result, wait_until};

use crate::upgrade::common::{Held, Traffic, Versions, World};

/// More pods than any node can own addresses for.
const TOO_MANY: usize = 300;

/// A node of each version by turns, the first nodes running, the rest for later.
fn mixed(versions: &Versions, running: usize, later: usize, range: &str) -> Result<World> {
    let builder = Cluster::builder().nodes(running + later).peers(running).range(range);
    let mut cluster = builder.stopped().start()?;
    for number in 1..=running {
        let node = cluster.node_mut(number);
        node.use_binaries(version(versions, number));
        node.start()?;
    }
    cluster.wait_ready()?;
    let mut world = World { cluster, pods: Vec::new() };
    for _ in 0..running {
        world.joined()?;
    }
    Ok(world)
}

/// Odd nodes are old.
fn version(versions: &Versions, number: usize) -> &PathBuf {
    if number % 2 == 1 { &versions.old } else { &versions.new }
}

fn is_of(node: &Node, directory: &Path) -> bool {
    node.spec().exe.parent() == Some(directory)
}

/// Kills leaders until one of this version leads.
fn led_by(world: &mut World, directory: &Path) -> Result<usize> {
    for _ in 0..20 {
        let leader = world.leader()?;
        if is_of(world.cluster.node(leader), directory) {
            return Ok(leader);
        }
        world.cluster.node_mut(leader).kill9()?;
        wait_until("another leader", Duration::from_secs(30), || {
            let others = world.nodes().iter().enumerate().filter(|(at, _)| at + 1 != leader);
            for (_, node) in others {
                if node.status()?.consensus.role == "leader" {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        world.cluster.node_mut(leader).restart()?;
    }
    anyhow::bail!("of 20 elections none was won by {}", directory.display())
}

/// Pods until the node owns more than before.
fn until_new_block(world: &mut World, number: usize) -> Result<usize> {
    let owned = world.cluster.node(number).status()?.ipam.owned;
    let before = world.pods[number - 1].len();
    while world.cluster.node(number).status()?.ipam.owned <= owned {
        ensure!(world.pods[number - 1].len() < TOO_MANY, "no new block for n{number}");
        let pod = world.cluster.node(number).add_pod()?;
        world.pods[number - 1].push(pod);
    }
    Ok(world.pods[number - 1].len() - before)
}

/// One node is removed at the request of another, and comes back as this version with all
/// its pods.
fn evicted_and_back(world: &mut World, number: usize, by: usize, with: &Path) -> Result {
    let name = world.cluster.node(number).plan.name.clone();
    let before = Held::of(world.cluster.node(number))?;
    world.cluster.node_mut(number).kill9()?;
    let path = format!("/v1/peers/{name}?force=true");
    let answer = world.cluster.node(by).request("DELETE", &path, b"")?;
    ensure!(answer.code == 200, "n{by} removes {name}: {answer:?}");
    world.cluster.wait_one_ledger()?;
    for node in world.nodes().iter().filter(|node| node.plan.name != name) {
        let owners = node.status()?.ipam.owners;
        ensure!(owners.iter().all(|o| o.name != name), "{}: {owners:?}", node.plan.name);
    }
    let node = world.cluster.node_mut(number);
    node.use_binaries(with);
    node.restart()?;
    let first = world.pods[number - 1].first().context("a pod")?.address();
    wait_until("the blocks claimed back", Duration::from_secs(30), || {
        let blocks = world.cluster.node(number).status()?.ipam.blocks;
        Ok(blocks.iter().any(|block| block.contains(&first)))
    })?;
    ensure!(Held::of(world.cluster.node(number))?.leases == before.leases, "{name} keeps its pods");
    Ok(())
}

#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn a_mixed_mesh_under_either_leader() -> Result {
    let versions = Versions::find()?;
    let mut range = "10.32.0.0/23";
    let mut world = mixed(&versions, 4, 2, range)?;
    for (round, led) in [versions.old.clone(), versions.new.clone()].into_iter().enumerate() {
        let what = ["an old leader", "a new leader"][round];
        // Between nodes that are never removed: of one that is, the routes go.
        let ends = [world.pods[0][0].clone(), world.pods[1][0].clone()];
        let traffic = Traffic::start(&ends)?;
        let leader = led_by(&mut world, &led)?;
        println!("{what}: n{leader}");
        for number in 1..=world.pods.len() {
            let pods = until_new_block(&mut world, number)?;
            println!("{what}: a new block for n{number} after {pods} pods");
        }
        world.judge(what)?;
        ensure!(world.leader()? == leader, "still {what}");

        // A node of the other version joins, and one that has never met a leader but this.
        let next = world.pods.len() + 1;
        let other = if led == versions.old { &versions.new } else { &versions.old };
        let node = world.cluster.node_mut(next);
        node.use_binaries(other);
        range.clone_into(&mut node.spec_mut().range);
        node.restart()?;
        world.joined()?;
        println!("{what}: n{next} of the other version joined");

        // One goes and returns as the other version, at the request of either version.
        let gone = if leader == 4 { 3 } else { 4 };
        let by = round + 1;
        let with = if is_of(world.cluster.node(gone), &versions.old) {
            &versions.new
        } else {
            &versions.old
        };
        evicted_and_back(&mut world, gone, by, with)?;
        println!("{what}: n{gone} removed by n{by}, back as the other version with its pods");

        println!("{what}: {}", traffic.stop()?);

        // The range grows at the request of a node of each version.
        range = ["10.32.0.0/22", "10.32.0.0/21"][round];
        let body = format!("{{\"range\":\"{range}\"}}");
        let answer = world.cluster.node(by).request("POST", "/v1/ranges", body.as_bytes())?;
        ensure!(answer.code == 204, "{answer:?}");
        wait_until("the new range on all nodes", Duration::from_secs(30), || {
            for node in world.nodes() {
                let ranges = node.status()?.ipam.ranges;
                ensure!(ranges == [range.parse()?], "{} has {ranges:?}", node.plan.name);
            }
            Ok(true)
        })?;
        world.judge(&format!("{what}, in the end"))?;
    }
    let ends: Vec<_> = world.pods.iter().filter_map(|pods| pods.last().cloned()).collect();
    world.cluster.assert_reachable(&ends).map(drop)
}

/// When no block is free, nodes hand over addresses they own.
#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn addresses_are_handed_over_between_versions() -> Result {
    let versions = Versions::find()?;
    for asker in [1, 2] {
        let mut world = mixed(&versions, 2, 0, "10.32.1.0/28")?;
        let refusal = loop {
            ensure!(world.pods[asker - 1].len() < 16, "more pods than addresses");
            match world.cluster.node(asker).add_pod() {
                Ok(pod) => world.pods[asker - 1].push(pod),
                Err(error) => break error.to_string(),
            }
        };
        ensure!(refusal.contains("code 11"), "{refusal}");
        // 14 addresses, two of them the nodes' own.
        let pods: usize = world.pods.iter().map(Vec::len).sum();
        ensure!(pods == 12, "n{asker} could use all addresses but for {pods} pods: {refusal}");
        world.judge("full")?;
        println!("n{asker} got all that the other version's node could give: {pods} pods");
    }
    Ok(())
}

/// From this version back to the one before: works, or is refused by name.
#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn one_node_goes_back() -> Result {
    let Versions { old, new } = Versions::find()?;
    let cluster = Cluster::builder().range("10.32.0.0/23").binaries(&new).start()?;
    let mut world = World::of(cluster)?;
    for number in 1..=3 {
        // Something is freed, too.
        world.add(number)?;
        world.add(number)?;
        world.remove(number)?;
    }
    // What was freed is written down anew at a start.
    world.replace(2, &new)?;
    world.judge("before")?;
    let traffic = Traffic::start(&world.pods.concat())?;
    let held = Held::of(world.cluster.node(2))?;
    let node = world.cluster.node_mut(2);
    node.terminate()?;
    let state = node.spec().state_dir();
    let files = contents(&state)?;
    node.use_binaries(&old);
    std::fs::write(&node.spec().log, "")?;
    node.start()?;
    match node.wait_ready(weft_tests::cluster::READY) {
        Ok(took) => {
            println!("the version before goes on with the same files, ready after {took:?}");
            Held::of(world.cluster.node(2))?.has_all_of(&held)?;
            world.add(2)?;
            world.remove(2)?;
            world.judge("after the step back")?;
        }
        Err(error) => {
            let code = node.wait_exit(Duration::ZERO).context(error)?;
            ensure!(code.is_some_and(|code| code != 0), "it refuses by its exit: {code:?}");
            let log = node.log();
            ensure!(log.contains("form") && log.contains("weft"), "and says why: {log}");
            ensure!(contents(&state)? == files, "a refusal changes nothing on disk");
            println!("the version before refuses: {}", log.lines().last().unwrap_or_default());
        }
    }
    if world.cluster.node_mut(2).is_running() {
        world.replace(2, &new)?;
    } else {
        world.cluster.node_mut(2).use_binaries(&new);
        world.cluster.node_mut(2).restart()?;
        Held::of(world.cluster.node(2))?.has_all_of(&held)?;
    }
    world.add(2)?;
    world.judge("forward again")?;
    println!("{}", traffic.stop()?);
    Ok(())
}

fn contents(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        all.push((path.clone(), std::fs::read(path)?));
    }
    all.sort();
    Ok(all)
}

//! All nodes, one after another, under traffic: not a packet is lost.

use std::path::Path;

use anyhow::ensure;
use weft_tests::{Cluster, Result};

use crate::upgrade::common::{Traffic, Versions, World};

/// Replaces agents in an order that a leader is given to. After every step pods are added and
/// removed on every node.
fn roll(from: &Path, to: &Path, order: impl Fn(usize) -> [usize; 3]) -> Result {
    // Small blocks, so that new ones are needed on the way.
    let cluster = Cluster::builder().range("10.32.0.0/23").binaries(from).start()?;
    let mut world = World::of(cluster)?;
    world.judge("before")?;
    let traffic = Traffic::start(&world.pods.concat())?;
    let leader = world.leader()?;
    let owned: u64 = owned(&world)?;
    for number in order(leader) {
        let took = world.replace(number, to)?;
        println!("n{number} replaced (leader was n{leader}), ready after {took:?}");
        for number in 1..=3 {
            for _ in 0..3 {
                world.add(number)?;
            }
            world.remove(number)?;
        }
        world.judge(&format!("after n{number}"))?;
    }
    let now = self::owned(&world)?;
    ensure!(now > owned, "blocks were granted on the way: {owned} addresses, then {now}");
    println!("{}", traffic.stop()?);
    world.cluster.assert_reachable(&world.pods.concat()).map(drop)
}

fn owned(world: &World) -> Result<u64> {
    let mut sum = 0;
    for node in world.cluster.nodes() {
        sum += node.status()?.ipam.owned;
    }
    Ok(sum)
}

fn leader_first(leader: usize) -> [usize; 3] {
    [leader, leader % 3 + 1, (leader + 1) % 3 + 1]
}

fn leader_last(leader: usize) -> [usize; 3] {
    [leader % 3 + 1, (leader + 1) % 3 + 1, leader]
}

#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn upgrade_leader_first() -> Result {
    let Versions { old, new } = Versions::find()?;
    roll(&old, &new, leader_first)
}

#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn upgrade_leader_last() -> Result {
    let Versions { old, new } = Versions::find()?;
    roll(&old, &new, leader_last)
}

/// To the same version: what a change of the manifest does.
#[test]
fn restart_of_all_nodes() -> Result {
    let new = weft_tests::binaries::directory()?;
    roll(&new, &new, leader_first)
}

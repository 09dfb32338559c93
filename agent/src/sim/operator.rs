//! What an operator may do to a cluster and still expect it to live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::id::{NodeId, RaftId};

use super::agent::Agent;
use super::world::World;
use crate::consensus::{JUMP, RecoverError};

/// True if the state of a machine may be lost: of every set of voters that
/// counts or may count soon, a majority that has lost nothing is left.
pub(crate) fn may_lose(world: &Arc<World>, number: usize) -> bool {
    let configurations: Vec<_> =
        world.agents().iter().filter_map(|agent| agent.consensus.seats_soon()).collect();
    let lost = *world.node(number).identities.last().unwrap();
    // Who was heard at the founding, and followed all the same, sits nowhere.
    let whole = |(seat, node): &&(RaftId, Option<NodeId>)| {
        node.filter(|node| *node != lost).is_some_and(|node| {
            let agent = world.machine_of(node).and_then(|number| world.agent(number));
            agent.is_some_and(|a| a.me == node && a.consensus.seat() == Some(*seat))
        })
    };
    // Before the founding is over nobody knows who counts.
    !world.numbers().any(|n| world.node(n).held)
        && world.checker.newest().cluster().is_some()
        && !configurations.is_empty()
        && configurations
            .iter()
            .flatten()
            .all(|voters| voters.iter().filter(whole).count() * 2 > voters.len())
}

/// Between two tries to recover.
const AGAIN: Duration = Duration::from_secs(2);
/// As `app::backend` has it.
const MEETING: Duration = Duration::from_secs(15);
/// Tries before the operator gives up.
const TRIES: usize = 60;

/// Most voters are lost for good, all at once; the operator founds again from
/// a survivor.
pub(crate) async fn disaster(world: &Arc<World>, survivor: usize) {
    let sets: BTreeSet<_> =
        world.agents().iter().filter_map(|agent| agent.consensus.seats()).collect();
    // Not while the voters change: nobody could say what a majority is.
    let [[voters]] = sets.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] else { return };
    if world.numbers().any(|n| world.node(n).held) {
        return;
    }
    let cluster = world.checker.newest().cluster();
    let knows = world.agent(survivor).is_some_and(|a| a.consensus.ledger().cluster() == cluster);
    if cluster.is_none() || !knows {
        return;
    }
    // Nor before everybody has heard of an earlier recovery, whose voters are not those of
    // before; least of all while the one who was recovered from is only away.
    let newest = world.checker.newest().head().index;
    let knows_all = |agent: &Agent| agent.consensus.ledger().head().index + JUMP / 2 > newest;
    let founder = *world.recovered_on.lock().unwrap();
    let there = founder.is_none_or(|number| world.agent(number).is_some());
    if !there || !world.agents().iter().all(|agent| knows_all(agent)) {
        return;
    }
    let others = voters.iter().filter_map(|(_, node)| world.machine_of((*node)?));
    let lost: Vec<_> = others.filter(|n| *n != survivor).take(voters.len() / 2 + 1).collect();
    if lost.len() <= voters.len() / 2 {
        return;
    }
    world.trace.say(|| format!("lost for good: {lost:?}"));
    world.trace.count("majorities lost");
    world.checker.may_recover();
    for number in &lost {
        world.wipe(*number).await;
        world.node(*number).held = true;
    }
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut survivor = survivor;
        for _ in 0..TRIES {
            tokio::time::sleep(AGAIN).await;
            let Some(agent) = world.agent(survivor) else { continue };
            if agent.started.elapsed() < MEETING {
                continue;
            }
            let consensus = agent.consensus.clone();
            let recovery = agent.process.spawn(async move { consensus.recover().await });
            let answer = recovery.await;
            world.trace.say(|| format!("recover on n{survivor}: {answer:?}"));
            match answer {
                Ok(Ok(_)) => {
                    world.trace.count("recoveries");
                    *world.recovered_on.lock().unwrap() = Some(survivor);
                    break;
                }
                // A leader needs a while to notice that it is one no more; and who is no voter
                // goes by what it has heard of them.
                Ok(Err(RecoverError::Healthy(_) | RecoverError::Hearsay { .. })) => {
                    let others = world.numbers().filter(|n| !lost.contains(n));
                    let all: Vec<_> = others.collect();
                    let at = all.iter().position(|n| *n == survivor).unwrap_or(0);
                    survivor = all[(at + 1) % all.len()];
                }
                _ => {}
            }
        }
        // A list of founders whose disks are new founds again where it hears of no cluster.
        while world.network.has_cuts() {
            tokio::time::sleep(AGAIN).await;
        }
        for number in lost {
            world.node(number).held = false;
            world.start(number);
        }
    });
}

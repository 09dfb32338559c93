//! Crashes, partitions, restarts, lost disks.

use std::time::Duration;

use weft_proto::id::NodeId;
use weft_proto::ledger::Op;

use super::super::{Founding, ProposeError, RecoverError};
use super::world::{Node, TempDir, World, all_joined, seats, until};

const ABC: &[&str] = &["a", "b", "c"];

fn leader_of(nodes: &[Node]) -> usize {
    nodes.iter().position(|n| n.h().status().role == "leader").unwrap()
}

async fn founded(world: &World) -> Vec<Node> {
    let nodes = world.cluster(ABC).await;
    all_joined(&nodes).await;
    until("a leader", || nodes.iter().any(|n| n.h().status().role == "leader")).await;
    nodes
}

#[tokio::test]
async fn the_loss_of_the_leader_is_survived() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let mut leader = nodes.remove(leader_of(&nodes));
    world.stop(&mut leader).await;
    assert_eq!(nodes[0].acquire().await.len(), 1);
    assert_eq!(nodes[1].acquire().await.len(), 1);
}

#[tokio::test]
async fn without_a_majority_the_reason_is_named_and_healing_helps() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let (one, rest) = nodes.split_first_mut().unwrap();
    for node in rest.iter_mut() {
        world.stop(node).await;
    }
    let op = Op::Acquire { node: one.id, ipv6: false, count: 1 };
    let request = one.h().next_request();
    let error = one.h().propose_as(request, op.clone(), Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("n2") && text.contains("n3"), "{text}");
    until("status says so", || !one.h().status().quorum && one.waiting().contains("n2")).await;
    for node in rest.iter_mut() {
        world.start(node).await.unwrap();
    }
    one.h().propose_as(request, op, Duration::from_secs(60)).await.unwrap();
    assert_eq!(one.h().ledger().blocks_of(one.id).count(), 1);
}

#[tokio::test]
async fn a_minority_leader_commits_nothing() {
    let world = World::default();
    let nodes = founded(&world).await;
    let at = leader_of(&nodes);
    let leader = &nodes[at];
    let others: Vec<&Node> = nodes.iter().filter(|n| n.id != leader.id).collect();
    world.group(&[leader], 1);
    let op = Op::Acquire { node: leader.id, ipv6: false, count: 1 };
    let request = leader.h().next_request();
    let error =
        leader.h().propose_as(request, op.clone(), Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum { .. }), "{error}");
    let granted = others[0].acquire().await;
    assert_eq!(leader.h().ledger().blocks().count(), 0);
    world.group(&[leader], 0);
    leader.h().propose_as(request, op, Duration::from_secs(60)).await.unwrap();
    until("all agree", || {
        let heads: Vec<_> = nodes.iter().map(|n| n.h().ledger().head()).collect();
        heads.windows(2).all(|w| w[0] == w[1])
    })
    .await;
    let ledger = nodes[0].h().ledger();
    assert_eq!(ledger.blocks_of(others[0].id).collect::<Vec<_>>(), granted);
    assert_eq!(ledger.blocks_of(leader.id).count(), 1);
    assert!(nodes.iter().all(|n| *n.h().ledger() == *ledger));
}

#[tokio::test]
async fn a_restart_without_anybody_keeps_the_ledger() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let blocks = nodes[2].acquire().await;
    for node in &mut nodes {
        world.stop(node).await;
    }
    let last = &mut nodes[2];
    world.start(last).await.unwrap();
    assert_eq!(last.h().ledger().blocks_of(last.id).collect::<Vec<_>>(), blocks);
    assert!(last.h().joined());
    world.start(&mut nodes[0]).await.unwrap();
    assert_eq!(nodes[2].acquire().await.len(), 1);
}

#[tokio::test]
async fn a_voter_that_lost_its_disk_follows_as_a_new_node() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let cluster = nodes[0].h().ledger().cluster();
    let lost = &mut nodes[1];
    world.stop(lost).await;
    // Same machine, same address, same name, no disk: a new identity.
    lost.dir = TempDir::new();
    lost.id = NodeId([77; 16]);
    lost.founding = seats(ABC, "b");
    world.start(lost).await.unwrap();
    all_joined(&nodes).await;
    assert_eq!(nodes[1].h().ledger().cluster(), cluster);
    // The old seat is dead; the new node votes in one of its own.
    until("the seat is replaced", || {
        let status = nodes[1].h().status();
        status.role != "follower" && status.voters.iter().all(|v| v.alive)
    })
    .await;
}

#[tokio::test]
async fn two_founders_without_disks_wait_for_the_third() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let mut survivor = nodes.remove(0);
    for node in &mut nodes {
        world.stop(node).await;
    }
    for (node, n) in nodes.iter_mut().zip(50..) {
        node.dir = TempDir::new();
        node.id = NodeId([n; 16]);
        node.name = format!("n{n}");
        world.start(node).await.unwrap();
    }
    // The survivor knows a cluster: nobody founds a second one.
    until("the ledger is fetched", || {
        nodes.iter().all(|n| n.h().ledger().cluster() == survivor.h().ledger().cluster())
    })
    .await;
    let why = survivor
        .h()
        .propose(Op::Acquire { node: survivor.id, ipv6: false, count: 1 }, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(why, ProposeError::NoQuorum { .. }), "{why}");
    world.stop(&mut survivor).await;
}

#[tokio::test]
async fn a_former_voter_does_not_count_the_evicted_one() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let mut gone = nodes.remove((leader_of(&nodes) + 1) % 3);
    world.stop(&mut gone).await;
    let op = Op::Evict { node: gone.id };
    nodes[0].h().propose(op, Duration::from_secs(60)).await.unwrap();
    until("one voter", || nodes.iter().any(|n| n.settled_voters() == 1)).await;
    let leader = leader_of(&nodes);
    assert!(nodes[leader].h().status().quorum);
    // The mesh still tells of the dead one, and of the seat it had.
    let former = &nodes[1 - leader];
    let view = former.h().core.net.view();
    assert!(!view.is_alive(gone.id) && view.members[&gone.id].record.raft_id.is_some());
    until("it follows", || former.h().status().role == "follower").await;
    until("it sees the quorum", || {
        let status = former.h().status();
        status.quorum && status.waiting.is_none() && status.voters.len() == 1
    })
    .await;
    assert_eq!(former.acquire().await.len(), 1);
}

#[tokio::test]
async fn an_evicted_node_joins_once_more() {
    let world = World::default();
    let nodes = founded(&world).await;
    let victim = &nodes[2];
    let before = victim.acquire().await;
    let op = Op::Evict { node: victim.id };
    nodes[0].h().propose(op, Duration::from_secs(60)).await.unwrap();
    until("it is back, without its blocks", || {
        victim.h().joined() && victim.h().ledger().blocks_of(victim.id).count() == 0
    })
    .await;
    assert_ne!(victim.acquire().await[0].prefix, before[0].prefix);
}

#[tokio::test]
async fn a_node_without_a_vote_does_not_take_rumors_for_a_quorum() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let mut node = world.node(4, Founding::Observer);
    world.start(&mut node).await.unwrap();
    nodes.push(node);
    all_joined(&nodes).await;
    // There is a quorum, and it shows.
    assert!(matches!(nodes[3].h().recover().await, Err(RecoverError::Healthy(_))));
    for node in &mut nodes[1..3] {
        world.stop(node).await;
        world.forget(node.id);
    }
    until("the rumors know of one voter only", || {
        let status = nodes[3].h().status();
        status.voters.len() == 1 && status.quorum
    })
    .await;
    let error = nodes[3].h().recover().await.unwrap_err();
    assert!(matches!(error, RecoverError::Hearsay { .. }), "{error}");
    assert!(error.to_string().contains("run `agent recover` on one of them"), "{error}");
    // There the truth is known.
    until("no quorum is noticed", || !nodes[0].h().status().quorum).await;
    nodes[0].h().recover().await.unwrap();
}

#[tokio::test]
async fn a_survivor_founds_again_with_every_block() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    for n in 4..=5 {
        let mut node = world.node(n, Founding::Observer);
        world.start(&mut node).await.unwrap();
        nodes.push(node);
    }
    all_joined(&nodes).await;
    until("five voters", || nodes.iter().all(|n| n.settled_voters() == 5)).await;
    assert!(matches!(nodes[4].h().recover().await, Err(RecoverError::Healthy(_))));
    let blocks = nodes[4].acquire().await;
    for node in &mut nodes[0..3] {
        world.stop(node).await;
    }
    let (lost, left) = nodes.split_at_mut(3);
    until("no quorum is noticed", || !left[1].h().status().quorum).await;
    left[1].h().recover().await.unwrap();
    let at = left[1].h().ledger().head().index;
    until("the other survivor follows", || left[0].h().ledger().head().index >= at).await;
    for node in left.iter() {
        assert_eq!(node.h().ledger().blocks_of(left[1].id).collect::<Vec<_>>(), blocks);
    }
    assert_eq!(left[0].acquire().await.len(), 1);
    // The lost voters come back one by one, in their old seats' stead as followers.
    world.start(&mut lost[0]).await.unwrap();
    until("voters again", || {
        let all = [&lost[0], &left[0], &left[1]];
        all.iter().all(|n| {
            let status = n.h().status();
            status.quorum && status.role != "follower" && status.voters.len() >= 3
        })
    })
    .await;
    assert_eq!(lost[0].acquire().await.len(), 1);
}

#[tokio::test]
async fn a_voter_far_behind_gets_a_snapshot() {
    let world = World::default();
    let mut nodes = founded(&world).await;
    let at = (leader_of(&nodes) + 1) % 3;
    let mut late = nodes.remove(at);
    world.stop(&mut late).await;
    // More than the log keeps behind a snapshot.
    for _ in 0..80 {
        let mut batch = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let handle = nodes[0].h().clone();
            let op = Op::Evict { node: NodeId([99; 16]) };
            batch.spawn(async move { handle.propose(op, Duration::from_secs(60)).await.unwrap() });
        }
        batch.join_all().await;
    }
    assert!(nodes[0].h().ledger().head().index > 2560);
    world.start(&mut late).await.unwrap();
    nodes.push(late);
    until("all agree", || {
        nodes.iter().all(|n| n.h().ledger().head() == nodes[0].h().ledger().head())
    })
    .await;
    until("it votes", || nodes[2].h().status().role != "follower").await;
    assert_eq!(nodes[2].acquire().await.len(), 1);
    until("all agree", || *nodes[2].h().ledger() == *nodes[0].h().ledger()).await;
    // And after a restart of all.
    for node in &mut nodes {
        world.stop(node).await;
    }
    for node in &mut nodes {
        world.start(node).await.unwrap();
    }
    assert_eq!(nodes[0].acquire().await.len(), 1);
}

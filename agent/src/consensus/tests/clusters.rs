//! Founding, joining, following, replays.

use std::time::Duration;

use weft_proto::id::NodeId;
use weft_proto::ledger::{Op, Outcome};

use super::super::Founding;
use super::super::seats::{SeatError, Seats};
use super::super::store::Db;
use super::world::{World, all_joined, seats, until};

const ABC: &[&str] = &["a", "b", "c"];

#[tokio::test]
async fn three_found_one_cluster_and_a_fourth_follows() {
    let world = World::default();
    let mut nodes = world.cluster(ABC).await;
    all_joined(&nodes).await;
    let cluster = nodes[0].h().ledger().cluster();
    assert!(nodes.iter().all(|n| n.h().ledger().cluster() == cluster));
    assert_eq!(nodes[0].h().status().voters.len(), 3);

    let mut fourth = world.node(4, Founding::Observer);
    world.start(&mut fourth).await.unwrap();
    nodes.push(fourth);
    all_joined(&nodes).await;
    let blocks = nodes[3].acquire().await;
    assert_eq!(blocks[0].owner, nodes[3].id);
    // At once in its own ledger, soon in everybody's.
    assert_eq!(nodes[3].h().ledger().blocks_of(nodes[3].id).count(), 1);
    until("all know the block", || {
        nodes.iter().all(|n| n.h().ledger().owner_of(blocks[0].prefix.addr()) == Some(blocks[0]))
    })
    .await;
    assert_eq!(nodes[3].h().status().role, "follower");
    assert!(nodes.iter().all(|n| n.h().refused() == 0));
}

#[tokio::test]
async fn a_single_founder_grows_to_three_voters() {
    let world = World::default();
    let mut nodes = Vec::new();
    for n in 1..=3 {
        let founding = if n == 1 { Founding::Single } else { Founding::Observer };
        let mut node = world.node(n, founding);
        world.start(&mut node).await.unwrap();
        nodes.push(node);
    }
    all_joined(&nodes).await;
    // In the middle of the change the founder is still needed.
    until("three voters", || nodes.iter().all(|n| n.settled_voters() == 3)).await;
    // The founder is now dispensable.
    let mut founder = nodes.remove(0);
    world.stop(&mut founder).await;
    for node in &nodes {
        assert_eq!(node.acquire().await.len(), 1);
    }
}

#[tokio::test]
async fn nothing_before_a_majority_and_the_missing_are_named() {
    let world = World::default();
    let mut a = world.node(1, seats(ABC, "a"));
    world.start(&mut a).await.unwrap();
    until("waits", || a.waiting().contains("1 of 2 reached: a; missing b, c")).await;
    let op = Op::Acquire { node: a.id, ipv6: false, count: 1 };
    let error = a.h().propose(op, Duration::from_millis(300)).await.unwrap_err().to_string();
    assert!(error.contains("missing b, c"), "{error}");
    let mut b = world.node(2, seats(ABC, "b"));
    world.start(&mut b).await.unwrap();
    let mut nodes = vec![a, b];
    all_joined(&nodes).await;
    // The late founder joins, and soon votes in a seat of its own.
    let mut c = world.node(3, seats(ABC, "c"));
    world.start(&mut c).await.unwrap();
    nodes.push(c);
    all_joined(&nodes).await;
    until("the late founder votes", || {
        let status = nodes[2].h().status();
        status.role != "follower"
            && status.voters.len() == 3
            && status.voters.iter().all(|v| v.alive)
    })
    .await;
    assert_eq!(nodes[0].h().ledger().cluster(), nodes[2].h().ledger().cluster());
}

#[tokio::test]
async fn another_founding_list_is_refused_by_name() {
    let world = World::default();
    let mut a = world.node(1, seats(&["a", "b", "c"], "a"));
    let mut b = world.node(2, seats(&["a", "b", "x"], "b"));
    world.start(&mut a).await.unwrap();
    world.start(&mut b).await.unwrap();
    for node in [&a, &b] {
        until("both lists are named", || {
            let why = node.waiting();
            why.contains("[a, b, c]") && why.contains("[a, b, x]")
        })
        .await;
        assert_eq!(node.h().ledger().cluster(), None);
    }
}

#[tokio::test]
async fn other_ranges_are_refused_with_both_values() {
    let world = World::default();
    let mut a = world.node(1, Founding::Single);
    world.start(&mut a).await.unwrap();
    let mut b = world.node(2, Founding::Observer);
    b.ranges = "10.99.0.0/16";
    world.start(&mut b).await.unwrap();
    until("the difference is named", || {
        let why = b.waiting();
        why.contains("10.32.0.0/16") && why.contains("10.99.0.0/16")
    })
    .await;
    assert!(!b.h().joined());
}

#[tokio::test]
async fn a_replay_has_the_same_outcome() {
    let world = World::default();
    let mut a = world.node(1, Founding::Single);
    let mut b = world.node(2, Founding::Observer);
    world.start(&mut a).await.unwrap();
    world.start(&mut b).await.unwrap();
    let nodes = [a, b];
    all_joined(&nodes).await;
    let request = nodes[1].h().next_request();
    let op = Op::Acquire { node: nodes[1].id, ipv6: false, count: 1 };
    let wait = Duration::from_secs(60);
    let first = nodes[1].h().propose_as(request, op.clone(), wait).await.unwrap();
    let again = nodes[0].h().propose_as(request, op, wait).await.unwrap();
    assert!(matches!(first.1, Outcome::Granted(_)));
    assert_eq!(first.1, again.1);
    assert_eq!(nodes[0].h().ledger().blocks_of(nodes[1].id).count(), 1);
}

#[tokio::test]
async fn two_clusters_that_meet_stay_apart() {
    let world = World::default();
    let mut a = world.node(1, Founding::Single);
    let mut b = world.node(2, Founding::Single);
    world.group(&[&a], 1);
    world.start(&mut a).await.unwrap();
    world.start(&mut b).await.unwrap();
    let nodes = [a, b];
    all_joined(&nodes).await;
    let (mine, theirs) = (nodes[0].h().ledger(), nodes[1].h().ledger());
    assert_ne!(mine.cluster(), theirs.cluster());
    world.group(&[&nodes[0]], 0);
    nodes[0].h().on_head(nodes[1].id, theirs.head());
    assert_eq!(nodes[0].h().refused(), 1);
    // Work goes on in both; heads told by notify are refused and counted.
    nodes[0].acquire().await;
    nodes[1].acquire().await;
    until("both refuse", || nodes.iter().all(|n| n.h().refused() > 0)).await;
    assert_eq!(nodes[0].h().ledger().members().count(), 1);
    assert_eq!(nodes[1].h().ledger().cluster(), theirs.cluster());
}

#[tokio::test]
async fn a_seat_belongs_to_the_first_node_heard_in_it() {
    let dir = super::world::TempDir::new();
    let (me, first, second) = (NodeId([1; 16]), NodeId([2; 16]), NodeId([3; 16]));
    let seat = weft_proto::id::RaftId([9; 16]);
    {
        let seats = Seats::load(Db::open(&dir.0, me).unwrap()).await.unwrap();
        seats.heard(seat, first).await.unwrap();
    }
    let seats = Seats::load(Db::open(&dir.0, me).unwrap()).await.unwrap();
    seats.heard(seat, first).await.unwrap();
    assert!(matches!(seats.heard(seat, second).await, Err(SeatError::Taken { .. })));
    // A seat that is the node's own id needs no binding.
    seats.heard(super::super::types::seat_of_node(second), second).await.unwrap();
}

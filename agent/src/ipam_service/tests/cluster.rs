//! Several nodes: a small range used to the last address, and the log away.

use super::*;
use crate::api::backend::BackendError;

fn hosts(range: &str) -> BTreeSet<IpAddr> {
    range.parse::<ipnet::IpNet>().unwrap().hosts().collect()
}

#[tokio::test]
async fn a_tiny_range_to_the_last_address() {
    const RANGE: &str = "10.32.1.0/28";
    let (_shared, nodes, _dir) = cluster(RANGE, 3);
    // All at once, from everywhere.
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..14usize {
        let service = Arc::clone(&nodes[at % 3].service);
        tasks.spawn(async move {
            let key = key(&format!("p{at}"));
            service.allocate(&key, false, None, &facts(&key), LONG).await
        });
    }
    while let Some(answer) = tasks.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(check_unique(&nodes), hosts(RANGE));

    for (at, node) in nodes.iter().enumerate() {
        let refused = node.add(&format!("late{at}")).await.unwrap_err();
        assert!(
            matches!(&refused, BackendError::Exhausted(why) if why.contains(RANGE)),
            "{refused}"
        );
        assert!(node.service.stand().exhausted.is_some());
        assert!(node.service.stand().waiting.is_empty());
    }
    // One comes free: here at once, and over there for whoever asks.
    let freed = nodes[0].service.release(&key("p0")).unwrap();
    assert!(nodes[0].service.stand().exhausted.is_none());
    assert_eq!(nodes[1].add("again").await.unwrap(), freed[0]);
    let freed = nodes[1].service.release(&key("p1")).unwrap();
    assert_eq!(nodes[1].add("once more").await.unwrap(), freed[0]);
    assert_eq!(check_unique(&nodes), hosts(RANGE));
}

#[tokio::test]
async fn one_node_can_have_everything() {
    const RANGE: &str = "10.32.1.0/28";
    let (_shared, nodes, _dir) = cluster(RANGE, 3);
    until("spares everywhere", || nodes.iter().all(|n| n.service.stand().owned > 0)).await;
    for at in 0..14 {
        nodes[2].add(&format!("p{at}")).await.unwrap();
    }
    assert_eq!(check_unique(&nodes), hosts(RANGE));
}

#[tokio::test]
async fn a_waiter_is_served_by_a_release() {
    let (_shared, nodes, _dir) = cluster("10.32.1.0/29", 1);
    for at in 0..6 {
        nodes[0].add(&format!("p{at}")).await.unwrap();
    }
    assert!(matches!(nodes[0].add("late").await, Err(BackendError::Exhausted(_))));
    nodes[0].seat.shared.set(Fate::NoQuorum);
    let service = Arc::clone(&nodes[0].service);
    let waits = tokio::spawn(async move {
        let key = key("waits");
        service.allocate(&key, false, None, &facts(&key), LONG).await
    });
    until("it waits", || !nodes[0].service.stand().waiting.is_empty()).await;
    let freed = nodes[0].service.release(&key("p3")).unwrap();
    assert_eq!(waits.await.unwrap().unwrap().0, freed[0]);
    assert!(nodes[0].service.stand().blocked.is_none());
}

#[tokio::test]
async fn without_quorum_requests_wait_and_are_told_why() {
    let (shared, dir) = (Shared::founded("10.32.0.0/24", 1), Scratch::new());
    shared.set(Fate::NoQuorum);
    let node = Node::run(&shared, 1, &dir.0);
    let late = node.add_within("a", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(&late, BackendError::NotReady(why) if why.contains("n2, n3")), "{late}");
    assert!(node.service.stand().waiting.is_empty());
    assert!(node.service.stand().blocked.is_none());
    let service = Arc::clone(&node.service);
    let waits = tokio::spawn(async move {
        let key = key("a");
        service.allocate(&key, false, None, &facts(&key), LONG).await
    });
    until("status says why", || node.service.stand().blocked.is_some()).await;
    shared.set(Fate::Works);
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_quorum_hoards_no_blocks() {
    let (shared, dir) = (Shared::founded("10.32.0.0/16", 1), Scratch::new());
    // Every try is committed; none is heard of.
    shared.set(Fate::AnswerLost);
    let node = Node::start(&shared, 1, &dir.0);
    node.seat.held.lock().unwrap().replace(Arc::clone(&shared.lock().ledger));
    let supplier = Supplier::new(
        Arc::clone(&node.service),
        Arc::clone(&node.seat) as Arc<dyn Registry>,
        Arc::clone(&node.seat) as Arc<dyn PeerNet>,
    );
    node.supplier.set(tokio::spawn(supplier.run())).unwrap();
    let tries = |shared: &Shared| {
        let is = |op: &&Op| matches!(op, Op::Acquire { .. });
        shared.lock().log.iter().filter(is).count()
    };
    let _ = node.add_within("a", Duration::from_millis(1_200)).await;
    assert!(tries(&shared) > 1, "it kept trying");
    assert_eq!(shared.lock().ledger.blocks_of(node.seat.me).count(), 1);
}

#[tokio::test]
async fn who_hangs_up_is_forgotten() {
    let (shared, dir) = (Shared::founded("10.32.0.0/24", 1), Scratch::new());
    shared.set(Fate::NoQuorum);
    let node = Node::run(&shared, 1, &dir.0);
    let service = Arc::clone(&node.service);
    let waits = tokio::spawn(async move {
        let key = key("a");
        let _busy = IpamService::begin(&service, &key).unwrap();
        service.allocate(&key, false, None, &facts(&key), LONG).await
    });
    until("it waits", || !node.service.stand().waiting.is_empty()).await;
    waits.abort();
    assert!(waits.await.is_err());
    assert!(node.service.stand().waiting.is_empty());
    drop(IpamService::begin(&node.service, &key("a")).unwrap());
    shared.set(Fate::Works);
    node.add("b").await.unwrap();
    assert!(node.service.lease(&key("a")).is_none());
}

#[tokio::test]
async fn dead_owners_are_named() {
    let (shared, mut nodes, _dir) = cluster("10.32.1.0/29", 2);
    until("spares everywhere", || nodes.iter().all(|n| n.service.stand().owned > 0)).await;
    drop(nodes.pop());
    {
        let mut world = shared.lock();
        let mut view = (*world.view).clone();
        view.members.get_mut(&node(2)).unwrap().liveness = Liveness::Dead;
        world.view = Arc::new(view);
    }
    let mut at = 0;
    let refused = loop {
        at += 1;
        match nodes[0].add(&format!("p{at}")).await {
            Ok(_) => assert!(at < 7),
            Err(e) => break e.to_string(),
        }
    };
    assert!(refused.contains("n2") && refused.contains("rmpeer"), "{refused}");
    check_unique(&nodes);
}

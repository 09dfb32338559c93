//! One node: leases, the journal, and what happens when it cannot be written.

use super::*;
use crate::api::backend::BackendError;
use weft_proto::api::PortMapping;

/// A node with a block, without a supplier.
fn alone(range: &str) -> (Arc<Shared>, Node, Scratch) {
    let (shared, dir) = (Shared::founded(range, 2), Scratch::new());
    let request = RequestId { node: node(201), session: 1, seq: 1 };
    shared.apply(request, Op::Acquire { node: node(1), ipv6: false, count: 64 });
    let node = Node::start(&shared, 1, &dir.0);
    (shared, node, dir)
}

#[tokio::test]
async fn once_per_key() {
    let (_shared, node, _dir) = alone("10.32.0.0/24");
    let first = node.add("a").await.unwrap();
    assert_eq!(node.add("a").await.unwrap(), first);
    assert_ne!(node.add("b").await.unwrap(), first);
    let _busy = IpamService::begin(&node.service, &key("a")).unwrap();
    assert!(matches!(IpamService::begin(&node.service, &key("a")), Err(BackendError::Conflict(_))));
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let (shared, first, dir) = alone("10.32.0.0/24");
    let (a, b) = (first.add("a").await.unwrap(), first.add("b").await.unwrap());
    first.service.release(&key("b")).unwrap();
    drop(first);
    let again = Node::start(&shared, 1, &dir.0);
    assert_eq!(again.add("a").await.unwrap(), a);
    assert_eq!(again.service.lease(&key("a")).unwrap().host_ifname, "wefta");
    assert!(again.service.lease(&key("b")).is_none());
    assert_eq!(again.service.holder(b), None);
    // Packets for the one that is gone may still be on their way.
    let c = again.add("c").await.unwrap();
    assert!(c != b && c != a);
}

#[tokio::test]
async fn a_start_asks_for_nothing_that_it_owns_already() {
    let (shared, first, dir) = alone("10.32.0.0/24");
    first.add("a").await.unwrap();
    drop(first);
    let blocks = shared.lock().ledger.blocks().count();
    // After a reboot no lease is known, and who waits may be faster than the first look at
    // the ledger.
    std::fs::remove_file(dir.0.join("leases1.json")).unwrap();
    let again = Node::open(&shared, 1, &dir.0).supplied();
    again.add("b").await.unwrap();
    assert_eq!(shared.lock().ledger.blocks().count(), blocks);
}

#[tokio::test]
async fn what_cannot_be_written_is_not_answered_and_not_lost() {
    let (shared, node, dir) = alone("10.32.0.0/29");
    let kept = node.add("kept").await.unwrap();
    let free = node.service.stand().free4;
    node.service.lock().journal.break_writes();

    assert!(matches!(node.add("new").await, Err(BackendError::Internal(_))));
    assert_eq!(node.service.stand().free4, free, "the address is free again");
    let claimed = node.service.claim(&key("c"), "10.32.0.4".parse().unwrap(), &facts(&key("c")));
    assert!(matches!(claimed, Err(crate::ipam_service::ClaimFailed::Service(_))));
    // What is leased on disk stays leased in memory: a restart would find it so.
    assert!(node.service.release(&key("kept")).is_err());
    assert!(node.service.release_one(&key("kept"), kept).is_err());
    assert_eq!(node.service.holder(kept), Some(key("kept")));
    assert_eq!(node.service.stand().free4, free);
    assert_eq!(node.service.leases().len(), 1);

    node.service.lock().journal.mend_writes();
    let mut held = BTreeSet::from([kept]);
    for id in 0..free {
        assert!(held.insert(node.add(&id.to_string()).await.unwrap()));
    }
    drop(node);
    let again = Node::start(&shared, 1, &dir.0);
    assert_eq!(check_unique([&again]), held);
}

#[tokio::test]
async fn a_removed_store_is_written_anew() {
    let (shared, first, dir) = alone("10.32.0.0/24");
    let a = first.add("a").await.unwrap();
    std::fs::remove_file(dir.0.join("leases1.json")).unwrap();
    let b = first.add("b").await.unwrap();
    drop(first);
    let again = Node::start(&shared, 1, &dir.0);
    assert_eq!(
        (again.service.holder(a), again.service.holder(b)),
        (Some(key("a")), Some(key("b")))
    );
}

#[tokio::test]
async fn without_its_directory_nothing_is_promised() {
    let (_shared, node, dir) = alone("10.32.0.0/24");
    let kept = node.add("kept").await.unwrap();
    let free = node.service.stand().free4;
    std::fs::remove_dir_all(&dir.0).unwrap();
    let refused = node.add("new").await.unwrap_err();
    assert!(matches!(&refused, BackendError::Internal(why) if why.contains("leases1.json")));
    assert!(node.service.release(&key("kept")).is_err());
    assert_eq!(node.service.holder(kept), Some(key("kept")));
    assert_eq!(node.service.stand().free4, free);
    std::fs::create_dir_all(&dir.0).unwrap();
    node.add("new").await.unwrap();
    check_unique([&node]);
}

#[tokio::test]
async fn the_ledger_never_goes_back() {
    let (shared, node, _dir) = alone("10.32.0.0/24");
    let before = Arc::clone(&shared.lock().ledger);
    let given = node.service.lock().table.donation(false, None).unwrap();
    let op = Op::Transfer { from: node.seat.me, to: super::node(2), prefix: given };
    shared.apply(node.seat.next_request(), op);
    node.service.follow(&shared.lock().ledger.clone());
    let owned = node.service.stand().owned;
    // Another task comes late with what it had read before.
    node.service.follow(&before);
    assert_eq!(node.service.stand().owned, owned);
    for id in 0..node.service.stand().free4 {
        let address = node.add(&id.to_string()).await.unwrap();
        assert!(!given.contains(&address), "{address} was given away");
    }
}

#[tokio::test]
async fn two_cannot_have_one_host_port() {
    let (_shared, node, _dir) = alone("10.32.0.0/24");
    let with_port = |id: &str| LeaseFacts {
        port_mappings: vec![PortMapping {
            host_port: 80,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: None,
        }],
        ..facts(&key(id))
    };
    let (a, b) = (key("a"), key("b"));
    node.service.allocate(&a, false, None, &with_port("a"), LONG).await.unwrap();
    let taken = node.service.allocate(&b, false, None, &with_port("b"), LONG).await;
    assert!(matches!(taken, Err(BackendError::Conflict(why)) if why.contains("80/tcp")));
    // Nor by way of a later change.
    node.add("b").await.unwrap();
    assert!(node.service.update_facts(&b, &with_port("b")).is_err());
    node.service.release(&a).unwrap();
    node.service.update_facts(&b, &with_port("b")).unwrap();
    // A lease freed meanwhile is not brought back without addresses.
    assert!(matches!(node.service.update_facts(&a, &facts(&a)), Err(BackendError::Conflict(_))));
    assert!(node.service.lease(&a).is_none());
}

#[tokio::test]
async fn anyone_gets_a_new_address_each_time() {
    let (shared, first, dir) = alone("10.32.0.0/24");
    let service = &first.service;
    let (a, b) = tokio::join!(
        service.allocate_anyone(false, None, LONG),
        service.allocate_anyone(false, None, LONG),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a, b);
    assert_eq!(service.holder(a), Some(crate::ipam_service::http_key(&a.to_string())));
    drop(first);
    let again = Node::start(&shared, 1, &dir.0);
    assert_eq!(check_unique([&again]), BTreeSet::from([a, b]));
}

#[tokio::test]
async fn only_what_nobody_asks_for_is_swept() {
    let (shared, first, dir) = alone("10.32.0.0/24");
    let a = first.add("a").await.unwrap();
    assert!(first.service.unattended(Duration::from_secs(60)).is_empty(), "it has just begun");
    assert_eq!(first.service.unattended(Duration::ZERO), [key("a")]);
    let busy = IpamService::begin(&first.service, &key("a")).unwrap();
    assert!(first.service.unattended(Duration::ZERO).is_empty(), "it is being served");
    assert!(!first.service.release_unattended(&key("a"), Duration::ZERO).unwrap());
    drop(busy);
    assert!(!first.service.release_unattended(&key("a"), Duration::from_secs(60)).unwrap());
    assert_eq!(first.service.holder(a), Some(key("a")));
    assert!(first.service.release_unattended(&key("a"), Duration::ZERO).unwrap());
    assert_eq!(first.service.holder(a), None);
    drop(first);
    assert!(Node::start(&shared, 1, &dir.0).service.leases().is_empty());
}

#[tokio::test]
async fn a_node_that_leaves_gives_nothing_out() {
    let (_shared, node, _dir) = alone("10.32.0.0/24");
    node.add("pod").await.unwrap();
    let own = crate::ipam_service::http_key("weave:expose");
    assert_eq!(node.service.stop_allocating(&own), Err(1));
    assert!(!node.service.is_leaving());
    node.service.release(&key("pod")).unwrap();
    node.service.stop_allocating(&own).unwrap();
    assert!(matches!(node.add("late").await, Err(BackendError::NotReady(_))));
    let claimed = node.service.claim(&own, "10.32.0.9".parse().unwrap(), &LeaseFacts::default());
    assert!(claimed.is_err());
}

#[tokio::test]
async fn behind_a_closed_gate_nothing_new_is_given_out_and_all_else_works() {
    use crate::ipam_service::Gate;
    let (_shared, node, _dir) = alone("10.32.0.0/24");
    let a = node.add("a").await.unwrap();
    node.service.set_gate(Gate::Asking);
    let (later, ()) = tokio::join!(node.add("later"), async {
        assert_eq!(node.add("a").await.unwrap(), a, "what is leased is leased");
        assert!(node.service.lease(&key("later")).is_none(), "a request waits for the answer");
        node.service.set_gate(Gate::Open);
    });
    assert_ne!(later.unwrap(), a);
    let why = "another machine runs as this node";
    node.service.set_gate(Gate::Closed(why.to_owned()));
    assert_eq!(node.add("new").await, Err(BackendError::NotReady(why.to_owned())));
    let facts = LeaseFacts::default();
    let anyone = node.service.allocate_anyone(false, None, Duration::from_secs(5)).await;
    assert_eq!(anyone, Err(BackendError::NotReady(why.to_owned())));
    let own = crate::ipam_service::http_key("weave:expose");
    assert!(node.service.claim(&own, "10.32.0.9".parse().unwrap(), &facts).is_err());
    assert_eq!(node.add("a").await.unwrap(), a);
    assert_eq!(node.service.release(&key("later")).unwrap().len(), 1);
    assert_eq!(node.service.release(&key("a")).unwrap(), [a]);
    node.service.set_gate(Gate::Open);
    node.add("new").await.unwrap();
}

//! Nodes find each other, agree on who is alive, and talk.

use std::sync::atomic::{AtomicU64, Ordering};

use weft_proto::id::ClusterId;
use weft_proto::wire::v1::{Echo, LedgerHead};

use super::super::net::CallError;
use super::super::records::Offer;
use super::super::state::lock;
use super::*;

#[test]
fn three_find_each_other_from_one_target() {
    let nodes = cluster(&["a", "b", "c"]);
    all_see_all(&nodes);
    until("full mesh, one connection per pair", || nodes.iter().all(|n| n.established() == 2));
    let status = nodes[2].mesh.status();
    assert!(status.keyed);
    assert_eq!(status.members.len(), 2);
    assert!(status.members.iter().all(|m| m.state == "alive" && m.version == "test"));
    assert!(nodes[1].mesh.rtt(nodes[2].id()).is_some());
    // A leaver is known to be gone without waiting for a timeout.
    nodes[1].block_on(nodes[1].mesh.shutdown());
    until("b is gone", || {
        [0, 2].iter().all(|n| nodes[*n].sees(nodes[1].id()) == Some(Liveness::Dead))
    });
}

#[test]
fn a_connection_costs_what_the_simulation_of_thousands_reckons() {
    let nodes = cluster(&["a", "b"]);
    all_see_all(&nodes);
    let sent = |here: usize, there: usize| nodes[here].mesh.sent(nodes[there].id());
    until("both have a connection", || sent(0, 1).is_some() && sent(1, 0).is_some());
    let both = sent(0, 1).unwrap_or(0) + sent(1, 0).unwrap_or(0);
    println!("a handshake and the first words: {both} bytes");
    let reckoned = super::super::scale::wire::DIAL + super::super::scale::wire::ACCEPT;
    assert!(both > reckoned / 3 && both < reckoned * 2, "{both} bytes, not {reckoned}");
}

#[test]
fn the_own_target_is_recognised() {
    let node = start(config("a"));
    node.mesh.connect(&[node.target()], false).unwrap();
    until("the call came back", || {
        node.mesh.target_nodes().get(&node.target()) == Some(&Some(node.id()))
    });
    assert!(node.mesh.status().connections.is_empty());
    assert_eq!(node.mesh.targets(), [node.target()]);
    assert!(node.mesh.refusals().is_empty());
    assert!(node.mesh.connect(&["a:b:c d".to_owned()], true).unwrap_err().contains("a:b:c d"));
    assert_eq!(node.mesh.targets(), [node.target()], "nothing changed by a bad list");
    node.mesh.forget(&node.mesh.targets());
    assert!(node.mesh.targets().is_empty());
}

#[test]
fn a_record_and_the_ledger_head_spread_to_all() {
    let nodes = cluster(&["a", "b", "c", "d", "e"]);
    let heard: Arc<AtomicU64> = Arc::default();
    let write = Arc::clone(&heard);
    nodes[4].mesh.on_head(Box::new(move |_, head| {
        write.fetch_max(head.index, Ordering::Relaxed);
    }));
    all_see_all(&nodes);
    nodes[3].mesh.update_record(Box::new(|r| r.leases = 42));
    let id = nodes[3].id();
    until("the record is everywhere", || {
        nodes.iter().all(|n| n.mesh.view().members[&id].record.leases == 42)
    });
    let cluster = Some(ClusterId([3; 16]));
    nodes[0].mesh.set_ledger_head(LedgerHead { cluster, index: 7 });
    until("the head is heard of", || heard.load(Ordering::Relaxed) == 7);
    // An evicted member is forgotten and its live record refused.
    nodes[0].mesh.remove(id);
    assert!(nodes[0].mesh.is_removed(id) && nodes[0].sees(id).is_none());
    nodes[3].mesh.update_record(Box::new(|r| r.leases = 43));
    until("refused", || nodes[0].counter("record_refused") > 0);
    assert!(nodes[0].sees(id).is_none());
    nodes[0].mesh.unremove(id);
    until("back", || nodes[0].sees(id) == Some(Liveness::Alive));
}

#[test]
fn the_killed_is_dead_and_returns_as_a_new_life() {
    let mut nodes = cluster(&["a", "b"]);
    let first = nodes[0].target();
    let identity = Identity::generate().unwrap();
    let c = MeshConfig { identity, targets: vec![first], ..config("c") };
    let victim = start(c.clone());
    let (id, address) = (victim.id(), victim.address());
    nodes.push(victim);
    all_see_all(&nodes);
    nodes.pop().unwrap().kill();
    until("dead", || nodes.iter().all(|n| n.sees(id) == Some(Liveness::Dead)));
    let echo = Frame::new(&Echo(vec![])).unwrap();
    until("a call fails at once", || {
        let call = nodes[0].mesh.call(id, echo.clone(), Duration::from_millis(200));
        matches!(nodes[0].block_on(call), Err(CallError::Unreachable { .. }))
    });
    // Same port: peers' leftovers of the old life must not be in the way.
    let again = MeshConfig { bind: address, session: c.session + 1000, ..c };
    nodes.push(start(again));
    all_see_all(&nodes);
    until("its new record", || {
        nodes.iter().all(|n| n.mesh.view().members[&id].record.incarnation > 0)
    });
}

#[test]
fn a_restart_faster_than_any_timeout_replaces_the_old_life() {
    let mut nodes = cluster(&["a", "b"]);
    all_see_all(&nodes);
    let c = MeshConfig { targets: vec![nodes[0].target()], ..config("c") };
    let first = start(c.clone());
    let address = first.address();
    nodes.push(first);
    all_see_all(&nodes);
    nodes.pop().unwrap().kill();
    until("the port is free", || std::net::UdpSocket::bind(address).is_ok());
    // The clock ran backwards, too.
    nodes.push(start(MeshConfig { bind: address, session: c.session - 5000, ..c }));
    all_see_all(&nodes);
    mirror(&nodes[2]);
    let own =
        nodes[2].block_on(nodes[2].mesh.call(nodes[2].id(), frame(MIRROR, vec![2]), PATIENCE));
    assert_eq!(own.unwrap().payload, [2]);
    let (a, c) = (&nodes[0], &nodes[2]);
    // The connection of the former life takes a call with it if it is still the one in use.
    until("an answer of the new life", || {
        let answer = a.block_on(a.mesh.call(c.id(), frame(MIRROR, vec![1]), PATIENCE));
        answer.is_ok_and(|answer| answer.payload == [1])
    });
    until("the record of the new life wins", || {
        nodes.iter().all(|n| {
            n.mesh.view().members[&c.id()].record.incarnation
                >= c.mesh.view().members[&c.id()].record.incarnation
        })
    });
    assert!(nodes.iter().all(|n| n.refused_with(Failure::CLONE).is_none()));
}

#[test]
fn calls_answer_time_out_or_say_why_not() {
    let nodes = cluster(&["a", "b"]);
    all_see_all(&nodes);
    let (a, b) = (&nodes[0], &nodes[1]);
    let call = |f: Frame, patience| a.block_on(a.mesh.call(b.id(), f, patience));
    let unknown = call(frame(MIRROR, vec![]), PATIENCE);
    assert!(
        matches!(&unknown, Err(CallError::Refused(f)) if f.code == Failure::UNKNOWN_KIND),
        "{unknown:?}"
    );
    mirror(b);
    let big = vec![7; 3 << 10];
    assert_eq!(call(frame(MIRROR, big.clone()), PATIENCE).unwrap().payload, big);
    let large = Frame { kind: 33, version: 9, payload: vec![1; 6 << 20] };
    let service: Arc<dyn Service> = Arc::new(Mirror);
    b.mesh.register(&[33], &service);
    assert_eq!(call(large.clone(), PATIENCE).unwrap(), large);
    let late = call(frame(SILENCE, vec![]), Duration::from_millis(100));
    assert!(matches!(late, Err(CallError::Timeout { .. })), "{late:?}");
    until("the service's work is dropped with its caller", || b.counter("request_abandoned") > 0);
    let nobody = a.block_on(a.mesh.call(NodeId([9; 16]), frame(MIRROR, vec![]), PATIENCE));
    assert!(matches!(nobody, Err(CallError::Unreachable { .. })));
    let echo = Frame::new(&Echo(vec![1, 2])).unwrap();
    assert_eq!(call(echo.clone(), PATIENCE).unwrap(), echo);
}

#[test]
fn who_was_called_before_it_was_known_is_reached_as_soon_as_it_is() {
    let (a, b) = (start(config("a")), start(config("b")));
    let echo = Frame::new(&Echo(vec![3])).unwrap();
    let call = || a.block_on(a.mesh.call(b.id(), echo.clone(), PATIENCE));
    let early = call();
    assert!(matches!(early, Err(CallError::Unreachable { .. })), "{early:?}");
    let record = Arc::clone(&b.mesh.view().members[&b.id()].record);
    assert_eq!(lock(&a.mesh.state.records).offer(record), Offer::Fresh);
    assert_eq!(call().unwrap(), echo);
}

#[test]
fn conn_limit_is_kept() {
    let hub = start(MeshConfig { conn_limit: 2, ..config("hub") });
    let others: Vec<Node> = ["b", "c", "d", "e"]
        .iter()
        .map(|name| start(MeshConfig { targets: vec![hub.target()], ..config(name) }))
        .collect();
    until("two are in, others are told why not", || {
        hub.established() == 2 && others.iter().any(|n| n.refused_with(Failure::BUSY).is_some())
    });
    assert!(hub.counter("handshake_busy") > 0);
    for _ in 0..20 {
        assert!(hub.established() <= 2);
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = others.iter().find_map(|n| n.refused_with(Failure::BUSY)).unwrap();
    assert!(told.contains("CONN_LIMIT of 2"), "{told}");
}

#[test]
fn a_node_without_an_address_learns_it() {
    let a = start(config("a"));
    let b = start(MeshConfig {
        bind: "0.0.0.0:0".parse().unwrap(),
        targets: vec![a.target()],
        ..config("b")
    });
    until("learned and told", || {
        a.mesh.view().members.get(&b.id()).is_some_and(|m| {
            m.record.underlay == [a.address().ip()] && m.record.mesh_port == b.address().port()
        })
    });
}

#[test]
fn an_ipv6_underlay_does() {
    let v6 = |name: &str, targets| MeshConfig {
        bind: "[::1]:0".parse().unwrap(),
        targets,
        ..config(name)
    };
    let a = start(v6("a", vec![]));
    let nodes = [start(v6("b", vec![a.target()])), a];
    all_see_all(&nodes);
    // A socket for both families takes calls of either.
    let both = start(MeshConfig { bind: "0.0.0.0:0".parse().unwrap(), ..config("c") });
    let port = both.address().port();
    nodes[0].mesh.connect(&[format!("[::1]:{port}")], false).unwrap();
    let d = start(MeshConfig { targets: vec![format!("127.0.0.1:{port}")], ..config("d") });
    until("both families", || both.established() >= 2);
    assert!(both.mesh.is_connected(d.id()) && both.mesh.is_connected(nodes[0].id()));
}

#[test]
fn more_than_a_full_mesh_know_and_reach_each_other() {
    // One runtime for all: one each would be too many threads.
    let runtime = runtime();
    let mut meshes: Vec<MeshHandle> = Vec::new();
    for n in 0..18 {
        let targets = meshes.first().map(|m| m.local_addr().to_string()).into_iter().collect();
        let config = MeshConfig { targets, ..config(&format!("n{n}")) };
        meshes.push(runtime.block_on(async { Mesh::start(config) }).unwrap());
    }
    let (ids, me): (Vec<_>, _) = (meshes.iter().map(PeerNet::me).collect(), 17);
    until("all see all alive", || {
        meshes.iter().all(|m| ids.iter().all(|id| m.view().is_alive(*id)))
    });
    // Whoever is not connected is connected on demand.
    let echo = Frame::new(&Echo(vec![3])).unwrap();
    for id in ids.iter().take(me) {
        let answer = runtime.block_on(meshes[me].call(*id, echo.clone(), PATIENCE));
        assert_eq!(answer.unwrap(), echo);
    }
    runtime.shutdown_background();
}

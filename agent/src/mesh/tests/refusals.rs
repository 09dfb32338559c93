//! Who is not let in, and what both sides say about it.

use weft_proto::id::{ClusterId, NodeId};

use super::super::Copied;
use super::*;

#[track_caller]
fn refused_both(a: &Node, b: &Node, code: u16) -> String {
    until("refused on both sides", || {
        a.refused_with(code).is_some() && b.refused_with(code).is_some()
    });
    assert_eq!((a.established(), b.established()), (0, 0));
    assert!(a.sees(b.id()).is_none() && b.sees(a.id()).is_none());
    let shown = b.mesh.status().connections;
    assert!(shown.iter().any(|c| c.state == "failed"), "{shown:?}");
    b.refused_with(code).unwrap()
}

#[test]
fn a_wrong_key() {
    let a = start(config("a"));
    for keys in [vec!["other".to_owned()], vec![]] {
        let b = start(MeshConfig { keys, targets: vec![a.target()], ..config("b") });
        refused_both(&a, &b, Failure::WRONG_KEY);
        assert!(a.counter("handshake_wrong_key") > 0 && b.counter("handshake_wrong_key") > 0);
    }
}

#[test]
fn keys_are_rotated_without_a_break() {
    let a = start(MeshConfig { keys: vec!["new".to_owned(), "secret".to_owned()], ..config("a") });
    // b knows only the old key and dials: it is answered with that.
    let b = start(MeshConfig { targets: vec![a.target()], ..config("b") });
    // c already signs with the new one only; a knows both.
    let keys = vec!["new".to_owned()];
    let c = start(MeshConfig { keys, targets: vec![a.target()], ..config("c") });
    until("a has both", || a.established() == 2);
    until("b and c cannot talk", || {
        b.counter("handshake_wrong_key") + c.counter("handshake_wrong_key") > 0
    });
    b.mesh.set_keys(&["new".to_owned(), "secret".to_owned()]);
    all_see_all(&[a, b, c]);
}

#[test]
fn another_range_with_both_values() {
    let a = start(config("a"));
    let b = start(MeshConfig {
        ranges: vec!["10.99.0.0/16".parse().unwrap()],
        targets: vec![a.target()],
        ..config("b")
    });
    let said = refused_both(&a, &b, Failure::RANGE);
    assert!(said.contains("10.32.0.0/12") && said.contains("10.99.0.0/16"), "{said}");
}

#[test]
fn another_cluster() {
    let a = start(config("a"));
    a.mesh.set_cluster(Some(ClusterId([1; 16])));
    let b = start(config("b"));
    b.mesh.set_cluster(Some(ClusterId([2; 16])));
    b.mesh.connect(&[a.target()], false).unwrap();
    let said = refused_both(&a, &b, Failure::CLUSTER);
    assert!(said.contains(&"01".repeat(16)) && said.contains(&"02".repeat(16)), "{said}");
    // Who has not been in any is welcome.
    b.mesh.set_cluster(None);
    all_see_all(&[a, b]);
}

#[test]
fn the_name_of_the_peer_or_of_a_live_member() {
    let nodes = cluster(&["a", "b"]);
    all_see_all(&nodes);
    let session = unix_ms() + 1000;
    let twin = start(MeshConfig { session, targets: vec![nodes[0].target()], ..config("a") });
    until("a refuses its namesake", || twin.refused_with(Failure::NAME).is_some());
    let twin = start(MeshConfig { session, targets: vec![nodes[0].target()], ..config("b") });
    until("a refuses the namesake of b", || twin.refused_with(Failure::NAME).is_some());
    assert_eq!(twin.established(), 0);
    assert!(nodes[0].counter("handshake_name") > 0);
    // Once the holder is dead, its name is free: a node that lost its state directory.
    let mut nodes = nodes;
    nodes.pop().unwrap().kill();
    until("the new b is in", || nodes[0].sees(twin.id()) == Some(Liveness::Alive));
}

fn copied(node: &Node) -> Option<NodeId> {
    node.mesh.copied().borrow().as_ref().map(|copied| copied.by)
}

#[test]
fn a_copied_identity() {
    let mut nodes = cluster(&["a"]);
    let b = MeshConfig { targets: vec![nodes[0].target()], ..config("b") };
    nodes.push(start(b.clone()));
    all_see_all(&nodes);
    // Against the original, and against a third node that knows the original.
    for of in [1, 0] {
        let copy = start(MeshConfig {
            name: "copy".to_owned(),
            session: b.session + 1,
            targets: vec![nodes[of].target()],
            ..b.clone()
        });
        until("refused", || copy.refused_with(Failure::CLONE).is_some());
        until("it gives way", || copied(&copy) == Some(nodes[of].id()));
        assert_eq!(copy.established(), 0);
    }
    assert!(nodes[0].mesh.is_connected(nodes[1].id()), "the original is undisturbed");
    assert!(nodes.iter().all(|node| copied(node).is_none()), "and does not give way");
}

#[test]
fn a_copy_stays_out_while_the_original_restarts_and_takes_its_place_when_it_does_not() {
    let a = start(config("a"));
    let b = MeshConfig { targets: vec![a.target()], ..config("b") };
    let original = start(b.clone());
    let address = original.address();
    until("the original is in", || a.mesh.is_connected(original.id()));
    let copy = start(MeshConfig { session: b.session + 1, ..b.clone() });
    until("the copy gives way", || copied(&copy) == Some(a.id()));
    original.kill();
    let waits = || copy.refused_with(Failure::CLONE).is_some_and(|m| m.contains("was this node"));
    until("nobody answers, and the copy waits all the same", waits);
    until("the port is free", || std::net::UdpSocket::bind(address).is_ok());
    let original = start(MeshConfig { bind: address, session: b.session + 2, ..b });
    until("the original is back", || original.established() == 1);
    assert!(copied(&original).is_none() && copied(&copy) == Some(a.id()));
    original.kill();
    a.mesh.set_rest(Duration::from_millis(1));
    until("the copy is let in", || copy.established() == 1 && copied(&copy).is_none());
}

#[test]
fn what_an_earlier_life_was_told_holds_until_somebody_lets_it_in() {
    let a = start(config("a"));
    let told = Copied { by: a.id(), message: "it is a copy".to_owned() };
    let b = start(MeshConfig { copied: Some(told), ..config("b") });
    assert_eq!(copied(&b), Some(a.id()));
    b.mesh.connect(&[a.target()], false).unwrap();
    until("it is let in", || copied(&b).is_none());
}

#[test]
fn a_refusal_without_the_key_stops_nobody() {
    let liar = hostile::Stranger::new();
    let at = liar.refuse_all(Failure::CLONE);
    let node = start(MeshConfig { targets: vec![at.to_string()], ..config("a") });
    until("the lie is told", || node.refused_with(Failure::CLONE).is_some());
    assert_eq!(copied(&node), None);
}

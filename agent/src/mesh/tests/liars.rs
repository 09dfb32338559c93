//! Who sits in the middle, and members that lie.

use std::sync::atomic::{AtomicUsize, Ordering};

use weft_proto::wire::v1::{Hello, HelloAck, NodeRecord, Rumor, Swim};

use super::super::stream::{read_frame, write_frame};
use super::super::tls;
use super::hostile::Stranger;
use super::*;

/// What the one in the middle does with a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trick {
    /// Passes it on, and the answer back, word for word.
    Pass,
    /// Passes it on in its own name.
    Rename,
    /// Gives it back as the answer.
    Reflect,
}

/// Ends QUIC on both sides, with a key of its own.
struct Middle {
    address: SocketAddr,
    passed: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Drop for Middle {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Middle {
    fn start(to: SocketAddr, trick: Trick) -> Self {
        let runtime = runtime();
        let identity = Identity::generate().unwrap();
        let me = identity.node();
        let quic = tls::configs(&identity).unwrap();
        let here = "127.0.0.1:0".parse().unwrap();
        let endpoint =
            runtime.block_on(async { quinn::Endpoint::server(quic.server, here).unwrap() });
        let address = endpoint.local_addr().unwrap();
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (endpoint, client) = (endpoint.clone(), quic.client.clone());
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let near = incoming.await.ok()?;
                    let (mut send, mut receive) = near.accept_bi().await.ok()?;
                    let hello = read_frame(&mut receive).await.ok()?;
                    let mut said: Hello = hello.decode().ok()?;
                    let answer = if trick == Trick::Reflect {
                        Frame::new(&HelloAck(said)).ok()?
                    } else {
                        if trick == Trick::Rename {
                            said.node = me;
                        }
                        let far = endpoint.connect_with(client, to, "weft").ok()?.await.ok()?;
                        let (mut send, mut receive) = far.open_bi().await.ok()?;
                        write_frame(&mut send, &Frame::new(&said).ok()?).await.ok()?;
                        read_frame(&mut receive).await.ok()?
                    };
                    write_frame(&mut send, &answer).await.ok()?;
                    count.fetch_add(1, Ordering::SeqCst);
                    near.closed().await;
                    Some(())
                });
            }
        });
        Self { address, passed, runtime: Some(runtime) }
    }
}

#[test]
fn a_man_in_the_middle() {
    for trick in [Trick::Pass, Trick::Rename, Trick::Reflect] {
        let a = start(config("a"));
        let middle = Middle::start(a.address(), trick);
        let targets = vec![middle.address.to_string()];
        let b = start(MeshConfig { targets, ..config("b") });
        until("the greeting went through", || middle.passed.load(Ordering::SeqCst) > 0);
        until("b has noticed", || b.counter("handshake_wrong_key") > 0);
        if trick != Trick::Reflect {
            assert!(a.counter("handshake_wrong_key") > 0, "{trick:?}: a has noticed");
        }
        assert_eq!((a.established(), b.established()), (0, 0), "{trick:?}");
        assert!(a.sees(b.id()).is_none() && b.sees(a.id()).is_none(), "{trick:?}");
        // Nobody between them: the same two meet.
        b.mesh.connect(&[a.target()], false).unwrap();
        all_see_all(&[a, b]);
    }
}

/// What `node` knows of another.
fn known(node: &Node, other: NodeId) -> NodeRecord {
    NodeRecord::clone(&node.mesh.view().members[&other].record)
}

fn tell(liar: &Stranger, connection: &quinn::Connection, records: Vec<NodeRecord>) {
    liar.raw(connection, &Frame::new(&Rumor { records }).unwrap().to_bytes());
}

#[test]
fn a_member_that_lies_of_others() {
    let nodes = cluster(&["a", "b"]);
    all_see_all(&nodes);
    let [a, b] = &nodes[..] else { unreachable!() };
    mirror(b);
    until("a knows b, and b knows a, from themselves", || {
        a.mesh.view().members.len() == 2 && b.mesh.view().members.len() == 2
    });
    let (true_a, true_b) = (known(b, a.id()), known(a, b.id()));
    let liar = Stranger::new();
    let connection = liar.join(a.address());
    let elsewhere = vec!["203.0.113.9".parse().unwrap()];
    let own = NodeRecord { node: liar.identity.node(), name: "stranger".into(), ..true_b.clone() };
    // It has the address of b, which it may believe; and then b's name, which it is not.
    tell(&liar, &connection, vec![own.clone()]);
    until("the liar is known", || a.mesh.view().members.contains_key(&own.node));
    tell(&liar, &connection, vec![NodeRecord { name: "b".into(), version: 9, ..own.clone() }]);
    until("its other name is refused", || a.counter("record_refused") == 1);
    // Where b and a are, by the liar; again and again, and from the end of time.
    for round in 1..=20 {
        let lie = |of: &NodeRecord, incarnation| NodeRecord {
            incarnation,
            version: round,
            underlay: elsewhere.clone(),
            mesh_port: 1,
            ..of.clone()
        };
        let lies = [
            lie(&true_b, true_b.incarnation + round),
            lie(&true_b, (1 << 53) - 1),
            lie(&true_b, u64::MAX),
            lie(&true_a, true_a.incarnation + 10 * round),
            lie(&true_a, u64::MAX),
            NodeRecord { version: u64::MAX, ..lie(&true_a, u64::MAX) },
        ];
        tell(&liar, &connection, lies.into());
        let answer = a.block_on(a.mesh.call(b.id(), frame(MIRROR, vec![7]), PATIENCE));
        assert_eq!(answer.unwrap().payload, [7]);
    }
    until("a has heard the lies", || a.counter("record_hearsay") >= 20);
    let whole = |r: &NodeRecord| (r.name.clone(), r.underlay.clone(), r.mesh_port);
    assert_eq!(whole(&known(a, b.id())), whole(&true_b));
    assert_eq!(whole(&known(b, a.id())), whole(&true_a));
    assert_eq!(whole(&known(a, a.id())), whole(&true_a));
    // In b's name it is not heard at all.
    let packets = a.counter("swim_bad_packet");
    let bytes = Frame::new(&Swim([&b.id().0[..], &[0; 60]].concat())).unwrap().to_bytes();
    liar.raw(&connection, &bytes);
    until("the packet is refused", || a.counter("swim_bad_packet") > packets);
    assert_eq!(a.sees(b.id()), Some(Liveness::Alive));
}

#[test]
fn who_was_lied_to_learns_better_from_the_one_itself() {
    let a = start(config("a"));
    let b = start(config("b"));
    let liar = Stranger::new();
    let connection = liar.join(a.address());
    let own = known(&b, b.id());
    let lie = NodeRecord {
        incarnation: (1 << 53) - 1,
        underlay: vec!["203.0.113.9".parse().unwrap()],
        mesh_port: 1,
        ..own
    };
    tell(&liar, &connection, vec![lie.clone()]);
    until("a believes it", || a.mesh.view().members.contains_key(&b.id()));
    assert_eq!(known(&a, b.id()).underlay, lie.underlay);
    b.mesh.connect(&[a.target()], false).unwrap();
    until("a knows better", || known(&a, b.id()).mesh_port == b.address().port());
    tell(&liar, &connection, vec![NodeRecord { version: lie.version + 1, ..lie }]);
    until("and believes it no more", || a.counter("record_hearsay") > 0);
    assert_eq!(known(&a, b.id()).mesh_port, b.address().port());
}

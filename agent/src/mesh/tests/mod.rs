//! Several real endpoints on loopback, each with a runtime of its own, so that
//! one can be killed without a farewell.

mod hostile;
mod liars;
mod members;
mod refusals;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Failure;

use super::net::{BoxFuture, Liveness, PeerNet, Service};
use super::state::unix_ms;
use super::{Identity, Mesh, MeshConfig, MeshHandle};

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    runtime: Option<Runtime>,
    mesh: MeshHandle,
}

fn config(name: &str) -> MeshConfig {
    MeshConfig {
        bind: "127.0.0.1:0".parse().unwrap(),
        identity: Identity::generate().unwrap(),
        name: name.to_owned(),
        ranges: vec!["10.32.0.0/12".parse().unwrap()],
        session: unix_ms(),
        keys: vec!["secret".to_owned()],
        targets: vec![],
        conn_limit: 0,
        underlay: vec![],
        software: "test".to_owned(),
        mtu: 1450,
        rest: Duration::from_secs(600),
        copied: None,
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn start(config: MeshConfig) -> Node {
    let runtime = runtime();
    let mesh = runtime.block_on(async { Mesh::start(config) }).unwrap();
    Node { runtime: Some(runtime), mesh }
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.mesh.local_addr()
    }

    fn target(&self) -> String {
        self.address().to_string()
    }

    fn id(&self) -> NodeId {
        self.mesh.me()
    }

    fn sees(&self, other: NodeId) -> Option<Liveness> {
        self.mesh.view().members.get(&other).map(|m| m.liveness)
    }

    fn counter(&self, name: &str) -> u64 {
        self.mesh.status().counters.get(name).copied().unwrap_or(0)
    }

    fn established(&self) -> usize {
        self.mesh.status().connections.iter().filter(|c| c.state == "established").count()
    }

    fn refused_with(&self, code: u16) -> Option<String> {
        self.mesh.refusals().into_iter().find(|r| r.code == code).map(|r| r.message)
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// No farewell, as a crash or a pulled cable.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[track_caller]
fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts these nodes; all but the first have the first as their target.
fn cluster(names: &[&str]) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for name in names {
        let targets = nodes.first().map(Node::target).into_iter().collect();
        nodes.push(start(MeshConfig { targets, ..config(name) }));
    }
    nodes
}

#[track_caller]
fn all_see_all(nodes: &[Node]) {
    until("all see all alive", || {
        nodes.iter().all(|a| nodes.iter().all(|b| a.sees(b.id()) == Some(Liveness::Alive)))
    });
}

/// Answers with what it got; kind 61 never.
struct Mirror;

const MIRROR: u16 = 60;
const SILENCE: u16 = 61;

impl Service for Mirror {
    fn handle(&self, _: NodeId, frame: Frame) -> BoxFuture<'_, Result<Option<Frame>, Failure>> {
        Box::pin(async move {
            if frame.kind == SILENCE {
                std::future::pending::<()>().await;
            }
            Ok(Some(frame))
        })
    }
}

fn mirror(node: &Node) {
    let service: Arc<dyn Service> = Arc::new(Mirror);
    node.mesh.register(&[MIRROR, SILENCE], &service);
}

fn frame(kind: u16, payload: Vec<u8>) -> Frame {
    Frame { kind, version: 1, payload }
}

//! From the API server to the engine: watches become changes of the world.
//!
//! ```text
//! list+watch per collection ─► core (order, pure) ─► EngineHandle
//! ADD of an unknown pod ─► one GET ─► core ───────────────┘
//! ```
//! Pods of this node, namespaces and policies are followed from the start. Pods
//! of other nodes are asked for once there is a policy that could speak of them,
//! and no policy is in force before they are known. An API server that does not
//! answer changes nothing: watches resume where they stopped.

mod core;
mod cursor;
mod item;
mod lookup;
mod told;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kube::Client;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::core::{Core, Object, Op, Source};
use self::item::Item;
use self::watch::{Collection, Heard, Versioned};
use crate::policy::engine::{EngineHandle, PodLookup};
use crate::policy::objects::{ClusterPolicy, Namespace, NetworkPolicy, Node, Pod, PodRef};
use crate::policy::world::Change;

pub use told::{FeedStatus, SourceStatus};

/// Messages between watches and feed: what is beyond waits in the connection.
const QUEUE: usize = 256;

/// What policy needs of an object.
#[derive(Debug, Clone)]
enum Body {
    Pod(Box<Pod>),
    Namespace(Namespace),
    Node(Node),
    Policy(Box<NetworkPolicy>),
    ClusterPolicy(Box<ClusterPolicy>),
}

type Message = (Source, Heard<Object<Body>>);

/// What feed and lookups share. One lock for deciding and handing over, so that
/// the engine hears changes in the order in which they were decided.
struct Shared {
    core: Mutex<Core<Body>>,
    engine: EngineHandle,
}

impl Shared {
    /// Takes messages in; sources to be followed from now on.
    fn hear(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Source> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut changes, mut start) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let before = core.synced();
        for (source, heard) in messages {
            let step = core.hear(source, heard, now);
            changes.extend(step.ops.into_iter().map(change));
            start.extend(step.start);
        }
        self.engine.changes(changes);
        if core.synced() != before {
            self.engine.synced(core.synced());
        }
        start
    }
}

/// The feed of one agent.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

impl Feed {
    /// Nothing is asked before [`Self::run`], except for pods that the engine
    /// wants to know.
    pub fn new(client: Client, engine: &EngineHandle) -> Self {
        let core = Mutex::new(Core::new().0);
        let shared = Arc::new(Shared { core, engine: engine.clone() });
        let lookup: Arc<dyn PodLookup> = Arc::new(lookup::Lookup::new(client, Arc::clone(&shared)));
        engine.set_lookup(lookup);
        Self { shared }
    }

    /// How it is doing.
    pub fn status(&self) -> FeedStatus {
        let core = self.shared.core.lock().unwrap_or_else(PoisonError::into_inner);
        told::status(core.synced(), &core.sources(), Instant::now())
    }

    /// Follows the API server for ever.
    pub async fn run(self, client: Client, node_name: String) {
        let (tell, mut told) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        let mut start = Core::<Body>::new().1;
        let mut messages = Vec::with_capacity(QUEUE);
        loop {
            for source in start {
                follow(&mut watches, source, client.clone(), &node_name, tell.clone());
            }
            // Never empty: this task holds a sender itself.
            told.recv_many(&mut messages, QUEUE).await;
            start = self.shared.hear(messages.drain(..));
        }
    }
}

fn follow(
    watches: &mut JoinSet<()>,
    source: Source,
    client: Client,
    node: &str,
    tell: mpsc::Sender<Message>,
) {
    let collection = collection(source, node);
    match source {
        Source::LocalPods => watches.spawn(watch::follow(client, collection, tell, move |heard| {
            (source, objects(source, heard, |pod| Some(Body::Pod(Box::new(pod)))))
        })),
        Source::OtherPods => watches.spawn(watch::follow(client, collection, tell, move |heard| {
            (source, objects(source, heard, addressed))
        })),
        Source::Namespaces => {
            watches.spawn(watch::follow(client, collection, tell, move |heard| {
                (source, objects(source, heard, |namespace| Some(Body::Namespace(namespace))))
            }))
        }
        Source::Nodes => watches.spawn(watch::follow(client, collection, tell, move |heard| {
            (source, objects(source, heard, |node| Some(Body::Node(node))))
        })),
        Source::Policies => watches.spawn(watch::follow(client, collection, tell, move |heard| {
            (source, objects(source, heard, |policy| Some(Body::Policy(Box::new(policy)))))
        })),
        Source::ClusterPolicies => {
            watches.spawn(watch::follow(client, collection, tell, move |heard| {
                let body = |policy| Some(Body::ClusterPolicy(Box::new(policy)));
                (source, objects(source, heard, body))
            }))
        }
    };
}

/// A pod elsewhere matters once it has an address.
fn addressed(pod: Pod) -> Option<Body> {
    (!pod.addresses.is_empty()).then(|| Body::Pod(Box::new(pod)))
}

fn collection(source: Source, node: &str) -> Collection {
    let path = source.path();
    let fields = match source {
        Source::LocalPods => Some(format!("spec.nodeName={node}")),
        // Finished pods have given their addresses back.
        Source::OtherPods => {
            Some(format!("spec.nodeName!={node},status.phase!=Succeeded,status.phase!=Failed"))
        }
        _ => None,
    };
    Collection { path, fields, large: matches!(source, Source::OtherPods | Source::Nodes) }
}

impl<T> Versioned for Item<T> {
    fn version(&self) -> &str {
        &self.version
    }
}

/// What was heard of items, as of objects of the core.
fn objects<T: DeserializeOwned>(
    source: Source,
    heard: Heard<Item<T>>,
    body: impl Fn(T) -> Option<Body>,
) -> Heard<Object<Body>> {
    let object = |item: Item<T>| match item.body {
        Ok(read) => Some(Object { key: item.key, version: item.version, body: body(read) }),
        Err(why) => {
            tracing::error!(
                path = source.path(),
                object = &*item.key,
                "this object cannot be read and is passed over: {why}"
            );
            None
        }
    };
    match heard {
        Heard::Begin => Heard::Begin,
        Heard::Items(items) => Heard::Items(items.into_iter().filter_map(object).collect()),
        Heard::End(version) => Heard::End(version),
        Heard::Put(item) => object(item).map_or(Heard::Alive(None), Heard::Put),
        // Who is gone is told by the name alone.
        Heard::Gone(item) => {
            Heard::Gone(Object { key: item.key, version: item.version, body: None })
        }
        Heard::Answer(item) => object(item).map_or(Heard::Alive(None), Heard::Answer),
        Heard::Alive(version) => Heard::Alive(version),
        Heard::Failed(failure) => Heard::Failed(failure),
    }
}

fn change(op: Op<Body>) -> Change {
    match op {
        Op::Put(_, _, Body::Pod(pod)) => Change::Pod(*pod),
        Op::Put(_, _, Body::Namespace(namespace)) => Change::Namespace(namespace),
        Op::Put(_, _, Body::Node(node)) => Change::Node(node),
        Op::Put(_, _, Body::Policy(policy)) => Change::Policy(*policy),
        Op::Put(_, _, Body::ClusterPolicy(policy)) => Change::ClusterPolicy(*policy),
        Op::Remove(source, key) => {
            let (namespace, name) = key.split_once('/').unwrap_or(("default", &key));
            match source {
                Source::LocalPods | Source::OtherPods => {
                    Change::PodGone(PodRef::new(namespace, name))
                }
                Source::Policies => Change::PolicyGone(namespace.into(), name.into()),
                Source::Namespaces => Change::NamespaceGone(key),
                Source::Nodes => Change::NodeGone(key),
                Source::ClusterPolicies => Change::ClusterPolicyGone(key),
            }
        }
    }
}

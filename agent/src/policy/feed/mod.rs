//! From the API server to the engine: watches become changes of the world.
//!
//! ```text
//! list+watch per collection ─► core (order, pure) ─► EngineHandle
//! ADD of an unknown pod ─► one GET ─► core ───────────────┘
//! ```
//! Pods of this node, namespaces and policies are followed from the start. Pods
//! of other nodes are asked for once there is a policy that could speak of them,
//! and no policy is in force before they are known. An API server that does not
//! answer changes nothing: watches resume where they stopped. If it does not when
//! the agent starts, the [`memory`] of an earlier life is used until it does.

mod core;
mod item;
mod keep;
mod lean;
mod lookup;
mod memory;
mod told;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::core::{Core, Object, Op, Source};
use self::item::Item;
use self::lean::Lean;
use self::memory::{Memory, Recalled};
use crate::kube::watch::{self, Asked, Collection, Heard, Versioned};
use crate::policy::engine::{EngineHandle, PodLookup};
use crate::policy::objects::{ClusterPolicy, Namespace, NetworkPolicy, Node, Pod, PodRef};
use crate::policy::world::Change;

pub use keep::FILE;
pub use told::{FeedStatus, SourceStatus};

/// Messages between watches and feed: what is beyond waits in the connection.
const QUEUE: usize = 256;
/// How often it is asked whether the memory is needed.
const TICK: Duration = Duration::from_millis(500);
/// Longest pause between tries while the API server is away, before jitter.
const LONGEST: Duration = Duration::from_secs(15);

/// What policy needs of an object.
#[derive(Debug, Clone)]
enum Body {
    Pod(Box<Pod>),
    Namespace(Namespace),
    Node(Node),
    Policy(Box<NetworkPolicy>),
    ClusterPolicy(Box<ClusterPolicy>),
}

/// An object, and the text from which it can be read again.
#[derive(Debug, Clone)]
struct Known {
    body: Body,
    text: Arc<str>,
}

impl Known {
    fn pod(pod: Pod, text: Arc<str>) -> Self {
        Self { body: Body::Pod(Box::new(pod)), text }
    }

    fn namespace(namespace: Namespace, text: Arc<str>) -> Self {
        Self { body: Body::Namespace(namespace), text }
    }

    fn node(node: Node, text: Arc<str>) -> Self {
        Self { body: Body::Node(node), text }
    }

    fn policy(policy: NetworkPolicy, text: Arc<str>) -> Self {
        Self { body: Body::Policy(Box::new(policy)), text }
    }

    fn cluster_policy(policy: ClusterPolicy, text: Arc<str>) -> Self {
        Self { body: Body::ClusterPolicy(Box::new(policy)), text }
    }
}

type Message = (Source, Heard<Object<Known>>);

/// What feed and lookups share. One lock for deciding and handing over, so that
/// the engine hears changes in the order in which they were decided.
struct Shared {
    state: Mutex<State>,
    engine: EngineHandle,
}

struct State {
    core: Core<Known>,
    memory: Memory,
    /// An earlier life's memory is used, true at this time (ms since 1970).
    recalled: Option<u64>,
    kept: keep::Kept,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes messages in; sources to be followed from now on.
    fn hear(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Source> {
        let mut state = self.state();
        let (mut ops, mut start) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let before = state.core.synced();
        for (source, heard) in messages {
            let step = state.core.hear(source, heard, now);
            ops.extend(step.ops);
            start.extend(step.start);
        }
        self.hand_over(&mut state, ops, EngineHandle::changes);
        let synced = state.core.synced();
        if synced != before {
            self.engine.synced(synced);
        }
        if synced && state.recalled.take().is_some() {
            tracing::info!("the API server has told all that matters for policy again");
        }
        start
    }

    fn hand_over(
        &self,
        state: &mut State,
        ops: Vec<Op<Known>>,
        how: impl FnOnce(&EngineHandle, Vec<Change>),
    ) {
        ops.iter().for_each(|op| state.memory.take(op));
        how(&self.engine, ops.into_iter().map(change).collect());
    }

    /// Now, not yet (`false`), or never more.
    fn needs_memory(&self, since: Duration) -> Option<bool> {
        let state = self.state();
        state.core.awaits_memory().then(|| keep::needed(&state.core.sources(), since))
    }

    /// Goes on with what an earlier life knew, unless all is told by now.
    fn recall(&self, recalled: Recalled) {
        let mut state = self.state();
        if !state.core.awaits_memory() {
            return;
        }
        let ops = state.core.recall(recalled.objects);
        tracing::warn!(
            objects = ops.len(),
            "the API server has not told what policies there are; those known before are used"
        );
        state.recalled = Some(recalled.at_ms);
        self.hand_over(&mut state, ops, EngineHandle::remembered);
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
    pub fn new(api: Asked, engine: &EngineHandle) -> Self {
        let state = State {
            core: Core::new().0,
            memory: Memory::default(),
            recalled: None,
            kept: keep::Kept::default(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), engine: engine.clone() });
        let lookup: Arc<dyn PodLookup> = Arc::new(lookup::Lookup::new(api, Arc::clone(&shared)));
        engine.set_lookup(lookup);
        Self { shared }
    }

    /// How it is doing.
    pub fn status(&self) -> FeedStatus {
        let state = self.shared.state();
        let (synced, sources) = (state.core.synced(), state.core.sources());
        let mut status = told::status(synced, state.recalled, &sources, Instant::now());
        status.conditions.extend(state.kept.condition());
        status
    }

    /// Follows the API server for ever. `memory` is the file of an earlier life,
    /// and the cluster it must be of.
    pub async fn run(self, api: Asked, node_name: String, memory: Option<(PathBuf, String)>) {
        let mut memory = match memory {
            Some((path, cluster)) => {
                let load = tokio::task::spawn_blocking(move || memory::load(&path, &cluster));
                load.await.ok().flatten()
            }
            None => None,
        };
        if memory.is_some() {
            self.shared.state().core.expect_memory();
        }
        let (tell, mut told) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        let mut start = Core::<Known>::new().1;
        let mut messages = Vec::with_capacity(QUEUE);
        let began = Instant::now();
        loop {
            for source in start {
                follow(&mut watches, source, api.clone(), &node_name, tell.clone());
            }
            // Never empty: this task holds a sender itself.
            tokio::select! {
                _ = told.recv_many(&mut messages, QUEUE) => {}
                () = tokio::time::sleep(TICK), if memory.is_some() => {}
            }
            start = self.shared.hear(messages.drain(..));
            if memory.is_some() && self.shared.needs_memory(began.elapsed()) != Some(false) {
                let taken = memory.take();
                taken.into_iter().for_each(|recalled| self.shared.recall(recalled));
            }
        }
    }
}

fn follow(
    watches: &mut JoinSet<()>,
    source: Source,
    api: Asked,
    node: &str,
    tell: mpsc::Sender<Message>,
) {
    let collection = collection(source, node);
    match source {
        Source::LocalPods => watches.spawn(watch::follow(api, collection, tell, move |heard| {
            (source, objects(source, heard, |pod, text| Some(Known::pod(pod, text))))
        })),
        Source::OtherPods => watches.spawn(watch::follow(api, collection, tell, move |heard| {
            (source, objects(source, heard, addressed))
        })),
        Source::Namespaces => watches.spawn(watch::follow(api, collection, tell, move |heard| {
            (source, objects(source, heard, |one, text| Some(Known::namespace(one, text))))
        })),
        Source::Nodes => watches.spawn(watch::follow(api, collection, tell, move |heard| {
            (source, objects(source, heard, |node, text| Some(Known::node(node, text))))
        })),
        Source::Policies => watches.spawn(watch::follow(api, collection, tell, move |heard| {
            (source, objects(source, heard, |policy, text| Some(Known::policy(policy, text))))
        })),
        Source::ClusterPolicies => {
            watches.spawn(watch::follow(api, collection, tell, move |heard| {
                let known = |policy, text| Some(Known::cluster_policy(policy, text));
                (source, objects(source, heard, known))
            }))
        }
    };
}

/// A pod elsewhere matters once it has an address.
fn addressed(pod: Pod, text: Arc<str>) -> Option<Known> {
    (!pod.addresses.is_empty()).then(|| Known::pod(pod, text))
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
    let resource = source.resource();
    Collection {
        path,
        resource,
        fields,
        large: matches!(source, Source::OtherPods | Source::Nodes),
        metadata_only: false,
        longest: LONGEST,
    }
}

impl<T> Versioned for Item<T> {
    fn version(&self) -> &str {
        &self.version
    }
}

/// What was heard of items, as of objects of the core.
fn objects<T: DeserializeOwned + Lean>(
    source: Source,
    heard: Heard<Item<T>>,
    known: impl Fn(T, Arc<str>) -> Option<Known>,
) -> Heard<Object<Known>> {
    let object = |item: Item<T>| match item.body {
        Ok((read, text)) => {
            Some(Object { key: item.key, version: item.version, body: known(read, text) })
        }
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

fn change(op: Op<Known>) -> Change {
    match op {
        Op::Put(_, _, known) => match known.body {
            Body::Pod(pod) => Change::Pod(*pod),
            Body::Namespace(namespace) => Change::Namespace(namespace),
            Body::Node(node) => Change::Node(node),
            Body::Policy(policy) => Change::Policy(*policy),
            Body::ClusterPolicy(policy) => Change::ClusterPolicy(*policy),
        },
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

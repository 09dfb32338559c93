//! How the rest of the agent talks to the policy thread.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use weft_proto::api::Condition;

use super::driver::Driver;
use super::report::PolicyReport;
use super::{AdmitError, PolicyConfig, PolicyError};
use crate::dataplane::handle::lock;
use crate::dataplane::thread;
use crate::mesh::net::BoxFuture;
use crate::policy::conntrack::Entry;
use crate::policy::explain::{End, ExplainError, Explanation};
use crate::policy::objects::{LocalPod, PodRef, Text};
use crate::policy::state::Protocol;
use crate::policy::world::Change;

/// How long an ADD waits for the API server to tell a pod's labels.
const LOOKUP: Duration = Duration::from_secs(2);

/// Asks the API server for one pod.
pub trait PodLookup: Send + Sync {
    /// Hands what it says of that pod and, if that is not known yet, of its
    /// namespace to the engine, in order with what the watches say; true if both
    /// are known then. May take as long as it likes: the caller bounds it.
    fn lookup<'a>(&'a self, pod: &'a PodRef) -> BoxFuture<'a, bool>;
}

/// What is asked of the thread.
pub(super) enum Command {
    Explain(Box<Question>),
    /// Those of them that are forbidden.
    Judge(Vec<Entry>, std::sync::mpsc::Sender<Vec<Entry>>),
    Stop,
}

pub(super) struct Question {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) tell: oneshot::Sender<Result<Explanation, ExplainError>>,
}

/// What the thread has not seen yet.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) changes: Vec<Change>,
    pub(super) local: Option<Vec<LocalPod>>,
    /// The first that `local` ever was: leases of an earlier life of the agent.
    pub(super) earlier: Option<Vec<LocalPod>>,
    pub(super) had_local: bool,
    pub(super) synced: Option<bool>,
    /// Some of the changes are what an earlier life remembered.
    pub(super) remembered: bool,
    /// Counts what was put in.
    pub(super) generation: u64,
    pub(super) commands: Vec<Command>,
}

/// How far the thread is, and how that went.
#[derive(Debug, Clone, Default)]
pub(super) struct Applied {
    pub(super) generation: u64,
    pub(super) error: Option<PolicyError>,
    /// Leases whose pods' labels are not known.
    pub(super) unknown: Arc<std::collections::BTreeMap<Text, PodRef>>,
    /// Pods that come now are judged by policies, told or remembered.
    pub(super) judged: bool,
}

#[derive(Default)]
pub(super) struct Told {
    pub(super) report: PolicyReport,
    pub(super) conditions: Vec<Condition>,
}

pub(super) struct Shared {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) told: Mutex<Told>,
    pub(super) applied: watch::Sender<Applied>,
    lookup: RwLock<Option<Arc<dyn PodLookup>>>,
    waker: UnixStream,
}

impl Shared {
    fn put<T>(&self, what: impl FnOnce(&mut Inbox) -> T) -> T {
        let out = {
            let mut inbox = lock(&self.inbox);
            inbox.generation += 1;
            what(&mut inbox)
        };
        self.wake();
        out
    }

    pub(super) fn wake(&self) {
        // A full pipe means that a wake-up is on its way.
        let _ = (&self.waker).write(&[1]);
    }
}

/// Handle of the running engine. When the last one is dropped the thread ends
/// and leaves everything in the kernel as it is.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.shared.inbox).commands.push(Command::Stop);
        self.shared.wake();
    }
}

impl EngineHandle {
    /// Opens the sockets and starts the thread, in the network namespace of the
    /// calling thread. What the kernel holds stays as it is until the first
    /// [`Self::synced`].
    pub fn start(config: PolicyConfig) -> Result<Self, PolicyError> {
        let io = |what: &'static str| {
            move |e: std::io::Error| PolicyError::Netlink {
                what: what.to_owned(),
                why: e.to_string(),
            }
        };
        let (waker, woken) = thread::pipe().map_err(io("make a wake-up pipe"))?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            told: Mutex::default(),
            applied: watch::Sender::new(Applied::default()),
            lookup: RwLock::default(),
            waker,
        });
        let theirs = Arc::clone(&shared);
        let make = move || Driver::new(config, theirs, woken);
        let started = thread::start("policy", make, Driver::run);
        started.map_err(io("start the policy thread"))?.ok_or(PolicyError::Stopped)??;
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// Changes of what is known of the cluster, in order. Those that arrive while
    /// the kernel is busy are applied together.
    pub fn changes(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.shared().put(|inbox| inbox.changes.extend(changes));
        }
    }

    /// True once the changes put in before this call make up all that the API
    /// server knows. Only then is anything in the kernel loosened or replaced;
    /// later changes of it are shown in the report, no more.
    pub fn synced(&self, synced: bool) {
        self.shared().put(|inbox| inbox.synced = Some(synced));
    }

    /// These changes are what an earlier life of the agent remembered: until
    /// [`Self::synced`], pods that come now are judged by them, and pods that were
    /// there before keep what the kernel has.
    pub fn remembered(&self, changes: Vec<Change>) {
        self.shared().put(|inbox| {
            inbox.changes.extend(changes);
            inbox.remembered = true;
        });
    }

    /// The leases of this node with an interface, all of them; level-triggered.
    /// What the first call names was there before the agent started.
    pub fn local(&self, pods: Vec<LocalPod>) {
        self.shared().put(|inbox| {
            if !std::mem::replace(&mut inbox.had_local, true) {
                inbox.earlier = Some(pods.clone());
            }
            inbox.local = Some(pods);
        });
    }

    /// Who asks the API server for pods that are not known when their ADD comes.
    pub fn set_lookup(&self, lookup: Arc<dyn PodLookup>) {
        let mut own = self.shared().lookup.write().unwrap_or_else(PoisonError::into_inner);
        *own = Some(lookup);
    }

    /// Waits until what was put in before this call is in the kernel.
    pub async fn settled(&self) -> Result<(), PolicyError> {
        self.applied().await.map(|_| ())
    }

    /// True while something that was put in is not in the kernel yet.
    pub fn busy(&self) -> bool {
        let wanted = lock(&self.shared().inbox).generation;
        self.shared().applied.borrow().generation < wanted
    }

    async fn applied(&self) -> Result<Applied, PolicyError> {
        let wanted = lock(&self.shared().inbox).generation;
        let mut applied = self.shared().applied.subscribe();
        let applied = applied
            .wait_for(|applied| applied.generation >= wanted)
            .await
            .map_err(|_| PolicyError::Stopped)?
            .clone();
        match applied.error.clone() {
            Some(error) => Err(error),
            None => Ok(applied),
        }
    }

    /// Waits until the kernel isolates the addresses of a lease as it must: by the
    /// policies that select its pod, or, if its labels cannot be learned in time,
    /// as unknown pods are. [`Self::local`] must have named the lease before.
    pub async fn admit(&self, id: &str, deadline: Instant) -> Result<(), AdmitError> {
        let late = |_| AdmitError::Late(id.to_owned());
        let applied = tokio::time::timeout_at(deadline, self.applied()).await.map_err(late)??;
        let Some(pod) = applied.unknown.get(id).filter(|_| applied.judged) else { return Ok(()) };
        let lookup = self.shared().lookup.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(lookup) = lookup else { return Ok(()) };
        let enough = deadline.min(Instant::now() + LOOKUP);
        match tokio::time::timeout_at(enough, lookup.lookup(pod)).await {
            Ok(true) => {
                tokio::time::timeout_at(deadline, self.applied()).await.map_err(late)??;
            }
            // Isolated as an unknown pod until its labels arrive.
            _ => tracing::info!(%pod, "its labels are not known yet"),
        }
        Ok(())
    }

    /// What is enforced, per pod of this node.
    pub fn report(&self) -> PolicyReport {
        lock(&self.shared().told).report.clone()
    }

    /// What an operator should know.
    pub fn conditions(&self) -> Vec<Condition> {
        lock(&self.shared().told).conditions.clone()
    }

    /// Which policies and rules decide about a connection.
    pub async fn explain(
        &self,
        from: End,
        to: End,
        protocol: Protocol,
        port: u16,
    ) -> Result<Result<Explanation, ExplainError>, PolicyError> {
        let (tell, told) = oneshot::channel();
        let question = Question { from, to, protocol, port, tell };
        lock(&self.shared().inbox).commands.push(Command::Explain(Box::new(question)));
        self.shared().wake();
        told.await.map_err(|_| PolicyError::Stopped)
    }
}

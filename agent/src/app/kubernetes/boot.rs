//! Before the mesh: cluster key, founding, own address. An earlier life that was
//! a member starts from what it kept; a first one waits for the API server, and
//! says so.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tokio::net::TcpListener;
use weft_proto::api::Condition;
use weft_proto::id::NodeId;

use super::room::{self, Room};
use super::{Claim, Wired, judge, own_address};
use crate::api::Token;
use crate::config::{Config, Init};
use crate::consensus::Founding;
use crate::kube::cache::Store;
use crate::kube::events::Emitter;
use crate::kube::founding::{Me, Record, Step, decide};
use crate::kube::record::Seen;
use crate::kube::tidings::HOLD;
use crate::kube::{Kube, KubeError, node, pace};

/// What the start goes on with.
pub(in crate::app) struct Boot {
    /// Kubernetes, if this is it.
    pub(in crate::app) wired: Option<Wired>,
    /// Cluster keys.
    pub(in crate::app) keys: Vec<String>,
    /// Founding, unless the list of peers says it.
    pub(in crate::app) founding: Option<Founding>,
    /// Whom to call first.
    pub(in crate::app) targets: Vec<String>,
    /// Own underlay address.
    pub(in crate::app) node_ip: Option<IpAddr>,
    /// The right to found, if this node has it.
    pub(in crate::app) claim: Option<Claim>,
}

impl Boot {
    /// Without Kubernetes: what the configuration says.
    pub(in crate::app) fn plain(config: &Config) -> Self {
        Self {
            wired: None,
            keys: config.password.clone(),
            founding: None,
            targets: config.peers.clone(),
            node_ip: config.node_ip,
            claim: None,
        }
    }
}

/// Conditions while the agent is not up yet.
pub(super) type Waits = Arc<Mutex<Vec<Condition>>>;

/// Finds out what is needed; `None` if it was asked to stop meanwhile. While it
/// waits, and for good where `conflict` forbids the start, it answers HTTP.
pub(in crate::app) async fn boot(
    config: &Config,
    me: NodeId,
    kube: Kube,
    conflict: Option<anyhow::Error>,
    http: &std::net::TcpListener,
    token: &Token,
    stop: impl Future<Output = ()>,
) -> Result<Option<Boot>> {
    let mut store = Store::open(&config.state_dir);
    kube.remember(&store.get().endpoints);
    let waits = Waits::default();
    let forbidden = conflict.as_ref().map(judge::range_overlap).or_else(|| {
        judge::service_overlap(config.kubernetes.service_host.as_deref(), &config.ranges)
    });
    if forbidden.is_none()
        && let Some(known) = from_memory(config, &store)
    {
        tracing::info!("starting from what is known; the API server is asked meanwhile");
        return Ok(Some(finish(config, kube, store, known)));
    }
    let events = Emitter::new(kube.clone());
    let listener = TcpListener::from_std(http.try_clone()?)?;
    let room = Arc::new(Room::new(config, me, kube.clone(), Arc::clone(&waits)));
    let (close, closed) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(room::serve(listener, Arc::clone(&room), token.clone(), closed));
    let telling = tokio::spawn(super::tell::tell(events, move || (room.conditions(), HOLD)));
    let work = async {
        match forbidden {
            Some(condition) => {
                tracing::error!("{}; {}", condition.message, condition.hint);
                *waits.lock().unwrap_or_else(PoisonError::into_inner) = vec![condition];
                std::future::pending().await
            }
            None => ask(config, me, &kube, &mut store, &waits).await,
        }
    };
    let known = tokio::select! {
        known = work => Some(known),
        () = stop => None,
    };
    telling.abort();
    let _ = close.send(());
    // An error means that it was cancelled, which is an end too.
    let _ended = serving.await;
    Ok(known.map(|known| finish(config, kube, store, known)))
}

/// What was found, from memory or by asking.
struct Known {
    keys: Vec<String>,
    founding: Option<Founding>,
    contacts: Vec<String>,
    claim: Option<Claim>,
}

/// Founding and peers are given by configuration.
fn by_list(config: &Config) -> bool {
    !config.peers.is_empty() || !matches!(config.ipalloc_init, Init::Consensus(_))
}

/// Everything an earlier life has left, if it is enough.
fn from_memory(config: &Config, store: &Store) -> Option<Known> {
    let cache = store.get();
    let keys = if config.password.is_empty() { &cache.keys } else { &config.password };
    let member = cache.cluster.is_some() && config.state_dir.join("consensus.redb").exists();
    let enough = !keys.is_empty() && (by_list(config) || member);
    enough.then(|| Known {
        keys: keys.clone(),
        // A member founds nothing, and goes on in the seat it has.
        founding: (!by_list(config)).then_some(Founding::Observer),
        contacts: cache.contacts.clone(),
        claim: None,
    })
}

fn finish(config: &Config, kube: Kube, store: Store, known: Known) -> Boot {
    let from_node =
        if config.node_ip.is_none() { own_address(&store.get().addresses) } else { None };
    let mut targets = config.peers.clone();
    if targets.is_empty() {
        targets = known.contacts;
        let book = super::super::peers::PeerBook::open(&config.state_dir.join("peers.json"));
        targets.extend(book.some(crate::kube::contacts::ENOUGH, config.mesh_port));
        targets.sort_unstable();
        targets.dedup();
    }
    Boot {
        keys: known.keys,
        targets,
        node_ip: config.node_ip.or(from_node),
        claim: known.claim,
        wired: Some(Wired {
            events: Emitter::new(kube.clone()),
            kube,
            store: Mutex::new(store),
            by_list: by_list(config),
            founding: known.founding.clone().unwrap_or(Founding::Observer),
            address: from_node,
        }),
        founding: known.founding,
    }
}

/// Asks until everything is known.
async fn ask(config: &Config, me: NodeId, kube: &Kube, store: &mut Store, waits: &Waits) -> Known {
    let mut memory = Memory::default();
    let mut pace = pace::FirstStart::default();
    loop {
        let Wait { problem, unconnected } =
            match attempt(config, me, kube, store, &mut memory).await {
                Ok(known) => return known,
                Err(wait) => wait,
            };
        {
            let mut waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
            if waits.first().map(|c| &c.message) != Some(&problem.message) {
                tracing::warn!("{}; {}", problem.message, problem.hint);
            }
            *waits = vec![problem];
        }
        tokio::time::sleep(pace.after(unconnected, rand::random())).await;
    }
}

/// Why a first start waits.
struct Wait {
    problem: Condition,
    /// Nobody listens where the API server should be.
    unconnected: bool,
}

impl Wait {
    fn of(kube: &Kube, what: &str, error: &KubeError) -> Self {
        let unconnected = matches!(error, KubeError::Unconnected(_));
        Self { problem: judge::waiting(kube, what, error), unconnected }
    }
}

impl From<Condition> for Wait {
    fn from(problem: Condition) -> Self {
        Self { problem, unconnected: false }
    }
}

async fn attempt(
    config: &Config,
    me: NodeId,
    kube: &Kube,
    store: &mut Store,
    memory: &mut Memory,
) -> Result<Known, Wait> {
    let waits = |what: &'static str| move |e: KubeError| Wait::of(kube, what, &e);
    let fresh = !config.state_dir.join("consensus.redb").exists();
    match look_at_own_node(kube, store, fresh).await {
        Err(e) if e.is_away() => return Err(waits("this Node's addresses")(e)),
        // The rounds tell what is wrong there; it is no reason not to start.
        _ => {}
    }
    if fresh
        && let Some(services) = kube.services().await
        && let Some(overlap) = judge::services_overlap(&services, &config.ranges)
    {
        return Err(overlap.into());
    }
    let keys = if config.password.is_empty() {
        let keys = kube.keys_or_new().await.map_err(waits("the cluster key"))?;
        keep(store, |cache| cache.keys.clone_from(&keys));
        keys
    } else {
        config.password.clone()
    };
    if by_list(config) {
        return Ok(Known { keys, founding: None, contacts: Vec::new(), claim: None });
    }
    let me = Me { name: config.node_name.clone(), id: me, cluster: None };
    let (founding, record) = memory.settle(kube, me).await?;
    keep(store, |cache| {
        cache.founder = Some(record.founder.clone());
        cache.contacts.clone_from(&record.contacts);
    });
    let claim = memory.wrote.filter(|_| founding == Founding::Single).map(Claim);
    Ok(Known { keys, founding: Some(founding), contacts: record.contacts, claim })
}

fn keep(store: &mut Store, change: impl FnOnce(&mut crate::kube::cache::Cache)) {
    if let Err(e) = store.change(change) {
        tracing::warn!("what the API server said cannot be kept for the next start: {e}");
    }
}

/// Takes the Node's addresses, and a node without a ledger takes back what an
/// earlier life said of its membership.
async fn look_at_own_node(kube: &Kube, store: &mut Store, fresh: bool) -> Result<(), KubeError> {
    let Some(own) = kube.own_node().await? else { return Ok(()) };
    keep(store, |cache| cache.addresses = own.internal());
    let notes = own.metadata.annotations.unwrap_or_default();
    if fresh && notes.contains_key(node::CLUSTER) {
        let gone = json!({ "metadata": { "annotations": { node::CLUSTER: null } } });
        kube.patch_own_node(&gone).await?;
    }
    Ok(())
}

/// What a node remembers of the record between two looks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Version last seen, and since when.
    heard: Option<(String, Instant)>,
    /// When its own claim was last written.
    pub(super) wrote: Option<Instant>,
    /// No Node names a cluster.
    checked: bool,
}

impl Memory {
    /// How long the record has not changed.
    pub(super) fn unheard(&mut self, seen: Option<&Seen>, now: Instant) -> Duration {
        let Some(seen) = seen else {
            self.heard = None;
            return Duration::ZERO;
        };
        match &self.heard {
            Some((version, since)) if *version == seen.version => {
                now.saturating_duration_since(*since)
            }
            _ => {
                self.heard = Some((seen.version.clone(), now));
                Duration::ZERO
            }
        }
    }

    /// Looks once and decides.
    pub(super) async fn look(
        &mut self,
        kube: &Kube,
        me: &Me,
    ) -> Result<(Option<Seen>, Step), KubeError> {
        let seen = kube.record().await?;
        let unheard = self.unheard(seen.as_ref(), Instant::now());
        let fresh = self.wrote.is_some_and(|at| Claim(at).is_fresh());
        let step = decide(seen.as_ref().map(|s| &s.record), me, unheard, fresh);
        Ok((seen, step))
    }

    /// Writes a step; true if it was written. The clock of a claim runs from
    /// before the request.
    pub(super) async fn write(
        &mut self,
        kube: &Kube,
        seen: Option<&Seen>,
        record: &Record,
    ) -> Result<bool, KubeError> {
        let now = Instant::now();
        let written = match seen {
            None => kube.create_record(record).await?,
            Some(seen) => kube.replace_record(&seen.version, record).await?,
        };
        if written.is_some() && !record.founded {
            self.wrote = Some(now);
            tracing::info!(turn = record.turn, "this node claims the founding of the cluster");
        }
        Ok(written.is_some())
    }

    /// Until it is settled who founds.
    async fn settle(&mut self, kube: &Kube, me: Me) -> Result<(Founding, Record), Wait> {
        let waits = |what: &'static str| move |e: KubeError| Wait::of(kube, what, &e);
        loop {
            let (seen, step) =
                self.look(kube, &me).await.map_err(waits("who founds the cluster"))?;
            match step {
                Step::Create(record) | Step::Replace(record) => {
                    self.write(kube, seen.as_ref(), &record)
                        .await
                        .map_err(waits("who founds the cluster"))?;
                }
                // A record that was deleted by mistake must not found a second
                // cluster. Only the winner asks: it takes a list of Nodes.
                Step::Found if !self.checked => {
                    let (_, cluster) =
                        kube.ask_nodes().await.map_err(waits("whether there is a cluster"))?;
                    if let Some(cluster) = cluster {
                        return Err(judge::unrecorded(kube, cluster).into());
                    }
                    self.checked = true;
                }
                Step::Found => {
                    return Ok((Founding::Single, seen.map(|s| s.record).unwrap_or_default()));
                }
                Step::Follow | Step::Differs(_) => {
                    return Ok((Founding::Observer, seen.map(|s| s.record).unwrap_or_default()));
                }
            }
        }
    }
}

/// The mounts of this process, where it runs in a pod.
pub(super) fn mountinfo(config: &Config) -> Option<String> {
    let pod = config.kubernetes.kubeconfig.is_none();
    let path = Path::new("/proc/self/mountinfo");
    pod.then(|| std::fs::read_to_string(path).ok()).flatten()
}

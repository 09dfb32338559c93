//! What is looked at again and again: own Node, Secret, ConfigMap.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::id::ClusterId;

use super::super::App;
use super::boot::{Memory, mountinfo};
use super::{Wired, judge, own_address};
use crate::consensus::Founding;
use crate::kube::contacts::{self, contact};
use crate::kube::founding::{Me, Record, Step};
use crate::kube::record::Seen;
use crate::kube::{KubeError, node, pace};
use crate::mesh::net::PeerNet;

/// How often the local state is looked at that calls for a round at once.
const GLANCE: Duration = Duration::from_millis(500);
/// How often, at most, the API server's endpoints are asked for: they change seldom.
const ENDPOINTS: Duration = Duration::from_secs(600);
/// Alone for so long, a node asks for more contacts than the record has.
const ALONE: Duration = Duration::from_secs(15);

/// What calls for a round before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Local {
    ready: bool,
    leads: bool,
    cluster: Option<ClusterId>,
    contacts: Vec<String>,
}

/// Between two rounds.
#[derive(Default)]
struct State {
    record: Memory,
    /// Targets this task has added.
    targets: BTreeSet<String>,
    alone_since: Option<Instant>,
    /// Lists of Nodes read while alone, and when the next may be read.
    lists: u32,
    next_list: Option<Instant>,
    keys: Vec<String>,
    /// The ranges of services were asked for.
    services_known: bool,
    /// When the API server's endpoints are asked for again.
    next_endpoints: Option<Instant>,
}

/// For ever, where there is Kubernetes.
pub(in crate::app) async fn run(app: Arc<App>) {
    let Some(wired) = &app.kubernetes else { return std::future::pending().await };
    let unmounted = mountinfo(&app.config).and_then(|info| judge::unmounted(&app.config, &info));
    app.condition("HostPathMissing", unmounted);
    let mut state = State {
        targets: app.mesh.targets().into_iter().filter(|t| !app.config.peers.contains(t)).collect(),
        keys: wired.store().get().keys.clone(),
        ..State::default()
    };
    let (mut failures, mut unsettled) = (0, 0);
    loop {
        let local = app.local();
        let result = round(&app, wired, &mut state, &local).await;
        app.condition("KubernetesAway", judge::away(&wired.kube));
        app.condition("KubernetesDenied", judge::denied(&wired.kube));
        let pause = match result {
            Err(error) => {
                failures += 1;
                tracing::debug!("Kubernetes round: {error}");
                pace::after_failures(failures, rand::random())
            }
            Ok(()) if local.cluster.is_none() => {
                (failures, unsettled) = (0, unsettled + 1);
                pace::after_failures(1 + unsettled / 2, rand::random())
            }
            Ok(()) => {
                (failures, unsettled) = (0, 0);
                let members = app.consensus.ledger().members().count();
                pace::spread(pace::round(members), rand::random())
            }
        };
        let until = Instant::now() + pause;
        // While the server is away, local news do not make it come back.
        while Instant::now() < until && (failures > 0 || app.local() == local) {
            app.condition("KubernetesAway", judge::away(&wired.kube));
            tokio::time::sleep(GLANCE.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }
}

/// One round. An error ends it: the server is away.
async fn round(
    app: &App,
    wired: &Wired,
    state: &mut State,
    local: &Local,
) -> Result<(), KubeError> {
    if app.config.password.is_empty() {
        settle(keys(app, wired, state, local).await)?;
    }
    if !wired.by_list {
        settle(record(app, wired, state, local).await)?;
        settle(look_for_peers(app, wired, state, local).await)?;
    }
    // After the record, which decides what the Node says of the cluster.
    settle(own_node(app, wired, local).await)?;
    if !std::mem::replace(&mut state.services_known, true) {
        let ranges = &app.config.ranges;
        app.condition(
            "ServiceOverlap",
            wired
                .kube
                .services()
                .await
                .and_then(|services| judge::services_overlap(&services, ranges)),
        );
    }
    let now = Instant::now();
    if state.next_endpoints.is_none_or(|next| now >= next) {
        let members = app.consensus.ledger().members().count();
        let pause = (10 * pace::round(members)).max(ENDPOINTS);
        state.next_endpoints = Some(now + pace::spread(pause, rand::random()));
        if let Some(endpoints) = wired.kube.endpoints().await {
            wired.kube.remember(&endpoints);
            wired.keep(|cache| cache.endpoints.clone_from(&endpoints));
        }
    }
    Ok(())
}

/// A refusal of one thing is told by its condition and leaves the rest to do.
fn settle(result: Result<(), KubeError>) -> Result<(), KubeError> {
    match result {
        Err(error) if error.is_away() => Err(error),
        Err(error) => {
            tracing::debug!("Kubernetes: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

impl App {
    fn local(&self) -> Local {
        let leads = self.leads();
        Local {
            ready: self.build_readiness().ready,
            leads,
            cluster: self.consensus.ledger().cluster(),
            contacts: if leads { self.voter_contacts() } else { Vec::new() },
        }
    }

    /// Where the voters' meshes are.
    fn voter_contacts(&self) -> Vec<String> {
        let view = self.mesh.view();
        let seated = view.members.values().filter(|m| m.record.raft_id.is_some());
        let mut contacts: Vec<String> = seated
            .filter(|m| view.is_alive(m.record.node))
            .filter_map(|m| m.record.underlay.first().map(|ip| contact(*ip, m.record.mesh_port)))
            .collect();
        contacts.sort_unstable();
        contacts.dedup();
        contacts
    }

    /// No other node is alive, as far as is known here.
    fn alone(&self) -> bool {
        let view = self.mesh.view();
        !view.members.keys().any(|node| *node != self.me && view.is_alive(*node))
    }
}

async fn own_node(app: &App, wired: &Wired, local: &Local) -> Result<(), KubeError> {
    let kube = &wired.kube;
    let Some(own) = kube.own_node().await? else {
        app.condition("NodeMissing", Some(judge::no_node(kube)));
        return Ok(());
    };
    app.condition("NodeMissing", None);
    let underlay: Vec<String> =
        app.underlay.iter().map(|ip| contact(*ip, app.config.mesh_port)).collect();
    let mut notes = BTreeMap::from([(node::NODE_ID, app.me.to_string())]);
    if !underlay.is_empty() {
        notes.insert(node::UNDERLAY, underlay.join(","));
    }
    // Only what is on record may be taken for a cluster by others.
    let confirmed = wired.store().get().cluster.filter(|c| Some(*c) == local.cluster);
    if let Some(cluster) = confirmed {
        notes.insert(node::CLUSTER, cluster.to_string());
    }
    follow_address(app, wired, &own);
    match own.patch(&notes, local.ready, &node::now()) {
        Some(patch) => kube.patch_own_node(&patch).await,
        None => Ok(()),
    }
}

/// The Node's InternalIP decides, unless NODE_IP does.
fn follow_address(app: &App, wired: &Wired, own: &node::Node) {
    let addresses = own.internal();
    if app.config.node_ip.is_some() || addresses.is_empty() {
        return;
    }
    wired.keep(|cache| cache.addresses.clone_from(&addresses));
    let found = own_address(&addresses);
    app.condition("NodeAddress", found.is_none().then(|| judge::foreign_address(&addresses)));
    let Some(found) = found else { return };
    if wired.address != Some(found) && app.underlay.first() != Some(&found) {
        app.renew(format!("the Node's InternalIP is now {found}"));
    }
}

async fn keys(app: &App, wired: &Wired, state: &mut State, local: &Local) -> Result<(), KubeError> {
    let Some(keys) = wired.kube.keys().await? else {
        // Deleted: new nodes must find the key the others have.
        if local.leads && !state.keys.is_empty() {
            wired.kube.put_keys(&state.keys).await?;
        }
        return Ok(());
    };
    if keys != state.keys {
        tracing::info!(
            keys = keys.len(),
            "the cluster key has changed: the mesh takes the new one"
        );
        app.mesh.set_keys(&keys);
        wired.keep(|cache| cache.keys.clone_from(&keys));
        state.keys = keys;
    }
    Ok(())
}

async fn record(
    app: &App,
    wired: &Wired,
    state: &mut State,
    local: &Local,
) -> Result<(), KubeError> {
    let kube = &wired.kube;
    let me = Me { name: app.config.node_name.clone(), id: app.me, cluster: local.cluster };
    let (seen, step) = state.record.look(kube, &me).await?;
    let known = seen.as_ref().map(|s| &s.record);
    // What this node is known to be a member of, and what it says to others.
    let confirmed =
        known.filter(|r| r.founded && r.cluster.is_some() && r.cluster == local.cluster);
    if let Some(record) = confirmed {
        wired.keep(|cache| {
            cache.cluster = record.cluster;
            cache.contacts.clone_from(&record.contacts);
        });
    }
    if let Some(record) = known {
        wired.keep(|cache| cache.founder = Some(record.founder.clone()));
    }
    app.condition("ClusterDiffers", None);
    match step {
        Step::Create(record) | Step::Replace(record) if local.cluster.is_some() => {
            // Of a cluster that exists, the leader keeps the record.
            if local.leads {
                let record = Record { contacts: local.contacts.clone(), ..record };
                write(app, wired, state, seen.as_ref(), &record).await?;
            }
            Ok(())
        }
        // This life founds already; its ledger is there in a moment.
        Step::Create(_) | Step::Replace(_) if wired.founding == Founding::Single => Ok(()),
        Step::Create(record) | Step::Replace(record) => {
            if state.record.write(kube, seen.as_ref(), &record).await? {
                app.renew("this node is to found the cluster".to_owned());
            }
            Ok(())
        }
        Step::Found => {
            if wired.founding != Founding::Single {
                app.renew("this node is to found the cluster".to_owned());
            }
            Ok(())
        }
        Step::Follow => follow(app, wired, state, local, seen).await,
        Step::Differs(theirs) => {
            if let Some(mine) = local.cluster {
                differs(app, wired, mine, theirs);
            }
            Ok(())
        }
    }
}

async fn write(
    app: &App,
    wired: &Wired,
    state: &mut State,
    seen: Option<&Seen>,
    record: &Record,
) -> Result<(), KubeError> {
    if state.record.write(&wired.kube, seen, record).await? {
        tracing::info!(contacts = record.contacts.join(" "), "record of the cluster written");
        if record.cluster == app.consensus.ledger().cluster() {
            wired.keep(|cache| {
                cache.cluster = record.cluster;
                cache.contacts.clone_from(&record.contacts);
                cache.founder = Some(record.founder.clone());
            });
        }
    }
    Ok(())
}

/// Somebody founds, or there is a cluster.
async fn follow(
    app: &App,
    wired: &Wired,
    state: &mut State,
    local: &Local,
    seen: Option<Seen>,
) -> Result<(), KubeError> {
    let Some(seen) = seen else { return Ok(()) };
    if local.leads && !local.contacts.is_empty() && seen.record.contacts != local.contacts {
        let turn = seen.record.turn.saturating_add(1);
        let record = Record { contacts: local.contacts.clone(), turn, ..seen.record.clone() };
        return write(app, wired, state, Some(&seen), &record).await;
    }
    let own: BTreeSet<String> =
        app.underlay.iter().map(|ip| contact(*ip, app.config.mesh_port)).collect();
    let mut wanted: BTreeSet<String> = seen.record.contacts.iter().cloned().collect();
    wanted.retain(|target| !own.contains(target));
    // While alone, earlier ones are worth a try too.
    if app.alone() {
        wanted.extend(state.targets.iter().cloned());
    }
    call(app, state, &wanted);
    let alone = state.alone_since.is_some_and(|since| since.elapsed() >= ALONE);
    let silent = seen.record.founded && local.cluster.is_none() && alone;
    app.condition("ClusterSilent", silent.then(|| judge::silent(&wired.kube, &seen.record)));
    Ok(())
}

/// Makes these the targets of this task; an operator's own stay.
fn call(app: &App, state: &mut State, wanted: &BTreeSet<String>) {
    let (drop, add) = contacts::change(&state.targets, wanted);
    if drop.is_empty() && add.is_empty() {
        return;
    }
    app.mesh.forget(&drop);
    match app.mesh.connect(&add, false) {
        Ok(()) => state.targets.clone_from(wanted),
        Err(e) => tracing::warn!("contacts: {e}"),
    }
}

/// Alone for a while: the record's contacts may all be gone. Other nodes' own
/// Nodes say where they are.
async fn look_for_peers(
    app: &App,
    wired: &Wired,
    state: &mut State,
    local: &Local,
) -> Result<(), KubeError> {
    let others = local.cluster.is_none() || app.consensus.ledger().members().count() > 1;
    if !(app.alone() && others) {
        (state.alone_since, state.lists, state.next_list) = (None, 0, None);
        app.condition("ClusterSilent", None);
        return Ok(());
    }
    let now = Instant::now();
    let since = *state.alone_since.get_or_insert(now);
    if now.saturating_duration_since(since) < ALONE || state.next_list.is_some_and(|t| now < t) {
        return Ok(());
    }
    // From half a minute to half an hour: after an outage everybody is alone.
    let pause = Duration::from_secs(30 << state.lists.min(6));
    state.next_list = Some(now + pace::spread(pause, rand::random()));
    state.lists += 1;
    let (found, _) = wired.kube.ask_nodes().await?;
    tracing::info!(found = found.len(), "alone: looked for peers among the Nodes");
    let wanted: BTreeSet<String> = found.into_iter().collect();
    if !wanted.is_empty() {
        call(app, state, &wanted);
    }
    Ok(())
}

/// The record names another cluster. A founder that was late, and alone, gives
/// its ledger up; anybody else is for the operator to judge.
fn differs(app: &App, wired: &Wired, mine: ClusterId, theirs: ClusterId) {
    let ledger = app.consensus.ledger();
    let late = wired.store().get().cluster.is_none()
        && ledger.members().all(|(node, _)| node == app.me)
        && ledger.blocks().all(|block| block.owner == app.me);
    if !late {
        app.condition("ClusterDiffers", Some(judge::differs(&wired.kube, mine, theirs)));
        return;
    }
    let log = app.config.state_dir.join("consensus.redb");
    let aside = app.config.state_dir.join(format!("consensus.redb.late-{mine}"));
    match fs::rename(&log, &aside) {
        Ok(()) => app.renew(format!(
            "another node has founded cluster {theirs} meanwhile; the own ledger is kept as {}",
            aside.display()
        )),
        Err(e) => tracing::error!("cannot set {} aside: {e}", log.display()),
    }
}

//! Who is dialled, and when: targets until they are connected, members to keep
//! the mesh as dense as it should be, and anybody on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quinn::VarInt;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Failure;

use super::backoff::pause;
use super::conn;
use super::density;
#[cfg(test)]
pub(super) use super::density::PER_ROUND;
pub(super) use super::density::{ACTIVE, FULL_MESH};
use super::handshake::{Rejected, dial};
use super::net::Liveness;
use super::pool::Conn;
use super::state::{DialState, State, canonical, lock};
use super::swim::Input;
use super::targets::{Phase, resolve};

/// Time between two targets of a long list, on average.
const PACE: Duration = Duration::from_millis(5);
const UNKNOWN: &str = "no address is known";
pub(super) const ROUND: Duration = Duration::from_secs(1);

fn has_room(state: &State) -> bool {
    lock(&state.pool).has_room(state.conn_limit)
}

/// The connection to a node, made if there is none. Attempts are shared, and
/// after a failure the next one is only made when its time has come.
pub(super) async fn reach(state: &Arc<State>, node: NodeId) -> Result<Arc<Conn>, String> {
    if let Some(conn) = lock(&state.pool).get(node) {
        return Ok(conn);
    }
    if state.addresses_of(node).is_empty() {
        // No attempt, so none to wait after: it may become known at any moment.
        return Err(UNKNOWN.to_owned());
    }
    let mut done = {
        let mut dials = lock(&state.dials);
        let entry = dials.entry(node).or_default();
        match &entry.running {
            Some(running) => running.clone(),
            None => {
                if entry.not_before.is_some_and(|t| t > Instant::now()) {
                    return Err(entry.error.clone());
                }
                let (tell, hear) = watch::channel(None);
                entry.running = Some(hear.clone());
                let state = Arc::clone(state);
                tokio::spawn(async move {
                    let result = dial_node(&state, node).await;
                    finish(&state, node, &result);
                    tell.send_replace(Some(result));
                });
                hear
            }
        }
    };
    let result = match done.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Ok(())),
        Err(_) => Err("the attempt was given up".to_owned()),
    };
    result?;
    lock(&state.pool).get(node).ok_or_else(|| "the connection was lost at once".to_owned())
}

fn finish(state: &State, node: NodeId, result: &Result<(), String>) {
    let mut dials = lock(&state.dials);
    match result {
        Ok(()) => {
            dials.remove(&node);
        }
        Err(error) => {
            let entry: &mut DialState = dials.entry(node).or_default();
            entry.running = None;
            entry.failures = entry.failures.saturating_add(1);
            entry.not_before = Some(Instant::now() + pause(entry.failures, rand::random()));
            entry.error.clone_from(error);
        }
    }
}

async fn dial_node(state: &Arc<State>, node: NodeId) -> Result<(), String> {
    if !has_room(state) {
        return Err(format!("this node has reached its CONN_LIMIT of {}", state.conn_limit));
    }
    let mut last = UNKNOWN.to_owned();
    for address in state.addresses_of(node) {
        match dial(state, address).await {
            Ok(found) if found == node => return Ok(()),
            Ok(other) => last = format!("{address} is now node {}", other.short()),
            Err(e) => last = format!("{address}: {}", e.text()),
        }
        if lock(&state.pool).get(node).is_some() {
            return Ok(());
        }
    }
    Err(last)
}

/// Keeps one task per target.
pub(super) async fn targets_loop(state: Arc<State>) {
    struct Tasks(BTreeMap<u64, AbortHandle>);
    impl Drop for Tasks {
        fn drop(&mut self) {
            self.0.values().for_each(AbortHandle::abort);
        }
    }
    let mut tasks = Tasks(BTreeMap::new());
    loop {
        let wanted: BTreeMap<u64, String> =
            lock(&state.targets).iter().map(|(name, t)| (t.epoch, name.clone())).collect();
        tasks.0.retain(|epoch, task| {
            let keep = wanted.contains_key(epoch);
            if !keep {
                task.abort();
            }
            keep
        });
        for (epoch, name) in wanted {
            let state = Arc::clone(&state);
            tasks
                .0
                .entry(epoch)
                .or_insert_with(|| tokio::spawn(pursue(state, name, epoch)).abort_handle());
        }
        state.targets_changed.notified().await;
    }
}

/// Dials one target until connected; again when the connection is lost.
async fn pursue(state: Arc<State>, target: String, epoch: u64) {
    let mut changes = state.pool_changed.subscribe();
    let mut failures = 0;
    // A long list is not dialled all at once.
    let many = u32::try_from(lock(&state.targets).names().len()).unwrap_or(u32::MAX);
    tokio::time::sleep((PACE * many.saturating_sub(1)).mul_f64(rand::random())).await;
    loop {
        let set = |phase: Phase, address: Option<SocketAddr>| {
            lock(&state.targets).set(&target, epoch, |t| {
                t.phase = phase;
                t.address = address.or(t.address);
            })
        };
        let error = match attempt(&state, &target).await {
            Ok((node, address)) => {
                failures = 0;
                if !set(Phase::Connected(node), Some(address)) {
                    return;
                }
                while satisfied(&state, node) {
                    if lock(&state.pool).get(node).is_some() {
                        let _ = changes.changed().await;
                    } else {
                        // Looked at now and then: it may die unconnected.
                        let _ = tokio::time::timeout(ROUND, changes.changed()).await;
                    }
                }
                Phase::Waiting { error: "connection lost".to_owned(), refused: false, next: None }
            }
            Err((address, Rejected::Own)) => {
                tracing::info!(target, "the target is this node itself: not dialled again");
                set(Phase::Own, address);
                return;
            }
            Err((address, why)) => {
                set(Phase::Connecting, address);
                let refused = matches!(&why, Rejected::Refused(f) if f.code != Failure::BUSY);
                Phase::Waiting { error: why.text(), refused, next: None }
            }
        };
        failures += 1;
        let wait = pause(failures, rand::random());
        if let Phase::Waiting { error, refused, .. } = error {
            let next = Some(Instant::now() + wait);
            if !set(Phase::Waiting { error, refused, next }, None) {
                return;
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// A target needs no connection of its own in a big mesh that knows its node
/// to be alive: a list of all nodes must not make a full mesh of thousands.
fn satisfied(state: &State, node: NodeId) -> bool {
    let conns = {
        let pool = lock(&state.pool);
        if pool.get(node).is_some() {
            return true;
        }
        pool.len()
    };
    let many = state.alive.load(Ordering::Relaxed) > FULL_MESH;
    conns >= ACTIVE && many && state.view.borrow().is_alive(node)
}

/// The node behind an address, if we are connected to it already.
fn connected_at(state: &State, address: SocketAddr) -> Option<NodeId> {
    let address = canonical(address);
    if let Some(conn) = lock(&state.pool).all().iter().find(|c| c.remote == address) {
        return Some(conn.node);
    }
    // It may have dialled us from another port.
    let found = lock(&state.records)
        .iter()
        .find(|r| r.mesh_port == address.port() && r.underlay.contains(&address.ip()))
        .map(|r| r.node);
    found.filter(|node| satisfied(state, *node))
}

async fn attempt(
    state: &Arc<State>,
    target: &str,
) -> Result<(NodeId, SocketAddr), (Option<SocketAddr>, Rejected)> {
    let addresses = resolve(target).await.map_err(|e| (None, Rejected::Broken(e)))?;
    let mut last = (None, Rejected::Broken("no address".to_owned()));
    for address in addresses {
        if let Some(node) = connected_at(state, address) {
            return Ok((node, address));
        }
        if !has_room(state) {
            let why = format!("this node has reached its CONN_LIMIT of {}", state.conn_limit);
            return Err((Some(address), Rejected::Broken(why)));
        }
        match dial(state, address).await {
            Ok(node) => return Ok((node, address)),
            Err(why) => {
                let own = matches!(why, Rejected::Own);
                last = (Some(address), why);
                if own {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Keeps the mesh as dense as it should be.
pub(super) async fn maintain_loop(state: Arc<State>) {
    loop {
        tokio::time::sleep(ROUND).await;
        state.refresh_stale_view();
        state.judge_copied();
        let view = Arc::clone(&state.view.borrow());
        let conns = lock(&state.pool).all();
        let connected: BTreeSet<NodeId> = conns.iter().map(|c| c.node).collect();
        let living = view
            .members
            .iter()
            .filter(|(node, m)| **node != state.me && m.liveness != Liveness::Dead);
        let dense = living.clone().take(FULL_MESH).count() < FULL_MESH;
        let missing: Vec<NodeId> = if dense || conns.len() < ACTIVE {
            living.map(|(node, _)| *node).filter(|node| !connected.contains(node)).collect()
        } else {
            Vec::new()
        };
        let limit = if state.conn_limit == 0 { usize::MAX } else { state.conn_limit };
        let room = limit.saturating_sub(conns.len());
        let chosen = density::dials(state.me, &missing, conns.len(), dense, room, &mut rand::rng());
        for node in chosen {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                let _ = reach(&state, node).await;
            });
        }
        if !dense {
            close_idle(&state, &conns);
            for conn in conns.iter().filter(|c| c.is_silent()) {
                conn::tell_swim(&state, Input::Silent(conn.node));
            }
        }
        lock(&state.dials).retain(|node, d| d.running.is_some() || view.members.contains_key(node));
    }
}

fn close_idle(state: &State, conns: &[Arc<Conn>]) {
    let kept: Vec<NodeId> = lock(&state.targets)
        .iter()
        .filter_map(|(_, t)| match t.phase {
            Phase::Connected(node) => Some(node),
            _ => None,
        })
        .take(ACTIVE)
        .collect();
    let idle: Vec<_> = conns.iter().map(|c| (c.node, c.idle())).collect();
    let closed = density::closes(&idle, &kept);
    for conn in conns.iter().filter(|c| closed.contains(&c.node)) {
        conn.quic.close(VarInt::from_u32(0), b"idle");
    }
}

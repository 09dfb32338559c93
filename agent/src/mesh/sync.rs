//! Node records and the ledger's position: fresh ones are pushed to a few,
//! a digest exchange with one random peer repairs what was missed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{
    Failure, LedgerHead, NodeRecord, Rumor, Standing, SyncDigest, SyncLeaves, SyncPart,
    SyncPartReply, SyncReply, SyncSummary,
};

use super::conn;
use super::pool::Conn;
use super::records::Offer;
use super::state::{State, lock};
use super::swim::Input;

/// To how many peers fresh records are pushed.
pub(super) const FAN_OUT: usize = 4;
/// Fresh records are collected for this long before they are pushed.
pub(super) const COALESCE: Duration = Duration::from_millis(50);
/// Records per rumor: far below its limit even if all are of the longest.
pub(super) const RUMOR: usize = 200;
/// Nodes of whom others say something newer that are asked in one round.
pub(super) const DOUBTED: usize = 8;
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Answers a whole digest, as builds send it that know no sums.
pub(super) fn answer(state: &State, conn: &Conn, digest: &SyncDigest) -> SyncReply {
    let (records, wanted) = lock(&state.records).compare(digest);
    state.tell_head(conn.node, digest.ledger);
    SyncReply { records, wanted, ledger: *lock(&state.head) }
}

/// Answers the question whether all is the same.
pub(super) fn leaves(state: &State, conn: &Conn, asked: &SyncSummary) -> SyncLeaves {
    state.tell_head(conn.node, asked.ledger);
    let head = *lock(&state.head);
    lock(&state.records).leaves(asked, head)
}

/// Answers what the asker has where we differ.
pub(super) fn part(state: &State, conn: &Conn, part: SyncPart) -> Result<SyncPartReply, Failure> {
    state.tell_head(conn.node, part.ledger);
    let head = *lock(&state.head);
    let reply = lock(&state.records).compare_part(&part, head);
    let reply = reply.ok_or_else(|| Failure {
        code: Failure::BAD_REQUEST,
        message: format!("{} is no number of leaves", part.of),
    })?;
    told_standings(state, conn.node, part.alive, part.standings);
    Ok(reply)
}

fn told_standings(state: &State, from: NodeId, alive: u32, standings: Vec<Standing>) {
    if !standings.is_empty() {
        conn::tell_swim(state, Input::Standings { from, alive, standings });
    }
}

/// Compares with one peer and exchanges what differs. Not with many at a time: what the
/// first brings need not come from the others, too.
pub(super) async fn exchange(state: &Arc<State>, conn: &Arc<Conn>) {
    let Ok(_turn) = state.exchanging.acquire().await else { return };
    let head = *lock(&state.head);
    let summary = lock(&state.records).summary(head);
    let Ok(frame) = Frame::new(&summary) else { return };
    let Ok(reply) = conn::request(conn, &frame, PATIENCE).await else {
        return state.count("sync_failed");
    };
    if reply.is::<Failure>() {
        return exchange_digest(state, conn).await;
    }
    let Ok(leaves) = reply.decode::<SyncLeaves>() else { return state.count("sync_failed") };
    state.tell_head(conn.node, leaves.ledger);
    if leaves.leaves.is_empty() {
        return;
    }
    let Some(part) = lock(&state.records).part(&leaves, head) else { return };
    let Ok(frame) = Frame::new(&part) else { return state.count("sync_too_long") };
    let Ok(reply) = conn::request(conn, &frame, PATIENCE).await else {
        return state.count("sync_failed");
    };
    let Ok(reply) = reply.decode::<SyncPartReply>() else { return state.count("sync_failed") };
    let SyncPartReply { records, wanted, standings, alive, ledger } = reply;
    merge(state, conn, records, wanted, ledger).await;
    told_standings(state, conn.node, alive, standings);
}

/// The same with a build that knows no sums.
async fn exchange_digest(state: &Arc<State>, conn: &Arc<Conn>) {
    let digest = SyncDigest { records: lock(&state.records).digest(), ledger: *lock(&state.head) };
    let Ok(frame) = Frame::new(&digest) else { return state.count("sync_too_long") };
    let Ok(reply) = conn::request(conn, &frame, PATIENCE).await else {
        return state.count("sync_failed");
    };
    let Ok(reply) = reply.decode::<SyncReply>() else { return state.count("sync_failed") };
    merge(state, conn, reply.records, reply.wanted, reply.ledger).await;
}

/// Takes in what the other sent, and sends what it wants.
async fn merge(
    state: &Arc<State>,
    conn: &Arc<Conn>,
    records: Vec<NodeRecord>,
    wanted: Vec<NodeId>,
    ledger: LedgerHead,
) {
    // Who believes something newer of us than we say hears it from ourselves.
    let doubts = records.iter().any(|r| r.node == state.me).then_some(state.me);
    take_records(state, conn.node, records);
    state.tell_head(conn.node, ledger);
    let wanted: Vec<NodeRecord> = {
        let records = lock(&state.records);
        let wanted = wanted.iter().take(10_000).chain(&doubts);
        wanted.filter_map(|n| records.get(*n).cloned()).collect()
    };
    for chunk in wanted.chunks(RUMOR) {
        if let Ok(frame) = Frame::new(&Rumor { records: chunk.to_vec() }) {
            conn::notify(state, conn, &frame).await;
        }
    }
}

/// Takes records in; fresh ones are pushed on. What others say of a node that is known
/// and connected counts as a hint to ask that node.
pub(super) fn take_records(state: &State, from: NodeId, records: Vec<NodeRecord>) {
    let mut fresh = Vec::new();
    let mut overtaken = None;
    let connected: BTreeMap<NodeId, String> =
        lock(&state.pool).all().iter().map(|c| (c.node, c.name.clone())).collect();
    {
        let mut store = lock(&state.records);
        for record in records {
            let node = record.node;
            let greeted_as = connected.get(&node);
            if node == from && greeted_as.is_some_and(|name| *name != record.name) {
                // Under another name than the one it was let in with.
                state.count("record_refused");
                continue;
            }
            if node != from && greeted_as.is_some() && store.is_hearsay(&record) {
                state.count("record_hearsay");
                lock(&state.doubted).insert(node);
                continue;
            }
            let offer = match node == from {
                true => store.told_by_itself(record),
                false => store.offer(record),
            };
            match offer {
                Offer::Fresh => fresh.push(node),
                Offer::Overtaken => {
                    overtaken = store.own().map(|r| r.incarnation);
                    fresh.push(node);
                }
                Offer::Old => {}
                Offer::Refused(_) => state.count("record_refused"),
            }
        }
    }
    if let Some(incarnation) = overtaken {
        tracing::warn!(
            incarnation,
            "a former life of this node is known with a later start: did the clock run backwards?"
        );
        if state.swim.try_send(Input::NewLife(incarnation)).is_err() {
            state.count("swim_dropped");
        }
    }
    if fresh.is_empty() {
        return;
    }
    {
        let mut queue = lock(&state.fresh);
        for node in fresh {
            queue.insert(node, Some(from).filter(|_| node != state.me));
        }
    }
    state.fresh_wake.notify_one();
    state.refresh_view();
}

/// Tells a few peers the ledger's new position.
pub(super) async fn push_head(state: &Arc<State>, head: LedgerHead) {
    let Ok(frame) = Frame::new(&head) else { return };
    for conn in some_peers(state, FAN_OUT, None) {
        conn::notify(state, &conn, &frame).await;
    }
}

fn some_peers(state: &State, count: usize, not: Option<NodeId>) -> Vec<Arc<Conn>> {
    let mut all = lock(&state.pool).all();
    all.retain(|c| Some(c.node) != not);
    all.choose_multiple(&mut rand::rng(), count).cloned().collect()
}

/// Pushes fresh records.
pub(super) async fn rumor_loop(state: Arc<State>) {
    loop {
        state.fresh_wake.notified().await;
        tokio::time::sleep(COALESCE).await;
        let fresh = std::mem::take(&mut *lock(&state.fresh));
        // Grouped by who must not get it back.
        let mut groups: BTreeMap<Option<NodeId>, Vec<NodeRecord>> = BTreeMap::new();
        {
            let records = lock(&state.records);
            for (node, from) in fresh {
                if let Some(record) = records.get(node) {
                    groups.entry(from).or_default().push(record.clone());
                }
            }
        }
        for (from, records) in groups {
            // What this node says of itself goes to all it is connected to: they
            // believe it of nobody else.
            let own = records.iter().any(|r| r.node == state.me);
            let count = if own { usize::MAX } else { FAN_OUT };
            for chunk in records.chunks(RUMOR) {
                let Ok(frame) = Frame::new(&Rumor { records: chunk.to_vec() }) else { continue };
                for conn in some_peers(&state, count, from) {
                    conn::notify(&state, &conn, &frame).await;
                }
            }
        }
    }
}

/// Pause between exchanges. `random` in 0..1. A question that is answered by "the same"
/// is small in every size of cluster.
pub(super) fn interval(_records: usize, random: f64) -> Duration {
    Duration::from_secs_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
}

/// Repairs what rumors missed.
pub(super) async fn anti_entropy_loop(state: Arc<State>) {
    loop {
        let records = lock(&state.records).len();
        tokio::time::sleep(interval(records, rand::random())).await;
        if let Some(conn) = some_peers(&state, 1, None).pop() {
            exchange(&state, &conn).await;
        }
        let doubted = std::mem::take(&mut *lock(&state.doubted));
        for node in doubted.into_iter().take(DOUBTED) {
            let conn = lock(&state.pool).get(node);
            if let Some(conn) = conn {
                exchange(&state, &conn).await;
            }
        }
    }
}

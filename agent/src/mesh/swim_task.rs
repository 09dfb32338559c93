//! Drives the SWIM state machine: time, packets, results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::VarInt;
use tokio::sync::mpsc;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::wire::v1;

use super::conn;
use super::dialer::reach;
use super::net::Liveness;
use super::state::{State, lock};
use super::swim::{GREET, Input, Swim};

/// How long a node declared dead may take to show that it is not.
const LAST_ASK: Duration = Duration::from_secs(2);

pub(super) async fn run(state: Arc<State>, mut inputs: mpsc::Receiver<Input>) {
    let mut swim = Swim::new(state.me, state.session, rand::random());
    let mut greet = Instant::now() + GREET;
    // What was last seen of the members, of the records, and of both when nobody had a
    // record and was not heard of.
    let (mut seen, mut complete) = (0, None);
    loop {
        let wake = swim.deadline().map_or(greet, |due| due.min(greet));
        let input = tokio::select! {
            input = inputs.recv() => match input {
                Some(input) => Some(input),
                None => return,
            },
            () = tokio::time::sleep_until(wake.into()) => None,
        };
        let now = Instant::now();
        if let Some(input) = input {
            let leaving = matches!(input, Input::Leave);
            if let Err(why) = swim.handle(now, input) {
                state.count("swim_bad_packet");
                tracing::debug!("membership packet: {why}");
            }
            if leaving {
                send_all(&state, &mut swim);
                return;
            }
        }
        swim.tick(now);
        if now >= greet {
            greet = now + GREET;
            let state_of_things = (lock(&state.records).generation(), swim.fingerprint());
            let mut unheard = Vec::new();
            if complete != Some(state_of_things) {
                let heard = swim.heard();
                let records = lock(&state.records);
                let known = records.iter().filter(|r| !heard.contains(&r.node));
                unheard = known.map(|r| (r.node, r.incarnation)).collect();
                complete = unheard.is_empty().then_some(state_of_things);
            }
            swim.greet(now, &unheard);
        }
        send_all(&state, &mut swim);
        let fingerprint = swim.fingerprint();
        if fingerprint == seen {
            continue;
        }
        seen = fingerprint;
        lock(&state.records).stand(swim.standings());
        let liveness = swim.liveness();
        let before = std::mem::replace(&mut *lock(&state.liveness), liveness.clone());
        let died = liveness
            .iter()
            .filter(|(node, l)| **l == Liveness::Dead && before.get(node) != Some(l))
            .map(|(node, _)| *node);
        for node in died {
            state.count("member_dead");
            check_dead(&state, node);
        }
        state.refresh_view();
    }
}

/// A connection to a dead node only makes callers wait for its timeout. It is
/// asked once more before it is closed: a node too busy to answer probes in
/// time is not helped by having to shake hands again.
fn check_dead(state: &State, node: NodeId) {
    let Some(conn) = lock(&state.pool).get(node) else { return };
    let Ok(echo) = Frame::new(&v1::Echo(Vec::new())) else { return };
    tokio::spawn(async move {
        if conn::request(&conn, &echo, LAST_ASK).await.is_err() {
            conn.quic.close(VarInt::from_u32(0), b"declared dead");
        }
    });
}

fn send_all(state: &Arc<State>, swim: &mut Swim) {
    while let Some((to, packet)) = swim.poll() {
        if let Ok(frame) = Frame::new(&v1::Swim(packet)) {
            notify(state, to, frame);
        }
    }
}

/// Sends one frame in the background, over a connection made for it if need be.
pub(super) fn notify(state: &Arc<State>, to: NodeId, frame: Frame) {
    let Ok(permit) = Arc::clone(&state.notifying).try_acquire_owned() else {
        return state.count("notify_dropped");
    };
    let runtime = state.runtime.clone();
    let state = Arc::clone(state);
    runtime.spawn(async move {
        match reach(&state, to).await {
            Ok(conn) => conn::notify(&state, &conn, &frame).await,
            Err(_) => state.count("notify_unreachable"),
        }
        drop(permit);
    });
}

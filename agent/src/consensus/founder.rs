//! Founding and joining: the two tasks that make this node part of a cluster.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::ledger::{Op, Outcome};
use weft_proto::wire::v1::{FoundingAsk, FoundingState, LedgerHead};

use super::core::{Core, Running};
use super::error::ConsensusError;
use super::founding::{Answer, SETTLE, Step, decide, receive};
use super::store::Seated;
use super::sync::UNKNOWN;
use crate::host;

/// Pause between two rounds of questions.
const ROUND: Duration = Duration::from_millis(400);
/// Pause between two questions of a founder that no leader talks to.
const LATE: Duration = Duration::from_secs(3);
/// Patience for one question.
const ASK: Duration = Duration::from_secs(1);
/// How much later each further founding seat calls for a vote of its own:
/// candidates that start together split the votes, and a split costs a whole
/// election timeout.
const STAGGER: Duration = Duration::from_millis(700);
/// Members asked in one round, founding seats first.
const ASKED: usize = 64;
/// Patience for the own `Join`.
const JOIN: Duration = Duration::from_secs(10);

/// Runs until this node has a seat, or follows a cluster.
pub(crate) async fn found(core: Arc<Core>) {
    match core.stored_seat().await {
        Ok(Some(seated)) => {
            let resumed = async {
                let running = core.start_engine(seated).await?;
                // Stopped between taking the seat and initialising it.
                if core.plan.mine == Some(seated.raft_id) && core.plan.id == seated.founding {
                    core.initialise_log(&running).await?;
                }
                Ok::<(), ConsensusError>(())
            };
            core.set_founding_waits(resumed.await.err().map(|e| e.to_string()));
            return completed(core).await;
        }
        Ok(None) => {}
        Err(e) => return core.set_founding_waits(Some(e.to_string())),
    }
    let start = Instant::now();
    let mut published = None;
    while core.running().is_none() && core.replica.head().cluster.is_none() {
        let answers = core.ask_all().await;
        let step = decide(&core.plan, core.net.me(), &answers, start.elapsed() >= SETTLE);
        // A node that follows claims no founding seat.
        let claim = core.plan.mine.filter(|_| step != Step::Follow);
        if published != Some(claim) {
            published = Some(claim);
            core.publish_seat(claim);
        }
        match step {
            Step::Initialise { bind } => match core.initialise(bind).await {
                Ok(()) => core.set_founding_waits(None),
                Err(e) => core.set_founding_waits(Some(e.to_string())),
            },
            Step::Follow => {
                core.set_founding_waits(Some("a cluster exists: fetching its ledger".to_owned()));
                for answer in answers.iter().filter(|a| a.state.cluster.is_some()) {
                    let head = LedgerHead { cluster: answer.state.cluster, index: UNKNOWN };
                    // A full queue is fine: the next round offers it again.
                    let _full = core.heads.try_send((answer.node, head));
                }
            }
            Step::Wait(why) => core.set_founding_waits(Some(why)),
        }
        tokio::select! {
            () = core.stopped() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
    if core.running().is_none() {
        core.publish_seat(None);
    }
    core.set_founding_waits(None);
    completed(core).await;
}

/// Until the engine has brought the first entries: whoever was away while the
/// others completed the founding may have lost its seat to another since, and
/// no leader will ever talk to it. It follows them then.
async fn completed(core: Arc<Core>) {
    while let Some(running) = core.running().filter(|_| core.replica.head().cluster.is_none()) {
        tokio::select! {
            () = core.stopped() => return,
            () = tokio::time::sleep(LATE) => {}
        }
        if running.is_led() {
            continue;
        }
        for answer in core.ask_all().await {
            let FoundingState { cluster, founding, .. } = answer.state;
            if cluster.is_some() && founding == running.seated.founding {
                core.set_founded_without_us();
                // A full queue is fine: the next round offers it again.
                let head = LedgerHead { cluster, index: UNKNOWN };
                let _full = core.heads.try_send((answer.node, head));
            }
        }
    }
}

impl Core {
    async fn initialise(
        &self,
        bind: Vec<(weft_proto::id::RaftId, NodeId)>,
    ) -> Result<(), ConsensusError> {
        let Some(mine) = self.plan.mine else { return Ok(()) };
        self.seats.bind(bind).await?;
        let seated = Seated { raft_id: mine, founding: self.plan.id };
        let running = self.start_engine(seated).await?;
        self.initialise_log(&running).await
    }

    async fn initialise_log(&self, running: &Running) -> Result<(), ConsensusError> {
        let engine = |e: &dyn std::fmt::Display| ConsensusError::Engine(e.to_string());
        let turn = self.plan.seats.keys().position(|seat| Some(*seat) == self.plan.mine);
        let turn = u32::try_from(turn.unwrap_or(0)).unwrap_or(0);
        let start = Instant::now();
        // An earlier seat that was elected meanwhile has brought the first entries.
        while start.elapsed() < STAGGER * turn
            && !running.engine.is_initialized().await.map_err(|e| engine(&e))?
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !running.engine.is_initialized().await.map_err(|e| engine(&e))? {
            running.engine.initialize(self.plan.seats.clone()).await.map_err(|e| engine(&e))?;
        }
        Ok(())
    }

    async fn ask_all(self: &Arc<Self>) -> Vec<Answer> {
        let view = self.net.view();
        let me = self.net.me();
        let mut nodes: Vec<(bool, NodeId)> = view
            .members
            .iter()
            .filter(|(node, _)| **node != me && view.is_alive(**node))
            .map(|(node, m)| {
                let seat = m.record.raft_id.is_some_and(|id| self.plan.seats.contains_key(&id));
                (!seat, *node)
            })
            .collect();
        nodes.sort_unstable();
        let ask = FoundingAsk { founding: self.plan.id, members: self.plan.members.clone() };
        let Ok(frame) = Frame::new(&ask) else { return Vec::new() };
        let mut calls = JoinSet::new();
        for (_, node) in nodes.into_iter().take(ASKED) {
            let (core, frame, name) = (self.clone(), frame.clone(), view.name_of(node));
            host::spawn_in(&mut calls, async move {
                let reply = core.net.call(node, frame, ASK).await.ok()?;
                let state: FoundingState = reply.decode().ok()?;
                Some(Answer { node, name, state })
            });
        }
        let mut answers: Vec<Answer> = calls.join_all().await.into_iter().flatten().collect();
        answers.sort_by_key(|a| a.node);
        answers
    }

    /// What this node says of the founding to `from`. Who must not sit down because of
    /// this node is not told its seat: without it, it never hears all of them.
    pub(crate) fn founding_state(&self, from: NodeId) -> FoundingState {
        let running = self.running();
        let cluster = self.replica.head().cluster;
        let initialised = running.is_some() && !self.seats.knows(from);
        let mut raft_id = running.map(|r| r.seated.raft_id).or(self.plan.mine);
        if let Some(mine) = raft_id.filter(|_| initialised && cluster.is_none()) {
            let view = self.net.view();
            let claims = view.members.get(&from).and_then(|m| m.record.raft_id);
            if let Err(why) = receive(mine, claims, |seat| self.seats.get(seat)) {
                tracing::debug!(node = %view.name_of(from), "left out of the founding: {why}");
                raft_id = None;
            }
        }
        FoundingState {
            cluster,
            initialised,
            founding: self.plan.id,
            members: self.plan.members.clone(),
            raft_id,
        }
    }
}

/// Joins the ledger once a cluster is known, and once more if evicted.
pub(crate) async fn join(core: Arc<Core>) {
    let me = core.net.me();
    let mut ledger = core.replica.subscribe();
    let mut rejoined = false;
    loop {
        tokio::select! {
            () = core.stopped() => return,
            known = ledger.wait_for(|ledger| ledger.cluster().is_some()) => {
                if known.is_err() { return }
            }
        }
        if !join_once(&core).await {
            return;
        }
        tokio::select! {
            () = core.stopped() => return,
            gone = ledger.wait_for(|ledger| ledger.member(me).is_none()) => {
                if gone.is_err() { return }
            }
        }
        if rejoined {
            core.set_join_waits(Some(
                "this node was removed from the cluster again; restart the agent to let it join once more".to_owned(),
            ));
            return;
        }
        rejoined = true;
        tracing::warn!(
            "this node was removed from the cluster: its blocks are gone, pods with addresses of them must restart; joining as a new member"
        );
    }
}

/// Tries until it is in; false when the agent stops.
async fn join_once(core: &Arc<Core>) -> bool {
    let request = core.next_request();
    let mut request = Some(request);
    loop {
        let op = Op::Join {
            node: core.net.me(),
            name: core.config.name.clone(),
            ranges: core.config.ranges.clone(),
            replace: false,
        };
        let id = request.unwrap_or_else(|| core.next_request());
        let pause = match core.propose(id, op, JOIN).await {
            Ok((_, Outcome::Joined { .. })) => {
                core.set_join_waits(None);
                return true;
            }
            Ok((_, Outcome::Refused(refusal))) => {
                core.set_join_waits(Some(refusal.to_string()));
                // A refusal is final for that request; conditions may change.
                request = None;
                Duration::from_secs(5)
            }
            Ok((_, other)) => {
                core.set_join_waits(Some(format!("unexpected answer to Join: {other:?}")));
                request = None;
                Duration::from_secs(5)
            }
            Err(e) => {
                tracing::debug!("join: {e}");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = core.stopped() => return false,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

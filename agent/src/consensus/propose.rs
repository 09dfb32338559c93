//! Bringing a command to the leader, from wherever it is asked.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::Instant;
use weft_proto::frame::Frame;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome};
use weft_proto::wire::v1::{Failure, LedgerHead, Propose, ProposeReply};

use super::core::{Core, Running};
use super::error::{ProposeError, failure};
use super::pace::{Pace, Ticket};
use super::types::{Proposal, position};
use crate::mesh::net::Liveness;

/// Longest wait for one voter before the next is asked.
const ONE_TRY: Duration = Duration::from_secs(3);
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(150);
/// A proposal is forwarded at most so often.
const MAX_HOPS: u8 = 3;
/// A name is taken over only from a node that has been gone this long.
const NAME_GONE: Duration = Duration::from_secs(10);

impl Core {
    /// Brings `op` into the ledger and waits until this replica has it.
    pub(crate) async fn propose(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        let deadline = Instant::now() + patience;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if *self.stop.borrow() {
                return Err(ProposeError::Stopped);
            }
            if left.is_zero() {
                return Err(self.no_quorum(last));
            }
            match self.attempt(request, &op, left.min(ONE_TRY)).await {
                Ok((at, outcome, by)) => {
                    self.catch_up(at, by, left.max(ONE_TRY)).await?;
                    return Ok((at, outcome));
                }
                Err(why) => last = Some(why),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::sleep(PAUSE.min(left)).await;
        }
    }

    /// One try; also says who answered.
    async fn attempt(
        &self,
        request: RequestId,
        op: &Op,
        patience: Duration,
    ) -> Result<(u64, Outcome, NodeId), String> {
        let running = self.running();
        if let Some(running) = running.as_ref().filter(|r| self.leads(r)) {
            let (at, outcome) = self.write(running, request, op.clone(), patience).await?;
            return Ok((at, outcome, self.net.me()));
        }
        let target = self.candidate(running.as_deref()).ok_or("no voter is reachable")?;
        let message = Propose { request, op: op.clone(), hops: 1 };
        let reply = self.ask(target, &message, patience).await;
        let mut hint = self.last_answer.lock().unwrap_or_else(PoisonError::into_inner);
        *hint = reply.is_ok().then_some(target);
        let ProposeReply { index, outcome } = reply?;
        Ok((index, outcome, target))
    }

    async fn ask(
        &self,
        to: NodeId,
        message: &Propose,
        patience: Duration,
    ) -> Result<ProposeReply, String> {
        let frame = Frame::new(message).map_err(|e| e.to_string())?;
        let answer = self
            .net
            .call(to, frame, patience)
            .await
            .map_err(|e| format!("{}: {e}", self.net.view().name_of(to)))?;
        answer.decode().map_err(|e| e.to_string())
    }

    /// Whom to ask: the leader, who answered last, or any voter.
    fn candidate(&self, running: Option<&Running>) -> Option<NodeId> {
        let view = self.net.view();
        let me = self.net.me();
        let usable = |node: &NodeId| *node != me && view.is_alive(*node);
        // A voter that was removed while it was away knows a leader of old.
        let running = running.filter(|r| self.is_member(r));
        if let Some(leader) = running.and_then(|r| self.leader_of(r)).filter(usable) {
            return Some(leader);
        }
        let hint = *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = hint.filter(usable) {
            return Some(node);
        }
        let mut voters: Vec<NodeId> = view
            .members
            .iter()
            .filter(|(node, m)| usable(node) && m.record.raft_id.is_some())
            .map(|(node, _)| *node)
            .collect();
        voters.shuffle(&mut crate::host::rng());
        let preferred = voters
            .iter()
            .find(|node| view.members.get(*node).is_some_and(|m| m.liveness == Liveness::Alive));
        preferred.or(voters.first()).copied()
    }

    /// The node of the leader the engine knows of.
    pub(crate) fn leader_of(&self, running: &Running) -> Option<NodeId> {
        let metrics = running.metrics();
        let id = metrics.current_leader?;
        let seat = metrics.membership_config.membership().get_node(&id)?;
        self.seats.resolve(id, seat, &self.net.view())
    }

    /// Writes into the log; this node leads.
    pub(crate) async fn write(
        &self,
        running: &Running,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> Result<(u64, Outcome), String> {
        let deadline = Instant::now() + patience;
        if !running.is_up_to_date(patience).await {
            return Err(format!("the new leader knew not all that is decided within {patience:?}"));
        }
        let op = self.vet(op);
        let removes = matches!(op, Op::Evict { .. } | Op::Join { replace: true, .. });
        let term = running.metrics().current_term;
        let wall_ms = crate::host::now_ms();
        let ticket =
            self.pace().begin(term, removes, &self.replica.ledger(), wall_ms, Instant::now());
        let ticket = ticket.ok_or("too many nodes were removed at once: others rest first")?;
        let written = Written { core: self, ticket };
        let command = Command { request, at_ms: ticket.at_ms, op };
        let write = running.engine.client_write(Proposal(command));
        match tokio::time::timeout_at(deadline, write).await {
            Err(_) => Err(format!("not committed within {patience:?}")),
            Ok(Err(e)) => {
                written.refused();
                Err(format!("the leader could not write: {e}"))
            }
            Ok(Ok(done)) => {
                written.done();
                match done.data.0 {
                    Some(outcome) => Ok((position(Some(&done.log_id)), outcome)),
                    None => Err("the log gave no outcome".to_owned()),
                }
            }
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes from when on what rests does so, also where nobody asks for anything.
    pub(crate) async fn note_rests(self: Arc<Self>) {
        let mut ledgers = self.replica.subscribe();
        loop {
            let ledger = ledgers.borrow_and_update().clone();
            self.pace().see(&ledger, Instant::now());
            if ledgers.changed().await.is_err() {
                return;
            }
        }
    }

    /// The leader decides whether a name may be taken over.
    fn vet(&self, op: Op) -> Op {
        let Op::Join { node, name, ranges, .. } = op else { return op };
        let holder = self.replica.ledger().node_by_name(&name);
        let replace = holder.filter(|holder| *holder != node).is_some_and(|holder| {
            self.gone_for(&self.net.view(), holder).is_some_and(|gone| gone > NAME_GONE)
        });
        Op::Join { node, name, ranges, replace }
    }

    /// Waits until the replica has reached `at`, pulling from who said so.
    async fn catch_up(
        &self,
        at: u64,
        from: NodeId,
        patience: Duration,
    ) -> Result<(), ProposeError> {
        let deadline = Instant::now() + patience;
        let mut ledger = self.replica.subscribe();
        loop {
            let head = ledger.borrow_and_update().head();
            if head.index >= at {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ProposeError::Behind {
                    position: at,
                    applied: head.index,
                    after: patience,
                });
            }
            if from != self.net.me() {
                // A full queue means that pulls are under way already.
                let _full =
                    self.heads.try_send((from, LedgerHead { cluster: head.cluster, index: at }));
            }
            let _nudge = tokio::time::timeout(PAUSE, ledger.changed()).await;
        }
    }

    /// Serves a proposal of another node: writes it, or passes it on.
    pub(crate) async fn on_propose(
        &self,
        from: NodeId,
        message: Propose,
    ) -> Result<ProposeReply, Failure> {
        let no_leader = |why: String| failure(Failure::NO_LEADER, why);
        let Some(running) = self.running() else {
            return Err(no_leader("this node is not a voter".to_owned()));
        };
        let passed_on = message.hops > 1 && self.is_seated(&running, from);
        if !(passed_on || may_ask(from, &message)) {
            let name = self.net.view().name_of(from);
            tracing::warn!(%from, "refused: {name} proposes in the name of another node");
            return Err(failure(
                Failure::BAD_REQUEST,
                format!("{name} proposes in the name of another node; a node asks for itself only"),
            ));
        }
        if self.leads(&running) {
            return self
                .write(&running, message.request, message.op, ONE_TRY)
                .await
                .map(|(index, outcome)| ProposeReply { index, outcome })
                .map_err(|why| no_leader(self.no_quorum(Some(why)).to_string()));
        }
        if message.hops >= MAX_HOPS {
            return Err(no_leader("passed on too often; the leader is changing".to_owned()));
        }
        // The leader takes what is passed on from voters only, not from who was one.
        let leader = Some(&running).filter(|r| self.is_member(r)).and_then(|r| self.leader_of(r));
        let leader = leader.filter(|node| *node != self.net.me());
        let Some(leader) = leader else {
            return Err(no_leader(self.no_quorum(None).to_string()));
        };
        let onward = Propose { hops: message.hops + 1, ..message };
        self.ask(leader, &onward, ONE_TRY).await.map_err(no_leader)
    }

    /// True if this node has a seat, so that what others asked may come through it.
    fn is_seated(&self, running: &Running, node: NodeId) -> bool {
        let metrics = running.metrics();
        let membership = metrics.membership_config.membership();
        membership.nodes().any(|(id, seat)| self.seats.holder(*id, seat) == Some(node))
    }

    /// Why nothing can be committed, as far as known here.
    pub(crate) fn no_quorum(&self, last: Option<String>) -> ProposeError {
        if self.replica.head().cluster.is_none()
            && let Some(why) = self.waits()
        {
            return ProposeError::NotFounded { why };
        }
        let mut parts = Vec::new();
        let missing: Vec<String> = self
            .voters()
            .into_iter()
            .filter(|v| !v.alive)
            .map(|v| v.name.unwrap_or(v.seat))
            .collect();
        if !missing.is_empty() {
            parts.push(format!("voters not reachable: {}", missing.join(", ")));
        }
        parts.extend(last);
        if parts.is_empty() {
            parts.push("no leader is known".to_owned());
        }
        ProposeError::NoQuorum { why: parts.join("; ") }
    }
}

/// An entry on its way into the log. Whoever stops waiting for it leaves it there.
struct Written<'a> {
    core: &'a Core,
    ticket: Ticket,
}

impl Written<'_> {
    fn done(self) {
        let mut pace = self.core.pace();
        pace.see(&self.core.replica.ledger(), Instant::now());
        pace.done(self.ticket);
    }

    fn refused(self) {
        self.core.pace().refused(self.ticket);
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.core.pace().leave(self.ticket);
    }
}

/// True if the one who asks may ask this: members act for themselves, in requests of
/// their own. To remove a node, or to add a range, is for any member; to found is for
/// nobody from outside.
fn may_ask(from: NodeId, message: &Propose) -> bool {
    let subject = match &message.op {
        Op::Join { node, .. }
        | Op::Acquire { node, .. }
        | Op::Claim { node, .. }
        | Op::Release { node, .. } => *node,
        Op::Transfer { from, .. } => *from,
        Op::Evict { .. } | Op::Grow { .. } => from,
        Op::Found { .. } => return false,
    };
    subject == from && message.request.node == from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_asks_for_itself_only() {
        let (me, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let ask = |node, op| {
            may_ask(me, &Propose { request: RequestId { node, session: 1, seq: 1 }, op, hops: 1 })
        };
        let prefix: ipnet::IpNet = "10.32.0.0/26".parse().unwrap();
        let ops = |node| {
            let (name, address) = ("n".to_owned(), prefix.addr());
            [
                Op::Join { node, name, ranges: vec![], replace: false },
                Op::Acquire { node, ipv6: false, count: 1 },
                Op::Claim { node, address },
                Op::Release { node, prefixes: vec![prefix] },
                Op::Transfer { from: node, to: other, prefix },
            ]
        };
        assert!(ops(me).into_iter().all(|op| ask(me, op)));
        assert!(!ops(other).into_iter().any(|op| ask(me, op)), "blocks of another");
        assert!(!ops(me).into_iter().any(|op| ask(other, op)), "requests of another");
        assert!(ask(me, Op::Evict { node: other }) && ask(me, Op::Grow { range: prefix }));
        let (cluster, ranges) = (weft_proto::id::ClusterId([7; 16]), vec![prefix]);
        assert!(!ask(me, Op::Found { cluster, ranges, quarantine_ms: 1 }));
    }
}

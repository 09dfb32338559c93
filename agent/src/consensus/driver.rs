//! What the leader does by itself: found the ledger, keep the voters right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use rand::Rng;
use tokio::time::Instant;
use weft_proto::id::{ClusterId, RaftId};
use weft_proto::ledger::Op;

use super::core::{Core, Running};
use super::types::{Seat, seat_of_node};
use super::voters::{Change, Patience, SeatView, Situation, next_change};

const TICK: Duration = Duration::from_millis(500);
/// Longest wait for one membership change.
const CHANGE: Duration = Duration::from_secs(10);
/// A learner this close to the end of the log may become a voter.
const CLOSE: u64 = 64;
/// Founding seats nobody came to are given to others after this.
const VACANT: Duration = Duration::from_secs(5);

/// Runs until the agent stops.
pub(crate) async fn lead(core: Arc<Core>) {
    let mut vacant: BTreeMap<RaftId, Instant> = BTreeMap::new();
    let mut seat_shown = true;
    loop {
        tokio::select! {
            () = core.stopped() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let Some(running) = core.running() else { continue };
        let member = core.is_member(&running) || core.replica.head().cluster.is_none();
        if member != seat_shown {
            seat_shown = member;
            // A removed voter must not disturb the others with elections.
            running.engine.runtime_config().elect(member);
            core.publish_seat(member.then_some(running.seated.raft_id));
        }
        if !core.leads(&running) {
            vacant.clear();
            continue;
        }
        if core.replica.head().cluster.is_none() {
            core.found_ledger(&running).await;
            continue;
        }
        // Changes are awaited here, so a joint membership was left half way by
        // a former leader or a timeout: nobody else completes it.
        let metrics = running.metrics();
        if let [_, .., target] =
            metrics.membership_config.membership().get_joint_config().as_slice()
        {
            core.change(&running, Change::SetVoters(target.clone())).await;
            continue;
        }
        let Some(situation) = core.situation(&running, &mut vacant) else { continue };
        let patience = Patience { dead: core.config.voter_dead_after, vacant: VACANT };
        if let Some(change) = next_change(&situation, patience) {
            core.change(&running, change).await;
        }
    }
}

impl Core {
    async fn found_ledger(&self, running: &Running) {
        let op = Op::Found {
            cluster: ClusterId(crate::host::rng().random()),
            ranges: self.config.ranges.clone(),
            quarantine_ms: u64::try_from(self.config.quarantine.as_millis()).unwrap_or(u64::MAX),
        };
        match self.write(running, self.next_request(), op, CHANGE).await {
            Ok((at, outcome)) => tracing::info!(position = at, ?outcome, "cluster founded"),
            Err(why) => tracing::debug!("founding entry: {why}"),
        }
    }

    fn situation(
        &self,
        running: &Running,
        vacant: &mut BTreeMap<RaftId, Instant>,
    ) -> Option<Situation> {
        let metrics = running.metrics();
        // Without a quorum a change would only hang in the log.
        if metrics.millis_since_quorum_ack.is_none_or(|ms| ms > 2000)
            && metrics.membership_config.voter_ids().count() > 1
        {
            return None;
        }
        let view = self.net.view();
        let ledger = self.replica.ledger();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        let me = running.seated.raft_id;
        let mut seats = BTreeMap::new();
        for (id, seat) in membership.nodes() {
            let node = if *id == me { Some(self.net.me()) } else { self.seats.holder(*id, seat) };
            let acked = metrics.replication.as_ref().and_then(|r| r.get(id).copied().flatten());
            // A founder that followed instead is alive, and sits nowhere: what
            // counts is that its seat has answered this leader.
            let empty = *id != me && acked.is_none();
            let mut unanswered = || vacant.entry(*id).or_insert_with(Instant::now).elapsed();
            let dead_for = match node {
                Some(node) if !empty => {
                    vacant.remove(id);
                    self.gone_for(&view, node)
                }
                Some(node) => {
                    Some(self.gone_for(&view, node).unwrap_or_default().max(unanswered()))
                }
                None => Some(unanswered()),
            };
            let matched = acked.map_or(0, |log| log.index);
            let caught_up = matched > 0 && matched + CLOSE >= metrics.last_log_index.unwrap_or(0);
            seats.insert(*id, SeatView { voter: voters.contains(id), node, dead_for, caught_up });
        }
        let applied = metrics.membership_config.log_id().as_ref() <= metrics.last_applied.as_ref();
        Some(Situation {
            me,
            joined: ledger.members().map(|(node, _)| (node, view.is_alive(node))).collect(),
            seats,
            changing: membership.get_joint_config().len() > 1 || !applied,
        })
    }

    async fn change(&self, running: &Running, change: Change) {
        tracing::info!(?change, "voters change");
        let view = self.net.view();
        let work = async {
            match change {
                Change::AddLearner(node) => {
                    let seat = Seat { label: view.name_of(node), node: Some(node) };
                    running.engine.add_learner(seat_of_node(node), seat, false).await
                }
                Change::RemoveLearner(id) => {
                    let remove = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
                    running.engine.change_membership(remove, false).await
                }
                Change::SetVoters(voters) => running.engine.change_membership(voters, false).await,
            }
        };
        match tokio::time::timeout(CHANGE, work).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!("voters change failed, will be looked at again: {e}"),
            Err(_) => tracing::warn!("voters change not committed within {CHANGE:?}"),
        }
    }
}

//! What a simulation looks at.

use weft_proto::frame::{Frame, Message};
use weft_proto::id::{FoundingId, NodeId, RaftId};
use weft_proto::wire::v1::{Raft, RaftReply};

use super::ConsensusHandle;
use super::network::VOTE;
use super::store::Db;
use super::types::{Vote, decode};

/// Seats, and who sits there.
pub(crate) type Voters = Vec<(RaftId, Option<NodeId>)>;

/// A vote: term, candidate, and whether a majority has given it.
pub(crate) type Ballot = (u64, RaftId, bool);

fn ballot(vote: Vote) -> Ballot {
    (vote.leader_id.term, vote.leader_id.node_id, vote.committed)
}

/// The vote that a seat of a founding gives with this answer, if it is one.
pub(crate) fn vote_given(request: &Frame, answer: &Frame) -> Option<(FoundingId, RaftId, Ballot)> {
    if request.kind != Raft::KIND {
        return None;
    }
    let Raft { founding, to, kind, .. } = request.decode().ok()?;
    if kind != VOTE {
        return None;
    }
    let RaftReply { body } = answer.decode().ok()?;
    type Answer = Result<
        openraft::raft::VoteResponse<RaftId>,
        openraft::error::RaftError<RaftId, openraft::error::Infallible>,
    >;
    let answer = decode::<Answer>(&body).ok()?.ok()?;
    Some((founding, to, ballot(answer.vote)))
}

impl ConsensusHandle {
    /// Founding, seat and vote that are on this node's disk.
    pub(crate) async fn stored_vote(&self) -> Option<(FoundingId, RaftId, Option<Ballot>)> {
        let seated = self.core.db.run(Db::seated).await.ok()??;
        let vote = self.core.db.run(Db::vote).await.ok()?;
        Some((seated.founding, seated.raft_id, vote.map(ballot)))
    }

    /// Where this node's engine is, for people.
    pub(crate) fn describe(&self) -> String {
        let ledger = self.core.replica.head().index;
        let Some(running) = self.core.running() else { return format!("no seat, at {ledger}") };
        let m = running.metrics();
        let short = |id: RaftId| id.short();
        let sets = m.membership_config.membership().get_joint_config();
        let voters: Vec<Vec<_>> =
            sets.iter().map(|set| set.iter().map(|id| short(*id)).collect()).collect();
        let matched: Vec<_> = m
            .replication
            .iter()
            .flatten()
            .map(|(id, at)| (short(*id), at.map(|at| at.index)))
            .collect();
        format!(
            "seat {} {:?} term {} leader {:?} log {:?} applied {:?} voters {voters:?} of entry {:?}, matched {matched:?}, counts {} ledger {ledger}",
            running.seated.raft_id.short(),
            m.state,
            m.current_term,
            m.current_leader.map(short),
            m.last_log_index,
            m.last_applied.map(|id| id.index),
            m.membership_config.log_id().map(|id| id.index),
            self.core.is_member(&running),
        )
    }

    /// The seat this node really sits in.
    pub(crate) fn seat(&self) -> Option<RaftId> {
        self.core.running().map(|running| running.seated.raft_id)
    }

    /// The sets of voters as this node's engine knows them (two while one
    /// becomes another), by who sits there.
    pub(crate) fn seats(&self) -> Option<Vec<Voters>> {
        let running = self.core.running()?;
        let metrics = running.metrics();
        let membership = metrics.membership_config.membership();
        let holder = |id: &RaftId| {
            if *id == running.seated.raft_id {
                return Some(self.core.config.me);
            }
            self.core.seats.holder(*id, membership.get_node(id)?)
        };
        let sets = membership.get_joint_config().iter();
        let with_holder = |id: &RaftId| (*id, holder(id));
        Some(sets.map(|voters| voters.iter().map(with_holder).collect()).collect())
    }

    /// The same, and what they may become next: each with one of the learners.
    pub(crate) fn seats_soon(&self) -> Option<Vec<Voters>> {
        let running = self.core.running()?;
        let metrics = running.metrics();
        let membership = metrics.membership_config.membership();
        let mut sets = self.seats()?;
        for learner in membership.learner_ids() {
            let node = membership.get_node(&learner)?.node;
            let with = |voters: &Voters| voters.iter().copied().chain([(learner, node)]).collect();
            let grown: Vec<Voters> = sets.iter().map(with).collect();
            sets.extend(grown);
        }
        Some(sets)
    }
}

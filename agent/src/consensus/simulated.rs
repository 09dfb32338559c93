//! What a simulation looks at.

use weft_proto::id::{FoundingId, NodeId, RaftId};

use super::ConsensusHandle;

/// Seats, and who sits there.
pub(crate) type Voters = Vec<(RaftId, Option<NodeId>)>;

impl ConsensusHandle {
    /// Founding, term and seat, if this node leads.
    pub(crate) fn leads(&self) -> Option<(FoundingId, u64, RaftId)> {
        let running = self.core.running()?;
        let seated = running.seated;
        let metrics = running.metrics();
        let leads = running.leads() && metrics.state == openraft::ServerState::Leader;
        leads.then_some((seated.founding, metrics.current_term, seated.raft_id))
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
}

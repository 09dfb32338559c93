//! Founding again from survivors, when a majority of the voters is lost for good.
//!
//! The survivor becomes the only voter of a new founding. It keeps the ledger,
//! and the cluster id, but jumps far ahead in position: whatever the lost
//! voters had committed beyond this replica can then never be mistaken for a
//! continuation; every other node replaces its ledger by the survivor's. Former voters
//! that see the jump give up their old seats and may be made voters again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{CommittedLeaderId, Membership};
use rand::Rng;
use weft_proto::id::{FoundingId, RaftId};
use weft_proto::ledger::Op;

use super::core::{Core, Running};
use super::error::ConsensusError;
use super::store::{Reset, Seated};
use super::types::{LogId, Seat, SnapshotMeta, StoredMembership, Vote, seat_of_node};

/// How long voters may take to decide something that changes nothing.
const ASK: Duration = Duration::from_secs(6);
/// How far a recovery jumps ahead. No replica is ever this far behind otherwise.
pub(crate) const JUMP: u64 = 1 << 20;

/// Why a recovery was not done. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecoverError {
    /// It works: no recovery is needed, and it would do harm.
    #[error("the cluster still has a quorum (leader {0}): nothing to recover")]
    Healthy(String),
    /// They only have no leader at this moment.
    #[error(
        "most voters can be reached ({0}): they elect a leader within seconds; if they are not to \
         count any more, stop their agents first"
    )]
    Majority(String),
    /// A node without a vote has heard that there are enough voters, and they did not
    /// decide anything for it.
    #[error(
        "this node has no vote and goes by what the mesh says: that {voters} vote, and reach each \
         other. Asked now, they decided nothing ({why}). They know whether there is a quorum: run \
         `agent recover` on one of them; if their ledgers are lost and they are not to count any \
         more, stop their agents first"
    )]
    Hearsay {
        /// Names of the voters that are taken to be alive.
        voters: String,
        /// What came of asking them.
        why: String,
    },
    /// No ledger to keep.
    #[error(
        "this node knows no ledger: recover from a node that was a member, or let the cluster be founded as usual"
    )]
    NoLedger,
    /// The store or the engine failed.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
}

/// True if only a recovery leads from a log that ends at `logged` to a ledger at `head`.
pub(crate) fn is_jump(logged: Option<u64>, head: u64) -> bool {
    head >= logged.map_or(0, |index| index + 1) + JUMP / 2
}

impl Core {
    /// Makes this node the only voter, with the ledger it has. The operator
    /// says by asking that the lost voters will not come back as they were.
    pub(crate) async fn recover(&self) -> Result<u64, RecoverError> {
        let _one = self.starting.lock().await;
        let status = self.status();
        let votes = matches!(status.role.as_str(), "leader" | "voter");
        if status.quorum && votes {
            return Err(RecoverError::Healthy(status.leader.unwrap_or_default()));
        }
        let head = self.replica.head();
        if head.cluster.is_none() {
            return Err(RecoverError::NoLedger);
        }
        let reachable: Vec<_> = status.voters.iter().filter(|v| v.alive).collect();
        if reachable.len() * 2 > status.voters.len() {
            let names: Vec<_> =
                reachable.iter().map(|v| v.name.as_deref().unwrap_or(&v.seat)).collect();
            let voters = names.join(", ");
            if votes {
                return Err(RecoverError::Majority(voters));
            }
            // Rumors may be older than the loss: whether they decide shows when they have to.
            let nothing = Op::Release { node: self.net.me(), prefixes: Vec::new() };
            return Err(match self.propose(self.next_request(), nothing, ASK).await {
                Ok(_) => RecoverError::Healthy(status.leader.unwrap_or(voters)),
                Err(why) => RecoverError::Hearsay { voters, why: why.to_string() },
            });
        }
        self.pull_from_everybody().await;
        let mut ledger = (*self.replica.ledger()).clone();
        let start = ledger.head().index;
        for at in start + 1..=start + JUMP {
            ledger.apply(at, None).map_err(|e| ConsensusError::Engine(e.to_string()))?;
        }
        let term = match self.running() {
            Some(running) => running.metrics().current_term + 1,
            None => 1,
        };
        let me = seat_of_node(self.net.me());
        let seat = Seat { label: self.config.name.clone(), node: Some(self.net.me()) };
        let last = LogId::new(CommittedLeaderId::new(term, me), start + JUMP - 1);
        let membership = Membership::new(vec![[me].into()], BTreeMap::from([(me, seat)]));
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: StoredMembership::new(Some(last), membership),
            snapshot_id: format!("recovered-{}", start + JUMP),
        };
        let seated = Seated { raft_id: me, founding: FoundingId(crate::host::rng().random()) };
        let data = ledger.encode();
        let reset = Reset {
            seated,
            vote: Some(Vote::new_committed(term, me)),
            snapshot: Some((meta, data.clone())),
        };
        self.reset_engine(reset).await?;
        self.replica
            .take_snapshot(ledger, data)
            .await
            .map_err(|e| ConsensusError::Engine(e.to_string()))?;
        self.launch(seated).await?;
        tracing::warn!(position = start + JUMP, "re-founded from this node's ledger");
        Ok(start + JUMP)
    }

    /// Takes whatever the reachable members have beyond this replica.
    async fn pull_from_everybody(&self) {
        let view = self.net.view();
        for node in view.members.keys().filter(|n| **n != self.net.me() && view.is_alive(**n)) {
            loop {
                let before = self.replica.head();
                match self.pull(*node, before).await {
                    Ok(after) if after.index > before.index => {}
                    Ok(_) => break,
                    Err(why) => {
                        tracing::warn!(node = %view.name_of(*node), "recovery could not ask: {why}");
                        break;
                    }
                }
            }
        }
    }

    /// Stops the engine and puts another life into the store.
    async fn reset_engine(&self, reset: Reset) -> Result<(), ConsensusError> {
        if let Some(running) = self.take_running() {
            // An error means that the engine has already ended.
            let _ended = running.engine.shutdown().await;
        }
        self.db.run(move |db| db.reset(&reset)).await?;
        self.seats.forget();
        Ok(())
    }

    /// A former voter, left behind by a recovery, is invited to the new founding.
    pub(crate) async fn reseat(
        &self,
        old: &Running,
        seat: RaftId,
        founding: FoundingId,
    ) -> Result<Arc<Running>, ConsensusError> {
        let _one = self.starting.lock().await;
        if let Some(running) = self.running()
            && running.seated != old.seated
        {
            return Ok(running);
        }
        let seated = Seated { raft_id: seat, founding };
        self.reset_engine(Reset { seated, vote: None, snapshot: None }).await?;
        self.launch(seated).await
    }

    /// True if the ledger has jumped beyond the engine's log: a recovery
    /// happened elsewhere, with the operator's consent.
    pub(crate) fn left_behind(&self, running: &Running) -> bool {
        is_jump(running.metrics().last_log_index, self.replica.head().index)
    }
}

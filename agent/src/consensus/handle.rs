//! The face of consensus to the rest of the agent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weft_ipam::ledger::Ledger;
use weft_proto::api::{ConsensusStatus, VoterStatus};
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};
use weft_proto::wire::v1::LedgerHead;

use super::core::{ConsensusConfig, Core};
use super::error::{ConsensusError, ProposeError};
use super::recover::RecoverError;
use super::service::ConsensusService;
use super::voters::{Claim, believed};
use super::{driver, founder, sync};
use crate::host;
use crate::mesh::net::{Liveness, PeerNet, Service};

/// Starts consensus.
pub struct Consensus;

impl Consensus {
    /// Opens the store, starts the tasks. The service must be registered with
    /// the mesh for [`super::KINDS`].
    pub async fn start(
        config: ConsensusConfig,
        net: Arc<dyn PeerNet>,
    ) -> Result<(ConsensusHandle, Arc<dyn Service>), ConsensusError> {
        let (heads, queue) = mpsc::channel(sync::QUEUE);
        let core = Arc::new(Core::load(config, net, heads).await?);
        let mut tasks = JoinSet::new();
        host::spawn_in(&mut tasks, watch_view(core.clone()));
        host::spawn_in(&mut tasks, sync::follow(core.clone(), queue));
        host::spawn_in(&mut tasks, sync::spread(core.clone()));
        host::spawn_in(&mut tasks, founder::found(core.clone()));
        host::spawn_in(&mut tasks, founder::join(core.clone()));
        host::spawn_in(&mut tasks, driver::lead(core.clone()));
        host::spawn_in(&mut tasks, core.clone().note_rests());
        let service: Arc<dyn Service> = Arc::new(ConsensusService(core.clone()));
        Ok((ConsensusHandle { core, tasks: Arc::new(Mutex::new(Some(tasks))) }, service))
    }
}

async fn watch_view(core: Arc<Core>) {
    let mut view = core.net.watch();
    loop {
        let now = view.borrow_and_update().clone();
        core.note_view(&now);
        tokio::select! {
            () = core.stopped() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}

/// Handle to a running consensus; cheap to clone.
#[derive(Clone)]
pub struct ConsensusHandle {
    pub(super) core: Arc<Core>,
    tasks: Arc<Mutex<Option<JoinSet<()>>>>,
}

impl ConsensusHandle {
    /// Brings a command into the ledger; returns its position and the answer
    /// once this node's replica has it. Retries with one request id until
    /// `patience` is over.
    pub async fn propose(
        &self,
        op: Op,
        patience: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        self.propose_as(self.core.next_request(), op, patience).await
    }

    /// The same with a given request id, to ask again after an error.
    pub async fn propose_as(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        self.core.propose(request, op, patience).await
    }

    /// A request id for [`Self::propose_as`].
    pub fn next_request(&self) -> RequestId {
        self.core.next_request()
    }

    /// The ledger as known here.
    pub fn ledger(&self) -> Arc<Ledger> {
        self.core.replica.ledger()
    }

    /// Told of every change of the ledger.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Ledger>> {
        self.core.replica.subscribe()
    }

    /// True if this node is a member of the ledger and was not refused.
    pub fn joined(&self) -> bool {
        self.core.join_waits().is_none()
            && self.core.replica.ledger().member(self.core.net.me()).is_some()
    }

    /// A head another node told (the mesh calls this for every digest).
    pub fn on_head(&self, from: NodeId, head: LedgerHead) {
        self.core.on_head(from, head);
    }

    /// Calls `hook` with every new head of this replica, and once now.
    pub fn on_head_changed(&self, hook: impl Fn(LedgerHead) + Send + Sync + 'static) {
        *self.core.head_hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
        self.core.tell_head();
    }

    /// How often ledger entries of peers were refused (other cluster, no fit).
    pub fn refused(&self) -> u64 {
        self.core.replica.refused()
    }

    /// Founds again from this node's ledger, when the majority of the voters
    /// is lost for good; returns the new position. The caller has the
    /// operator's consent that the lost voters stay away, or come back with
    /// an empty state directory. Refused while there is a quorum.
    pub async fn recover(&self) -> Result<u64, RecoverError> {
        self.core.recover().await
    }

    /// Why this node takes no more part in decisions, if its store or its
    /// engine failed. What is decided elsewhere passes it by until the agent
    /// starts again.
    pub fn failed(&self) -> Option<String> {
        let stored = self.core.db.failed().map(ToString::to_string);
        stored.or_else(|| match self.core.running()?.metrics().running_state {
            // Stopped by us.
            Ok(()) | Err(openraft::error::Fatal::Stopped) => None,
            Err(fatal) => Some(format!("the consensus engine has ended: {fatal}")),
        })
    }

    /// For `agent status`.
    pub fn status(&self) -> ConsensusStatus {
        self.core.status()
    }

    /// Stops the tasks and the engine; what is on disk stays.
    pub async fn shutdown(&self) {
        self.core.stop.send_replace(true);
        if let Some(running) = self.core.running() {
            // An error means that the engine has already ended.
            let _ended = running.engine.shutdown().await;
        }
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            tasks.abort_all();
            while tasks.join_next().await.is_some() {}
        }
    }
}

impl Core {
    /// Voters, by what this node can know: its engine's membership, or who
    /// says in the mesh that it has a seat.
    pub(crate) fn voters(&self) -> Vec<VoterStatus> {
        let view = self.net.view();
        let alive =
            |node: NodeId| view.members.get(&node).is_some_and(|m| m.liveness != Liveness::Dead);
        if let Some(running) = self.running().filter(|r| self.is_member(r)) {
            let metrics = running.metrics();
            let membership = metrics.membership_config.membership();
            return membership
                .voter_ids()
                .filter_map(|id| membership.get_node(&id).map(|seat| (id, seat)))
                .map(|(id, seat)| {
                    let node = self.seats.resolve(id, seat, &view);
                    VoterStatus {
                        seat: seat.label.clone(),
                        name: node.map(|node| view.name_of(node)),
                        alive: node.is_some_and(alive),
                    }
                })
                .collect();
        }
        let claims = view
            .members
            .iter()
            .filter_map(|(node, m)| m.record.raft_id.map(|seat| (*node, seat)))
            .map(|(node, seat)| {
                let dead_for =
                    (!alive(node)).then(|| self.gone_for(&view, node).unwrap_or_default());
                Claim { node, seat, dead_for }
            })
            .collect();
        let members = self.replica.ledger().members().map(|(node, _)| node).collect();
        believed(claims, &members)
            .into_iter()
            .map(|claim| VoterStatus {
                seat: claim.seat.short(),
                name: Some(view.name_of(claim.node)),
                alive: claim.dead_for.is_none(),
            })
            .collect()
    }

    pub(crate) fn status(&self) -> ConsensusStatus {
        let head = self.replica.head();
        let running = self.running();
        let metrics = running.as_ref().map(|r| r.metrics());
        let voters = self.voters();
        let leader = running.as_ref().and_then(|r| self.leader_of(r));
        let seated = running.as_ref().filter(|r| {
            self.is_member(r)
                && r.metrics().membership_config.voter_ids().any(|id| id == r.seated.raft_id)
        });
        let role = match (&running, seated) {
            _ if head.cluster.is_none() => "founding",
            (Some(r), _) if self.leads(r) => "leader",
            (_, Some(_)) => "voter",
            _ => "follower",
        };
        let reachable = voters.iter().filter(|v| v.alive).count();
        let acked = match &metrics {
            Some(m) if role == "leader" && voters.len() > 1 => {
                m.millis_since_quorum_ack.is_some_and(|ms| ms < 3000)
            }
            Some(m) if role == "voter" => m.current_leader.is_some(),
            _ => true,
        };
        let quorum = head.cluster.is_some() && reachable * 2 > voters.len() && acked;
        let waiting = self.waits().or_else(|| {
            (head.cluster.is_some() && !quorum).then(|| self.no_quorum(None).to_string())
        });
        ConsensusStatus {
            role: role.to_owned(),
            waiting,
            leader: leader.map(|node| self.net.view().name_of(node)),
            term: metrics.map_or(0, |m| m.current_term),
            voters,
            applied: head.index,
            quorum,
        }
    }
}

//! Frames of other nodes that concern consensus.

use std::sync::Arc;

use weft_proto::frame::{Frame, FrameError, Message};
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{Failure, FoundingAsk, LedgerHead, LedgerPull, Propose, Raft};

use super::core::{Core, Running};
use super::error::failure;
use super::network::deliver;
use super::store::Seated;
use super::types::seat_of_node;
use crate::mesh::net::{BoxFuture, Service};

/// Kinds the [`Service`] of consensus handles. 32 and 33 come as answers only.
pub const KINDS: &[u16] = &[30, 31, 32, 33, 40, 42, 50];

/// See the module.
pub(crate) struct ConsensusService(pub(super) Arc<Core>);

fn reply<M: Message>(message: &M) -> Result<Option<Frame>, Failure> {
    Frame::new(message).map(Some).map_err(|e| failure(Failure::INTERNAL, e.to_string()))
}

fn bad(e: &FrameError) -> Failure {
    failure(Failure::BAD_REQUEST, e.to_string())
}

impl Service for ConsensusService {
    fn handle(&self, from: NodeId, frame: Frame) -> BoxFuture<'_, Result<Option<Frame>, Failure>> {
        Box::pin(async move {
            let core = &self.0;
            if *core.stop.borrow() {
                return Err(failure(Failure::NO_LEADER, "this agent is shutting down"));
            }
            match frame.kind {
                LedgerHead::KIND => {
                    core.on_head(from, frame.decode().map_err(|e| bad(&e))?);
                    Ok(None)
                }
                LedgerPull::KIND => {
                    core.on_pull(frame.decode().map_err(|e| bad(&e))?).await.map(Some)
                }
                Raft::KIND => {
                    let message = frame.decode().map_err(|e| bad(&e))?;
                    reply(&core.on_raft(from, &message).await?)
                }
                FoundingAsk::KIND => {
                    let _ask: FoundingAsk = frame.decode().map_err(|e| bad(&e))?;
                    reply(&core.founding_state(from))
                }
                Propose::KIND => {
                    let message = frame.decode().map_err(|e| bad(&e))?;
                    reply(&core.on_propose(from, message).await?)
                }
                kind => Err(failure(
                    Failure::UNKNOWN_KIND,
                    format!("kind {kind} is not a request of consensus"),
                )),
            }
        })
    }
}

impl Core {
    async fn on_raft(
        &self,
        from: NodeId,
        message: &Raft,
    ) -> Result<weft_proto::wire::v1::RaftReply, Failure> {
        let running = match self.running() {
            Some(running) => running,
            None => self.invited(from, message).await?,
        };
        let deserted = if running.seated.founding == message.founding {
            // Its founding seat was given to others while it was away. A seat
            // that is given up is a voter that never comes back: always safe.
            running.seated.raft_id != message.to && !self.is_member(&running)
        } else {
            self.left_behind(&running)
        };
        let running = if deserted
            && message.to == seat_of_node(self.net.me())
            && self.replica.ledger().member(from).is_some()
        {
            self.reseat(&running, message.to, message.founding)
                .await
                .map_err(|e| failure(Failure::INTERNAL, e.to_string()))?
        } else {
            running
        };
        let seated = running.seated;
        if seated.founding != message.founding {
            return Err(failure(
                Failure::CLUSTER,
                format!(
                    "founding members differ: this node takes part in founding {}, the message is of {}; set the same KUBE_PEERS on every node",
                    seated.founding.short(),
                    message.founding.short()
                ),
            ));
        }
        if seated.raft_id != message.to {
            return Err(failure(
                Failure::BAD_REQUEST,
                format!("seat {} is not here, this is seat {}", message.to, seated.raft_id),
            ));
        }
        self.seats
            .heard(message.from, from)
            .await
            .map_err(|e| failure(Failure::CLUSTER, e.to_string()))?;
        let reply = deliver(&running.engine, message).await;
        running.note_heard(message.from);
        reply
    }

    /// A node without a seat takes its own (never a founding one) when a
    /// member of its cluster sends it the log.
    async fn invited(&self, from: NodeId, message: &Raft) -> Result<Arc<Running>, Failure> {
        let not_yet = |why: &str| Err(failure(Failure::NO_LEADER, why));
        if message.to != seat_of_node(self.net.me()) {
            return not_yet("this node has not taken part in the founding (yet)");
        }
        if self.replica.ledger().member(from).is_none() {
            return not_yet("this node does not know the cluster of the sender yet");
        }
        let seated = Seated { raft_id: message.to, founding: message.founding };
        self.start_engine(seated).await.map_err(|e| failure(Failure::INTERNAL, e.to_string()))
    }
}

//! The engine's messages over the mesh.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Serialize, de::DeserializeOwned};
use weft_proto::frame::Frame;
use weft_proto::id::RaftId;
use weft_proto::wire::v1::{Failure, Raft, RaftReply};

use super::error::failure;
use super::recover::is_jump;
use super::replica::Replica;
use super::seats::Seats;
use super::store::Seated;
use super::types::{Engine, LogId, Seat, TypeConfig, decode, encode};
use crate::mesh::net::PeerNet;

/// Kind of append-entries in [`Raft`].
pub(crate) const APPEND: u8 = 1;
/// Kind of vote.
pub(crate) const VOTE: u8 = 2;
/// Kind of install-snapshot.
pub(crate) const SNAPSHOT: u8 = 3;

/// Makes connections to other seats.
#[derive(Clone)]
pub(crate) struct Network {
    pub(super) net: Arc<dyn PeerNet>,
    pub(super) seats: Arc<Seats>,
    pub(super) replica: Arc<Replica>,
    pub(super) seated: Seated,
}

/// The way to one seat.
pub(crate) struct Wire {
    network: Network,
    target: RaftId,
    seat: Seat,
}

/// Why a message did not get through, for the engine's log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(String);

fn lost<E: std::error::Error>(
    why: impl Into<String>,
) -> RPCError<RaftId, Seat, RaftError<RaftId, E>> {
    RPCError::Unreachable(Unreachable::new(&Lost(why.into())))
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Wire;

    async fn new_client(&mut self, target: RaftId, node: &Seat) -> Wire {
        Wire { network: self.clone(), target, seat: node.clone() }
    }
}

type WireResult<T, E = openraft::error::Infallible> =
    Result<T, RPCError<RaftId, Seat, RaftError<RaftId, E>>>;

impl Wire {
    /// Sends what an engine whose log reaches `reach` has to say. One that a recovery left
    /// behind says no more: who listened would take it for its leader, and not hear of
    /// those who count.
    async fn send<Q, A, E>(
        &self,
        kind: u8,
        request: &Q,
        reach: Option<LogId>,
        patience: Duration,
    ) -> WireResult<A, E>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let Network { net, seats, replica, seated } = &self.network;
        if is_jump(reach.map(|id| id.index), replica.head().index) {
            return Err(lost("left behind by a recovery elsewhere"));
        }
        let Some(node) = seats.resolve(self.target, &self.seat, &net.view()) else {
            return Err(lost(format!("nobody is known in seat {}", self.seat)));
        };
        let body = encode(request).map_err(|e| lost(e.to_string()))?;
        let message =
            Raft { founding: seated.founding, from: seated.raft_id, to: self.target, kind, body };
        let frame = Frame::new(&message).map_err(|e| lost(e.to_string()))?;
        let answer = net.call(node, frame, patience).await.map_err(|e| lost(e.to_string()))?;
        let reply: RaftReply = answer.decode().map_err(|e| lost(e.to_string()))?;
        seats.heard(self.target, node).await.map_err(|e| lost(e.to_string()))?;
        let result: Result<A, RaftError<RaftId, E>> =
            decode(&reply.body).map_err(|e| lost(e.to_string()))?;
        result.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
    }
}

impl RaftNetwork<TypeConfig> for Wire {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> WireResult<AppendEntriesResponse<RaftId>> {
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let reach = last.max(rpc.leader_commit).max(rpc.prev_log_id);
        self.send(APPEND, &rpc, reach, option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> WireResult<InstallSnapshotResponse<RaftId>, InstallSnapshotError> {
        self.send(SNAPSHOT, &rpc, rpc.meta.last_log_id, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> WireResult<VoteResponse<RaftId>> {
        self.send(VOTE, &rpc, rpc.last_log_id, option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}

/// Hands a message of another seat to the engine.
pub(crate) async fn deliver(engine: &Engine, message: &Raft) -> Result<RaftReply, Failure> {
    fn bad(e: impl std::fmt::Display) -> Failure {
        failure(Failure::BAD_REQUEST, format!("consensus message: {e}"))
    }
    let body = match message.kind {
        APPEND => {
            let request = decode(&message.body).map_err(bad)?;
            encode(&engine.append_entries(request).await)
        }
        VOTE => {
            let request = decode(&message.body).map_err(bad)?;
            encode(&engine.vote(request).await)
        }
        SNAPSHOT => {
            let request = decode(&message.body).map_err(bad)?;
            encode(&engine.install_snapshot(request).await)
        }
        other => return Err(bad(format!("unknown kind {other}"))),
    };
    let body = body.map_err(|e| failure(Failure::INTERNAL, e.to_string()))?;
    Ok(RaftReply { body })
}

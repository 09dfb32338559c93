//! What the rest of the agent sees of the mesh: members, calls, services.
//!
//! Consensus, ledger sync and IPAM are written against these traits, so that
//! they run the same over QUIC and in a test without a socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_proto::frame::{Frame, FrameError};
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{Failure, NodeRecord};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What membership says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Answers.
    Alive,
    /// Did not answer a probe; may still refute.
    Suspect,
    /// Gone, until it says otherwise.
    Dead,
}

/// A member of the mesh, as known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it says of itself.
    pub record: Arc<NodeRecord>,
    /// What others find.
    pub liveness: Liveness,
}

/// All members known here, this node included (always alive).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshView {
    /// By id.
    pub members: BTreeMap<NodeId, Member>,
}

impl MeshView {
    /// True if the node is known and answers (a suspect is not yet dead).
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|m| m.liveness != Liveness::Dead)
    }

    /// Name of a node, or the first digits of its id.
    pub fn name_of(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.short(), |m| m.record.name.clone())
    }
}

/// Why a call got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No address is known, or no connection could be made.
    #[error("{node} cannot be reached: {why}")]
    Unreachable {
        /// Who.
        node: NodeId,
        /// Last error.
        why: String,
    },
    /// Connected, but no answer in time. It may or may not have been done.
    #[error("{node} did not answer within {after:?}")]
    Timeout {
        /// Who.
        node: NodeId,
        /// How long was waited.
        after: Duration,
    },
    /// The peer answered with a [`Failure`].
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The answer is not what was asked for.
    #[error("bad answer: {0}")]
    Frame(#[from] FrameError),
}

/// Calls to other nodes and the view of them.
pub trait PeerNet: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> NodeId;
    /// Current members.
    fn view(&self) -> Arc<MeshView>;
    /// Told whenever the view changes.
    fn watch(&self) -> watch::Receiver<Arc<MeshView>>;
    /// One request, one answer. A [`Failure`] frame comes back as [`CallError::Refused`].
    fn call(
        &self,
        to: NodeId,
        request: Frame,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Frame, CallError>>;
    /// One frame, best effort, no answer; never blocks.
    fn notify(&self, to: NodeId, frame: Frame);
    /// Changes this node's record; the version is counted up and the record spread.
    fn update_record(&self, change: Box<dyn FnOnce(&mut NodeRecord) + Send>);
}

/// Serves the frames of some kinds.
pub trait Service: Send + Sync + 'static {
    /// Answers one frame of an authenticated peer. `Ok(None)` where the kind has no answer.
    fn handle(&self, from: NodeId, frame: Frame) -> BoxFuture<'_, Result<Option<Frame>, Failure>>;
}

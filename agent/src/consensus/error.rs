//! What can go wrong, in words an operator can act on.

use std::path::PathBuf;
use std::time::Duration;

use weft_proto::wire::v1::Failure;

/// The store on disk failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file is there and cannot be understood.
    #[error(
        "the consensus store {path} is damaged ({why}); nothing was changed. Restore the file from a backup, or move the whole state directory away: the node then joins as a new one, and its old blocks come free after `agent rmpeer`",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Another process has it open.
    #[error("the consensus store {} is in use by another process: is a second agent running with the same STATE_DIR?", .0.display())]
    InUse(PathBuf),
    /// The disk said no.
    #[error("{what} in the consensus store {path} failed: {why}; check the disk (space, read-only mount) and start again", path = .path.display())]
    Io {
        /// Step that failed.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Error text.
        why: String,
    },
    /// The file belongs to another identity.
    #[error("the consensus store {path} belongs to node {stored}, this is node {me}: the state directory was mixed with another one; give every node its own", path = .path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Who wrote it.
        stored: String,
        /// This node.
        me: String,
    },
}

/// Why consensus could not start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConsensusError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The founding members make no sense.
    #[error("founding members: {0}")]
    Founding(String),
    /// openraft refused to start.
    #[error("the consensus engine did not start: {0}")]
    Engine(String),
}

/// Why a proposal has no outcome. The command may still be committed later;
/// asking again with the same request id is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No voter could be brought to commit it.
    #[error("no quorum: {why}")]
    NoQuorum {
        /// Who is missing, as far as known.
        why: String,
    },
    /// There is no cluster yet.
    #[error("no cluster yet: {why}")]
    NotFounded {
        /// What is waited for.
        why: String,
    },
    /// Committed, but this replica has not caught up in time.
    #[error(
        "committed at position {position}, but this node's ledger is still at {applied} after {after:?}; try again"
    )]
    Behind {
        /// Where it is in the ledger.
        position: u64,
        /// Where this replica is.
        applied: u64,
        /// How long was waited.
        after: Duration,
    },
    /// The agent is stopping.
    #[error("the agent is shutting down")]
    Stopped,
}

impl ProposeError {
    /// The same for a peer that asked us to forward.
    pub fn to_failure(&self) -> Failure {
        failure(Failure::NO_LEADER, self.to_string())
    }
}

/// A failure answer; texts are cut so that they fit the frame.
pub(crate) fn failure(code: u16, message: impl Into<String>) -> Failure {
    let message: String = message.into();
    Failure { code, message: message.chars().take(900).collect() }
}

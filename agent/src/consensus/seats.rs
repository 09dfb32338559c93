//! Which node sits in which seat.
//!
//! Seats of later voters are their node ids. A founding seat is bound to the
//! first node heard in it, on disk; another node there is refused, because it
//! would have forgotten the votes and entries its predecessor acknowledged.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use weft_proto::id::{NodeId, RaftId};

use super::error::StoreError;
use super::store::Db;
use super::types::{Seat, seat_of_node};
use crate::mesh::net::MeshView;

/// See the module.
pub(crate) struct Seats {
    db: Db,
    bound: Mutex<BTreeMap<RaftId, NodeId>>,
}

/// Somebody else sits there.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SeatError {
    /// Two nodes, one seat.
    #[error("seat {} belongs to node {holder}, not to {claims}: a voter that lost its disk joins as a new node", seat.short())]
    Taken {
        /// The seat.
        seat: RaftId,
        /// Who was first heard in it.
        holder: NodeId,
        /// Who claims it.
        claims: NodeId,
    },
    /// The binding could not be saved.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Seats {
    /// Loads the bindings.
    pub(crate) async fn load(db: Db) -> Result<Self, StoreError> {
        let bound = db.run(Db::bindings).await?.into_iter().collect();
        Ok(Self { db, bound: Mutex::new(bound) })
    }

    /// Forgets all bindings in memory; the store has forgotten them.
    pub(crate) fn forget(&self) {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Who was first heard in a seat.
    pub(crate) fn get(&self, seat: RaftId) -> Option<NodeId> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).get(&seat).copied()
    }

    /// True if this node was heard in a founding seat.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.bound
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .any(|bound| *bound == node)
    }

    /// Who sits in a seat of the membership, if it was ever heard.
    pub(crate) fn holder(&self, id: RaftId, seat: &Seat) -> Option<NodeId> {
        seat.node.or_else(|| self.get(id))
    }

    /// Whom to call for a seat: its holder, or who says that it is its own.
    pub(crate) fn resolve(&self, id: RaftId, seat: &Seat, view: &MeshView) -> Option<NodeId> {
        self.holder(id, seat).or_else(|| {
            view.members.iter().find(|(_, m)| m.record.raft_id == Some(id)).map(|(node, _)| *node)
        })
    }

    /// `node` was heard in `seat`: binds it, or refuses.
    pub(crate) async fn heard(&self, seat: RaftId, node: NodeId) -> Result<(), SeatError> {
        if seat == seat_of_node(node) {
            return Ok(());
        }
        match self.get(seat) {
            Some(holder) if holder == node => Ok(()),
            Some(holder) => Err(SeatError::Taken { seat, holder, claims: node }),
            None => Ok(self.bind(vec![(seat, node)]).await?),
        }
    }

    /// Binds on disk, then in memory.
    pub(crate) async fn bind(&self, pairs: Vec<(RaftId, NodeId)>) -> Result<(), StoreError> {
        let saved = pairs.clone();
        self.db.run(move |db| db.bind(&saved)).await?;
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).extend(pairs);
        Ok(())
    }
}

//! Removing nodes from the cluster: others (`rmpeer`), this one (`leave`).

use std::time::Duration;

use weft_proto::id::NodeId;
use weft_proto::ledger::{Op, Outcome};

use super::App;
use crate::api::backend::BackendError;
use crate::mesh::net::PeerNet;

const PATIENCE: Duration = Duration::from_secs(10);

impl App {
    /// A member by name, id, or an unmistakable beginning of its id.
    fn find_member(&self, name: &str) -> Result<NodeId, BackendError> {
        let ledger = self.consensus.ledger();
        if let Some(node) = ledger.node_by_name(name) {
            return Ok(node);
        }
        let lower = name.to_ascii_lowercase();
        let mut hits = ledger
            .members()
            .map(|(node, _)| node)
            .filter(|node| lower.len() >= 8 && node.to_string().starts_with(&lower));
        match (hits.next(), hits.next()) {
            (Some(node), None) => Ok(node),
            (Some(_), Some(_)) => Err(BackendError::Bad(format!(
                "`{name}` is the beginning of several node ids; give more digits"
            ))),
            (None, _) => {
                let known: Vec<&str> = ledger.members().map(|(_, m)| m.name.as_str()).collect();
                Err(BackendError::NotFound(format!(
                    "no node `{name}` in this cluster; it has: {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// Evicts a node; the number of addresses it owned.
    pub(super) async fn evict(&self, name: &str, force: bool) -> Result<u64, BackendError> {
        let node = self.find_member(name)?;
        if node == self.me {
            return Err(BackendError::Bad(format!(
                "{name} is this node; run rmpeer on another one"
            )));
        }
        if self.mesh.view().is_alive(node) && !force {
            return Err(BackendError::Conflict(format!(
                "{name} is alive: its pods would lose their addresses; stop it first, or use --force"
            )));
        }
        let owned: u64 = self
            .consensus
            .ledger()
            .blocks_of(node)
            .map(|b| 1u64.checked_shl(host_bits(&b.prefix)).unwrap_or(u64::MAX))
            .fold(0, u64::saturating_add);
        match self.propose(Op::Evict { node }).await? {
            Outcome::Refused(refusal) => Err(BackendError::Conflict(refusal.to_string())),
            _ => {
                self.mesh.remove(node);
                tracing::info!(%node, name, owned, "node removed; its blocks rest in quarantine");
                Ok(owned)
            }
        }
    }

    /// Hands everything back; refused while pods need it.
    pub(super) async fn hand_back(&self) -> Result<(), BackendError> {
        let own = Self::own_key();
        // Seen and stopped at once: no lease comes in between.
        self.ipam.stop_allocating(&own).map_err(|pods| {
            BackendError::Conflict(format!(
                "{pods} leases are still in use on this node; delete its pods first"
            ))
        })?;
        self.ipam.release(&own)?;
        self.publish();
        let prefixes = self.ipam.idle_blocks();
        if prefixes.is_empty() {
            return Ok(());
        }
        match self.propose(Op::Release { node: self.me, prefixes }).await? {
            Outcome::Refused(refusal) => Err(BackendError::Conflict(refusal.to_string())),
            _ => {
                self.ipam.follow(&self.consensus.ledger());
                Ok(())
            }
        }
    }

    pub(super) async fn propose(&self, op: Op) -> Result<Outcome, BackendError> {
        let request = self.registry.next_request();
        let answer = self.registry.propose(request, op, PATIENCE).await;
        answer.map(|(_, outcome)| outcome).map_err(BackendError::NotReady)
    }
}

pub(super) fn host_bits(prefix: &ipnet::IpNet) -> u32 {
    u32::from(prefix.max_prefix_len() - prefix.prefix_len())
}

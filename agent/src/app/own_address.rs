//! The node's own overlay address: a lease like any other, held under Weave's
//! name for it, put on the bridge.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use weft_ipam::leases::ClaimError;
use weft_proto::api::{Condition, Health};
use weft_proto::frame::Frame;
use weft_proto::ledger::{Op, Outcome, Refusal};
use weft_proto::wire::v1;

use super::App;
use crate::api::backend::BackendError;
use crate::ipam_service::{ClaimFailed, Gate, LeaseFacts, catch_up};
use crate::mesh::net::PeerNet;

const ONE_TRY: Duration = Duration::from_secs(30);

/// Sees to it that this node has an address of every family of the cluster.
pub(super) async fn hold(app: Arc<App>) {
    let mut ledgers = app.consensus.subscribe();
    while app.ipam.gate() == Gate::Asking {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    loop {
        let ledger = ledgers.borrow_and_update().clone();
        let closed = matches!(app.ipam.gate(), Gate::Closed(_));
        if ledger.member(app.me).is_some() && !app.ipam.is_leaving() && !closed {
            let mut failed = None;
            for ipv6 in [false, true] {
                let wanted = ledger.ranges().iter().any(|r| matches!(r, IpNet::V6(_)) == ipv6);
                if wanted && let Err(e) = app.hold_family(ipv6).await {
                    failed = Some(e);
                }
            }
            let pause = failed.is_some();
            app.condition(
                "NoOwnAddress",
                failed.map(|e| {
                    Condition {
                health: Health::Broken,
                reason: "NoOwnAddress".into(),
                message: format!("this node has no overlay address of its own: {e}"),
                hint: "widen the range with `agent grow`, or remove dead nodes with `agent rmpeer`"
                    .into(),
            }
                }),
            );
            if pause {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        } else {
            app.condition("NoOwnAddress", None);
        }
        tokio::select! {
            changed = ledgers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(if closed { 1 } else { 10 })) => {}
        }
    }
}

impl App {
    async fn hold_family(&self, ipv6: bool) -> Result<(), BackendError> {
        let key = Self::own_key();
        let facts = LeaseFacts::default();
        let ledger = self.consensus.ledger();
        let owner = |ip: IpAddr| ledger.owner_of(ip).map(|b| b.owner);
        for address in self.own_addresses().into_iter().filter(|a| a.is_ipv6() == ipv6) {
            match owner(address) {
                Some(node) if node == self.me => return Ok(()),
                // The block went to another node (this one was evicted): so must the address.
                Some(_) => {
                    tracing::warn!(%address, "own address belongs to another node now; taking another");
                    self.ipam.release_one(&key, address)?;
                }
                None => match self.reclaim(address).await? {
                    true => return Ok(()),
                    false => {
                        tracing::warn!(%address, "own address cannot be had back; taking another");
                        self.ipam.release_one(&key, address)?;
                    }
                },
            }
        }
        if let Some(wanted) = self.config.expose_ip.filter(|net| net.addr().is_ipv6() == ipv6) {
            return self.take(&key, wanted.addr(), &facts, ONE_TRY).await;
        }
        let (address, existing) = self.ipam.allocate(&key, ipv6, None, &facts, ONE_TRY).await?;
        if !existing {
            tracing::info!(%address, "own overlay address");
        }
        Ok(())
    }

    /// The block of an own address that the ledger gives to nobody; false if
    /// it never will.
    async fn reclaim(&self, address: IpAddr) -> Result<bool, BackendError> {
        let op = Op::Claim { node: self.me, address };
        let request = self.registry.next_request();
        match self.registry.propose(request, op, ONE_TRY).await {
            Ok((_, outcome)) => {
                self.ipam.follow(&self.consensus.ledger());
                Ok(matches!(outcome, Outcome::Granted(_)))
            }
            Err(e) => Err(BackendError::NotReady(format!("cannot claim {address}: {e}"))),
        }
    }

    /// Leases one given address, getting its block first if need be.
    pub(super) async fn take(
        &self,
        key: &weft_proto::attachment::AttachmentKey,
        address: IpAddr,
        facts: &LeaseFacts,
        patience: Duration,
    ) -> Result<(), BackendError> {
        match self.ipam.claim(key, address, facts) {
            Err(ClaimFailed::Claim(ClaimError::NotOwned)) => {}
            other => return other.map_err(|e| claim_error(address, e)),
        }
        let op = Op::Claim { node: self.me, address };
        let request = self.registry.next_request();
        let answer = self
            .registry
            .propose(request, op, patience)
            .await
            .map_err(|e| BackendError::NotReady(format!("cannot claim {address}: {e}")))?;
        match answer.1 {
            Outcome::Granted(_) => {}
            Outcome::Refused(Refusal::NotOwner { owner: Some(owner), .. }) => {
                self.ask_for(owner, address, patience).await?;
            }
            Outcome::Refused(refusal @ Refusal::OutOfRange { .. }) => {
                return Err(BackendError::Bad(refusal.to_string()));
            }
            Outcome::Refused(refusal) => return Err(BackendError::Conflict(refusal.to_string())),
            other => {
                return Err(BackendError::Internal(format!("unexpected answer: {other:?}")));
            }
        }
        self.ipam.follow(&self.consensus.ledger());
        self.ipam.claim(key, address, facts).map_err(|e| claim_error(address, e))
    }

    async fn ask_for(
        &self,
        owner: weft_proto::id::NodeId,
        address: IpAddr,
        patience: Duration,
    ) -> Result<(), BackendError> {
        let name = self.mesh.view().name_of(owner);
        let not_ready = |why: String| {
            BackendError::NotReady(format!("{address} belongs to node {name}: {why}"))
        };
        let ask = v1::Donate { ipv6: address.is_ipv6(), address: Some(address) };
        let frame = Frame::new(&ask).map_err(|e| BackendError::Internal(e.to_string()))?;
        let answer = self
            .mesh
            .call(owner, frame, patience.min(Duration::from_secs(8)))
            .await
            .map_err(|e| not_ready(e.to_string()))?;
        match answer.decode().map_err(|e| not_ready(e.to_string()))? {
            v1::DonateReply::Given { index, .. } => {
                catch_up(self.registry.as_ref(), index).await.map_err(not_ready)
            }
            v1::DonateReply::Nothing { why } => Err(BackendError::Conflict(format!(
                "{address} is owned by other peer {owner} ({name}): {why}"
            ))),
        }
    }
}

fn claim_error(address: IpAddr, error: ClaimFailed) -> BackendError {
    match error {
        ClaimFailed::Service(error) => error,
        ClaimFailed::Claim(ClaimError::Held { by }) => {
            BackendError::Conflict(format!("{address} is already owned by {}", by.container_id))
        }
        // It changes hands at this moment: what comes of it will be known soon.
        ClaimFailed::Claim(e @ (ClaimError::Withheld | ClaimError::NotOwned)) => {
            BackendError::NotReady(format!("{address}: {e}"))
        }
        ClaimFailed::Claim(e) => BackendError::Bad(format!("{address}: {e}")),
    }
}

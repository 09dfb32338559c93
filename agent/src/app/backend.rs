//! The daemon as its HTTP endpoint sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::api::{
    AttachRequest, Attachment, GcReply, GcRequest, LeaseInfo, Readiness, Status,
};
use weft_proto::attachment::AttachmentKey;
use weft_proto::ledger::{Op, Outcome};
use weft_proto::names;

use super::App;
use crate::api::backend::{Backend, BackendError, PolicyQuestion};
use crate::consensus::RecoverError;
use crate::ipam_service::{IpamService, LeaseFacts, http_key};
use crate::mesh::net::BoxFuture;
use crate::policy::explain::Explanation;

/// How long after a start this node may yet find voters that it takes for lost.
const MEETING: Duration = Duration::from_secs(15);

/// Frees what a request took unless it got its answer out. What the attachment
/// had before stays: it may be in use.
struct Undo<'a> {
    app: &'a App,
    key: AttachmentKey,
    taken: Vec<IpAddr>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        for address in &self.taken {
            if let Err(e) = self.app.ipam.release_one(&self.key, *address) {
                tracing::error!("{e}");
            }
        }
        self.app.publish_leases();
    }
}

/// The key a Weave id stands for: `_` files an address under itself.
fn weave_key(id: &str, address: IpAddr) -> AttachmentKey {
    if id == "_" { http_key(&address.to_string()) } else { http_key(id) }
}

impl App {
    fn facts(request: &AttachRequest) -> LeaseFacts {
        let arg = |name: &str| request.args.get(name).filter(|v| !v.is_empty());
        let pod = arg("K8S_POD_NAME")
            .map(|name| format!("{}/{name}", arg("K8S_POD_NAMESPACE").map_or("", String::as_str)));
        LeaseFacts {
            pod,
            uid: arg("K8S_POD_UID").cloned(),
            host_ifname: names::host_ifname(&request.key.container_id, &request.key.ifname),
            port_mappings: request.port_mappings.clone(),
        }
    }

    /// One family per range of the cluster.
    fn families(&self) -> Vec<bool> {
        let ledger = self.consensus.ledger();
        let v6 = |r: &IpNet| matches!(r, IpNet::V6(_));
        let mut families: Vec<bool> = ledger.ranges().iter().map(v6).collect();
        families.sort_unstable();
        families.dedup();
        if families.is_empty() {
            // Not founded yet: wait for what this node was configured with.
            families = self.config.ranges.iter().map(v6).collect();
        }
        families
    }

    async fn wire(&self, request: AttachRequest) -> Result<Attachment, BackendError> {
        let key = &request.key;
        let facts = Self::facts(&request);
        let patience = request.wait_ms.map_or(names::ADD_PATIENCE, Duration::from_millis);
        let deadline = tokio::time::Instant::now() + patience.min(names::ADD_PATIENCE);
        let mut undo = Undo { app: self, key: key.clone(), taken: Vec::new() };
        let mut addresses = Vec::new();
        let mut existing = true;
        for ipv6 in self.families() {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let (address, had) = self.ipam.allocate(key, ipv6, None, &facts, left).await?;
            if !had {
                undo.taken.push(address);
                existing = false;
            }
            addresses.push(address);
        }
        self.ipam.update_facts(key, &facts)?;
        // Right after a start nothing may be handed over yet; then nothing
        // guards the pod either, and there is no answer.
        // A lease that was there before is handed over anew with all others: if the kernel
        // refused it then, it has to be tried again.
        while !(if existing { self.publish() } else { self.publish_leases() }) {
            if tokio::time::Instant::now() >= deadline {
                let why = "the data plane has not taken over yet; try again".to_owned();
                return Err(BackendError::NotReady(why));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.dataplane.settled().await.map_err(|e| BackendError::Internal(e.to_string()))?;
        self.admit(key, deadline).await?;
        undo.taken.clear();
        let first = addresses.first().copied().ok_or_else(|| {
            BackendError::NotReady("the cluster's ranges are not known yet".to_owned())
        })?;
        Ok(Attachment {
            key: request.key,
            host_ifname: facts.host_ifname,
            mac: names::format_mac(names::pod_mac(first)),
            addresses,
            bridge: names::BRIDGE.to_owned(),
            gateway_mac: names::format_mac(names::bridge_mac(&self.config.node_name)),
            mtu: self.dataplane.mtu(),
            ranges: self.consensus.ledger().ranges().to_vec(),
            hairpin: self.config.hairpin,
            existing,
        })
    }

    /// Frees attachments; not one that a request is being served for.
    fn free(&self, keys: &[AttachmentKey]) -> Result<usize, BackendError> {
        let freed = keys.iter().try_fold(0, |freed, key| {
            let _busy = IpamService::begin(&self.ipam, key)?;
            Ok(freed + self.ipam.release(key)?.len())
        });
        self.publish_leases();
        freed
    }

    fn with_len(&self, address: IpAddr, subnet: Option<IpNet>) -> IpNet {
        let ledger = self.consensus.ledger();
        let within =
            subnet.or_else(|| ledger.ranges().iter().copied().find(|r| r.contains(&address)));
        let len = within.map_or(if address.is_ipv4() { 32 } else { 128 }, |net| net.prefix_len());
        IpNet::new(address, len).unwrap_or_else(|_| IpNet::from(address))
    }
}

impl Backend for App {
    fn status(&self) -> Status {
        self.build_status()
    }

    fn readiness(&self) -> Readiness {
        self.build_readiness()
    }

    fn config(&self) -> serde_json::Value {
        self.config.report()
    }

    fn explain(
        &self,
        question: PolicyQuestion,
    ) -> BoxFuture<'_, Result<Explanation, BackendError>> {
        Box::pin(self.explain_policy(question))
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Attachment, BackendError>> {
        Box::pin(async move {
            let _busy = IpamService::begin(&self.ipam, &request.key)?;
            self.wire(request).await
        })
    }

    fn detach(&self, key: AttachmentKey) -> BoxFuture<'_, Result<bool, BackendError>> {
        Box::pin(async move {
            let _busy = IpamService::begin(&self.ipam, &key)?;
            let had = !self.ipam.release(&key)?.is_empty();
            self.publish_leases();
            if had {
                // The route and rules are gone before the address can be heard of again.
                self.dataplane
                    .settled()
                    .await
                    .map_err(|e| BackendError::Internal(e.to_string()))?;
                self.policy_settled().await?;
            }
            Ok(had)
        })
    }

    fn attachment(&self, key: &AttachmentKey) -> Option<LeaseInfo> {
        self.ipam.lease(key)
    }

    fn gc(&self, request: GcRequest) -> BoxFuture<'_, Result<GcReply, BackendError>> {
        Box::pin(async move {
            let keep: BTreeSet<&AttachmentKey> = request.keep.iter().collect();
            let stale: Vec<AttachmentKey> = self.ipam.with_leases(|leases| {
                let wired = leases.values().filter(|l| !l.host_ifname.is_empty());
                wired.map(|l| &l.key).filter(|key| !keep.contains(key)).cloned().collect()
            });
            let mut released = Vec::new();
            for key in stale {
                // An ADD under way: the list is older than it.
                let Ok(_busy) = IpamService::begin(&self.ipam, &key) else { continue };
                if !self.ipam.release(&key)?.is_empty() {
                    released.push(key);
                }
            }
            self.publish_leases();
            Ok(GcReply { released })
        })
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        self.ipam.leases()
    }

    fn allocate(
        &self,
        id: String,
        subnet: Option<IpNet>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<IpNet, BackendError>> {
        Box::pin(async move {
            let key = http_key(&id);
            let ipv6 = subnet
                .or_else(|| self.default_subnet())
                .is_some_and(|net| matches!(net, IpNet::V6(_)));
            if id == "_" {
                let address = self.ipam.allocate_anyone(ipv6, subnet, patience).await?;
                return Ok(self.with_len(address, subnet));
            }
            let facts = LeaseFacts::default();
            let _busy = IpamService::begin(&self.ipam, &key)?;
            let (address, _) = self.ipam.allocate(&key, ipv6, subnet, &facts, patience).await?;
            Ok(self.with_len(address, subnet))
        })
    }

    fn lookup(&self, id: &str, subnet: Option<IpNet>) -> Vec<IpNet> {
        self.ipam
            .keys_of(id)
            .iter()
            .flat_map(|key| self.ipam.addresses(key))
            .filter(|address| subnet.is_none_or(|net| net.contains(address)))
            .map(|address| self.with_len(address, subnet))
            .collect()
    }

    fn claim(
        &self,
        id: String,
        address: IpNet,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let key = weave_key(&id, address.addr());
            self.take(&key, address.addr(), &LeaseFacts::default(), patience).await
        })
    }

    fn release(&self, id: &str) -> BoxFuture<'_, Result<usize, BackendError>> {
        let id = id.to_owned();
        Box::pin(async move { self.free(&self.ipam.keys_of(&id)) })
    }

    fn release_one(&self, id: &str, address: IpAddr) -> BoxFuture<'_, Result<(), BackendError>> {
        let id = id.to_owned();
        Box::pin(async move {
            for key in self.ipam.keys_of(&id) {
                if self.ipam.release_one(&key, address)? {
                    self.publish_leases();
                    return Ok(());
                }
            }
            Err(BackendError::NotFound(format!("Free: address {address} not found for {id}")))
        })
    }

    fn owned(&self) -> BTreeMap<String, Vec<IpNet>> {
        let mut owned: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for lease in self.ipam.leases() {
            let addresses = lease.addresses.iter().map(|a| self.with_len(*a, None));
            owned.entry(lease.key.container_id).or_default().extend(addresses);
        }
        owned
    }

    fn default_subnet(&self) -> Option<IpNet> {
        let ledger = self.consensus.ledger();
        ledger.ranges().first().or(self.config.ranges.first()).copied()
    }

    fn prime(&self, patience: Duration) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let mut ledgers = self.consensus.subscribe();
            let joined = ledgers.wait_for(|ledger| ledger.member(self.me).is_some());
            match tokio::time::timeout(patience, joined).await {
                Ok(Ok(_)) => Ok(()),
                _ => Err(BackendError::NotReady(self.why_not_joined())),
            }
        })
    }

    fn connect(&self, targets: Vec<String>, replace: bool) -> Result<(), BackendError> {
        if let Some(target) = targets.iter().find(|target| !crate::config::is_target(target)) {
            return Err(BackendError::Bad(format!("`{target}` is not HOST or HOST:PORT")));
        }
        self.mesh.connect(&targets, replace).map_err(BackendError::Bad)
    }

    fn forget(&self, targets: Vec<String>) {
        self.mesh.forget(&targets);
    }

    fn expose(&self, address: IpNet, skip_nat: bool) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            if !skip_nat {
                tracing::debug!("hosts reach pods without NAT; skipNAT makes no difference");
            }
            let key = Self::own_key();
            let facts = LeaseFacts::default();
            self.take(&key, address.addr(), &facts, Duration::from_secs(10)).await?;
            self.publish();
            self.dataplane.settled().await.map_err(|e| BackendError::Internal(e.to_string()))
        })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.hand_back())
    }

    fn remove_peer(&self, name: String, force: bool) -> BoxFuture<'_, Result<u64, BackendError>> {
        Box::pin(async move { self.evict(&name, force).await })
    }

    fn recover(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        let consensus = self.consensus.clone();
        let up = self.started.elapsed();
        Box::pin(async move {
            let left = MEETING.saturating_sub(up);
            if !left.is_zero() && !consensus.status().quorum {
                return Err(BackendError::Conflict(format!(
                    "this agent started {}s ago and may not have met all others yet; ask again in {}s",
                    up.as_secs(),
                    left.as_secs() + 1
                )));
            }
            // A task of its own: a caller that hangs up must not leave it half done.
            let task = tokio::spawn(async move { consensus.recover().await });
            let result = task.await.map_err(|e| BackendError::Internal(e.to_string()))?;
            result.map_err(|e| match e {
                RecoverError::Consensus(inner) => BackendError::Internal(inner.to_string()),
                refusal => BackendError::Conflict(refusal.to_string()),
            })
        })
    }

    fn grow(&self, range: IpNet) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let checked = tokio::task::spawn_blocking(move || crate::dataplane::overlaps(&[range]));
            let internal = |why: String| BackendError::Internal(why);
            let found = checked.await.map_err(|e| internal(e.to_string()))?;
            if let Some((net, what)) = found.map_err(|e| internal(e.to_string()))?.first() {
                return Err(BackendError::Conflict(format!(
                    "{range} overlaps {net} ({what}) on this host; choose a range that is free on \
                     every node"
                )));
            }
            match self.propose(Op::Grow { range }).await? {
                Outcome::Refused(refusal) => Err(BackendError::Bad(refusal.to_string())),
                _ => Ok(()),
            }
        })
    }
}

//! Taking and giving back: every path on which a lease changes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use weft_ipam::leases::{AllocError, ClaimError};
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;

use super::{IpamService, LeaseFacts, State, now_ms};
use crate::api::backend::BackendError;

/// What a request without an answer leaves behind: nothing.
struct Waiter<'a> {
    service: &'a IpamService,
    family: usize,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.service.lock();
        let family = &mut state.families[self.family];
        family.waiting.remove(&self.number);
        if family.waiting.is_empty() {
            family.blocked = None;
        }
    }
}

/// One request at a time per attachment: a retry must not free what the first
/// try is about to answer.
pub(super) struct Busy {
    service: Arc<IpamService>,
    key: AttachmentKey,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.service.lock().busy.remove(&self.key);
    }
}

impl IpamService {
    /// Marks an attachment as being worked on, until the answer is dropped.
    pub fn begin(
        self: &Arc<Self>,
        key: &AttachmentKey,
    ) -> Result<impl Drop + Send + use<>, BackendError> {
        if !self.lock().busy.insert(key.clone()) {
            return Err(BackendError::Conflict(format!(
                "another request for {key} is still being served; try again"
            )));
        }
        Ok(Busy { service: Arc::clone(self), key: key.clone() })
    }

    /// One address of a family for `key`, waiting at most `patience` for one.
    /// Idempotent per (key, family, subnet). The flag says whether it was there before.
    pub async fn allocate(
        &self,
        key: &AttachmentKey,
        ipv6: bool,
        within: Option<IpNet>,
        facts: &LeaseFacts,
        patience: Duration,
    ) -> Result<(IpAddr, bool), BackendError> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut waiter: Option<(Waiter<'_>, u64)> = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_allocate(key, ipv6, within, facts) {
                Some(answer) => return answer,
                None => {
                    let start = waiter.get_or_insert_with(|| self.wait(key, ipv6)).1;
                    if let Some(error) = self.verdict_after(ipv6, start) {
                        return Err(error);
                    }
                }
            }
            self.need.notify_one();
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let blocked = self.lock().families[usize::from(ipv6)].blocked.clone();
                let why = blocked.unwrap_or_else(|| {
                    "no block has arrived from the ledger yet; see `agent status`".to_owned()
                });
                return Err(BackendError::NotReady(format!("no address for {key}: {why}")));
            }
        }
    }

    fn wait(&self, key: &AttachmentKey, ipv6: bool) -> (Waiter<'_>, u64) {
        let mut state = self.lock();
        state.next_waiter += 1;
        let number = state.next_waiter;
        let family = &mut state.families[usize::from(ipv6)];
        family.waiting.insert(number, key.to_string());
        (Waiter { service: self, family: usize::from(ipv6), number }, family.rounds)
    }

    /// A verdict of a round of asking that began after the request did.
    fn verdict_after(&self, ipv6: bool, start: u64) -> Option<BackendError> {
        let state = self.lock();
        let verdict = state.families[usize::from(ipv6)].verdict.as_ref()?;
        (verdict.round > start).then(|| verdict.error.clone())
    }

    /// `None`: nothing free now.
    fn try_allocate(
        &self,
        key: &AttachmentKey,
        ipv6: bool,
        within: Option<IpNet>,
        facts: &LeaseFacts,
    ) -> Option<Result<(IpAddr, bool), BackendError>> {
        let mut state = self.lock();
        if state.leaving {
            return Some(Err(BackendError::NotReady(
                "this node has left the cluster (DELETE /peer); restart the agent to join again"
                    .to_owned(),
            )));
        }
        let before = state.table.addresses(key).to_vec();
        let address = match state.table.allocate(key, ipv6, within, now_ms()) {
            Ok(address) => address,
            Err(AllocError::Full) => return None,
            Err(e) => return Some(Err(BackendError::Bad(e.to_string()))),
        };
        if before.contains(&address) {
            return Some(Ok((address, true)));
        }
        let answer = self.record(&mut state, key, facts).map(|()| (address, false));
        if answer.is_err() {
            state.table.release_one(key, address, now_ms());
        } else if state.table.free(ipv6) < 32 {
            self.need.notify_one();
        }
        Some(answer)
    }

    /// Journals the lease as the table now has it.
    fn record(
        &self,
        state: &mut State,
        key: &AttachmentKey,
        facts: &LeaseFacts,
    ) -> Result<(), BackendError> {
        let lease = LeaseInfo {
            key: key.clone(),
            addresses: state.table.addresses(key).to_vec(),
            pod: facts.pod.clone(),
            since_ms: state.leases.get(key).map_or_else(now_ms, |l| l.since_ms),
            host_ifname: facts.host_ifname.clone(),
            port_mappings: facts.port_mappings.clone(),
        };
        state.journal.put(&lease).map_err(|e| BackendError::Internal(e.to_string()))?;
        state.leases.insert(key.clone(), lease);
        self.tidy(state);
        self.leases_changed(state);
        Ok(())
    }

    fn tidy(&self, state: &mut State) {
        if state.journal.is_long(state.leases.len())
            && let Err(e) = state.journal.compact(state.leases.values())
        {
            tracing::warn!("{e}");
        }
    }

    /// Replaces the facts of an existing lease (an ADD repeated with other host ports).
    pub fn update_facts(
        &self,
        key: &AttachmentKey,
        facts: &LeaseFacts,
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        let same = state.leases.get(key).is_some_and(|l| {
            l.pod == facts.pod
                && l.host_ifname == facts.host_ifname
                && l.port_mappings == facts.port_mappings
        });
        if same { Ok(()) } else { self.record(&mut state, key, facts) }
    }

    /// Records an address found on a living interface, whoever owns its block.
    pub fn adopt(
        &self,
        key: &AttachmentKey,
        addresses: &[IpAddr],
        facts: &LeaseFacts,
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        for address in addresses {
            state.table.adopt(key, *address).map_err(|held| {
                BackendError::Conflict(format!("{address} of {key} is leased to {}", held.by))
            })?;
        }
        self.record(&mut state, key, facts)
    }

    /// Leases one given address of an own block.
    pub fn claim(
        &self,
        key: &AttachmentKey,
        address: IpAddr,
        facts: &LeaseFacts,
    ) -> Result<(), ClaimError> {
        let mut state = self.lock();
        let had = state.table.addresses(key).contains(&address);
        state.table.claim(key, address, now_ms())?;
        if had {
            return Ok(());
        }
        if let Err(e) = self.record(&mut state, key, facts) {
            tracing::error!("{e}");
            state.table.release_one(key, address, now_ms());
            return Err(ClaimError::NotOwned);
        }
        Ok(())
    }

    /// Frees everything a key holds; the addresses it held.
    pub fn release(&self, key: &AttachmentKey) -> Result<Vec<IpAddr>, BackendError> {
        let freed = {
            let mut state = self.lock();
            if state.table.addresses(key).is_empty() && !state.leases.contains_key(key) {
                return Ok(Vec::new());
            }
            state.journal.del(key).map_err(|e| BackendError::Internal(e.to_string()))?;
            let freed = state.table.release(key, now_ms());
            state.leases.remove(key);
            self.tidy(&mut state);
            self.leases_changed(&mut state);
            Self::clear_verdicts(&mut state);
            freed
        };
        self.changed.notify_waiters();
        Ok(freed)
    }

    /// Frees one address of a key; false if it did not hold it.
    pub fn release_one(&self, key: &AttachmentKey, address: IpAddr) -> Result<bool, BackendError> {
        {
            let mut state = self.lock();
            let Some(lease) = state.leases.get(key).cloned() else { return Ok(false) };
            if !state.table.release_one(key, address, now_ms()) {
                return Ok(false);
            }
            let left: Vec<_> = lease.addresses.iter().copied().filter(|a| *a != address).collect();
            let written = if left.is_empty() {
                state.leases.remove(key);
                state.journal.del(key)
            } else {
                let lease = LeaseInfo { addresses: left, ..lease };
                let written = state.journal.put(&lease);
                state.leases.insert(key.clone(), lease);
                written
            };
            written.map_err(|e| BackendError::Internal(e.to_string()))?;
            self.leases_changed(&mut state);
            Self::clear_verdicts(&mut state);
        }
        self.changed.notify_waiters();
        Ok(true)
    }

    fn clear_verdicts(state: &mut State) {
        for family in &mut state.families {
            family.verdict = None;
        }
    }

    /// Every key of a container (its attachments, and the id itself).
    pub fn keys_of(&self, container_id: &str) -> Vec<AttachmentKey> {
        let state = self.lock();
        state.leases.keys().filter(|k| k.container_id == container_id).cloned().collect()
    }
}

//! Taking and giving back: every path on which a lease changes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use weft_ipam::leases::{AllocError, ClaimError};
use weft_proto::api::LeaseInfo;
use weft_proto::attachment::AttachmentKey;

use super::{Gate, IpamService, LeaseFacts, State, Waiting, http_key, now_ms, ports};
use crate::api::backend::BackendError;

/// A given address was not leased.
#[derive(Debug, thiserror::Error)]
pub enum ClaimFailed {
    /// It cannot be.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// This node cannot lease anything.
    #[error(transparent)]
    Service(#[from] BackendError),
}

/// For whom an address is wanted.
#[derive(Debug, Clone, Copy)]
enum Who<'a> {
    Key(&'a AttachmentKey),
    /// Nobody in particular: filed under the address itself.
    Anyone,
}

impl Who<'_> {
    fn label(self) -> String {
        match self {
            Self::Key(key) => key.to_string(),
            Self::Anyone => "_".to_owned(),
        }
    }
}

fn left() -> BackendError {
    BackendError::NotReady(
        "this node has left the cluster (DELETE /peer); restart the agent to join again".to_owned(),
    )
}

fn asking() -> BackendError {
    BackendError::NotReady(
        "this agent has just started and asks the others whether another machine runs as this \
         node; try again in a moment"
            .to_owned(),
    )
}

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
        let mut state = self.service.lock();
        state.busy.remove(&self.key);
        if !state.leases.contains_key(&self.key) {
            state.asked.remove(&self.key);
        }
    }
}

impl IpamService {
    /// Marks an attachment as being worked on, until the answer is dropped.
    pub fn begin(
        self: &Arc<Self>,
        key: &AttachmentKey,
    ) -> Result<impl Drop + Send + use<>, BackendError> {
        let mut state = self.lock();
        if !state.busy.insert(key.clone()) {
            return Err(BackendError::Conflict(format!(
                "another request for {key} is still being served; try again"
            )));
        }
        state.asked.insert(key.clone(), tokio::time::Instant::now());
        drop(state);
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
        self.allocate_for(Who::Key(key), ipv6, within, facts, patience).await
    }

    /// An address for nobody in particular; a new one with every call.
    pub async fn allocate_anyone(
        &self,
        ipv6: bool,
        within: Option<IpNet>,
        patience: Duration,
    ) -> Result<IpAddr, BackendError> {
        let facts = LeaseFacts::default();
        let answer = self.allocate_for(Who::Anyone, ipv6, within, &facts, patience).await;
        answer.map(|(address, _)| address)
    }

    async fn allocate_for(
        &self,
        who: Who<'_>,
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
            if let Some(answer) = self.try_allocate(who, ipv6, within, facts) {
                return answer;
            }
            let start = waiter.get_or_insert_with(|| self.wait(who, ipv6)).1;
            if let Some(error) = self.verdict_after(ipv6, start) {
                return Err(error);
            }
            self.need[usize::from(ipv6)].notify_one();
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let blocked = self.lock().families[usize::from(ipv6)].blocked.clone();
                let why = blocked.unwrap_or_else(|| match within {
                    Some(subnet) => format!("none is free in {subnet} on this node"),
                    None => "no block has arrived from the ledger yet; see `agent status`".into(),
                });
                let who = who.label();
                return Err(BackendError::NotReady(format!("no address for {who}: {why}")));
            }
        }
    }

    fn wait(&self, who: Who<'_>, ipv6: bool) -> (Waiter<'_>, u64) {
        let mut state = self.lock();
        state.next_waiter += 1;
        let number = state.next_waiter;
        let family = &mut state.families[usize::from(ipv6)];
        let since = family.rounds;
        family.waiting.insert(number, Waiting { since, who: who.label() });
        (Waiter { service: self, family: usize::from(ipv6), number }, since)
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
        who: Who<'_>,
        ipv6: bool,
        within: Option<IpNet>,
        facts: &LeaseFacts,
    ) -> Option<Result<(IpAddr, bool), BackendError>> {
        let mut state = self.lock();
        if state.leaving {
            return Some(Err(left()));
        }
        // An interface name that nobody else can have.
        let nobody = AttachmentKey { container_id: "_".to_owned(), ifname: "\0".to_owned() };
        let asking = match who {
            Who::Key(key) => key,
            Who::Anyone => &nobody,
        };
        if let Err(taken) = ports::check(&state.leases, asking, facts) {
            return Some(Err(taken));
        }
        let before = state.table.addresses(asking).to_vec();
        let wanted = |address: &IpAddr| {
            address.is_ipv6() == ipv6 && within.is_none_or(|net| net.contains(address))
        };
        match &state.gate {
            Gate::Closed(why) if !before.iter().any(wanted) => {
                return Some(Err(BackendError::NotReady(why.clone())));
            }
            Gate::Asking if !before.iter().any(wanted) => return None,
            _ => {}
        }
        let address = match state.table.allocate(asking, ipv6, within, now_ms()) {
            Ok(address) => address,
            Err(AllocError::Full) => return None,
            Err(e) => return Some(Err(BackendError::Bad(e.to_string()))),
        };
        if before.contains(&address) {
            return Some(Ok((address, true)));
        }
        let named = match who {
            Who::Key(key) => key.clone(),
            Who::Anyone => {
                // Under the one lock: nobody sees it free in between.
                let named = http_key(&address.to_string());
                state.table.release_one(&nobody, address, now_ms());
                if let Err(e) = state.table.claim(&named, address, now_ms()) {
                    return Some(Err(BackendError::Internal(format!("{address}: {e}"))));
                }
                named
            }
        };
        let answer = self.record(&mut state, &named, facts).map(|()| (address, false));
        if answer.is_err() {
            state.table.release_one(&named, address, now_ms());
        } else if state.table.free(ipv6) < 32 {
            self.need[usize::from(ipv6)].notify_one();
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
            uid: facts.uid.clone(),
            since_ms: state.leases.get(key).map_or_else(now_ms, |l| l.since_ms),
            host_ifname: facts.host_ifname.clone(),
            port_mappings: facts.port_mappings.clone(),
        };
        state
            .secure()
            .and_then(|journal| journal.put(&lease))
            .map_err(|e| BackendError::Internal(e.to_string()))?;
        state.leases.insert(key.clone(), lease);
        self.tidy(state);
        self.leases_changed(state, key);
        Ok(())
    }

    fn tidy(&self, state: &mut State) {
        if state.journal.is_long(state.leases.len())
            && let Err(e) = state.journal.compact(state.leases.values(), &state.table.freed())
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
        let Some(lease) = state.leases.get(key) else {
            return Err(BackendError::Conflict(format!("{key} was released meanwhile; try again")));
        };
        let same = lease.pod == facts.pod
            && lease.uid == facts.uid
            && lease.host_ifname == facts.host_ifname
            && lease.port_mappings == facts.port_mappings;
        if same {
            return Ok(());
        }
        ports::check(&state.leases, key, facts)?;
        self.record(&mut state, key, facts)
    }

    /// Records addresses found on a living interface, whoever owns their
    /// blocks: all of them that nobody else has.
    pub fn adopt(
        &self,
        key: &AttachmentKey,
        addresses: &[IpAddr],
        facts: &LeaseFacts,
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        let mut conflict = None;
        for address in addresses {
            if let Err(held) = state.table.adopt(key, *address) {
                let text = format!("{address} of {key} is leased to {}", held.by);
                conflict = Some(BackendError::Conflict(text));
            }
        }
        if !state.table.addresses(key).is_empty() {
            self.record(&mut state, key, facts)?;
        }
        conflict.map_or(Ok(()), Err)
    }

    /// Leases one given address of an own block.
    pub fn claim(
        &self,
        key: &AttachmentKey,
        address: IpAddr,
        facts: &LeaseFacts,
    ) -> Result<(), ClaimFailed> {
        let mut state = self.lock();
        if state.leaving {
            return Err(left().into());
        }
        let had = state.table.addresses(key).contains(&address);
        match &state.gate {
            Gate::Closed(why) if !had => return Err(BackendError::NotReady(why.clone()).into()),
            Gate::Asking if !had => return Err(asking().into()),
            _ => {}
        }
        state.table.claim(key, address, now_ms())?;
        if had {
            return Ok(());
        }
        if let Err(e) = self.record(&mut state, key, facts) {
            state.table.release_one(key, address, now_ms());
            return Err(e.into());
        }
        Ok(())
    }

    /// Frees everything a key holds; the addresses it held.
    pub fn release(&self, key: &AttachmentKey) -> Result<Vec<IpAddr>, BackendError> {
        let freed = self.end(&mut self.lock(), key)?;
        self.changed.notify_waiters();
        Ok(freed)
    }

    /// On disk first: an address must not be free here and leased there.
    fn end(&self, state: &mut State, key: &AttachmentKey) -> Result<Vec<IpAddr>, BackendError> {
        if state.table.addresses(key).is_empty() && !state.leases.contains_key(key) {
            return Ok(Vec::new());
        }
        let now = now_ms();
        state
            .secure()
            .and_then(|journal| journal.del(key, now))
            .map_err(|e| BackendError::Internal(e.to_string()))?;
        let freed = state.table.release(key, now);
        state.leases.remove(key);
        state.asked.remove(key);
        self.tidy(state);
        self.leases_changed(state, key);
        state.clear_verdicts();
        Ok(freed)
    }

    /// Frees one address of a key; false if it did not hold it.
    pub fn release_one(&self, key: &AttachmentKey, address: IpAddr) -> Result<bool, BackendError> {
        {
            let mut state = self.lock();
            let Some(lease) = state.leases.get(key) else { return Ok(false) };
            if !lease.addresses.contains(&address) {
                return Ok(false);
            }
            if lease.addresses.len() == 1 {
                self.end(&mut state, key)?;
            } else {
                let mut lease = lease.clone();
                lease.addresses.retain(|a| *a != address);
                state
                    .secure()
                    .and_then(|journal| journal.put(&lease))
                    .map_err(|e| BackendError::Internal(e.to_string()))?;
                state.table.release_one(key, address, now_ms());
                state.leases.insert(key.clone(), lease);
                self.tidy(&mut state);
                self.leases_changed(&mut state, key);
                state.clear_verdicts();
            }
        }
        self.changed.notify_waiters();
        Ok(true)
    }

    /// Attachments nobody has asked for lately. After a start that is all of
    /// them only when the agent has run that long: an ADD it has answered in
    /// its earlier life may still be under way.
    pub fn unattended(&self, grace: Duration) -> Vec<AttachmentKey> {
        let state = self.lock();
        let wired = state.leases.values().filter(|lease| !lease.host_ifname.is_empty());
        wired
            .map(|lease| &lease.key)
            .filter(|key| self.is_unattended(&state, key, grace))
            .cloned()
            .collect()
    }

    fn is_unattended(&self, state: &State, key: &AttachmentKey, grace: Duration) -> bool {
        let asked = state.asked.get(key).copied().unwrap_or(self.started);
        !state.busy.contains(key) && asked.elapsed() >= grace
    }

    /// Frees an attachment unless somebody has asked for it since; true if it is free.
    pub fn release_unattended(
        &self,
        key: &AttachmentKey,
        grace: Duration,
    ) -> Result<bool, BackendError> {
        {
            let mut state = self.lock();
            if !self.is_unattended(&state, key, grace) {
                return Ok(false);
            }
            self.end(&mut state, key)?;
        }
        self.changed.notify_waiters();
        Ok(true)
    }

    /// Every key of a container (its attachments, and the id itself).
    pub fn keys_of(&self, container_id: &str) -> Vec<AttachmentKey> {
        let state = self.lock();
        state.leases.keys().filter(|k| k.container_id == container_id).cloned().collect()
    }
}

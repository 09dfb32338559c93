//! Leases and living interfaces: recovery at start, the sweep, notes of DELs
//! that nobody heard.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_proto::attachment::AttachmentKey;
use weft_proto::names;

use super::App;
use crate::dataplane::{DataplaneError, WiredPod};
use crate::ipam_service::{LeaseFacts, now_ms};

/// A lease without an interface is given this long: its ADD may be under way.
const GRACE_MS: u64 = 120_000;

/// Reads what an earlier life left: notes of DELs, and, if the lease store is
/// lost, the aliases of living interfaces.
pub(super) async fn recover(app: &Arc<App>, intact: bool) -> Result<(), DataplaneError> {
    let noted = read_notes(app);
    if !intact {
        // Without the interfaces an address in use could be given away again.
        for pod in app.dataplane.wired().await? {
            if !noted.contains(&pod.alias.key) && app.ipam.lease(&pod.alias.key).is_none() {
                adopt(app, &pod);
            }
        }
    }
    app.recovered.store(true, Ordering::Release);
    Ok(())
}

fn adopt(app: &App, pod: &WiredPod) {
    let facts = LeaseFacts {
        pod: pod.alias.pod.clone(),
        host_ifname: pod.host_ifname.clone(),
        port_mappings: Vec::new(),
    };
    match app.ipam.adopt(&pod.alias.key, &pod.alias.addresses, &facts) {
        Ok(()) => tracing::info!(attachment = %pod.alias.key, "lease rebuilt from its interface"),
        Err(e) => tracing::error!(attachment = %pod.alias.key, "cannot rebuild its lease: {e}"),
    }
}

/// Every ten seconds: notes, then leases whose interface is gone.
pub(super) async fn run(app: Arc<App>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        read_notes(&app);
        let Some(wired) = wired(&app).await else { continue };
        let now = now_ms();
        for lease in app.ipam.leases() {
            if lease.host_ifname.is_empty()
                || wired.contains(&lease.key)
                || now.saturating_sub(lease.since_ms) < GRACE_MS
            {
                continue;
            }
            // A second look: the interface list above may be older than an ADD.
            if wired_now(&app, &lease.key).await {
                continue;
            }
            tracing::info!(attachment = %lease.key, "its interface is gone: lease freed");
            if let Err(e) = app.ipam.release(&lease.key) {
                tracing::error!("{e}");
            }
        }
        app.foreign_leases().await;
    }
}

/// Attachments that have an interface; `None` if the kernel did not say.
async fn wired(app: &App) -> Option<BTreeSet<AttachmentKey>> {
    match app.dataplane.wired().await {
        Ok(pods) => Some(pods.into_iter().map(|pod| pod.alias.key).collect()),
        Err(e) => {
            tracing::warn!("no sweep of leases: {e}");
            None
        }
    }
}

/// When in doubt: yes.
async fn wired_now(app: &App, key: &AttachmentKey) -> bool {
    wired(app).await.is_none_or(|wired| wired.contains(key))
}

/// Frees what the notes name; returns the keys.
fn read_notes(app: &App) -> BTreeSet<AttachmentKey> {
    let mut keys = BTreeSet::new();
    let Ok(entries) = fs::read_dir(app.config.run_dir.join(names::RELEASED_DIR)) else {
        return keys;
    };
    for path in entries.flatten().map(|e| e.path()) {
        // A name ending otherwise is a note still being written.
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let note =
            fs::read(&path).ok().and_then(|b| serde_json::from_slice::<AttachmentKey>(&b).ok());
        let Some(key) = note else {
            tracing::warn!("{} is not a note of a DEL; removed", path.display());
            let _ = fs::remove_file(&path);
            continue;
        };
        match app.ipam.release(&key) {
            Ok(_) => {
                tracing::info!(attachment = %key, "freed: its DEL came while the agent was away");
                let _ = fs::remove_file(&path);
                keys.insert(key);
            }
            Err(e) => tracing::error!("{e}"),
        }
    }
    keys
}

impl App {
    /// Leases outside own blocks (after an eviction, or with the state lost):
    /// gets their addresses back where the ledger still can, else says which
    /// pods must restart.
    async fn foreign_leases(&self) {
        use weft_proto::api::{Condition, Health};
        use weft_proto::ledger::{Op, Outcome};
        if self.consensus.ledger().member(self.me).is_none() {
            return;
        }
        let mut lost = Vec::new();
        for (key, address) in self.ipam.stand().foreign {
            let op = Op::Claim { node: self.me, address };
            let request = self.registry.next_request();
            match self.registry.propose(request, op, Duration::from_secs(3)).await {
                Ok((_, Outcome::Granted(_))) => {
                    self.ipam.follow(&self.consensus.ledger());
                    tracing::info!(%address, attachment = %key, "address of a living pod claimed back");
                }
                Ok((_, Outcome::Refused(why))) => lost.push(format!("{key} ({address}: {why})")),
                Ok(_) | Err(_) => {}
            }
        }
        let condition = (!lost.is_empty()).then(|| Condition {
            health: Health::Degraded,
            reason: "ForeignLease".into(),
            message: format!(
                "pods here use addresses this node no longer owns: {}",
                lost.join(", ")
            ),
            hint: "restart these pods; they get new addresses".into(),
        });
        self.condition("ForeignLease", condition);
    }
}

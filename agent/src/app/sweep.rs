//! Leases and living interfaces: recovery at start, the sweep, notes of DELs
//! that nobody heard.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_ipam::ledger::Ledger;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;
use weft_proto::ledger::{Op, Outcome};
use weft_proto::names;

use super::App;
use crate::api::backend::BackendError;
use crate::dataplane::WiredPod;
use crate::ipam_service::journal::Found;
use crate::ipam_service::{Gate, IpamService, LeaseFacts, Registry};

/// A lease without an interface is given this long: its ADD may be under way.
const GRACE: Duration = Duration::from_secs(120);

/// Reads what an earlier life left: notes of DELs, and the aliases of living interfaces.
/// They are asked even if the lease store looks whole: one that was cut at the end of a line
/// does, and an address in use could be given away again.
pub(super) async fn recover(app: &Arc<App>, found: &Found) -> anyhow::Result<()> {
    let noted = read_notes(app);
    let ended =
        |key: &AttachmentKey| noted.contains(key) || (found.intact && found.gone.contains(key));
    let mut adopted = 0;
    for pod in app.dataplane.wired().await? {
        if !ended(&pod.alias.key) && app.ipam.lease(&pod.alias.key).is_none() {
            adopt(app, &pod)?;
            adopted += 1;
        }
    }
    if found.intact && adopted > 0 {
        tracing::error!(adopted, "lease store incomplete; leases were rebuilt from the kernel");
    }
    if !found.intact {
        app.ipam.rebuilt()?;
    }
    app.recovered.store(true, Ordering::Release);
    Ok(())
}

fn adopt(app: &App, pod: &WiredPod) -> Result<(), BackendError> {
    let facts = LeaseFacts {
        pod: pod.alias.pod.clone(),
        uid: pod.alias.uid.clone(),
        host_ifname: pod.host_ifname.clone(),
        port_mappings: Vec::new(),
    };
    match app.ipam.adopt(&pod.alias.key, &pod.alias.addresses, &facts) {
        Ok(()) => tracing::info!(attachment = %pod.alias.key, "lease rebuilt from its interface"),
        // Without it on disk its address could be given away: no start.
        Err(e @ BackendError::Internal(_)) => return Err(e),
        Err(e) => tracing::error!(attachment = %pod.alias.key, "cannot rebuild its lease: {e}"),
    }
    Ok(())
}

/// Every ten seconds: notes, then leases whose interface is gone.
pub(super) async fn run(app: Arc<App>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        read_notes(&app);
        let old = app.ipam.unattended(GRACE);
        if !old.is_empty()
            && let Some(wired) = wired(&app).await
        {
            for key in old.iter().filter(|key| !wired.contains(key)) {
                // Asked for since the kernel was: then it stays.
                match app.ipam.release_unattended(key, GRACE) {
                    Ok(true) => {
                        tracing::info!(attachment = %key, "its interface is gone: lease freed");
                    }
                    Ok(false) => {}
                    Err(e) => tracing::error!("{e}"),
                }
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
        // An ADD takes the note away before it asks: with the attachment held
        // and the note still there, none has been answered since the DEL.
        let Ok(_busy) = IpamService::begin(&app.ipam, &key) else { continue };
        if !path.exists() {
            continue;
        }
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

/// What can become of a lease outside own blocks.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Ours,
    Claimable,
    Lost(String),
}

/// By the ledger alone, so that a lost address costs no command every ten seconds.
fn fate(ledger: &Ledger, me: NodeId, address: IpAddr) -> Fate {
    if let Some(block) = ledger.owner_of(address) {
        return match ledger.member(block.owner) {
            _ if block.owner == me => Fate::Ours,
            Some(owner) => Fate::Lost(format!("node {} has it", owner.name)),
            None => Fate::Lost(format!("node {} has it", block.owner.short())),
        };
    }
    if !ledger.ranges().iter().any(|range| range.contains(&address)) {
        return Fate::Lost("outside the cluster's ranges".to_owned());
    }
    match ledger.quarantine().find(|rest| rest.prefix.contains(&address)) {
        Some(rest) if rest.former != me => {
            Fate::Lost("it rests after the removal of another node".to_owned())
        }
        _ => Fate::Claimable,
    }
}

impl App {
    /// Leases outside own blocks: gets their addresses back where the ledger
    /// still can, else says which pods must restart.
    async fn foreign_leases(&self) {
        use weft_proto::api::{Condition, Health};
        let Some(lost) = reclaim(self.me, &self.ipam, self.registry.as_ref()).await else { return };
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

/// Claims addresses of leases outside own blocks (after an eviction, or with
/// the state lost). What cannot be had back, and why; `None` if that cannot be
/// said now.
pub(crate) async fn reclaim(
    me: NodeId,
    ipam: &IpamService,
    registry: &dyn Registry,
) -> Option<Vec<String>> {
    let ledger = registry.ledger();
    if ledger.member(me).is_none() || ipam.is_leaving() || ipam.gate() != Gate::Open {
        return None;
    }
    let mut lost = Vec::new();
    for (key, address) in ipam.stand().foreign {
        match fate(&ledger, me, address) {
            // The lease table is about to hear of it.
            Fate::Ours => continue,
            Fate::Lost(why) => {
                lost.push(format!("{key} ({address}: {why})"));
                continue;
            }
            Fate::Claimable => {}
        }
        let op = Op::Claim { node: me, address };
        let request = registry.next_request();
        match registry.propose(request, op, Duration::from_secs(3)).await {
            Ok((_, Outcome::Granted(_))) => {
                ipam.follow(&registry.ledger());
                tracing::info!(%address, attachment = %key, "address of a living pod claimed back");
            }
            Ok((_, Outcome::Refused(why))) => lost.push(format!("{key} ({address}: {why})")),
            Ok(_) => {}
            // No quorum: asking for the next one would only take as long again.
            Err(_) => return None,
        }
    }
    Some(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::id::{ClusterId, RequestId};
    use weft_proto::ledger::Command;

    #[test]
    fn what_can_become_of_a_foreign_lease() {
        let node = |n: u8| NodeId([n; 16]);
        let mut ledger = Ledger::new();
        let mut run = |op| {
            let seq = ledger.head().index + 1;
            let request = RequestId { node: node(9), session: 1, seq };
            ledger.apply(seq, Some(&Command { request, at_ms: 1, op })).unwrap();
            ledger.clone()
        };
        let ranges = vec!["10.32.0.0/24".parse().unwrap()];
        let cluster = ClusterId([7; 16]);
        run(Op::Found { cluster, ranges: ranges.clone(), quarantine_ms: 60_000 });
        for n in 1..=3 {
            let (name, ranges) = (format!("n{n}"), ranges.clone());
            run(Op::Join { node: node(n), name, ranges, replace: false });
        }
        let [a, b] = ["10.32.0.10", "10.32.0.200"].map(|ip| ip.parse::<IpAddr>().unwrap());
        run(Op::Claim { node: node(1), address: a });
        let now = run(Op::Claim { node: node(2), address: b });
        assert_eq!(fate(&now, node(1), a), Fate::Ours);
        assert_eq!(fate(&now, node(1), b), Fate::Lost("node n2 has it".into()));
        assert_eq!(fate(&now, node(1), "10.32.0.100".parse().unwrap()), Fate::Claimable);
        assert!(matches!(fate(&now, node(1), "10.9.0.1".parse().unwrap()), Fate::Lost(_)));
        let now = run(Op::Evict { node: node(2) });
        assert!(matches!(fate(&now, node(1), b), Fate::Lost(_)), "it rests for another");
        assert_eq!(fate(&now, node(2), b), Fate::Claimable, "its own it may have back");
    }
}

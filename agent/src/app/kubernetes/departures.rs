//! Members whose Nodes were deleted are evicted: voters watch, the leader acts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_proto::id::NodeId;

use super::super::App;
use super::{Wired, judge};
use crate::kube::departed::{Departed, Member, Nodes};
use crate::mesh::net::PeerNet;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// For ever, where there is Kubernetes.
pub(in crate::app) async fn run(app: Arc<App>) {
    let Some(wired) = &app.kubernetes else { return std::future::pending().await };
    let mut departed = Departed::new(wired.store().get().had_node.clone());
    loop {
        while !app.has_vote() {
            tokio::time::sleep(LOOK).await;
        }
        let tell = watch::Sender::new(Nodes::default());
        // The watch lives as long as the vote.
        tokio::select! {
            () = wired.kube.watch_nodes(&tell) => {}
            () = look(&app, wired, &mut departed, tell.subscribe()) => {}
        }
        app.condition("NodeGone", None);
        tokio::time::sleep(LOOK).await;
    }
}

/// Until the vote is lost.
async fn look(
    app: &Arc<App>,
    wired: &Wired,
    departed: &mut Departed,
    nodes: watch::Receiver<Nodes>,
) {
    while app.has_vote() {
        let nodes = nodes.borrow().clone();
        let verdict = departed.look(&nodes, wired.kube.node_name(), &app.members(), Instant::now());
        if wired.store().get().had_node != *departed.had_node() {
            wired.keep(|cache| cache.had_node.clone_from(departed.had_node()));
        }
        if app.leads() {
            app.condition("NodeGone", judge::node_gone(&verdict.alive));
            for node in verdict.evict {
                evict(app, wired, node).await;
            }
        } else {
            app.condition("NodeGone", None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn evict(app: &App, wired: &Wired, node: NodeId) {
    let Some(name) = app.consensus.ledger().member(node).map(|m| m.name.clone()) else { return };
    // The watch may lag behind: the server has the last word.
    match wired.kube.node_exists(&name).await {
        Ok(false) => {}
        Ok(true) => return,
        Err(e) => return tracing::debug!(name, "not evicted, its Node cannot be asked for: {e}"),
    }
    tracing::info!(%node, name, "its Node was deleted and it is not alive: evicting it");
    if let Err(e) = app.evict(&node.to_string(), false).await {
        tracing::warn!(%node, name, "not evicted yet: {e}");
    }
}

impl App {
    pub(super) fn leads(&self) -> bool {
        self.consensus.status().role == "leader"
    }

    fn has_vote(&self) -> bool {
        matches!(self.consensus.status().role.as_str(), "leader" | "voter")
    }

    fn members(&self) -> BTreeMap<NodeId, Member> {
        let view = self.mesh.view();
        let ledger = self.consensus.ledger();
        let member =
            |name: &str, node| Member { name: name.to_owned(), alive: view.is_alive(node) };
        ledger.members().map(|(node, m)| (node, member(&m.name, node))).collect()
    }
}

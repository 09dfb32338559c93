//! Another machine runs as this node, from a copy of its state directory.
//!
//! Both have the key and the blocks, so each would give out addresses that the other has
//! given out already. The mesh finds out which of them is let in by the others
//! (`mesh/clones.rs`); the other one gives out nothing. That outlives the agent, as a file.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::api::{Condition, Health};

use super::App;
use crate::files;
use crate::ipam_service::Gate;
use crate::mesh::Copied;

/// Name of the file in STATE_DIR.
const FILE: &str = "copied.json";
/// A node with peers hears from one of them before it gives out the first address, or has
/// waited so long: with nobody there it goes on from what it owns.
const ASK: Duration = Duration::from_secs(3);
/// How often it is looked whether somebody was heard.
const LOOK: Duration = Duration::from_millis(10);
/// What an operator can do, whichever of the two is the right one.
const HINT: &str = "decide which machine is to be this node, and stop the other, or give that one \
     its own NODE_NAME and an empty STATE_DIR. This one goes on by itself once the others let it \
     in: they do when the other has been silent for QUARANTINE";

/// What an earlier life was told.
pub(super) fn recall(state_dir: &Path) -> Option<Copied> {
    let path = state_dir.join(FILE);
    files::read_json(&path).unwrap_or_else(|e| {
        tracing::warn!("{}: {e}; it counts as absent", path.display());
        None
    })
}

fn keep(state_dir: &Path, copied: Option<&Copied>) -> std::io::Result<()> {
    let path = state_dir.join(FILE);
    match copied {
        Some(copied) => files::replace_json(&path, copied),
        None => match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
    }
}

/// The sentence of everything that is refused for it.
fn refusal(node: &str, copied: &Copied) -> String {
    format!(
        "node `{node}` gives out no addresses here: another machine runs with a copy of its state \
         directory, and the pods of both would get the same ones. Said by {}; {HINT}",
        copied.message
    )
}

/// Opens and closes the gate of the addresses.
pub(super) async fn watch(app: Arc<App>) {
    let mut copied = app.mesh.copied();
    app.first_word().await;
    // By whose word the file is what it is.
    let mut kept = None;
    loop {
        let now = copied.borrow_and_update().clone();
        app.ipam.set_gate(match &now {
            Some(copied) => Gate::Closed(refusal(&app.config.node_name, copied)),
            None => Gate::Open,
        });
        app.condition(
            "IdentityCopied",
            now.as_ref().map(|copied| Condition {
                health: Health::Broken,
                reason: "IdentityCopied".into(),
                message: format!(
                    "another machine runs with a copy of this node's state directory: no new pods \
                     here, those that run stay. Said by {}",
                    copied.message
                ),
                hint: HINT.into(),
            }),
        );
        let by = now.as_ref().map(|copied| copied.by);
        if kept != Some(by) {
            let (dir, what) = (app.config.state_dir.clone(), now);
            match tokio::task::spawn_blocking(move || keep(&dir, what.as_ref())).await {
                Ok(Ok(())) => kept = Some(by),
                Ok(Err(e)) => {
                    let path = app.config.state_dir.join(FILE);
                    tracing::warn!("{}: {e}; a restart will not know of it", path.display());
                }
                Err(e) => tracing::error!("{e}"),
            }
        }
        if copied.changed().await.is_err() {
            return;
        }
    }
}

impl App {
    /// Whether this node has others to ask first.
    pub(super) fn first_gate(&self) -> Gate {
        let ledger = self.consensus.ledger();
        let others = ledger.members().any(|(node, _)| node != self.me);
        let told = self.mesh.copied().borrow().is_some();
        if others || told { Gate::Asking } else { Gate::Open }
    }

    /// Waits until somebody has let this node in or refused it, or nobody is there.
    async fn first_word(&self) {
        if self.ipam.gate() != Gate::Asking {
            return;
        }
        let mut copied = self.mesh.copied();
        let heard = async {
            while !self.mesh.is_let_in() && copied.borrow_and_update().is_none() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(ASK, heard).await.is_err() {
            tracing::info!("no other node answers; going on from what this node owns");
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::id::NodeId;

    use super::*;

    #[test]
    fn it_is_remembered_until_it_is_over() {
        let dir = std::env::temp_dir().join(format!("weft-copied-{}", std::process::id()));
        files::private_dir(&dir).unwrap();
        assert_eq!(recall(&dir), None);
        let copied = Copied { by: NodeId([3; 16]), message: "`n2` at 192.0.2.2: no".into() };
        keep(&dir, Some(&copied)).unwrap();
        assert_eq!(recall(&dir).as_ref(), Some(&copied));
        keep(&dir, None).unwrap();
        keep(&dir, None).unwrap();
        assert_eq!(recall(&dir), None);
        std::fs::write(dir.join(FILE), "{").unwrap();
        assert_eq!(recall(&dir), None, "spoilt: as if it had not been");
        let text = refusal("n1", &copied);
        for part in ["`n1`", "192.0.2.2", "NODE_NAME", "STATE_DIR"] {
            assert!(text.contains(part), "{text}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}

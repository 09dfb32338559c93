//! Conditions become Events on this Node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::api::Condition;

use super::super::App;
use crate::kube::events::Emitter;
use crate::kube::pace;
use crate::kube::tidings::{HOLD, Tidings};

/// Between two looks at the conditions.
const LOOK: Duration = Duration::from_secs(2);

/// For ever, where there is Kubernetes.
pub(in crate::app) async fn run(app: Arc<App>) {
    let Some(wired) = &app.kubernetes else { return std::future::pending().await };
    let events = wired.events.clone();
    let app = Arc::clone(&app);
    let random = rand::random();
    tell(events, move || app.to_be_told(random)).await;
}

impl App {
    /// Conditions for Events, and how long they must hold: what all nodes find
    /// at once is not told by all at once.
    fn to_be_told(&self, random: f64) -> (Vec<Condition>, Duration) {
        let mut conditions = self.build_status().conditions;
        // Everybody sees a dead peer; one Event is enough.
        if !self.leads() {
            conditions.retain(|c| c.reason != "PeerDead");
        }
        let members = self.consensus.ledger().members().count();
        (conditions, HOLD + pace::place(members, random))
    }
}

/// Tells what `conditions` yields; what cannot be delivered is told later.
pub(super) async fn tell(
    events: Emitter,
    conditions: impl Fn() -> (Vec<Condition>, Duration) + Send,
) {
    let node = events.own_node();
    let mut tidings = Tidings::default();
    let mut failures = 0;
    loop {
        let (found, hold) = conditions();
        let due = tidings.due(&found, hold, Instant::now());
        let mut failed = false;
        for tiding in due {
            match events.emit(&node, &tiding).await {
                Ok(()) => tidings.told(&tiding, Instant::now()),
                Err(error) => {
                    tracing::debug!(reason = tiding.reason, "Event not delivered: {error}");
                    failed = true;
                    break;
                }
            }
        }
        failures = if failed { failures + 1 } else { 0 };
        let pause = match failures {
            0 => LOOK,
            n => pace::after_failures(n, rand::random()).max(LOOK),
        };
        tokio::time::sleep(pause).await;
    }
}

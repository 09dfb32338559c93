//! Events: how an operator hears of it in `kubectl describe`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::tidings::{Bucket, Tiding};
use super::{Ask, Kube, KubeError};

/// Longest note the API takes, in bytes.
const LONGEST: usize = 1024;
const CREATE: Ask = Ask::of("create", "events.k8s.io", "events");

/// Sends Events, within a bounded rate. Clones share the bound.
#[derive(Clone)]
pub struct Emitter {
    kube: Kube,
    recorder: Recorder,
    bucket: Arc<Mutex<Bucket>>,
}

impl Emitter {
    /// For the agent of this node.
    pub fn new(kube: Kube) -> Self {
        let reporter =
            Reporter { controller: "weft".into(), instance: Some(kube.node_name().into()) };
        let recorder = Recorder::new(kube.client(), reporter);
        Self { kube, recorder, bucket: Arc::new(Mutex::new(Bucket::new(Instant::now()))) }
    }

    /// The Node of this agent, as `kubectl describe node` looks for it: by name
    /// in place of the uid, as kubelets write it.
    pub fn own_node(&self) -> ObjectReference {
        let name = self.kube.node_name().to_owned();
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            uid: Some(name.clone()),
            name: Some(name),
            // A Node has none, but its Events are kept in this one, and before
            // 1.22 API servers refuse an Event (422) unless both are the same.
            namespace: Some("default".into()),
            ..ObjectReference::default()
        }
    }

    /// Tells something of an object (with its namespace, if it has one). Waits
    /// for its turn; the same reason on the same object becomes one Event with a
    /// count. An error means that it was not told.
    pub async fn emit(&self, object: &ObjectReference, tiding: &Tiding) -> Result<(), KubeError> {
        while let Some(wait) = self.turn() {
            tokio::time::sleep(wait).await;
        }
        let (type_, action) = match tiding.warning {
            true => (EventType::Warning, "Raised"),
            false => (EventType::Normal, "Resolved"),
        };
        let reason = shortened(&tiding.reason, 128);
        let note = Some(shortened(&tiding.note, LONGEST));
        let event = Event { type_, reason, note, action: action.to_owned(), secondary: None };
        self.kube.ask(CREATE, self.recorder.publish(&event, object)).await
    }

    fn turn(&self) -> Option<std::time::Duration> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(Instant::now()).err()
    }
}

/// At most so many bytes, cut between characters.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let most = most.saturating_sub('…'.len_utf8());
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= most).last().unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit() {
        assert_eq!(shortened("abc", 8), "abc");
        let long = "ä".repeat(700);
        let cut = shortened(&long, LONGEST);
        assert!(cut.len() <= LONGEST && cut.ends_with('…'));
    }
}

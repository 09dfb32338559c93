//! Events: how an operator hears of it in `kubectl describe`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams, PostParams};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::tidings::{Bucket, Tiding};
use super::{Ask, Kube, KubeError};

/// Longest note the API takes, in bytes.
const LONGEST: usize = 1024;
/// What is told again within this counts up the Event of the time before.
const SERIES: Duration = Duration::from_secs(360);
/// Who tells.
const CONTROLLER: &str = "weft";
const CREATE: Ask = Ask::of("create", "events.k8s.io", "events");
const PATCH: Ask = Ask::of("patch", "events.k8s.io", "events");

/// Sends Events, within a bounded rate. Clones share the bound.
#[derive(Clone)]
pub struct Emitter {
    kube: Kube,
    bucket: Arc<Mutex<Bucket>>,
    sent: Arc<Mutex<Sent>>,
}

impl Emitter {
    /// For the agent of this node.
    pub fn new(kube: Kube) -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::new(Instant::now())));
        Self { kube, bucket, sent: Arc::default() }
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
        let tale = Tale {
            about: object.clone(),
            reason: shortened(&tiding.reason, 128),
            warning: tiding.warning,
        };
        let before = self.sent().before(&tale, Instant::now());
        let (name, count) = match before {
            Some((name, count)) => (name, count.saturating_add(1)),
            None => (name(object, Timestamp::now()), 1),
        };
        let events = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace(object));
        let events = Request::new(events);
        let now = MicroTime(Timestamp::now());
        let (ask, request) = if count == 1 {
            let note = shortened(&tiding.note, LONGEST);
            let event = tale.event(&name, self.kube.node_name(), &note, &now);
            (CREATE, events.create(&PostParams::default(), event.to_string().into_bytes()))
        } else {
            let series = json!({ "series": { "count": count, "lastObservedTime": now } });
            (PATCH, events.patch(&name, &PatchParams::default(), &Patch::Merge(series)))
        };
        let told = self.kube.ask(ask, async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            self.kube.client().request::<IgnoredAny>(request).await.map(|_| ())
        });
        let told = told.await;
        match &told {
            Ok(()) => self.sent().note(tale, name, count, Instant::now()),
            // The one before is not kept any more.
            Err(KubeError::NotFound(_)) => self.sent().forget(&tale),
            Err(_) => {}
        }
        told
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> Option<Duration> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(Instant::now()).err()
    }
}

/// What makes two Events one that has happened twice: notes may differ.
#[derive(Debug, Clone, PartialEq)]
struct Tale {
    about: ObjectReference,
    reason: String,
    warning: bool,
}

impl Tale {
    /// As `events.k8s.io/v1` wants it.
    fn event(&self, name: &str, node: &str, note: &str, now: &MicroTime) -> Value {
        let (kind, action) = match self.warning {
            true => ("Warning", "Raised"),
            false => ("Normal", "Resolved"),
        };
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace(&self.about) },
            "eventTime": now,
            "type": kind,
            "action": action,
            "reason": self.reason,
            "note": note,
            "regarding": self.about,
            "reportingController": CONTROLLER,
            "reportingInstance": node,
        })
    }
}

fn namespace(object: &ObjectReference) -> &str {
    object.namespace.as_deref().unwrap_or("default")
}

/// A name that no other Event has.
fn name(object: &ObjectReference, now: Timestamp) -> String {
    format!("{}.{:x}", object.name.as_deref().unwrap_or(CONTROLLER), now.as_nanosecond())
}

/// Events that were sent lately: name, how often, and when last. Pure.
#[derive(Debug, Default)]
struct Sent(Vec<(Tale, String, u32, Instant)>);

impl Sent {
    fn before(&mut self, tale: &Tale, now: Instant) -> Option<(String, u32)> {
        self.0.retain(|(.., last)| now.saturating_duration_since(*last) < SERIES);
        let found = self.0.iter().find(|(other, ..)| other == tale);
        found.map(|(_, name, count, _)| (name.clone(), *count))
    }

    fn note(&mut self, tale: Tale, name: String, count: u32, now: Instant) {
        self.forget(&tale);
        self.0.push((tale, name, count, now));
    }

    fn forget(&mut self, tale: &Tale) {
        self.0.retain(|(other, ..)| other != tale);
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
    fn what_is_told_again_soon_is_counted() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let tale = |reason: &str| Tale {
            about: ObjectReference { name: Some("n1".into()), ..ObjectReference::default() },
            reason: reason.to_owned(),
            warning: true,
        };
        let (one, other) = (tale("One"), tale("Other"));
        let mut sent = Sent::default();
        assert_eq!(sent.before(&one, at(0)), None);
        sent.note(one.clone(), "n1.1".into(), 1, at(0));
        assert_eq!(sent.before(&other, at(100)), None);
        assert_eq!(sent.before(&one, at(300)), Some(("n1.1".into(), 1)));
        sent.note(one.clone(), "n1.1".into(), 2, at(300));
        assert_eq!(sent.before(&one, at(600)), Some(("n1.1".into(), 2)));
        assert_eq!(sent.before(&one, at(660)), None);
        sent.note(one.clone(), "n1.2".into(), 1, at(700));
        sent.forget(&one);
        assert_eq!(sent.before(&one, at(701)), None);
    }

    #[test]
    fn events_have_what_the_api_demands() {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some("n1".into()),
            namespace: Some("default".into()),
            ..ObjectReference::default()
        };
        let time = Timestamp::new(1_700_000_000, 123_456_789).unwrap();
        let name = name(&about, time);
        assert_eq!(name, "n1.17979cfe3d85cd15");
        let tale = Tale { about, reason: "PeerDead".into(), warning: false };
        let event = tale.event(&name, "n2", "back", &MicroTime(time));
        assert_eq!(event["metadata"], json!({"name": name, "namespace": "default"}));
        assert_eq!(event["eventTime"], "2023-11-14T22:13:20.123456Z");
        assert_eq!((&event["type"], &event["action"]), (&json!("Normal"), &json!("Resolved")));
        assert_eq!(event["regarding"], json!({"kind":"Node","name":"n1","namespace":"default"}));
        assert_eq!(event["reportingInstance"], "n2");
    }

    #[test]
    fn notes_fit() {
        assert_eq!(shortened("abc", 8), "abc");
        let long = "ä".repeat(700);
        let cut = shortened(&long, LONGEST);
        assert!(cut.len() <= LONGEST && cut.ends_with('…'));
    }
}

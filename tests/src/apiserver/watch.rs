//! WATCH: a stream of lines that follows the store.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::catalog::Resource;
use super::encode;
use super::error::ApiError;
use super::request::{Form, Query, Target};
use super::selectors::Selector;
use super::server::{Shared, lock};
use super::store::{Event, Store, metadata};
use super::verbs::Verb;

/// Nobody watches for longer: real servers end watches after 30 to 60 minutes.
const LONGEST: u64 = 3600;

/// One open watch.
pub(super) struct Watch {
    shared: Arc<Shared>,
    filter: Filter,
    /// Everything up to here was looked at.
    position: u64,
    pending: Vec<u8>,
    ended: bool,
    bookmarks: bool,
    deadline: Instant,
    changed: watch::Receiver<u64>,
    marks: watch::Receiver<u64>,
    cuts: watch::Receiver<u64>,
    _open: Open,
}

/// Counts a watch as open, however it ends.
struct Open(Arc<Shared>, String);

impl Open {
    fn new(shared: &Arc<Shared>, resource: &str) -> Self {
        *lock(&shared.ledger).watches.entry(resource.to_owned()).or_default() += 1;
        Self(Arc::clone(shared), resource.to_owned())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.0.ledger).watches.get_mut(&self.1) {
            *open -= 1;
        }
    }
}

/// What a watch is about. Pure.
pub(super) struct Filter {
    resource: Arc<Resource>,
    qualified: String,
    namespace: String,
    name: Option<String>,
    selector: Selector,
    form: Form,
}

impl Filter {
    fn selects(&self, object: &Value) -> bool {
        let named = self.name.as_deref().is_none_or(|name| object["metadata"]["name"] == *name);
        named && self.selector.matches(object)
    }

    /// The line of an event, if this watch sees it. What stops being selected
    /// is deleted for it, what begins to be is added.
    fn line(&self, event: &Event) -> Option<Vec<u8>> {
        let within = event.key.resource == self.qualified
            && (self.namespace.is_empty() || event.key.namespace == self.namespace);
        if !within {
            return None;
        }
        let selected = |object: &&Arc<Value>| self.selects(object);
        let before = event.before.as_ref().filter(selected);
        let (kind, object) = match (before, event.after.as_ref().filter(selected)) {
            (None, None) => return None,
            (None, Some(now)) => ("ADDED", Value::clone(now)),
            (Some(_), Some(now)) => ("MODIFIED", Value::clone(now)),
            (Some(last), None) => {
                let mut last = Value::clone(last);
                metadata(&mut last)["resourceVersion"] = event.revision.to_string().into();
                ("DELETED", last)
            }
        };
        Some(encode::line(kind, &encode::object(&object, self.form)))
    }

    /// Everything that is there, as if just added.
    fn present(&self, store: &Store) -> Result<Vec<u8>, ApiError> {
        let mut lines = Vec::new();
        for (_, object) in store.list(&self.qualified, &self.namespace, store.revision())? {
            if self.selects(&object) {
                lines.extend(encode::line("ADDED", &encode::object(&object, self.form)));
            }
        }
        Ok(lines)
    }
}

impl Watch {
    pub(super) fn open(
        shared: &Arc<Shared>,
        resource: &Arc<Resource>,
        target: &Target,
        query: &Query,
        form: Form,
    ) -> Result<Self, ApiError> {
        let qualified = resource.qualified();
        let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
        let filter = Filter {
            selector: Selector::parse(&qualified, labels, fields)?,
            resource: Arc::clone(resource),
            namespace: target.namespace.clone().unwrap_or_default(),
            name: target.name.clone(),
            qualified,
            form,
        };
        let (from, initial) =
            (query.number("resourceVersion")?.unwrap_or(0), query.flag("sendInitialEvents"));
        let bookmarks = query.flag("allowWatchBookmarks");
        if initial && query.text("resourceVersionMatch") != "NotOlderThan" {
            let why = "resourceVersionMatch is required with sendInitialEvents";
            return Err(ApiError::invalid("ListOptions.meta.k8s.io", "", why));
        }
        let life = query.number("timeoutSeconds")?.filter(|s| *s > 0).unwrap_or(LONGEST);
        let changed = shared.changed.subscribe();
        let store = lock(&shared.store);
        let (mut pending, mut ended, mut position) = (Vec::new(), false, from);
        if initial || from == 0 {
            position = store.revision();
            pending = filter.present(&store)?;
            if initial && bookmarks {
                pending.extend(encode::bookmark(resource, form, position, true));
            }
        } else if let Err(error) = store.watchable(from) {
            // Told inside the stream: the answer is 200 all the same.
            pending = encode::line("ERROR", &error.status());
            ended = true;
        }
        drop(store);
        Ok(Self {
            _open: Open::new(shared, &filter.qualified),
            shared: Arc::clone(shared),
            filter,
            position,
            pending,
            ended,
            bookmarks,
            deadline: Instant::now() + Duration::from_secs(life.min(LONGEST)),
            changed,
            marks: shared.marks.subscribe(),
            cuts: shared.cuts.subscribe(),
        })
    }

    /// The body of the answer.
    pub(super) fn body(self) -> Body {
        let lines = futures_util::stream::unfold(self, |mut watch| async {
            let bytes = watch.next().await?;
            let ledger = &watch.shared.ledger;
            lock(ledger).sent(Verb::Watch, &watch.filter.qualified, bytes.len());
            Some((Ok::<_, Infallible>(bytes), watch))
        });
        Body::from_stream(lines)
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.ended {
                self.look();
            }
            if !self.pending.is_empty() {
                return Some(Bytes::from(std::mem::take(&mut self.pending)));
            }
            if self.ended {
                return None;
            }
            let regular = Instant::now() + *lock(&self.shared.bookmark_period);
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.cuts.changed() => return None,
                _ = self.marks.changed() => self.mark(),
                () = tokio::time::sleep_until(regular), if self.bookmarks => self.mark(),
                () = tokio::time::sleep_until(self.deadline) => {
                    // So that whoever comes back need not start over.
                    self.mark();
                    self.ended = true;
                }
            }
        }
    }

    fn look(&mut self) {
        self.changed.borrow_and_update();
        let store = lock(&self.shared.store);
        for event in store.since(self.position) {
            if let Some(line) = self.filter.line(event) {
                self.pending.extend(line);
            }
        }
        self.position = self.position.max(store.revision());
    }

    fn mark(&mut self) {
        if self.bookmarks {
            self.look();
            let Filter { resource, form, .. } = &self.filter;
            self.pending.extend(encode::bookmark(resource, *form, self.position, false));
        }
    }
}

//! An ADD whose pod is not known yet: the API server is asked for it, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::core::Request;
use kube::core::params::GetParams;
use serde::de::DeserializeOwned;
use tokio::sync::{OnceCell, Semaphore};

use super::core::{Object, Source};
use super::item::Item;
use super::lean::Lean;
use super::{Known, Shared};
use crate::kube::watch::{Asked, Failure, Heard, failure};
use crate::mesh::net::BoxFuture;
use crate::policy::engine::PodLookup;
use crate::policy::objects::PodRef;

/// Requests at one time; more wait for their turn.
const AT_ONCE: usize = 32;
/// Before asking again a server that does not answer.
const AGAIN: Duration = Duration::from_millis(200);

/// Answers to one path that many ADDs may wait for.
type Flight = Arc<OnceCell<bool>>;

/// Asks for single pods.
pub(super) struct Lookup {
    api: Asked,
    shared: Arc<Shared>,
    turns: Semaphore,
    flights: Mutex<HashMap<String, Flight>>,
}

impl Lookup {
    pub(super) fn new(api: Asked, shared: Arc<Shared>) -> Self {
        let (turns, flights) = (Semaphore::new(AT_ONCE), Mutex::default());
        Self { api, shared, turns, flights }
    }

    fn knows(&self, source: Source, key: &str) -> bool {
        self.shared.state().core.knows(source, key)
    }

    /// Asks for one object and tells the core; true if it is there. Whoever asks
    /// for the same meanwhile gets the same answer.
    async fn learn<T: DeserializeOwned + Lean>(
        &self,
        source: Source,
        collection: &str,
        name: &str,
        known: impl Fn(T, Arc<str>) -> Known,
    ) -> bool {
        let path = format!("{collection}/{name}");
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flights.entry(path.clone()).or_default())
        };
        let get = || async {
            let object = self.get(source, &path, collection, name).await?;
            let Item { key, version, body: Ok((read, text)) } = object else { return None };
            let object = Object { key, version, body: Some(known(read, text)) };
            self.shared.hear([(source, Heard::Answer(object))]);
            Some(())
        };
        let known = *flight.get_or_init(|| async { get().await.is_some() }).await;
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&path).is_some_and(|other| Arc::ptr_eq(other, &flight)) {
            flights.remove(&path);
        }
        known
    }

    /// One object; `None` if there is none that can be read.
    async fn get<T: DeserializeOwned + Lean>(
        &self,
        source: Source,
        path: &str,
        collection: &str,
        name: &str,
    ) -> Option<Item<T>> {
        loop {
            let turn = self.turns.acquire().await.ok()?;
            let request = Request::new(collection).get(name, &GetParams::default()).ok()?;
            let answer = self.api.client.request::<Item<T>>(request).await;
            self.api.note("get", source.resource(), Some(&answer));
            match answer {
                Ok(Item { body: Err(why), .. }) => {
                    tracing::error!(path, "this object cannot be read: {why}");
                    return None;
                }
                Ok(item) => return Some(item),
                Err(error) => match failure(&error) {
                    Failure::Away(why) | Failure::Busy(why, _) => {
                        tracing::debug!(path, "no answer: {why}");
                    }
                    other => {
                        tracing::info!(path, "not known to the API server: {other:?}");
                        return None;
                    }
                },
            }
            drop(turn);
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl PodLookup for Lookup {
    fn lookup<'a>(&'a self, pod: &'a PodRef) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let PodRef { namespace, name } = pod;
            // Names of the API are plain; anything else is no pod of it.
            let plain = |text: &str| {
                !text.is_empty()
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
            };
            if !plain(namespace) || !plain(name) {
                return false;
            }
            let pods = format!("/api/v1/namespaces/{namespace}/pods");
            let space_known = self.knows(Source::Namespaces, namespace);
            let (pod, namespace) =
                tokio::join!(self.learn(Source::LocalPods, &pods, name, Known::pod), async {
                    let spaces = "/api/v1/namespaces";
                    space_known
                        || self.learn(Source::Namespaces, spaces, namespace, Known::namespace).await
                },);
            pod && namespace
        })
    }
}

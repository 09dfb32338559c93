//! Follows one collection of the API server: list in pages, then watch, and
//! resume where it stopped. Nothing is kept here but the position.

mod asked;
mod cursor;

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub use asked::{Asked, Note, Outcome};
pub(crate) use cursor::Failure;

use self::cursor::{Ask, Cursor};
use super::chain;

/// For a page of a list, and for a watch to begin.
const ANSWER: Duration = Duration::from_secs(45);
/// A watch is begun anew after this, spread over half of it.
const WATCH_S: u32 = 280;
/// A server that sends bookmarks sends one a minute; one that is silent for
/// longer may be gone without a word.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner than this without a word counts as a failure.
const TOO_SHORT: Duration = Duration::from_secs(1);
/// Objects in a page.
const PAGE: u32 = 500;

/// A collection.
#[derive(Debug, Clone)]
pub(crate) struct Collection {
    /// Path of the collection over all namespaces.
    pub(crate) path: &'static str,
    /// Last part of it.
    pub(crate) resource: &'static str,
    /// Field selector.
    pub(crate) fields: Option<String>,
    /// Too large for one answer: listed in pages, and not from the cache, which
    /// does not know pages.
    pub(crate) large: bool,
    /// Of each object its metadata will do.
    pub(crate) metadata_only: bool,
    /// Longest pause between tries while the server is away, before jitter.
    pub(crate) longest: Duration,
}

/// What was heard of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard<T> {
    /// A list begins: what it will not name is gone.
    Begin,
    /// Part of the list.
    Items(Vec<T>),
    /// The list is complete, as of this version.
    End(String),
    /// Made or changed.
    Put(T),
    /// Deleted; its last state.
    Gone(T),
    /// The answer to a question about one object, past the watch.
    Answer(T),
    /// The server was heard; nothing changed up to this version, if it named one.
    Alive(Option<String>),
    /// A request failed.
    Failed(Failure),
}

/// Objects tell the version up to which a watch has come.
pub(crate) trait Versioned {
    /// `metadata.resourceVersion`.
    fn version(&self) -> &str;
}

/// Follows `collection` until nobody listens any more.
pub(crate) async fn follow<T, M>(
    api: Asked,
    collection: Collection,
    tell: mpsc::Sender<M>,
    wrap: impl Fn(Heard<T>) -> M,
) where
    T: DeserializeOwned + Clone + Versioned + Send + 'static,
    M: Send,
{
    let mut cursor = Cursor::new(collection.longest);
    loop {
        let result = match cursor.ask() {
            Ask::List { page, any } => {
                list(&api, &collection, &mut cursor, page, any, &tell, &wrap).await
            }
            Ask::Watch { from } => watch(&api, &collection, &mut cursor, &from, &tell, &wrap).await,
        };
        match result {
            Ok(()) => {}
            Err(Stop::Closed) => return,
            Err(Stop::Failed(failure)) => {
                let pause = cursor.failed(&failure, rand::random());
                tracing::debug!(path = collection.path, ?failure, ?pause, "API request failed");
                if tell.send(wrap(Heard::Failed(failure))).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Why a request's work ended early.
enum Stop {
    /// Nobody listens.
    Closed,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn send<M>(tell: &mpsc::Sender<M>, message: M) -> Result<(), Stop> {
    tell.send(message).await.map_err(|_| Stop::Closed)
}

async fn list<T, M>(
    api: &Asked,
    collection: &Collection,
    cursor: &mut Cursor,
    page: Option<String>,
    any: bool,
    tell: &mpsc::Sender<M>,
    wrap: &impl Fn(Heard<T>) -> M,
) -> Result<(), Stop>
where
    T: DeserializeOwned + Clone + Versioned,
{
    let first = page.is_none();
    let mut params = ListParams { continue_token: page, ..ListParams::default() };
    params.field_selector.clone_from(&collection.fields);
    if collection.large {
        params = params.limit(PAGE);
    } else if any {
        params = params.match_any();
    }
    let request = Request::new(collection.path);
    let request = match collection.metadata_only {
        true => request.list_metadata(&params),
        false => request.list(&params),
    };
    let request = request.map_err(|e| build(&e))?;
    let answer = timeout(ANSWER, api.client.request::<ObjectList<T>>(request)).await;
    api.note("list", collection.resource, answer.as_ref().ok());
    let list = answer.map_err(|_| silent("a list"))?.map_err(|e| failure(&e))?;
    if first {
        send(tell, wrap(Heard::Begin)).await?;
    }
    send(tell, wrap(Heard::Items(list.items))).await?;
    let version = list.metadata.resource_version.unwrap_or_default();
    if cursor.page(&version, list.metadata.continue_.as_deref()) {
        send(tell, wrap(Heard::End(version))).await?;
    }
    Ok(())
}

async fn watch<T, M>(
    api: &Asked,
    collection: &Collection,
    cursor: &mut Cursor,
    from: &str,
    tell: &mpsc::Sender<M>,
    wrap: &impl Fn(Heard<T>) -> M,
) -> Result<(), Stop>
where
    T: DeserializeOwned + Clone + Versioned + Send + 'static,
{
    let seconds = WATCH_S / 2 + rand::random_range(0..WATCH_S / 2);
    let mut params = WatchParams::default().timeout(seconds);
    params.field_selector.clone_from(&collection.fields);
    let request = Request::new(collection.path);
    let request = match collection.metadata_only {
        true => request.watch_metadata(&params, from),
        false => request.watch(&params, from),
    };
    let request = request.map_err(|e| build(&e))?;
    let (start, mut spoke, mut bookmarks) = (Instant::now(), false, false);
    let answer = timeout(ANSWER, api.client.request_events::<T>(request)).await;
    api.note("watch", collection.resource, answer.as_ref().ok());
    let stream = answer.map_err(|_| silent("a watch"))?.map_err(|e| failure(&e))?;
    let mut stream = std::pin::pin!(stream);
    send(tell, wrap(Heard::Alive(None))).await?;
    let whole = Duration::from_secs(u64::from(seconds) + 10);
    loop {
        let left = whole.saturating_sub(start.elapsed());
        let patience = if bookmarks { left.min(SILENCE) } else { left };
        let event: WatchEvent<T> = match timeout(patience, stream.try_next()).await {
            // Silence: asked again, from where it stopped.
            Err(_) => return Ok(()),
            Ok(Err(e)) => return Err(failure(&e).into()),
            Ok(Ok(None)) if spoke || start.elapsed() > TOO_SHORT => return Ok(()),
            Ok(Ok(None)) => return Err(Failure::Away("a watch ended at once".to_owned()).into()),
            Ok(Ok(Some(event))) => event,
        };
        spoke = true;
        let (version, heard) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.version().to_owned(), Heard::Put(object))
            }
            WatchEvent::Deleted(object) => (object.version().to_owned(), Heard::Gone(object)),
            WatchEvent::Bookmark(mark) => {
                bookmarks = true;
                let version = mark.metadata.resource_version;
                (version.clone(), Heard::Alive(Some(version)))
            }
            WatchEvent::Error(status) => {
                return Err(failure(&kube::Error::Api(status)).into());
            }
        };
        send(tell, wrap(heard)).await?;
        cursor.seen(&version);
    }
}

fn build(error: &kube::core::request::Error) -> Failure {
    Failure::Away(format!("the request cannot be written: {error}"))
}

fn silent(what: &str) -> Failure {
    Failure::Away(format!("no answer to {what} within {} s", ANSWER.as_secs()))
}

/// What an error of the client means for the position.
pub(crate) fn failure(error: &kube::Error) -> Failure {
    let kube::Error::Api(status) = error else {
        return Failure::Away(chain(error));
    };
    let message = status.message.clone();
    // A cluster restored from an older state answers so to versions of its future.
    let ahead = message.contains("Too large resource version");
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    match status.code {
        410 => Failure::Expired(message),
        _ if ahead => Failure::Expired(message),
        403 => Failure::Denied(message),
        404 => Failure::Absent,
        429 => Failure::Busy(message, Duration::from_secs(u64::from(retry.clamp(1, 60)))),
        _ if retry > 0 => Failure::Busy(message, Duration::from_secs(u64::from(retry.min(60)))),
        code => Failure::Away(format!("{code} {}: {message}", status.reason)),
    }
}

//! Kubernetes: where nodes, founder and key are found, and who is told what.
//!
//! ```text
//! own Node ──► underlay address          ConfigMap weft ──► founder, contacts
//! Secret weft ──► cluster key            Nodes (voters only) ──► evictions
//!                      own Node ◄── condition, annotations, Events
//! ```
//! Decisions are pure: [`founding`], [`contacts`], [`departed`], [`tidings`],
//! [`mounts`], most of `reach`. Requests are bounded in time and counted by [`Kube::ask`].
//! Nothing here is needed to carry packets or to serve an ADD.

mod access;
mod ask;
pub mod cache;
mod connect;
pub mod contacts;
pub mod departed;
mod endpoints;
pub mod events;
pub mod founding;
pub mod key;
mod kubeconfig;
pub mod mounts;
pub mod node;
pub mod nodes;
pub mod pace;
mod reach;
pub mod record;
mod services;
pub mod tidings;
pub mod watch;

pub use ask::{Ask, KubeError};
pub use connect::ConnectError;
pub(crate) use connect::chain;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weft_proto::api::{KubernetesRequests, KubernetesStatus};

use crate::config::Config;
use ask::Denial;
use reach::Reach;

/// Name of the ConfigMap and of the Secret.
pub const NAME: &str = "weft";

/// The API server, as this agent sees it. Clones are the same.
#[derive(Clone)]
pub struct Kube {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    server: String,
    reach: Reach,
    namespace: String,
    node: String,
    book: Mutex<Book>,
}

/// How requests went.
#[derive(Debug)]
struct Book {
    reachable: bool,
    since: Instant,
    answered: Option<Instant>,
    /// When it was last back after an outage.
    returned: Option<Instant>,
    error: Option<String>,
    requests: BTreeMap<(&'static str, &'static str, String), u64>,
    denied: BTreeMap<Ask, Denial>,
    /// What was granted once in this life.
    granted: BTreeSet<Ask>,
}

impl Book {
    fn new(now: Instant) -> Self {
        Self {
            reachable: false,
            since: now,
            answered: None,
            returned: None,
            error: None,
            requests: BTreeMap::new(),
            denied: BTreeMap::new(),
            granted: BTreeSet::new(),
        }
    }
}

impl Kube {
    /// Finds the API server; `None` where there is none. Nothing is sent yet.
    pub fn find(config: &Config) -> Result<Option<Self>, ConnectError> {
        let Some((client, server, reach)) = connect::client(&config.kubernetes)? else {
            return Ok(None);
        };
        let inner = Inner {
            client,
            server,
            reach,
            namespace: config.kubernetes.namespace.clone(),
            node: config.node_name.clone(),
            book: Mutex::new(Book::new(Instant::now())),
        };
        Ok(Some(Self { inner: Arc::new(inner) }))
    }

    /// A client, for watches of other modules. It is there before the server
    /// answers; rotated tokens are its own matter.
    pub fn client(&self) -> kube::Client {
        self.inner.client.clone()
    }

    /// Name of this node's Node.
    pub fn node_name(&self) -> &str {
        &self.inner.node
    }

    /// Where ConfigMap and Secret are.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Address of the server.
    pub fn server(&self) -> &str {
        &self.inner.server
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.inner.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long requests have gone unanswered; `None` while they are answered.
    pub fn away_for(&self) -> Option<std::time::Duration> {
        let book = self.book();
        (!book.reachable).then(|| book.since.elapsed())
    }

    /// What is refused for want of a right, and not only because the server has
    /// just started: what was asked, and the server's words.
    pub fn denied(&self) -> Vec<(Ask, String)> {
        let book = self.book();
        let lasting = book.denied.iter().filter(|(_, denial)| denial.lasts);
        lasting.map(|(ask, denial)| (*ask, denial.why.clone())).collect()
    }

    /// For `agent status`.
    pub fn status(&self, founder: Option<String>) -> KubernetesStatus {
        let book = self.book();
        KubernetesStatus {
            server: self.inner.server.clone(),
            via: self.inner.reach.via().map(|endpoint| endpoint.to_string()),
            reachable: book.reachable,
            since_s: book.since.elapsed().as_secs(),
            last_answer_s: book.answered.map(|t| t.elapsed().as_secs()),
            founder,
            last_error: book.error.clone(),
            requests: book
                .requests
                .iter()
                .map(|((verb, resource, code), count)| KubernetesRequests {
                    verb: (*verb).to_owned(),
                    resource: (*resource).to_owned(),
                    code: code.clone(),
                    count: *count,
                })
                .collect(),
        }
    }
}

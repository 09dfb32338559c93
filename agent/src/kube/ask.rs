//! One request: bounded in time, counted, its failure given a name.

use std::future::Future;
use std::time::{Duration, Instant};

use super::reach::NoConnection;
use super::watch::Outcome;
use super::{Book, Kube, connect};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request may take whose answer is not needed.
const HINT: Duration = Duration::from_secs(5);
/// An API server that has just started refuses for a while what its rules allow: it
/// has not read them yet. What is refused for longer is meant.
const WARMING: Duration = Duration::from_secs(25);

/// What is asked, as a rule of RBAC would name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// `get`, `list`, `create`, `patch`, `update`, `watch`.
    pub verb: &'static str,
    /// API group; empty for the core.
    pub group: &'static str,
    /// `nodes`, `nodes/status`, ….
    pub resource: &'static str,
    /// In the agent's namespace; else cluster-wide.
    pub namespaced: bool,
}

impl Ask {
    /// Of the core group, cluster-wide.
    pub const fn cluster(verb: &'static str, resource: &'static str) -> Self {
        Self { verb, group: "", resource, namespaced: false }
    }

    /// Of the core group, in the agent's namespace.
    pub const fn own(verb: &'static str, resource: &'static str) -> Self {
        Self { verb, group: "", resource, namespaced: true }
    }

    /// Of another group, cluster-wide.
    pub const fn of(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self { verb, group, resource, namespaced: false }
    }

    /// The rule that allows it.
    pub fn rule(&self, namespace: &str) -> String {
        format!(
            "{} rule {{apiGroups: [\"{}\"], resources: [\"{}\"], verbs: [\"{}\"]}}{}",
            if self.namespaced { "Role" } else { "ClusterRole" },
            self.group,
            self.resource,
            self.verb,
            if self.namespaced { format!(" in namespace {namespace}") } else { String::new() }
        )
    }
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeError {
    /// No connection: nobody listens there (yet), or no way leads there.
    #[error("{0}")]
    Unconnected(String),
    /// No usable answer: it is too late, or the server is busy or starting.
    #[error("{0}")]
    Away(String),
    /// 401 or 403.
    #[error("the API server refuses: {0}")]
    Denied(String),
    /// 404.
    #[error("not found: {0}")]
    NotFound(String),
    /// 409: somebody was faster.
    #[error("changed meanwhile: {0}")]
    Conflict(String),
    /// Any other answer.
    #[error("the API server answers {0}: {1}")]
    Other(u16, String),
}

/// True if no connection came about.
fn unconnected(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(<dyn std::error::Error>::is::<NoConnection>)
}

impl KubeError {
    /// True for an error that waiting may heal and that concerns every request.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Unconnected(_))
    }

    /// From the client's error, with the code for the books.
    fn of(error: &kube::Error) -> (Self, String) {
        let kube::Error::Api(status) = error else {
            let why = connect::chain(error);
            let error = if unconnected(error) { Self::Unconnected(why) } else { Self::Away(why) };
            return (error, "-".to_owned());
        };
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        let code = status.code;
        let error = match code {
            401 | 403 => Self::Denied(said.clone()),
            404 => Self::NotFound(said.clone()),
            409 => Self::Conflict(said.clone()),
            429 | 500..=599 => Self::Away(format!("the API server answers {code}: {said}")),
            _ => Self::Other(code, said.clone()),
        };
        (error, code.to_string())
    }
}

impl Kube {
    /// Makes a request: at most ten seconds, counted, remembered.
    pub async fn ask<T>(
        &self,
        ask: Ask,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, KubeError> {
        let (result, code) = match tokio::time::timeout(PATIENCE, request).await {
            Ok(Ok(value)) => (Ok(value), "ok".to_owned()),
            Ok(Err(error)) => {
                let (error, code) = KubeError::of(&error);
                (Err(error), code)
            }
            Err(_) => {
                let why = format!("no answer within {} s", PATIENCE.as_secs());
                (Err(KubeError::Away(why)), "-".to_owned())
            }
        };
        self.note(ask, &code, result.as_ref().err());
        result
    }

    /// Makes a request whose answer helps, but is not needed: at most five seconds,
    /// counted. What goes wrong with it is no fault.
    pub(super) async fn hint<T>(
        &self,
        ask: Ask,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Option<T> {
        let (value, code) = match tokio::time::timeout(HINT, request).await {
            Ok(Ok(value)) => (Some(value), "ok".to_owned()),
            Ok(Err(error)) => {
                tracing::debug!("{ask}: {error}");
                (None, KubeError::of(&error).1)
            }
            Err(_) => (None, "-".to_owned()),
        };
        *self.book().requests.entry((ask.verb, ask.resource, code)).or_default() += 1;
        value
    }

    /// Notes how a request went that somebody else made (a watch).
    pub fn heard(&self, ask: Ask, outcome: Outcome<'_>) {
        let (error, code) = match outcome {
            Outcome::Ok => return self.note(ask, "ok", None),
            Outcome::Failed(error) => KubeError::of(error),
            Outcome::Late => (KubeError::Away("no answer in time".to_owned()), outcome.code()),
        };
        self.note(ask, &code, Some(&error));
    }

    /// Counts a request of somebody who looks after its failures himself.
    pub fn count(&self, verb: &'static str, resource: &'static str, code: &str) {
        self.book().count(verb, resource, code);
    }

    fn note(&self, ask: Ask, code: &str, error: Option<&KubeError>) {
        let server = self.server();
        // Without a code of HTTP nothing was heard: another endpoint may answer.
        if code == "-" {
            self.inner.reach.doubt();
        }
        let news = self.book().note(ask, code, error, Instant::now());
        match (news, error) {
            (News::Back, _) => tracing::info!(server, "the API server answers"),
            (News::Gone, Some(error)) => {
                tracing::warn!(server, "the API server does not answer ({ask}): {error}");
            }
            (News::Doubted, Some(error)) => {
                tracing::warn!(
                    "{ask}: {error}; it was granted before: either the server has just started and does \
                     not know its rules yet, or this one was taken away: {}",
                    ask.rule(self.namespace())
                );
            }
            (News::Refused, Some(error)) => {
                tracing::error!("{ask}: {error}; missing: {}", ask.rule(self.namespace()));
            }
            _ => {}
        }
    }
}

/// What is new since the request before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    Back,
    Gone,
    /// A refusal that may pass.
    Doubted,
    Refused,
}

/// What is refused for want of a right.
#[derive(Debug)]
pub(super) struct Denial {
    /// The server's words.
    pub(super) why: String,
    /// Until then it may pass.
    until: Instant,
    /// It does not pass.
    pub(super) lasts: bool,
}

impl Book {
    fn count(&mut self, verb: &'static str, resource: &'static str, code: &str) {
        *self.requests.entry((verb, resource, code.to_owned())).or_default() += 1;
    }

    pub(super) fn note(
        &mut self,
        ask: Ask,
        code: &str,
        error: Option<&KubeError>,
        now: Instant,
    ) -> News {
        self.count(ask.verb, ask.resource, code);
        if let Some(error) = error.filter(|error| error.is_away()) {
            let first = self.error.is_none() && self.answered.is_none();
            self.error = Some(format!("{ask}: {error}"));
            let gone = std::mem::replace(&mut self.reachable, false);
            if gone {
                self.since = now;
            }
            return if gone || first { News::Gone } else { News::Nothing };
        }
        let first = self.answered.replace(now).is_none();
        let back = !std::mem::replace(&mut self.reachable, true);
        if back {
            self.since = now;
            self.returned = (!first).then_some(now);
        }
        match error {
            Some(KubeError::Denied(why)) => {
                self.error = Some(format!("{ask}: {why}"));
                let warming = self.returned.is_some_and(|at| now < at + WARMING);
                let doubted = warming || self.granted.contains(&ask);
                let known = self.denied.contains_key(&ask);
                let denial = self.denied.entry(ask).or_insert_with(|| Denial {
                    why: String::new(),
                    until: if doubted { now + WARMING } else { now },
                    lasts: false,
                });
                denial.why.clone_from(why);
                if now >= denial.until && !std::mem::replace(&mut denial.lasts, true) {
                    return News::Refused;
                }
                if !known {
                    return News::Doubted;
                }
            }
            // A race that was lost, or something that is not there, is an answer.
            other => {
                if other.is_none() {
                    self.granted.insert(ask);
                }
                self.denied.remove(&ask);
                if self.denied.is_empty() {
                    self.error = None;
                }
            }
        }
        if back { News::Back } else { News::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::access::Access;
    use crate::kube::reach::Reach;

    #[test]
    fn the_book_tells_changes_once() {
        let now = Instant::now();
        let mut book = Book::new(now);
        let ask = Ask::own("get", "secrets");
        let away = KubeError::Away("x".into());
        let denied = KubeError::Denied("no".into());
        assert_eq!(book.note(ask, "-", Some(&away), now), News::Gone);
        assert_eq!(book.note(ask, "-", Some(&away), now), News::Nothing);
        assert_eq!(book.note(ask, "403", Some(&denied), now), News::Refused);
        assert!(book.reachable);
        assert_eq!(book.note(ask, "403", Some(&denied), now), News::Nothing);
        assert_eq!(book.denied.len(), 1);
        assert_eq!(
            book.note(ask, "404", Some(&KubeError::NotFound("x".into())), now),
            News::Nothing
        );
        assert!(book.denied.is_empty());
        assert_eq!(book.note(ask, "-", Some(&away), now), News::Gone);
        assert_eq!(book.note(ask, "ok", None, now), News::Back);
        assert_eq!(book.requests[&("get", "secrets", "-".to_owned())], 3);
        assert_eq!(
            ask.rule("kube-system"),
            "Role rule {apiGroups: [\"\"], resources: [\"secrets\"], verbs: [\"get\"]} in namespace \
             kube-system"
        );
    }

    #[test]
    fn a_server_that_warms_up_is_not_taken_at_its_word() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut book = Book::new(start);
        let (key, node) = (Ask::own("get", "secrets"), Ask::cluster("get", "nodes"));
        let away = KubeError::Unconnected("refused".into());
        let denied = KubeError::Denied("no".into());
        let lasting = |book: &Book| book.denied.values().filter(|d| d.lasts).count();
        assert_eq!(book.note(key, "ok", None, at(0)), News::Back);
        assert_eq!(book.note(key, "-", Some(&away), at(60)), News::Gone);
        // It comes back: what was granted before is doubted, and what was never asked.
        assert_eq!(book.note(key, "403", Some(&denied), at(70)), News::Doubted);
        assert_eq!(book.note(node, "403", Some(&denied), at(71)), News::Doubted);
        assert_eq!(book.note(key, "403", Some(&denied), at(80)), News::Nothing);
        assert_eq!(lasting(&book), 0);
        assert_eq!(book.note(key, "ok", None, at(81)), News::Nothing);
        // The other one stays refused.
        assert_eq!(book.note(node, "403", Some(&denied), at(95)), News::Nothing);
        assert_eq!(book.note(node, "403", Some(&denied), at(96)), News::Refused);
        assert_eq!(book.note(node, "403", Some(&denied), at(120)), News::Nothing);
        assert_eq!(lasting(&book), 1);
        // Taken away while the server runs: named, and the more so when it lasts.
        assert_eq!(book.note(key, "403", Some(&denied), at(200)), News::Doubted);
        assert_eq!(book.note(key, "403", Some(&denied), at(230)), News::Refused);
        // Never granted, by a server that has run for long: no doubt.
        let patch = Ask::cluster("patch", "nodes/status");
        assert_eq!(book.note(patch, "403", Some(&denied), at(240)), News::Refused);
    }

    #[tokio::test]
    async fn nobody_listening_is_told_from_no_answer() {
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let access = Access::new(format!("http://{free}").parse().unwrap());
        let reach = Reach::new("x");
        let client = connect::through(access, &reach).unwrap();
        let error = client.apiserver_version().await.unwrap_err();
        assert!(matches!(KubeError::of(&error).0, KubeError::Unconnected(_)), "{error:?}");
        reach.remember(&[free]);
        let error = client.apiserver_version().await.unwrap_err();
        let text = KubeError::of(&error).0.to_string();
        assert!(text.contains(&format!("its endpoint {free}")), "{text}");
    }

    #[tokio::test]
    async fn an_endpoint_stands_in_and_what_is_told_of_it() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let mute = tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        let access = Access::new(format!("http://{free}").parse().unwrap());
        let reach = Reach::new("x");
        reach.remember(&[endpoint]);
        let client = connect::through(access, &reach).unwrap();
        let error = client.apiserver_version().await.unwrap_err();
        // It hangs up: that is no want of a connection.
        assert!(matches!(KubeError::of(&error).0, KubeError::Away(_)), "{error:?}");
        assert_eq!(reach.via(), Some(endpoint));
        mute.abort();
    }

    #[test]
    fn answers_get_names() {
        let of = |code: u16| {
            let status = kube::core::Status::failure("said", "Reason").with_code(code).boxed();
            KubeError::of(&kube::Error::Api(status)).0
        };
        assert_eq!(of(403), KubeError::Denied("said".into()));
        assert_eq!(of(401), KubeError::Denied("said".into()));
        assert_eq!(of(404), KubeError::NotFound("said".into()));
        assert_eq!(of(409), KubeError::Conflict("said".into()));
        assert!(matches!(of(503), KubeError::Away(_)));
        assert!(matches!(of(429), KubeError::Away(_)));
        assert_eq!(of(422), KubeError::Other(422, "said".into()));
    }
}

//! One request: bounded in time, counted, its failure given a name.

use std::future::Future;
use std::time::{Duration, Instant};

use super::{Book, Denial, Kube, connect};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A right counts as missing after this: a server that has just started denies
/// everything until it has read its roles.
const LASTS: Duration = Duration::from_secs(20);

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
    /// No usable answer: the network, or the server is busy or starting.
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

impl KubeError {
    /// From the client's error, with the code for the books.
    fn of(error: &kube::Error) -> (Self, String) {
        let kube::Error::Api(status) = error else {
            return (Self::Away(connect::chain(error)), "-".to_owned());
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

    /// Notes how a request went that somebody else made (a watch).
    pub fn heard(&self, ask: Ask, outcome: Result<(), &kube::Error>) {
        match outcome {
            Ok(()) => self.note(ask, "ok", None),
            Err(error) => {
                let (error, code) = KubeError::of(error);
                self.note(ask, &code, Some(&error));
            }
        }
    }

    /// Counts a request of somebody who looks after its failures himself.
    pub fn count(&self, verb: &'static str, resource: &'static str, code: &str) {
        self.book().count(verb, resource, code);
    }

    fn note(&self, ask: Ask, code: &str, error: Option<&KubeError>) {
        let server = self.server();
        let news = self.book().note(ask, code, error, Instant::now());
        match (news, error) {
            (News::Back, _) => tracing::info!(server, "the API server answers"),
            (News::Gone, Some(error)) => {
                tracing::warn!(server, "the API server does not answer ({ask}): {error}");
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
    Refused,
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
        if let Some(error @ KubeError::Away(_)) = error {
            let first = self.error.is_none() && self.answered.is_none();
            self.error = Some(format!("{ask}: {error}"));
            let gone = std::mem::replace(&mut self.reachable, false);
            if gone {
                self.since = now;
            }
            return if gone || first { News::Gone } else { News::Nothing };
        }
        self.answered = Some(now);
        let back = !std::mem::replace(&mut self.reachable, true);
        if back {
            self.since = now;
        }
        match error {
            Some(KubeError::Denied(why)) => {
                self.error = Some(format!("{ask}: {why}"));
                let new = || Denial { why: String::new(), since: now, told: false };
                let denial = self.denied.entry(ask).or_insert_with(new);
                denial.why.clone_from(why);
                let lasts = now.saturating_duration_since(denial.since) >= LASTS;
                if lasts && !std::mem::replace(&mut denial.told, true) {
                    return News::Refused;
                }
            }
            // A race that was lost, or something that is not there, is an answer.
            _ => {
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
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_book_tells_changes_once() {
        let now = Instant::now();
        let mut book = Book {
            reachable: false,
            since: now,
            answered: None,
            error: None,
            requests: BTreeMap::new(),
            denied: BTreeMap::new(),
        };
        let ask = Ask::own("get", "secrets");
        let away = KubeError::Away("x".into());
        let denied = KubeError::Denied("no".into());
        assert_eq!(book.note(ask, "-", Some(&away), now), News::Gone);
        assert_eq!(book.note(ask, "-", Some(&away), now), News::Nothing);
        // A server that is back denies for a while: no reason to cry.
        assert_eq!(book.note(ask, "403", Some(&denied), now), News::Back);
        assert!(book.reachable);
        let after = |s| now + Duration::from_secs(s);
        assert_eq!(book.note(ask, "403", Some(&denied), after(19)), News::Nothing);
        assert_eq!(book.note(ask, "403", Some(&denied), after(20)), News::Refused);
        assert_eq!(book.note(ask, "403", Some(&denied), after(30)), News::Nothing);
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

//! Network policy: what feeds it, and what is told of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use weft_proto::api::{Condition, Health, PolicyStatus};

use super::App;
use super::kubernetes::Wired;
use crate::api::backend::{BackendError, NO_POLICY, PolicyQuestion};
use crate::kube::tidings::{HOLD, Tidings};
use crate::kube::watch::{Asked, Outcome};
use crate::policy::engine::EngineHandle;
use crate::policy::explain::Explanation;
use crate::policy::feed::{FILE, Feed, FeedStatus};
use crate::policy::objects::{PolicyKind, PolicyRef, Problem};
use crate::status::policy;

/// Between two looks at the problems of policies.
const LOOK: Duration = Duration::from_secs(2);
/// What is over and could not be told for so long is not told any more.
const FORGET: Duration = Duration::from_secs(600);

/// The feed, where there are both an API server and an engine.
pub(super) fn feed(engine: Option<&EngineHandle>, wired: Option<&Wired>) -> Option<Feed> {
    Some(Feed::new(asked(wired?), engine?))
}

/// The API server; requests are counted with the others.
fn asked(wired: &Wired) -> Asked {
    let kube = wired.kube.clone();
    let count = move |verb, resource, outcome: Outcome<'_>| {
        kube.count(verb, resource, &outcome.code());
    };
    Asked::new(wired.kube.client(), Arc::new(count))
}

/// Follows the API server for ever, if there is one.
pub(super) async fn run(app: Arc<App>) {
    match (&app.feed, &app.kubernetes) {
        (Some(feed), Some(wired)) => {
            let memory = app.policy_file().zip(app.cluster());
            let node = wired.kube.node_name().to_owned();
            feed.clone().run(asked(wired), node, memory).await;
        }
        _ => std::future::pending().await,
    }
}

/// Keeps what the API server says for a start without it.
pub(super) async fn keep(app: Arc<App>) {
    match (&app.feed, app.policy_file()) {
        (Some(feed), Some(path)) => {
            let feed = feed.clone();
            feed.keep(path.into(), move || app.cluster()).await;
        }
        _ => std::future::pending().await,
    }
}

/// Tells problems of policies as Events on them. Every node sees the same ones:
/// the leader of the ledger speaks for all.
pub(super) async fn tell(app: Arc<App>) {
    let (Some(engine), Some(wired)) = (&app.policy, &app.kubernetes) else {
        return std::future::pending().await;
    };
    let mut told: BTreeMap<PolicyRef, (Tidings, Instant)> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        if app.consensus.status().role != "leader" {
            told.clear();
            continue;
        }
        let problems = by_policy(engine.report().problems);
        let now = Instant::now();
        for policy in problems.keys() {
            let (_, last) = told.entry(policy.clone()).or_insert_with(|| (Tidings::default(), now));
            *last = now;
        }
        told.retain(|_, (_, last)| now.duration_since(*last) < FORGET);
        let mut done = Vec::new();
        for (policy, (tidings, _)) in &mut told {
            let conditions = problems.get(policy).map_or(&[][..], Vec::as_slice);
            for tiding in tidings.due(conditions, HOLD, Instant::now()) {
                match wired.events.emit(&reference(policy), &tiding).await {
                    Ok(()) => {
                        tidings.told(&tiding, Instant::now());
                        if !tiding.warning {
                            done.push(policy.clone());
                        }
                    }
                    Err(error) => tracing::debug!(%policy, "Event not delivered: {error}"),
                }
            }
        }
        told.retain(|policy, _| !done.contains(policy));
    }
}

fn by_policy(problems: Vec<Problem>) -> BTreeMap<PolicyRef, Vec<Condition>> {
    let mut all: BTreeMap<PolicyRef, Vec<Condition>> = BTreeMap::new();
    for problem in problems {
        let condition = Condition {
            health: Health::Degraded,
            reason: "PolicyProblem".to_owned(),
            message: format!("{}: {}", problem.field, problem.what),
            hint: problem.hint,
        };
        all.entry(problem.policy).or_default().push(condition);
    }
    all
}

fn reference(policy: &PolicyRef) -> ObjectReference {
    let (version, kind) = match policy.kind {
        PolicyKind::NetworkPolicy => ("networking.k8s.io/v1", "NetworkPolicy"),
        PolicyKind::ClusterNetworkPolicy => {
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")
        }
    };
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: given(&policy.namespace),
        name: given(&policy.name),
        uid: given(&policy.uid),
        ..ObjectReference::default()
    }
}

impl App {
    fn policy_file(&self) -> Option<PathBuf> {
        self.feed.as_ref().map(|_| self.config.state_dir.join(FILE))
    }

    fn cluster(&self) -> Option<String> {
        self.consensus.ledger().cluster().map(|cluster| cluster.to_string())
    }

    /// Before the end: what is not kept yet.
    pub(super) fn keep_policy(&self) {
        if let (Some(feed), Some(path), Some(cluster)) =
            (&self.feed, self.policy_file(), self.cluster())
        {
            feed.keep_now(&path, &cluster);
        }
    }

    fn feed_status(&self) -> FeedStatus {
        self.feed.as_ref().map(Feed::status).unwrap_or_default()
    }

    pub(super) fn policy_status(&self) -> Option<PolicyStatus> {
        let feed = self.feed_status();
        // After the feed: what it has handed over by now is waited for.
        let engine = self.policy.as_ref()?;
        Some(policy::of(engine.report(), feed, engine.busy()))
    }

    pub(super) fn feed_conditions(&self) -> Vec<Condition> {
        self.feed_status().conditions
    }

    pub(super) async fn explain_policy(
        &self,
        question: PolicyQuestion,
    ) -> Result<Explanation, BackendError> {
        let Some(engine) = &self.policy else {
            return Err(BackendError::NotFound(NO_POLICY.to_owned()));
        };
        let PolicyQuestion { from, to, protocol, port } = question;
        let answer = engine.explain(from, to, protocol, port).await;
        let answer = answer.map_err(|e| BackendError::Internal(e.to_string()))?;
        answer.map_err(|e| BackendError::NotFound(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_told_on_their_policy() {
        let policy = PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: "shop".into(),
            name: "db".into(),
            uid: "u1".into(),
        };
        let problem = |field: &str| Problem {
            policy: policy.clone(),
            field: field.to_owned(),
            what: "no such port".to_owned(),
            hint: "write a number".to_owned(),
        };
        let all = by_policy(vec![problem("spec.ingress[0]"), problem("spec.ingress[1]")]);
        assert_eq!(all[&policy].len(), 2);
        assert_eq!(all[&policy][0].message, "spec.ingress[0]: no such port");
        let about = reference(&policy);
        assert_eq!(about.kind.as_deref(), Some("NetworkPolicy"));
        assert_eq!((about.namespace.as_deref(), about.uid.as_deref()), (Some("shop"), Some("u1")));
        let cluster =
            PolicyRef { kind: PolicyKind::ClusterNetworkPolicy, namespace: "".into(), ..policy };
        assert_eq!(reference(&cluster).namespace, None);
    }
}

//! What the feed says of itself. Pure.

use std::time::Instant;

use serde::Serialize;
use weft_proto::api::{Condition, Health};

use super::core::{Source, SourceState};
use crate::kube::watch::Failure;

/// How long watches may fail before it is worth a word.
const PATIENCE_S: u64 = 60;
/// How long a server may deny: one that has just started has not read its roles.
const DENIED_S: u64 = 20;

impl Source {
    /// As an operator knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LocalPods => "pods of this node",
            Self::OtherPods => "pods of other nodes",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Policies => "NetworkPolicies",
            Self::ClusterPolicies => "ClusterNetworkPolicies",
        }
    }

    /// Path of the collection, over all namespaces.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::LocalPods | Self::OtherPods => "/api/v1/pods",
            Self::Namespaces => "/api/v1/namespaces",
            Self::Nodes => "/api/v1/nodes",
            Self::Policies => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::ClusterPolicies => {
                "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
            }
        }
    }

    /// As rules of RBAC name it.
    pub(super) fn resource(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// What the agent's ClusterRole must have.
    fn rule(self) -> &'static str {
        match self {
            Self::LocalPods | Self::OtherPods => {
                "{apiGroups: [\"\"], resources: [pods], verbs: [get, list, watch]}"
            }
            Self::Namespaces => {
                "{apiGroups: [\"\"], resources: [namespaces], verbs: [get, list, watch]}"
            }
            Self::Nodes => "{apiGroups: [\"\"], resources: [nodes], verbs: [list, watch]}",
            Self::Policies => {
                "{apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, watch]}"
            }
            Self::ClusterPolicies => {
                "{apiGroups: [policy.networking.k8s.io], resources: [clusternetworkpolicies], \
                 verbs: [list, watch]}"
            }
        }
    }
}

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// What: `NetworkPolicies`, `pods of this node`, ….
    pub name: &'static str,
    /// Its first list is complete.
    pub complete: bool,
    /// Objects that count.
    pub objects: usize,
    /// Resource version up to which all is known.
    pub version: u64,
    /// Seconds since the server was last heard about it.
    pub heard_s: Option<u64>,
    /// Seconds for which it could not be followed.
    pub failing_s: Option<u64>,
    /// Why.
    pub why: Option<String>,
}

/// The feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FeedStatus {
    /// All that the API server knows and that can matter was handed over.
    pub synced: bool,
    /// What an earlier life of the agent knew is used instead; when it was true,
    /// in milliseconds since 1970.
    pub remembered_ms: Option<u64>,
    /// Collections that are followed.
    pub sources: Vec<SourceStatus>,
    /// What an operator should know.
    #[serde(skip)]
    pub conditions: Vec<Condition>,
}

pub(super) fn status(
    synced: bool,
    remembered_ms: Option<u64>,
    sources: &[SourceState],
    now: Instant,
) -> FeedStatus {
    let seconds = |then: Instant| now.saturating_duration_since(then).as_secs();
    FeedStatus {
        synced,
        remembered_ms,
        sources: sources
            .iter()
            .map(|s| SourceStatus {
                name: s.source.name(),
                complete: s.complete,
                objects: s.objects,
                version: s.version,
                heard_s: s.heard.map(seconds),
                failing_s: s.trouble.as_ref().map(|(since, _)| seconds(*since)),
                why: s.trouble.as_ref().map(|(_, failure)| words(failure)),
            })
            .collect(),
        conditions: conditions(state(synced, remembered_ms), sources, now),
    }
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::Expired(why) | Failure::Away(why) | Failure::Busy(why, _) => why.clone(),
        Failure::Denied(why) => format!("denied: {why}"),
        Failure::Absent => "not served by this API server".to_owned(),
    }
}

fn state(synced: bool, remembered_ms: Option<u64>) -> &'static str {
    match (synced, remembered_ms) {
        (true, _) => "policies are enforced as last seen",
        (_, Some(_)) => {
            "policies are enforced as known before the agent started, see `agent status policy`"
        }
        _ => "what was enforced before stays; new pods are isolated as POLICY_UNKNOWN says",
    }
}

fn conditions(state: &str, sources: &[SourceState], now: Instant) -> Vec<Condition> {
    let mut all = Vec::new();
    let lasts = |since: Instant, s: u64| now.saturating_duration_since(since).as_secs() >= s;
    let denied: Vec<&SourceState> = sources
        .iter()
        .filter(
            |s| matches!(s.trouble, Some((since, Failure::Denied(_))) if lasts(since, DENIED_S)),
        )
        .collect();
    if !denied.is_empty() {
        let names: Vec<_> = denied.iter().map(|s| s.source.name()).collect();
        let mut rules: Vec<_> = denied.iter().map(|s| s.source.rule()).collect();
        rules.dedup();
        all.push(Condition {
            health: Health::Degraded,
            reason: "PolicyDenied".to_owned(),
            message: format!(
                "the API server lets this agent not read {}; {state}",
                names.join(", ")
            ),
            hint: format!("add to ClusterRole weft: {}", rules.join(", ")),
        });
    }
    let away = sources
        .iter()
        .filter_map(|s| Some((s, s.trouble.as_ref()?)))
        .filter(|(_, (_, failure))| !matches!(failure, Failure::Denied(_)))
        .min_by_key(|(_, (since, _))| *since);
    if let Some((source, (since, failure))) = away
        && lasts(*since, PATIENCE_S)
    {
        let seconds = now.saturating_duration_since(*since).as_secs();
        all.push(Condition {
            health: Health::Degraded,
            reason: "PolicyStale".to_owned(),
            message: format!(
                "{} cannot be followed since {seconds} s ({}); {state}",
                source.source.name(),
                words(failure)
            ),
            hint: "bring the API server back, or the way to it; nothing else is needed".to_owned(),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn state(source: Source, trouble: Option<(Instant, Failure)>) -> SourceState {
        SourceState { source, complete: true, objects: 3, version: 7, trouble, heard: None }
    }

    #[test]
    fn a_missing_right_is_named_with_its_rule_once_it_lasts() {
        let since = Instant::now();
        let denied = || Some((since, Failure::Denied("forbidden".into())));
        let at = |s| {
            let sources = [state(Source::Policies, denied())];
            status(false, None, &sources, since + Duration::from_secs(s))
        };
        assert!(at(19).conditions.is_empty());
        let told = at(20);
        assert_eq!(told.conditions.len(), 1);
        let condition = &told.conditions[0];
        assert_eq!(condition.reason, "PolicyDenied");
        assert!(condition.message.contains("NetworkPolicies"), "{condition:?}");
        assert!(condition.hint.contains("networkpolicies"), "{condition:?}");
        assert_eq!(told.sources[0].why.as_deref(), Some("denied: forbidden"));
    }

    #[test]
    fn an_outage_is_told_after_a_while() {
        let since = Instant::now();
        let away = || Some((since, Failure::Away("refused".into())));
        let sources = [state(Source::Policies, away()), state(Source::LocalPods, None)];
        let at = |s| status(true, None, &sources, since + Duration::from_secs(s));
        assert!(at(59).conditions.is_empty());
        let told = at(61);
        assert_eq!(told.conditions[0].reason, "PolicyStale");
        assert_eq!(told.sources[0].failing_s, Some(61));
        assert!(told.sources[1].why.is_none());
    }
}

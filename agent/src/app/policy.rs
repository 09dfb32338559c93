//! Network policy, as the rest of the daemon sees it.

use weft_proto::api::{Condition, PolicyStatus};

use super::App;
use crate::api::backend::{BackendError, PolicyQuestion};
use crate::policy::engine::EngineHandle;
use crate::policy::explain::Explanation;
use crate::policy::feed::Feed;
use crate::status::policy;

/// What enforces policy, where it is enforced.
pub(super) struct Policy {
    /// The kernel's side.
    pub(super) engine: EngineHandle,
    /// The API server's side.
    pub(super) feed: Feed,
}

impl App {
    pub(super) fn policy_status(&self) -> Option<PolicyStatus> {
        let parts = self.policy.as_ref()?;
        Some(policy::of(parts.engine.report(), parts.feed.status()))
    }

    pub(super) fn policy_conditions(&self) -> Vec<Condition> {
        let Some(parts) = self.policy.as_ref() else { return Vec::new() };
        let mut all = parts.engine.conditions();
        all.extend(parts.feed.status().conditions);
        all
    }

    pub(super) async fn explain_policy(
        &self,
        question: PolicyQuestion,
    ) -> Result<Explanation, BackendError> {
        let Some(parts) = self.policy.as_ref() else {
            return Err(BackendError::NotFound(
                "network policy is not enforced: EXPECT_NPC=0, or this is not Kubernetes".to_owned(),
            ));
        };
        let PolicyQuestion { from, to, protocol, port } = question;
        let answer = parts.engine.explain(from, to, protocol, port).await;
        let answer = answer.map_err(|e| BackendError::Internal(e.to_string()))?;
        answer.map_err(|e| BackendError::NotFound(e.to_string()))
    }
}

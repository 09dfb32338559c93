//! Network policy: what feeds it, and what is told of it.

use weft_proto::api::{Condition, PolicyStatus};

use super::App;
use crate::api::backend::{BackendError, PolicyQuestion};
use crate::policy::explain::Explanation;
use crate::policy::feed::FeedStatus;
use crate::status::policy;

impl App {
    fn feed_status(&self) -> FeedStatus {
        self.feed.as_ref().map(crate::policy::feed::Feed::status).unwrap_or_default()
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
            return Err(BackendError::NotFound(
                "network policy is not enforced: EXPECT_NPC=0, or this is not Kubernetes"
                    .to_owned(),
            ));
        };
        let PolicyQuestion { from, to, protocol, port } = question;
        let answer = engine.explain(from, to, protocol, port).await;
        let answer = answer.map_err(|e| BackendError::Internal(e.to_string()))?;
        answer.map_err(|e| BackendError::NotFound(e.to_string()))
    }
}

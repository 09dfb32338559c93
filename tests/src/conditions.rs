//! Waiting for what a node says of itself.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_proto::api::{Condition, Status};

use crate::{Node, wait_until};

/// Longer than any pause between two looks at the API.
pub const SOON: Duration = Duration::from_secs(60);

/// The condition of this reason.
pub fn found(status: &Status, reason: &str) -> Option<Condition> {
    status.conditions.iter().find(|condition| condition.reason == reason).cloned()
}

/// Waits until the node says this; what it says.
pub fn wait_condition(node: &Node, reason: &str) -> Result<Condition> {
    let mut said = None;
    wait_until(&format!("{reason} on {}", node.plan.name), SOON, || {
        let status = node.status()?;
        said = found(&status, reason);
        if said.is_none() {
            bail!("it says {:?}", status.conditions);
        }
        Ok(true)
    })
    .with_context(|| node.log_tail())?;
    said.context("no condition")
}

/// Waits until it does not say so any more.
pub fn wait_no_condition(node: &Node, reason: &str) -> Result<()> {
    wait_until(&format!("no {reason} on {}", node.plan.name), SOON, || {
        Ok(found(&node.status()?, reason).is_none())
    })
    .with_context(|| node.log_tail())?;
    Ok(())
}

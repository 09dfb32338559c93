//! A few peers that joined, left, moved, or whose blocks are others: what that changes,
//! and nothing else is looked at.

use super::super::DataplaneError;
use super::super::intent::Intent;
use super::super::peers::{self, Change};
use super::super::plan::{Plan, plan_pods};
use super::Driver;

impl Driver {
    /// An intent that differs from the last one in peers and pods alone.
    pub(super) fn take_peers(&mut self, old: &Intent, new: &Intent) -> Result<(), DataplaneError> {
        let Some(changes) = peers::differing(&old.peers, &new.peers) else {
            return self.carry_out(false);
        };
        if changes.is_empty() {
            return self.carry_out(true);
        }
        let Some(mut plan) = self.plan_few(&changes, old, new) else {
            return self.carry_out(false);
        };
        let mut result = Ok(());
        if old.pods != new.pods {
            self.want_pods();
            let pods = plan_pods(&self.desired, &self.pods, &self.observed, new.settling);
            plan.ops.extend(pods.ops);
            // Rules first: no pod is reachable before its isolation.
            result = self.apply_rules().map(drop);
        }
        self.execute(&plan);
        self.clean = self.took(&plan);
        self.schedule_reap();
        result
    }

    /// The plan for these peers, if the rest is known to be in order.
    fn plan_few(&mut self, changes: &[Change<'_>], old: &Intent, new: &Intent) -> Option<Plan> {
        let behind = self.rules_behind || self.rules.tables != self.ruleset.tables;
        // The tunnel's MTU is another as soon as one peer's address is of IPv6.
        let ipv6 = |intent: &Intent| intent.peers.values().any(|peer| peer.underlay.is_ipv6());
        let any = |(_, old, new): &Change<'_>| {
            [old, new].into_iter().flatten().any(|peer| peer.underlay.is_ipv6())
        };
        if !self.clean || behind || (changes.iter().any(any) && ipv6(old) != ipv6(new)) {
            return None;
        }
        let facts = self.facts.as_ref()?;
        peers::change(changes, facts, &mut self.desired, &self.observed, new.settling)
    }
}

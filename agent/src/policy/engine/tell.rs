//! What the driver tells the rest of the agent: report and conditions.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weft_proto::api::{Condition, Health};

use super::driver::{Driver, Stage};
use super::report::{PodReport, PolicyReport};
use crate::dataplane::handle::lock;
use crate::policy::nft::LOG_GROUP;

/// Counters are read, and the report is made, this often at most.
const REPORT: Duration = Duration::from_secs(2);
/// After a change the report follows soon.
const SOON: Duration = Duration::from_millis(50);

impl Driver {
    pub(super) fn report_soon(&mut self) {
        let soon = Instant::now() + SOON;
        self.report_at = Some(self.report_at.map_or(soon, |at| at.min(soon)));
    }

    pub(super) fn report(&mut self) {
        self.report_at = Some(Instant::now() + REPORT);
        if let Err(error) = self.books.read(&mut self.nft, self.families) {
            tracing::debug!(%error, "counters not read");
        }
        let state = self.world.state();
        if let Stage::Following(tracker) = &self.stage {
            (self.table.sets, self.table.chains) = tracker.counts();
            self.table.subjects = tracker.subjects().len();
            self.table.elements = state.sets.values().map(|(_, members)| members.len()).sum();
        }
        if self.remembered && !matches!(self.stage, Stage::Following(_)) {
            (self.table.sets, self.table.chains) = (state.sets.len(), state.chains.len());
            self.table.subjects = state.subjects.len();
            self.table.elements = state.sets.values().map(|(_, members)| members.len()).sum();
        }
        let following = matches!(self.stage, Stage::Following(_));
        let pods = self.world.locals().into_iter().map(|status| {
            let subject = |ingress: bool| {
                let restricted = |ip: &IpAddr| match &self.stage {
                    Stage::Holding(held) if !self.remembered || held.keeps(*ip) => {
                        held.contains(*ip)
                    }
                    _ => state.subjects.get(ip).is_some_and(|s| {
                        if ingress { s.ingress.is_some() } else { s.egress.is_some() }
                    }),
                };
                status.addresses.iter().any(restricted)
            };
            PodReport {
                restricted_ingress: subject(true),
                restricted_egress: subject(false),
                refused_ingress: self.books.of(&status.addresses, true),
                refused_egress: self.books.of(&status.addresses, false),
                status,
            }
        });
        let report = PolicyReport {
            synced: self.synced,
            enforced: following,
            pods: pods.collect(),
            table: self.table.clone(),
            refused: self.books.refused(),
            established: *lock(&self.outcome),
            problems: self.world.problems(),
        };
        let conditions = self.conditions();
        let mut told = lock(&self.shared.told);
        told.report = report;
        told.conditions = conditions;
    }

    fn conditions(&self) -> Vec<Condition> {
        let mut out = Vec::new();
        if let Some(error) = &self.error {
            out.push(Condition {
                health: Health::Broken,
                reason: "PolicyRefused".to_owned(),
                message: format!("the kernel does not hold the policy: {error}"),
                hint: "what was enforced before stays; weft tries again by itself; new pods wait"
                    .to_owned(),
            });
        }
        if let Some(why) = &self.log_trouble {
            out.push(Condition {
                health: Health::Ok,
                reason: "PolicyLog".to_owned(),
                message: format!("refused packets are not logged: netlink log group {LOG_GROUP}: {why}"),
                hint: "policy is enforced and counted; for the log: modprobe nfnetlink_log, and let no other program use that group".to_owned(),
            });
        }
        out
    }
}

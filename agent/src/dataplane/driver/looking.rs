//! The thorough way: the whole kernel is read, and brought to what should be there.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::DataplaneError;
use super::super::cleanup::failed;
use super::super::facts::underlay;
use super::super::fights::repair;
use super::super::netlink::socket::Refused;
use super::super::nft::{forward, transaction};
use super::super::plan::plan;
use super::super::{legacy, observe, sysctl};
use super::{Driver, rules_failed};

/// A look is broken off for what comes in so many times in a row, then it is waited for.
const BREAK_OFF: u32 = 3;

impl Driver {
    /// The thorough way: what is there, what should be, the difference.
    /// False if it was broken off, since there is something to do that is waited for.
    pub(super) fn look(&mut self) -> Result<bool, DataplaneError> {
        let patient = self.broken_off >= BREAK_OFF;
        if !self.observe(patient)? {
            self.broken_off += 1;
            return Ok(false);
        }
        self.broken_off = 0;
        let churn = std::mem::replace(&mut self.looked_for, self.generation) != self.generation;
        self.want();
        let settling = self.intent.as_ref().is_none_or(|intent| intent.settling);
        let plan = plan(&self.desired, &self.pods, &self.observed, settling);
        self.conditions.insert("plan", plan.conditions.clone());
        let repaired = self.apply_rules();
        let done = self.execute(&plan);
        self.clean = self.took(&plan);
        self.schedule_reap();
        if let Ok(Some(what)) = &repaired {
            self.note_repair(1, what);
            self.fights.note(Instant::now(), [((*what).to_owned(), 0)]);
        }
        if let Some(last) = done.last() {
            self.note_repair(done.len(), &last.to_string());
            let links = &self.observed.links;
            let repairs = done.iter().filter_map(|op| repair(op, &self.pods, links, churn));
            self.fights.note(Instant::now(), repairs);
        }
        let quiet = plan.ops.is_empty() && matches!(repaired, Ok(None));
        self.busy = if quiet { 0 } else { self.busy + 1 };
        self.watch_forward();
        let fight = self.fights.condition(Instant::now());
        self.conditions.insert("fight", fight.into_iter().collect());
        self.report(quiet);
        repaired.map(|_| true)
    }

    /// What drops pod traffic behind our back.
    fn watch_forward(&mut self) {
        match self.open_forward() {
            Ok(found) => {
                let mut all = forward::conditions(forward::blockers(&found, &self.desired.ranges));
                if self.desired.ranges.iter().any(|range| range.addr().is_ipv4()) {
                    all.extend(legacy::conditions());
                }
                self.conditions.insert("forward", all);
            }
            Err(error) => tracing::debug!(%error, "others' forward chains not read"),
        }
    }

    /// Keeps our accepts in iptables' FORWARD chain; what is there afterwards.
    fn open_forward(&mut self) -> Result<Vec<forward::Chain>, Refused> {
        let found = forward::look(&mut self.nft, &self.desired.ranges)?;
        if self.desired.ranges.is_empty() {
            // Nothing is known yet of what should be there.
            return Ok(found);
        }
        let edits = forward::edits(&found, &self.desired.ranges, self.config.forward_accept);
        if edits.is_empty() {
            return Ok(found);
        }
        forward::apply(&mut self.nft, &edits)?;
        let what = "accepts in iptables' FORWARD chain";
        self.note_repair(edits.len(), what);
        self.fights.note(Instant::now(), [(what.to_owned(), 0)]);
        forward::look(&mut self.nft, &self.desired.ranges)
    }

    fn note_repair(&mut self, count: usize, what: &str) {
        tracing::info!(count, %what, "repaired");
        self.repairs += count as u64;
        self.last_repair = Some(what.to_owned());
    }

    /// Reads all there is; false, and nothing is known that was not, if it was broken off.
    pub(super) fn observe(&mut self, patient: bool) -> Result<bool, DataplaneError> {
        let Self { kernel, woken, .. } = self;
        let give_up = || !patient && is_woken(woken);
        let observed =
            observe::observe(kernel, give_up).map_err(|e| failed("read the kernel's state", &e))?;
        let Some(mut observed) = observed else { return Ok(false) };
        let rules = transaction::observe(&mut self.nft)
            .map_err(|e| rules_failed("read the rule set", &e.to_string()))?;
        let mut paths = vec!["net/ipv4/conf/all/rp_filter".to_owned()];
        if let Some((dev, _)) = underlay(&observed.host, self.config.underlay).first() {
            paths.push(format!("net/ipv6/conf/{dev}/accept_ra"));
        }
        observed.sysctls = sysctl::read(paths);
        (self.observed, self.rules) = (observed, rules);
        self.clean = false;
        Ok(true)
    }
}

/// Something has come in that is not taken yet.
fn is_woken(woken: &UnixStream) -> bool {
    let mut fds = [PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

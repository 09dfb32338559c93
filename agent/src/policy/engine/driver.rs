//! The thread that owns the world and the table.
//!
//! It sleeps until changes, a notification or the next look is due. Changes are
//! applied at once, as one transaction, against what it knows to be in the
//! kernel; if that fails, and when others touch the table, it looks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_proto::api::PolicyTable;

use super::books::Books;
use super::handle::{Applied, Command, Shared};
use super::{PolicyConfig, PolicyError};
use crate::dataplane::events::{Events, Source};
use crate::dataplane::handle::lock;
use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::policy::conntrack::{self, Job};
use crate::policy::nflog::Reader;
use crate::policy::nft::elements::Fam;
use crate::policy::nft::hold::Held;
use crate::policy::nft::layout::{Families, layout};
use crate::policy::nft::model::{Edit, Observed, diff};
use crate::policy::nft::track::Tracker;
use crate::policy::nft::{TABLE, kernel};
use crate::policy::objects::{LocalPod, PodRef, Text};
use crate::policy::state::Delta;
use crate::policy::world::{Change, Unknown, World};

/// Events are gathered this long.
const GATHER: Duration = Duration::from_millis(20);
/// Somebody who undoes our repairs is not fought at full speed.
const GATHER_MAX: Duration = Duration::from_millis(640);
/// Whether anybody changed any table.
const GLANCE: Duration = Duration::from_secs(30);
/// A full look catches what no event told, if somebody changed something.
const LOOK: Duration = Duration::from_secs(300);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// How far the kernel is.
pub(super) enum Stage {
    /// No lease is known yet: nothing is touched.
    Waiting,
    /// The API server has not told everything: pods come and go. See
    /// [`Driver::remembered`].
    Holding(Held),
    /// The kernel follows the world.
    Following(Tracker),
}

pub(super) struct Driver {
    pub(super) config: PolicyConfig,
    pub(super) families: Families,
    pub(super) shared: Arc<Shared>,
    woken: UnixStream,
    pub(super) nft: Requests,
    events: Events,
    log: Option<Reader>,
    pub(super) log_trouble: Option<String>,
    established: Option<Sender<Job>>,
    pub(super) outcome: Arc<std::sync::Mutex<super::report::Established>>,
    pub(super) world: World,
    pub(super) stage: Stage,
    /// The last picture of the table, while holding.
    observed: Observed,
    local: BTreeMap<Text, LocalPod>,
    /// Leases that came in this life, while holding.
    new: BTreeSet<Text>,
    pub(super) synced: bool,
    /// The world is what an earlier life remembered of it.
    pub(super) remembered: bool,
    generation: u64,
    pub(super) table: PolicyTable,
    pub(super) books: Books,
    pub(super) error: Option<PolicyError>,
    look_at: Instant,
    glance_at: Instant,
    looked_at: Instant,
    /// Generation of the kernel's rules when they were last known to be right.
    seen: Option<u32>,
    pub(super) report_at: Option<Instant>,
    /// What is found to differ from now on is somebody else's doing.
    settled: bool,
    fights: u32,
    stop: bool,
}

impl Driver {
    pub(super) fn new(
        config: PolicyConfig,
        shared: Arc<Shared>,
        woken: UnixStream,
    ) -> Result<Self, PolicyError> {
        let open = |what: &'static str| {
            move |e: std::io::Error| PolicyError::Netlink {
                what: what.to_owned(),
                why: e.to_string(),
            }
        };
        // Subscribe first, then look: nothing falls between.
        let events = Events::open(Source::Nftables(TABLE)).map_err(open("listen to nftables"))?;
        let mut nft = Requests::open(NETLINK_NETFILTER).map_err(open("open a netfilter socket"))?;
        let observed = kernel::read(&mut nft).map_err(|e| refused("read the table", &e))?;
        let outcome = Arc::new(std::sync::Mutex::default());
        let now = Instant::now();
        let mut driver = Self {
            families: Families { v4: config.settings.ipv4, v6: config.settings.ipv6 },
            world: World::new(config.settings),
            established: None,
            outcome,
            config,
            shared,
            woken,
            nft,
            events,
            log: None,
            log_trouble: None,
            stage: Stage::Waiting,
            observed,
            local: BTreeMap::new(),
            new: BTreeSet::new(),
            synced: false,
            remembered: false,
            generation: 0,
            table: PolicyTable::default(),
            books: Books::default(),
            error: None,
            look_at: now + LOOK,
            glance_at: now + GLANCE,
            looked_at: now,
            seen: None,
            report_at: Some(now),
            settled: false,
            fights: 0,
            stop: false,
        };
        driver.table.in_sync = true;
        driver.open_log();
        driver.established = Some(driver.watch_established().map_err(open("start a thread"))?);
        Ok(driver)
    }

    fn open_log(&mut self) {
        match Reader::open() {
            Ok(reader) => (self.log, self.log_trouble) = (Some(reader), None),
            Err(error) => self.log_trouble = Some(error.to_string()),
        }
    }

    /// The thread that ends connections asks this one which.
    fn watch_established(&self) -> std::io::Result<Sender<Job>> {
        let (shared, outcome) = (Arc::downgrade(&self.shared), Arc::clone(&self.outcome));
        let judge = move |entries| {
            let (tell, told) = std::sync::mpsc::channel();
            if let Some(shared) = shared.upgrade() {
                lock(&shared.inbox).commands.push(Command::Judge(entries, tell));
                shared.wake();
            }
            told.recv().unwrap_or_default()
        };
        conntrack::start(Box::new(judge), move |one| {
            let mut all = lock(&outcome);
            all.looked_at += one.looked_at;
            all.dropped += one.dropped;
            all.failed += one.failed;
        })
    }

    pub(super) fn run(mut self) {
        while !self.stop {
            if let Err(error) = self.turn() {
                self.failed(error);
            }
        }
    }

    fn failed(&mut self, error: PolicyError) {
        tracing::error!(%error, "policy not applied");
        self.table.in_sync = false;
        self.table.errors = vec![error.to_string()];
        self.error = Some(error);
        self.look_at = self.look_at.min(Instant::now() + RETRY);
        self.report_soon();
    }

    fn turn(&mut self) -> Result<(), PolicyError> {
        let [woken, events, log] = self.wait()?;
        if woken {
            self.inbox();
        }
        let now = Instant::now();
        if events && self.events.drain(&[self.nft.port()], &[], &[]) {
            let gather = GATHER * 2_u32.saturating_pow(self.fights.min(5));
            self.look_at = self.look_at.min(now + gather.min(GATHER_MAX));
        }
        if log {
            self.tell_drops(now);
        }
        if now >= self.glance_at {
            self.glance_at = now + GLANCE;
            if self.log.is_none() {
                self.open_log();
            }
            let unchanged =
                self.seen.is_some() && kernel::generation(&mut self.nft).ok() == self.seen;
            if !unchanged && now.duration_since(self.looked_at) >= LOOK {
                self.look_at = now;
            }
        }
        if now >= self.look_at {
            self.look_at = now + LOOK * 2;
            self.look()?;
        }
        if self.report_at.is_some_and(|at| now >= at) {
            self.report();
        }
        Ok(())
    }

    fn wait(&self) -> Result<[bool; 3], PolicyError> {
        let due = self.look_at.min(self.glance_at);
        let due = self.report_at.map_or(due, |at| at.min(due));
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up: waking a little early would mean waking twice.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let timeout = if left.is_zero() { PollTimeout::ZERO } else { PollTimeout::from(millis) };
        let events = borrow(self.events.fd());
        let log = borrow(self.log.as_ref().map_or(self.events.fd(), Reader::fd));
        let mut fds =
            [self.woken.as_fd(), events, log].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => {
                let why = e.to_string();
                return Err(PolicyError::Netlink { what: "wait for events".to_owned(), why });
            }
        }
        let [woken, events, log] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok([woken, events, log && self.log.is_some()])
    }

    fn inbox(&mut self) {
        let mut sink = [0; 64];
        while matches!((&self.woken).read(&mut sink), Ok(n) if n == sink.len()) {}
        let (changes, earlier, local, synced, remembered, generation, commands) = {
            let mut inbox = lock(&self.shared.inbox);
            (
                std::mem::take(&mut inbox.changes),
                inbox.earlier.take(),
                inbox.local.take(),
                inbox.synced.take(),
                inbox.remembered,
                inbox.generation,
                std::mem::take(&mut inbox.commands),
            )
        };
        if generation != self.generation {
            self.generation = generation;
            self.remembered = remembered;
            let gone = earlier.map(|pods| self.take_local(&pods)).unwrap_or_default();
            if let Err(error) = self.take(changes, local, synced, gone) {
                self.failed(error);
            }
            self.tell_applied();
        }
        for command in commands {
            match command {
                Command::Explain(q) => {
                    let answer = self.world.explain(&q.from, &q.to, q.protocol, q.port);
                    let _ = q.tell.send(answer);
                }
                Command::Judge(mut entries, tell) => {
                    let state = self.world.state();
                    let following = matches!(self.stage, Stage::Following(_));
                    entries.retain(|e| following && !state.verdict(e.from, e.to, e.flow).allowed());
                    let _ = tell.send(entries);
                }
                Command::Stop => self.stop = true,
            }
        }
    }

    fn tell_applied(&self) {
        let mut unknown = BTreeMap::<Text, PodRef>::new();
        let state = self.world.state();
        for (id, pod) in &self.local {
            let Some(name) = &pod.pod else { continue };
            // What no policy could touch need not be known.
            let open = self.config.settings.unknown == Unknown::Allow;
            let closed = || pod.addresses.iter().any(|ip| state.subjects.contains_key(ip));
            if !self.world.is_known(id) && (open || closed()) {
                unknown.insert(id.clone(), name.clone());
            }
        }
        self.shared.applied.send_replace(Applied {
            generation: self.generation,
            error: self.error.clone(),
            unknown: Arc::new(unknown),
            judged: self.remembered || matches!(self.stage, Stage::Following(_)),
        });
    }

    /// The quick way: no look at the kernel.
    fn take(
        &mut self,
        mut changes: Vec<Change>,
        local: Option<Vec<LocalPod>>,
        synced: Option<bool>,
        mut gone: BTreeSet<IpAddr>,
    ) -> Result<(), PolicyError> {
        self.report_soon();
        if let Some(pods) = local {
            gone.extend(self.take_local(&pods));
            changes.insert(0, Change::AllLocal(pods));
        }
        self.synced = synced.unwrap_or(self.synced);
        self.place_new();
        let delta =
            if changes.is_empty() { Delta::default() } else { self.world.apply_all(changes) };
        let mut job = Job { gone, ..Job::default() };
        let known = self.synced && matches!(self.stage, Stage::Holding(_));
        let result = match &mut self.stage {
            Stage::Following(tracker) => {
                let edit = tracker.edit(&delta, self.families);
                if self.config.drop_established {
                    job.changed = tracker.affected(&delta);
                }
                if self.table.in_sync { self.write(&edit) } else { self.look() }
            }
            _ if known => {
                self.stage = Stage::Following(Tracker::of(self.world.state()));
                if self.config.drop_established {
                    job.changed = self.world.state().subjects.keys().copied().collect();
                }
                self.observed = Observed::default();
                self.settled = false;
                tracing::info!(
                    restricted = self.world.state().subjects.len(),
                    "policy is known; the kernel follows it"
                );
                self.look()
            }
            Stage::Holding(_) => self.hold(),
            Stage::Waiting => Ok(()),
        };
        if let (false, Some(established)) = (job.is_empty(), &self.established) {
            let _ = established.send(job);
        }
        result?;
        match self.foreign_family() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Notes the leases; yields addresses that are no pod's any more.
    fn take_local(&mut self, pods: &[LocalPod]) -> BTreeSet<IpAddr> {
        let new: BTreeMap<Text, LocalPod> =
            pods.iter().map(|pod| (pod.id.clone(), pod.clone())).collect();
        let old = std::mem::replace(&mut self.local, new);
        let holder = |of: &BTreeMap<Text, LocalPod>| -> BTreeMap<IpAddr, Text> {
            let each = |(id, pod): (&Text, &LocalPod)| {
                pod.addresses.iter().map(|ip| (*ip, id.clone())).collect::<Vec<_>>()
            };
            of.iter().flat_map(each).collect()
        };
        let holders = holder(&self.local);
        // Also one that another pod got in the meantime.
        let mut gone: BTreeSet<IpAddr> = holder(&old)
            .into_iter()
            .filter(|(ip, id)| holders.get(ip) != Some(id))
            .map(|(ip, _)| ip)
            .collect();
        let now: BTreeSet<IpAddr> = holders.into_keys().collect();
        if matches!(self.stage, Stage::Waiting) {
            // Leases of an earlier life keep what they have, also if that is nothing.
            let mut held = Held::of(&self.observed);
            gone.extend(held.keep(&now));
            self.stage = Stage::Holding(held);
        } else {
            let ids = self.local.iter().filter(|(id, pod)| old.get(*id) != Some(*pod));
            self.new.extend(ids.map(|(id, _)| id.clone()));
        }
        self.new.retain(|id| self.local.contains_key(id));
        if let Stage::Holding(held) = &mut self.stage {
            gone.iter().for_each(|ip| held.renew(*ip));
            gone.extend(held.keep(&now));
        }
        gone
    }

    /// What pods that came in this life may do, while holding.
    fn place_new(&mut self) {
        let Stage::Holding(held) = &mut self.stage else { return };
        let closed = self.config.settings.unknown == Unknown::Deny;
        for pod in self.new.iter().filter_map(|id| self.local.get(id)) {
            for ip in &pod.addresses {
                if self.remembered {
                    held.renew(*ip);
                } else if closed && pod.pod.is_some() && !held.contains(*ip) {
                    held.close(*ip);
                }
            }
        }
    }

    /// An address that no chain can be made for.
    fn foreign_family(&self) -> Option<PolicyError> {
        let all = self.local.values().flat_map(|pod| pod.addresses.iter());
        let fam = all.map(|ip| Fam::of(*ip)).find(|fam| !self.families.has(*fam))?;
        Some(PolicyError::Family(if fam.is_v6() { "IPv6" } else { "IPv4" }))
    }

    fn hold(&mut self) -> Result<(), PolicyError> {
        let Stage::Holding(held) = &self.stage else { return Ok(()) };
        let edit = self.held_edit(held, &self.observed);
        self.write(&edit)?;
        self.observed.apply(&edit);
        self.settled = true;
        Ok(())
    }

    fn held_edit(&self, held: &Held, observed: &Observed) -> Edit {
        if self.remembered {
            held.edit_with(&layout(self.world.state(), self.families), observed)
        } else {
            held.edit(observed)
        }
    }

    /// One transaction. What failed is found out by a look.
    fn write(&mut self, edit: &Edit) -> Result<(), PolicyError> {
        if edit.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.transact(edit) {
            tracing::debug!(%error, "the table is not as it was left");
            return self.look();
        }
        Ok(())
    }

    fn transact(&mut self, edit: &Edit) -> Result<(), Refused> {
        let began = Instant::now();
        kernel::write(&mut self.nft, edit)?;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.table.transactions += 1;
        self.table.last_us = took;
        self.table.longest_us = self.table.longest_us.max(took);
        self.seen = None;
        tracing::debug!(elements = edit.elements(), us = took, "transaction");
        Ok(())
    }

    /// The thorough way: what is there, what should be, the difference.
    fn look(&mut self) -> Result<(), PolicyError> {
        self.looked_at = Instant::now();
        if matches!(self.stage, Stage::Waiting) {
            self.observed = self.read()?;
            return Ok(());
        }
        // A transaction that others' changes overtook is made again.
        for last in [false, false, true] {
            let observed = self.read()?;
            let seen = kernel::generation(&mut self.nft).ok();
            let edit = match &self.stage {
                Stage::Holding(held) => self.held_edit(held, &observed),
                _ => diff(&layout(self.world.state(), self.families), &observed),
            };
            let quiet = edit.is_empty();
            let holding = matches!(self.stage, Stage::Holding(_));
            let result = if quiet { Ok(()) } else { self.transact(&edit) };
            match result {
                Ok(()) => {
                    if holding {
                        self.observed = observed;
                        self.observed.apply(&edit);
                    }
                    if quiet {
                        self.seen = seen;
                        self.fights = 0;
                    } else {
                        self.fights += 1;
                        self.table.repairs += u64::from(self.settled);
                        tracing::info!(
                            reset = edit.reset,
                            elements = edit.elements(),
                            "table brought up to date"
                        );
                    }
                    self.settled = true;
                    self.table.in_sync = true;
                    self.table.errors.clear();
                    if self.error.take().is_some() {
                        self.tell_applied();
                    }
                    self.report_soon();
                    return Ok(());
                }
                Err(error) if last => return Err(refused("bring the table up to date", &error)),
                Err(error) => tracing::debug!(%error, "once more"),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Observed, PolicyError> {
        kernel::read(&mut self.nft).map_err(|e| refused("read the table", &e))
    }

    fn tell_drops(&mut self, now: Instant) {
        let drops = self.log.as_mut().map(Reader::read).unwrap_or_default();
        for drop in drops {
            self.books.tell(&self.world, drop, now);
        }
    }
}

fn refused(what: &str, why: &Refused) -> PolicyError {
    PolicyError::Nftables { what: format!("table {TABLE}: {what}"), why: why.to_string() }
}

#[allow(unsafe_code, reason = "netlink-sys has no AsFd")]
fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: it belongs to a socket of the driver, which outlives the poll.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

//! The thread that owns the kernel side.
//!
//! It sleeps until an intent, a kernel event or the next full look is due.
//! An intent is applied at once against the last picture of the kernel; events
//! are gathered for a moment, then the kernel is looked at as a whole.

mod looking;
mod peering;
mod quick;
mod reaping;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_proto::api::{Condition, Health};
use weft_proto::names::{MIN_MTU, NFT_TABLE, VXLAN};

use super::apply::{Indexes, OpError, apply};
use super::cleanup::failed;
use super::desired::{
    Desired, DesiredPods, NodeFacts, condition, desired, desired_pods, has_ports,
};
use super::events::{Events, Source};
use super::facts::{Mtu, is_ours, node_facts, underlay};
use super::fights::Fights;
use super::handle::{Applied, Command, Inbox, Shared, WiredPod, lock};
use super::intent::Intent;
use super::model::{Observed, Op};
use super::netlink::Kernel;
use super::netlink::socket::Requests;
use super::nft::ruleset::{Elements, Family, Ruleset, Wanted, elements, ruleset};
use super::nft::transaction::{self, ObservedRules};
use super::plan::{Plan, plan, plan_pods};
use super::{DataplaneConfig, DataplaneError, observe, sysctl};
use reaping::Reaping;

/// Events are gathered this long.
const GATHER: Duration = Duration::from_millis(20);
/// Somebody who undoes our repairs is not fought at full speed.
const GATHER_MAX: Duration = Duration::from_millis(640);
/// A full look catches what no event told.
const LOOK: Duration = Duration::from_secs(30);
/// A change that the kernel refused is tried again after this.
const RETRY: Duration = Duration::from_secs(2);
/// Pods with host ports are often replaced: their chains outlive them by this.
const PORTS_STAY: Duration = Duration::from_secs(60);

pub(crate) struct Driver {
    config: DataplaneConfig,
    shared: Arc<Shared>,
    woken: UnixStream,
    kernel: Kernel,
    nft: Requests,
    route_events: Events,
    nft_events: Events,
    intent: Option<Arc<Intent>>,
    /// The one before, until what the last one changed is in the kernel: to free it takes
    /// the longer the more peers there are.
    former: Option<Arc<Intent>>,
    generation: u64,
    observed: Observed,
    /// Nothing was foreign, and the kernel took everything, when it was last brought to
    /// what is desired of peers: as far as is known it holds that.
    clean: bool,
    facts: Option<NodeFacts>,
    rules: ObservedRules,
    desired: Desired,
    pods: DesiredPods,
    ruleset: Ruleset,
    elements: Elements,
    /// The kernel refused elements: only the whole rule set will do.
    rules_behind: bool,
    /// The rule set has the chains for host ports.
    port_chains: bool,
    /// They stay until then, also without any.
    ports_until: Instant,
    mtu: Mtu,
    /// Conditions by where they come from.
    conditions: BTreeMap<&'static str, Vec<Condition>>,
    errors: Vec<String>,
    /// Something that the report tells was done since it was last cleared.
    news: bool,
    repairs: u64,
    last_repair: Option<String>,
    look_at: Instant,
    /// Events said that a look is due: until then no more need be read.
    gathering: bool,
    reap_at: Option<Instant>,
    reaping: Option<Reaping>,
    /// Looks in a row that had to repair something.
    busy: u32,
    fights: Fights,
    /// The generation at the last look.
    looked_for: u64,
    /// How long the last look took.
    cost: Duration,
    /// Looks in a row that were broken off.
    broken_off: u32,
    stop: bool,
}

impl Driver {
    pub(crate) fn new(
        config: DataplaneConfig,
        shared: Arc<Shared>,
        woken: UnixStream,
    ) -> Result<Self, DataplaneError> {
        let open = |what: &'static str| move |e: std::io::Error| failed(what, &e.into());
        // Subscribe first, then look: nothing falls between.
        let mut driver = Self {
            route_events: Events::open(Source::Route)
                .map_err(open("listen to links and routes"))?,
            nft_events: Events::open(Source::Nftables(NFT_TABLE))
                .map_err(open("listen to nftables"))?,
            kernel: Kernel::open().map_err(open("open a route socket"))?,
            nft: Requests::open(NETLINK_NETFILTER).map_err(open("open a netfilter socket"))?,
            config,
            shared,
            woken,
            intent: None,
            former: None,
            generation: 0,
            observed: Observed::default(),
            clean: false,
            facts: None,
            rules: ObservedRules::default(),
            desired: Desired::default(),
            pods: DesiredPods::default(),
            ruleset: Ruleset::default(),
            elements: Elements::new(),
            rules_behind: false,
            port_chains: false,
            ports_until: Instant::now(),
            mtu: Mtu { value: 0, source: String::new() },
            conditions: BTreeMap::new(),
            errors: Vec::new(),
            news: false,
            repairs: 0,
            last_repair: None,
            look_at: Instant::now() + LOOK,
            gathering: false,
            reap_at: None,
            reaping: None,
            busy: 0,
            fights: Fights::default(),
            looked_for: 0,
            cost: Duration::ZERO,
            broken_off: 0,
            stop: false,
        };
        driver.observe(true)?;
        driver.want();
        driver.report(false);
        Ok(driver)
    }

    pub(crate) fn run(mut self) {
        while !self.stop {
            if let Err(error) = self.turn() {
                tracing::error!(%error, "data plane");
                self.errors = vec![error.to_string()];
                self.report(false);
                self.look_at = Instant::now() + RETRY;
            }
        }
    }

    fn turn(&mut self) -> Result<(), DataplaneError> {
        let [woken, route, nft] = self.wait()?;
        if woken {
            self.inbox();
        }
        let changed = (route || nft) && self.hear([route, nft]);
        let now = Instant::now();
        if changed {
            self.gathering = true;
            // Looking takes at most a tenth of the time, however busy others are.
            let gather = GATHER * 2_u32.saturating_pow(self.busy.min(5));
            let gather = gather.max(self.cost * 9).min(GATHER_MAX);
            self.look_at = self.look_at.min(now + gather);
        }
        if now >= self.look_at {
            self.look_at = now + LOOK;
            // What was said before the look, it sees.
            if std::mem::take(&mut self.gathering) {
                self.hear([true, true]);
            }
            if self.look()? {
                self.cost = now.elapsed();
            } else {
                self.look_at = now;
            }
        }
        if self.reap_at.is_some_and(|at| now >= at) {
            self.reap();
        }
        Ok(())
    }

    /// Reads the events that wait; true if one is a reason to look.
    fn hear(&mut self, [route, nft]: [bool; 2]) -> bool {
        let own = [self.kernel.raw.port(), self.kernel.rtnl.port(), self.nft.port()];
        let devices = self.devices();
        let ranges = &self.desired.ranges;
        let route = route && self.route_events.drain(&own, &devices, ranges);
        let nft = nft && self.nft_events.drain(&own, &devices, ranges);
        route || nft
    }

    /// Which have something to say: the inbox, and the events unless a look is due anyway.
    /// An attach is some thirty events; waking for each would slow it down.
    fn wait(&self) -> Result<[bool; 3], DataplaneError> {
        let due = self.reap_at.map_or(self.look_at, |at| at.min(self.look_at));
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up: waking a little early would mean waking twice.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let [route, nft] = borrow([self.route_events.fd(), self.nft_events.fd()]);
        let mut fds = [self.woken.as_fd(), route, nft].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let some = if self.gathering { &mut fds[..1] } else { &mut fds[..] };
        let timeout = if left.is_zero() { PollTimeout::ZERO } else { PollTimeout::from(millis) };
        match poll(some, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(failed("wait for events", &std::io::Error::from(e).into())),
        }
        Ok(fds.map(|fd| fd.any().unwrap_or(false)))
    }

    fn inbox(&mut self) {
        let mut sink = [0; 64];
        while matches!((&self.woken).read(&mut sink), Ok(n) if n == sink.len()) {}
        let (intent, changes, generation, commands) = {
            let mut inbox = lock(&self.shared.inbox);
            let Inbox { intent, changes, generation, commands } = &mut *inbox;
            (intent.take(), std::mem::take(changes), *generation, std::mem::take(commands))
        };
        if let Some(mut intent) = intent {
            quick::change(Arc::make_mut(&mut intent), &changes);
            self.settle(generation, false, |driver| driver.take_intent(&intent));
            self.former = None;
        } else if !changes.is_empty() {
            self.settle(generation, true, |driver| driver.take_changes(&changes));
        }
        for command in commands {
            match command {
                Command::Wired(tell) => {
                    let _ = tell.send(self.wired());
                }
                Command::Stop => self.stop = true,
            }
        }
    }

    /// Applies something, and tells whoever waits for it how that went. The report takes the
    /// longer the more pods there are: what was `quick` and changed nothing that only we know
    /// leaves it to the look that follows every attach and release.
    fn settle(
        &mut self,
        generation: u64,
        quick: bool,
        apply: impl FnOnce(&mut Self) -> Result<(), DataplaneError>,
    ) {
        self.news = false;
        let result = apply(self).err();
        self.generation = generation;
        self.rules_behind = result.is_some();
        if let Some(error) = &result {
            tracing::error!(%error, "rules not applied");
            self.look_at = self.look_at.min(Instant::now() + RETRY);
        }
        if !quick || self.news || result.is_some() {
            self.report(false);
        }
        self.shared.applied.send_replace(Applied { generation, result });
    }

    /// The quick way: no look at the kernel.
    fn take_intent(&mut self, intent: &Arc<Intent>) -> Result<(), DataplaneError> {
        let alike = self.intent.as_ref().filter(|old| {
            old.ranges == intent.ranges
                && old.own == intent.own
                && old.settling == intent.settling
                && has_ports(old) == has_ports(intent)
        });
        let alike = alike.map(Arc::clone);
        if self.intent.as_ref().is_none_or(|old| old.ranges != intent.ranges) {
            // What others' rules do to the range is not known yet.
            self.look_at = Instant::now();
        }
        self.former = self.intent.replace(Arc::clone(intent));
        self.wait_for_reaper();
        match alike {
            Some(old) => self.take_peers(&old, intent),
            None => self.carry_out(false),
        }
    }

    /// Brings the kernel from the last picture to what the intent says.
    fn carry_out(&mut self, only_pods: bool) -> Result<(), DataplaneError> {
        let settling = self.intent.as_ref().is_none_or(|intent| intent.settling);
        let plan = if only_pods {
            self.want_pods();
            plan_pods(&self.desired, &self.pods, &self.observed, settling)
        } else {
            self.want();
            let plan = plan(&self.desired, &self.pods, &self.observed, settling);
            self.conditions.insert("plan", plan.conditions.clone());
            plan
        };
        // Rules first: no pod is reachable before its isolation.
        let result = self.apply_rules().map(|_| ());
        self.execute(&plan);
        if !only_pods {
            self.clean = self.took(&plan);
        }
        self.schedule_reap();
        result
    }

    /// Computes everything that should be there.
    fn want(&mut self) {
        let intent = self.intent.clone().unwrap_or_default();
        let ipv6 = intent.peers.values().any(|peer| peer.underlay.is_ipv6());
        let (facts, mtu) = node_facts(&self.config, &self.observed, ipv6);
        let mut conditions = Vec::new();
        if mtu.value < MIN_MTU {
            conditions.push(condition(
                "MtuTooSmall",
                format!("overlay MTU {} ({}) is below {MIN_MTU}", mtu.value, mtu.source),
                "raise the MTU of the underlay device",
            ));
        }
        if facts.underlay.is_empty() {
            let (message, hint) = match self.config.underlay {
                Some(address) => (
                    format!("the underlay address {address} is not on this node any more"),
                    "give it back to the node, or set NODE_IP to the new one and restart the \
                     agent; without NODE_IP the agent follows by itself",
                ),
                None => (
                    "no underlay address found on this node".to_owned(),
                    "give the node an address and a default route",
                ),
            };
            conditions.push(condition("NoUnderlay", message, hint));
        }
        self.mtu = mtu;
        self.desired = desired(&intent, &facts);
        conditions.append(&mut self.desired.conditions);
        self.conditions.insert("intent", conditions);
        let missing: Vec<String> = self
            .desired
            .sysctls
            .keys()
            .filter(|path| !self.observed.sysctls.contains_key(*path))
            .cloned()
            .collect();
        self.observed.sysctls.extend(sysctl::read(missing));
        let underlay: Vec<_> = facts.underlay.iter().map(IpNet::addr).collect();
        self.facts = Some(facts);
        if !intent.ranges.is_empty() {
            let now = Instant::now();
            if has_ports(&intent) {
                self.ports_until = now + PORTS_STAY;
            }
            // While settling, nothing of an earlier life goes.
            let earlier = || self.rules.elements.keys().any(|(family, ..)| *family == Family::Inet);
            self.port_chains = now < self.ports_until || intent.settling && earlier();
            self.ruleset = ruleset(Wanted {
                ranges: &intent.ranges,
                masquerade: self.config.masquerade,
                host_ports: self.port_chains,
                underlay: &underlay,
                vxlan_port: self.config.vxlan_port,
            });
        }
        self.want_pods();
    }

    fn want_pods(&mut self) {
        self.news = true;
        let intent = self.intent.clone().unwrap_or_default();
        self.pods = desired_pods(&intent, self.config.hairpin);
        let (elements, conflicts) = elements(&intent);
        self.elements = elements;
        self.conditions.insert("ports", conflicts);
    }

    /// Brings the rule set up to date; tells what was repaired, if anything.
    fn apply_rules(&mut self) -> Result<Option<&'static str>, DataplaneError> {
        let Some(intent) = self.intent.as_ref().filter(|intent| !intent.ranges.is_empty()) else {
            return Ok(None);
        };
        let mut wanted = self.elements.clone();
        if intent.settling {
            for (key, value) in &self.rules.elements {
                wanted.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if self.rules.tables == self.ruleset.tables {
            if self.rules.elements == wanted {
                return Ok(None);
            }
            if transaction::edit(&mut self.nft, &self.rules.elements, &wanted).is_ok() {
                self.rules.elements = wanted;
                return Ok(Some("elements of the rule set"));
            }
            // The picture was old; the next line does not depend on it.
        }
        transaction::replace(&mut self.nft, &self.ruleset, &wanted)
            .map_err(|e| rules_failed("replace tables weft", &e.to_string()))?;
        self.rules = ObservedRules { tables: self.ruleset.tables.clone(), elements: wanted };
        Ok(Some("rule set"))
    }

    /// Carries a plan out; tells what the kernel took.
    fn execute(&mut self, plan: &Plan) -> Vec<Op> {
        if plan.ops.is_empty() {
            return Vec::new();
        }
        self.news = true;
        let mut indexes: Indexes =
            self.observed.links.iter().map(|(name, link)| (name.clone(), link.index)).collect();
        let observed = &mut self.observed;
        let mut done = Vec::new();
        let failures = apply(&mut self.kernel, &mut indexes, &plan.ops, |op| {
            observed.apply(op);
            done.push(op.clone());
        });
        for (name, link) in &mut observed.links {
            link.index = indexes.get(name).copied().unwrap_or(link.index);
        }
        // Somebody removed a pod's device since the last look, as an ADD that
        // follows a DEL does: nothing to complain about, only to look again.
        let (gone, failures): (Vec<_>, Vec<_>) =
            failures.into_iter().partition(|error| error.gone_port().is_some());
        if !gone.is_empty() {
            tracing::debug!(count = gone.len(), "devices of pods went since the last look");
            for port in gone.iter().filter_map(OpError::gone_port) {
                self.observed.links.remove(port);
            }
            self.look_at = self.look_at.min(Instant::now() + GATHER);
        }
        self.errors = failures.iter().take(20).map(ToString::to_string).collect();
        if let Some(first) = failures.first() {
            tracing::warn!(count = failures.len(), error = %first, "the kernel refused changes");
            self.look_at = self.look_at.min(Instant::now() + RETRY);
        }
        self.conditions.insert("apply", failures.iter().take(1).map(refused).collect());
        done
    }

    /// Nothing stood in the way of a plan that was just carried out.
    fn took(&self, plan: &Plan) -> bool {
        plan.conditions.is_empty() && (plan.ops.is_empty() || self.errors.is_empty())
    }

    fn devices(&self) -> Vec<u32> {
        let own = underlay(&self.observed.host, self.config.underlay);
        self.observed
            .links
            .iter()
            .filter(|(name, _)| is_ours(name) || own.iter().any(|(dev, _)| dev == *name))
            .map(|(_, link)| link.index)
            .collect()
    }

    fn wired(&mut self) -> Result<Vec<WiredPod>, DataplaneError> {
        let links = observe::links(&mut self.kernel.raw).map_err(|e| failed("read links", &e))?;
        let pod = |(host_ifname, link): (String, super::model::Link)| {
            Some(WiredPod { host_ifname, ifindex: link.index, alias: link.alias? })
        };
        Ok(links.into_iter().filter_map(pod).collect())
    }

    fn report(&mut self, quiet: bool) {
        let mut report = lock(&self.shared.report);
        let status = &mut report.status;
        status.in_sync = self.errors.is_empty() && (quiet || self.generation > 0);
        status.mtu = self.mtu.value;
        status.mtu_source.clone_from(&self.mtu.source);
        status.routes = self.desired.routes.len().saturating_sub(self.desired.ranges.len());
        let wired = |name: &&String| self.observed.links.contains_key(*name);
        status.pods = self.pods.pods.keys().filter(wired).count();
        status.repairs = self.repairs;
        status.last_repair.clone_from(&self.last_repair);
        status.errors.clone_from(&self.errors);
        report.conditions = self.conditions.values().flatten().cloned().collect();
        report.underlay =
            underlay(&self.observed.host, self.config.underlay).iter().map(|(_, n)| *n).collect();
        report.addresses = self.observed.host.addrs.iter().map(|(_, net, _)| net.addr()).collect();
    }
}

#[allow(unsafe_code, reason = "netlink-sys has no AsFd")]
fn borrow<'a>(fds: [i32; 2]) -> [BorrowedFd<'a>; 2] {
    // SAFETY: both belong to sockets of the driver, which outlives the poll.
    fds.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

fn rules_failed(what: &str, why: &str) -> DataplaneError {
    DataplaneError::Nftables { what: what.to_owned(), why: why.to_owned() }
}

fn refused(error: &OpError) -> Condition {
    let in_use = [nix::libc::EADDRINUSE, nix::libc::EEXIST].contains(&error.why.errno);
    let hint = match &error.op {
        Op::AddLink(name, _) | Op::SetLink(name, _) if name == VXLAN && in_use => {
            "another VXLAN device or program uses the port: find it with `ip -d link show type \
             vxlan` and `ss -ulnp`, or set VXLAN_PORT on every node"
        }
        Op::AddLink(..) => "load the modules bridge and vxlan (`modprobe vxlan`)",
        _ => "see the message; weft tries again by itself",
    };
    Condition { health: Health::Broken, ..condition("KernelRefused", error.to_string(), hint) }
}

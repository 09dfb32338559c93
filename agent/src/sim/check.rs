//! What must never happen, checked whenever anything changes.
//!
//! *History*: the first replica to publish a position says what the ledger is
//! there; every other one must agree, for all time, also after it lost power.
//! From it follow who owns what, who was evicted and what rests.
//!
//! An address may be in use on a machine that does not own it in one case
//! only: its block was taken from that machine by an eviction. Nobody else gets
//! the block before the quarantine has passed since the eviction was in force; what the
//! evicted machine does after that without having heard of its eviction is the
//! operator's risk (`rmpeer` is refused for a machine that is alive). Once it
//! has heard, it leases nothing more from there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;
use weft_ipam::ledger::Ledger;
use weft_proto::id::{FoundingId, NodeId, RaftId, RequestId};
use weft_proto::ledger::{Op, Outcome, Refusal};

use super::host;
use super::trace::Trace;
use crate::consensus::Ballot;

/// Positions by which a recovery jumps ahead; beyond half of it, one has happened.
const JUMP: u64 = 1 << 20;

/// What is in force is shown a moment later.
const MOMENT: Duration = Duration::from_millis(5);

/// A block taken from a node by its eviction.
#[derive(Debug, Clone)]
struct Taken {
    prefix: IpNet,
    former: NodeId,
    until_ms: u64,
    /// When that was first shown, in virtual time.
    since: Duration,
    /// Somebody owns it again.
    over: bool,
}

/// A seat of a founding, and who sits there.
pub(crate) type Seat = (FoundingId, RaftId, NodeId);

#[derive(Default)]
struct State {
    broken: Option<String>,
    history: BTreeMap<u64, Arc<Ledger>>,
    /// The furthest ledger anybody has shown.
    newest: Arc<Ledger>,
    taken: Vec<Taken>,
    owners: BTreeMap<(IpNet, u64), NodeId>,
    /// The furthest vote each seat has given.
    votes: BTreeMap<Seat, Ballot>,
    /// Furthest position each node has shown.
    shown: BTreeMap<NodeId, u64>,
    /// Answers not seen in the history yet.
    promised: Vec<(u64, NodeId, Outcome)>,
    /// Requests for blocks, by who is to get them; without those that were refused.
    asked: BTreeMap<NodeId, BTreeSet<RequestId>>,
    /// Every request, with the life that made it.
    requests: BTreeMap<RequestId, (u64, Op)>,
    /// Handing over asked for by an owner and not answered: it may still happen.
    handed: BTreeMap<RequestId, (NodeId, IpNet)>,
    /// Positions at which a node was given something.
    gained: BTreeMap<NodeId, BTreeSet<u64>>,
    /// What a recovery left behind.
    forsaken: BTreeSet<(IpNet, NodeId)>,
    may_recover: bool,
}

/// See the module.
pub(crate) struct Checker {
    state: Mutex<State>,
    trace: Arc<Trace>,
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl Checker {
    pub(crate) fn new(trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), trace })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What is broken, once something is.
    pub(crate) fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    /// Something worth counting.
    pub(crate) fn count(&self, what: &'static str) {
        self.trace.count(what);
    }

    /// Something is.
    pub(crate) fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.trace.say(|| format!("BROKEN {what}"));
        self.lock().broken.get_or_insert(what);
    }

    /// The furthest ledger anybody has shown.
    pub(crate) fn newest(&self) -> Arc<Ledger> {
        Arc::clone(&self.lock().newest)
    }

    /// The operator gives up what the survivors do not know.
    pub(crate) fn may_recover(&self) {
        self.lock().may_recover = true;
    }

    /// A replica of `node` shows a ledger.
    pub(crate) fn shown(&self, node: NodeId, ledger: &Arc<Ledger>) {
        let at = ledger.head().index;
        if at == 0 {
            return;
        }
        let wrong = self.lock().show(node, at, ledger);
        if let Err(why) = wrong {
            self.lock().story(None).into_iter().for_each(|line| self.trace.say(|| line));
            self.fail(why);
        }
    }

    /// A replica of `node` was read from disk.
    pub(crate) fn loaded(&self, node: NodeId, ledger: &Arc<Ledger>) {
        let at = ledger.head().index;
        let before = self.lock().shown.get(&node).copied().unwrap_or(0);
        if at < before {
            let node = node.short();
            self.fail(format!(
                "acknowledged ledger lost: {node} had shown position {before}, its disk has {at}"
            ));
        }
        self.shown(node, ledger);
    }

    /// A seat has given its vote. (Of two leaders of one term, the engine lets the one with
    /// the greater seat win: what binds is that votes only ever become greater.)
    pub(crate) fn voted(&self, seat: Seat, vote: Ballot) {
        let mut state = self.lock();
        let last = state.votes.entry(seat).or_insert(vote);
        *last = vote.max(*last);
    }

    /// The vote of a seat was read from disk.
    pub(crate) fn vote_loaded(&self, seat: Seat, vote: Option<Ballot>) {
        let given = self.lock().votes.get(&seat).copied();
        if let Some(given) = given.filter(|given| vote.is_none_or(|vote| vote < *given)) {
            self.fail(format!(
                "vote forgotten: {} had given {given:?}, its disk has {vote:?}",
                seat.2.short()
            ));
        }
    }

    /// A life of an agent asks the ledger.
    pub(crate) fn asked(&self, life: u64, request: RequestId, op: &Op) {
        let wrong = {
            let mut state = self.lock();
            let to = match op {
                Op::Acquire { node, .. } | Op::Claim { node, .. } => Some(*node),
                Op::Transfer { to, .. } => Some(*to),
                _ => None,
            };
            if let Some(to) = to {
                state.asked.entry(to).or_default().insert(request);
            }
            if let Op::Transfer { from, prefix, .. } = op {
                state.handed.insert(request, (*from, *prefix));
            }
            let before = state.requests.entry(request).or_insert_with(|| (life, op.clone()));
            (before.0 != life || before.1 != *op)
                .then(|| format!("request {request:?} was {:?} once and is {op:?} now", before.1))
        };
        if let Some(why) = wrong {
            self.fail(why);
        }
    }

    /// The ledger has answered `node`.
    pub(crate) fn answered(
        &self,
        node: NodeId,
        request: RequestId,
        at: u64,
        outcome: &Outcome,
        ledger: &Ledger,
    ) {
        let wrong = {
            let mut state = self.lock();
            // Whatever an earlier life has asked for is outdated now.
            state.handed.retain(|asked, _| {
                asked.node != request.node
                    || (asked.session >= request.session && *asked != request)
            });
            // Too old to be answered: it may have been granted all the same.
            if !matches!(outcome, Outcome::Granted(_) | Outcome::Refused(Refusal::Stale(_))) {
                for asked in state.asked.values_mut() {
                    asked.remove(&request);
                }
            }
            let behind = (ledger.head().index < at).then(|| {
                format!("answer of position {at} given to {} before it is there", node.short())
            });
            state.promised.push((at, node, outcome.clone()));
            behind.or_else(|| state.keep().err()).or_else(|| state.executed_once().err())
        };
        if let Some(why) = wrong {
            self.fail(why);
        }
    }

    /// A machine leases an address as `node`, which follows `ledger`.
    pub(crate) fn leased(&self, node: NodeId, address: IpAddr, ledger: &Ledger) {
        let owner = ledger.owner_of(address).map(|block| block.owner);
        if owner != Some(node) {
            let why = match owner {
                Some(other) => format!("belongs to {}", other.short()),
                None => "belongs to nobody".to_owned(),
            };
            let (node, at) = (node.short(), ledger.head().index);
            self.fail(format!("{node} leases {address}, which by its ledger (at {at}) {why}"));
        }
        let away = self.lock().given_away(node, address);
        if let Some(prefix) = away {
            let node = node.short();
            self.fail(format!("{node} leases {address} of {prefix}, which it is giving away"));
        }
    }

    /// All that is in use: (machine, identities it has had, address).
    pub(crate) fn in_use<'a>(&self, uses: impl Iterator<Item = (usize, &'a [NodeId], IpAddr)>) {
        let wrong = {
            let state = self.lock();
            let mut seen: BTreeMap<IpAddr, (usize, bool)> = BTreeMap::new();
            let mut wrong = None;
            for (machine, identities, address) in uses {
                let owner = state.newest.owner_of(address).map(|block| block.owner);
                let owns = owner.is_some_and(|owner| identities.contains(&owner));
                if !owns && !state.was_taken(identities, address) {
                    let owner = owner.map_or_else(|| "nobody".to_owned(), |o| o.short());
                    let why = format!(
                        "{address} is in use on machine {machine}, belongs to {owner}, and was never taken from the machine"
                    );
                    wrong = Some((address, why));
                    break;
                }
                if let Some((other, other_owns)) = seen.insert(address, (machine, owns))
                    && other != machine
                    && owns
                    && other_owns
                {
                    let why = format!("{address} is in use on machines {other} and {machine}");
                    wrong = Some((address, why));
                    break;
                }
            }
            wrong
        };
        if let Some((address, why)) = wrong {
            self.lock().story(Some(address)).into_iter().for_each(|line| self.trace.say(|| line));
            self.fail(why);
        }
    }
}

impl State {
    /// The last ledgers, for people; of an address, wherever anything around it has changed.
    fn story(&self, address: Option<IpAddr>) -> Vec<String> {
        let of = |net: &IpNet| address.is_none_or(|address| net.contains(&address));
        let mut lines: Vec<String> = Vec::new();
        let mut before = String::new();
        for (at, ledger) in &self.history {
            let blocks = ledger.blocks().filter(|b| of(&b.prefix));
            let blocks: Vec<_> = blocks
                .map(|b| format!("{} of {} since {}", b.prefix, b.owner.short(), b.epoch))
                .collect();
            let rests = ledger.quarantine().filter(|r| of(&r.prefix));
            let rests: Vec<_> = rests
                .map(|r| format!("{} of {} until {}", r.prefix, r.former.short(), r.until_ms))
                .collect();
            let members: Vec<_> =
                ledger.members().map(|(id, m)| format!("{}={}", m.name, id.short())).collect();
            let now = format!("blocks {blocks:?}, rests {rests:?}, members {members:?}");
            if before != now {
                lines.push(format!("  at {at}, {} ms: {now}", ledger.clock_ms()));
                before = now;
            }
        }
        lines.split_off(lines.len().saturating_sub(12))
    }

    /// What `node` has asked to hand over, with `address` in it, and may yet lose: nobody has
    /// answered, and the ledger has not heard of a later life, which outdates the request.
    fn given_away(&self, node: NodeId, address: IpAddr) -> Option<IpNet> {
        let life = self.newest.session_of(node).unwrap_or(0);
        self.handed
            .iter()
            .filter(|(request, (from, _))| *from == node && request.session >= life)
            .find_map(|(_, (_, prefix))| prefix.contains(&address).then_some(*prefix))
    }

    fn was_taken(&self, identities: &[NodeId], address: IpAddr) -> bool {
        let by_eviction = self
            .taken
            .iter()
            .any(|taken| taken.prefix.contains(&address) && identities.contains(&taken.former));
        let by_recovery = self
            .forsaken
            .iter()
            .any(|(prefix, owner)| prefix.contains(&address) && identities.contains(owner));
        by_eviction || by_recovery
    }

    fn show(&mut self, node: NodeId, at: u64, ledger: &Arc<Ledger>) -> Result<(), String> {
        let shown = self.shown.entry(node).or_default();
        if *shown > at {
            return Err(format!("{} goes back from position {shown} to {at}", node.short()));
        }
        *shown = at;
        if let Some(known) = self.history.get(&at) {
            if Arc::ptr_eq(known, ledger) || known == ledger {
                return Ok(());
            }
            return Err(format!(
                "two histories: the ledger of {} at position {at} is not that of others",
                node.short()
            ));
        }
        self.history.insert(at, Arc::clone(ledger));
        self.disjoint(ledger)?;
        if at > self.newest.head().index {
            let before = std::mem::replace(&mut self.newest, Arc::clone(ledger));
            self.advance(&before, ledger)?;
        }
        self.keep()
    }

    /// No block has two owners at one epoch, and none overlap.
    fn disjoint(&mut self, ledger: &Ledger) -> Result<(), String> {
        let mut last: Option<IpNet> = None;
        for block in ledger.blocks() {
            if let Some(last) = last.filter(|last| overlap(last, &block.prefix)) {
                return Err(format!("blocks {last} and {} overlap", block.prefix));
            }
            last = Some(block.prefix);
            let owner = *self.owners.entry((block.prefix, block.epoch)).or_insert(block.owner);
            if owner != block.owner {
                return Err(format!(
                    "block {} of epoch {} belongs to {} and to {}",
                    block.prefix,
                    block.epoch,
                    owner.short(),
                    block.owner.short()
                ));
            }
        }
        Ok(())
    }

    /// What has changed from one ledger to a later one.
    fn advance(&mut self, before: &Ledger, now: &Ledger) -> Result<(), String> {
        let recovered = now.head().index > before.head().index + JUMP / 2;
        if recovered && !self.may_recover {
            return Err("the ledger jumped ahead without a recovery".to_owned());
        }
        if recovered {
            // Whoever was given something that no survivor knows asks again.
            for (node, gained) in &mut self.gained {
                let kept = |at: &u64| now.blocks().any(|b| (b.owner, b.epoch) == (*node, *at));
                gained.retain(kept);
            }
        }
        // Who was removed starts anew: nothing it asked before is done any more.
        self.handed.retain(|_, (from, _)| now.member(*from).is_some());
        let resting: Vec<_> = now.quarantine().collect();
        for old in before.blocks() {
            let owner = now.owner_of(old.prefix.addr()).map(|b| b.owner);
            if recovered && owner.is_some_and(|owner| owner != old.owner) {
                self.forsaken.insert((old.prefix, old.owner));
            }
            if owner.is_some() {
                continue;
            }
            let rest = resting.iter().find(|r| overlap(&r.prefix, &old.prefix));
            match rest {
                Some(rest) => {
                    let (former, until_ms) = (old.owner, rest.until_ms);
                    let (prefix, since) = (old.prefix, host::elapsed());
                    self.taken.push(Taken { prefix, former, until_ms, since, over: false });
                    let due = before.clock_ms().saturating_add(now.quarantine_ms());
                    if until_ms < due {
                        return Err(format!(
                            "{} rests until {until_ms} only, {due} at least was promised",
                            old.prefix
                        ));
                    }
                }
                None if recovered => drop(self.forsaken.insert((old.prefix, old.owner))),
                None => {
                    return Err(format!(
                        "{} of {} became free without a rest",
                        old.prefix,
                        old.owner.short()
                    ));
                }
            }
        }
        for new in now.blocks().filter(|b| b.epoch > before.head().index) {
            let gained = self.gained.entry(new.owner).or_default();
            gained.insert(new.epoch);
            for taken in self.taken.iter_mut().filter(|t| !t.over) {
                if !overlap(&taken.prefix, &new.prefix) {
                    continue;
                }
                if taken.former != new.owner && taken.until_ms > now.clock_ms() {
                    return Err(format!(
                        "{} was taken from {} and given to {} {} ms before its rest was over",
                        new.prefix,
                        taken.former.short(),
                        new.owner.short(),
                        taken.until_ms - now.clock_ms()
                    ));
                }
                let rested = host::elapsed().saturating_sub(taken.since);
                let quarantine = Duration::from_millis(now.quarantine_ms());
                if taken.former != new.owner && rested + MOMENT < quarantine && !self.may_recover {
                    return Err(format!(
                        "{} was taken from {} and given to {} after {rested:?} of {quarantine:?}",
                        new.prefix,
                        taken.former.short(),
                        new.owner.short(),
                    ));
                }
                taken.over = true;
            }
        }
        self.executed_once()
    }

    /// Nobody was given blocks more often than it asked for some.
    fn executed_once(&self) -> Result<(), String> {
        for (node, gained) in &self.gained {
            let asked = self.asked.get(node).map_or(0, BTreeSet::len);
            if gained.len() > asked {
                return Err(format!(
                    "{} was given blocks {} times, and {asked} of its requests may have been granted",
                    node.short(),
                    gained.len()
                ));
            }
        }
        Ok(())
    }

    /// Every answer is in the history.
    fn keep(&mut self) -> Result<(), String> {
        let mut wrong = None;
        let (history, newest) = (&self.history, self.newest.head().index);
        self.promised.retain(|(at, node, outcome)| {
            let Some(ledger) = history.get(at) else { return newest < *at };
            let lost = match outcome {
                Outcome::Granted(blocks) => blocks.iter().find(|block| {
                    let there = ledger.owner_of(block.prefix.addr());
                    block.epoch == *at
                        && there.is_none_or(|b| (b.owner, b.epoch) != (block.owner, block.epoch))
                }),
                _ => None,
            };
            if let Some(block) = lost {
                wrong = Some(format!(
                    "acknowledged ownership lost: {} was told {block:?}, the ledger at {at} has another owner",
                    node.short()
                ));
            }
            if matches!(outcome, Outcome::Joined { .. }) && newest == *at
                && ledger.member(*node).is_none()
            {
                wrong = Some(format!("{} was told it joined at {at}, and did not", node.short()));
            }
            false
        });
        wrong.map_or(Ok(()), Err)
    }
}

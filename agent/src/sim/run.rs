//! One run: a schedule from its first moment until all is well again, or
//! something is broken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};
use weft_proto::ledger::{Op, Outcome};

use super::host::{self, Installed};
use super::kernel::difference;
use super::machine;
use super::network::Weather;
use super::operator;
use super::schedule::{Action, Schedule};
use super::trace::Trace;
use super::world::World;
use crate::mesh::net::PeerNet;

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Longest time from the end of all faults until all is well.
const HEALING: Duration = Duration::from_secs(150);
/// Patience of an operator's command.
const OPERATOR: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// The invariant that was broken.
    pub(crate) broken: Option<String>,
    /// Equal for equal runs.
    pub(crate) hash: u64,
    /// Virtual time covered.
    pub(crate) time: Duration,
    /// Faults and events.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// What happened, if asked for.
    pub(crate) lines: Vec<String>,
}

/// Runs a schedule.
pub(crate) fn run(schedule: &Schedule, told: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&schedule.seed.to_be_bytes()))
        .build()
        .unwrap();
    let panics = super::panics::Watch::new();
    let report = runtime.block_on(async {
        let _installed = Installed::new(schedule.seed);
        let trace = Arc::new(Trace::new(told));
        let world = World::new(schedule.clone(), Arc::clone(&trace));
        live(&world, &panics).await;
        let broken = world.checker.broken().or_else(|| panics.first());
        let (delivered, lost) = world.network.counts();
        let mut counts = trace.counts();
        counts.insert("packets delivered", delivered);
        counts.insert("packets lost", lost);
        let syncs = world.numbers().map(|n| world.node(n).machine.disk.syncs()).sum();
        counts.insert("fsyncs", syncs);
        let report = Report {
            broken,
            hash: trace.hash(),
            time: host::elapsed(),
            counts,
            lines: trace.text(),
        };
        for number in world.numbers() {
            world.kill(number).await;
        }
        report
    });
    drop(runtime);
    machine::unmount();
    report
}

async fn live(world: &Arc<World>, panics: &super::panics::Watch) {
    for number in world.numbers() {
        let wait = Duration::from_millis(host::rng().random_range(0..2_000));
        world.node(number).start_at = Some(Instant::now() + wait);
    }
    let start = Instant::now();
    let mut next_look = start;
    for (at, action) in &world.schedule.actions {
        let at = start + Duration::from_millis(*at);
        while next_look < at {
            sleep_until(next_look).await;
            next_look += LOOK;
            look(world).await;
            if world.checker.broken().is_some() || panics.first().is_some() {
                return;
            }
        }
        sleep_until(at).await;
        perform(world, *action).await;
    }
    mend(world).await;
    let healed = Instant::now();
    loop {
        sleep(LOOK).await;
        look(world).await;
        if world.checker.broken().is_some() || panics.first().is_some() {
            return;
        }
        let Err(why) = well(world) else { break };
        if healed.elapsed() > HEALING {
            for agent in world.agents() {
                let (number, text) = (agent.mesh.machine(), agent.consensus.describe());
                world.trace.say(|| format!("n{number}: {text}"));
            }
            world.checker.fail(format!("not well {HEALING:?} after the last fault: {why}"));
            return;
        }
    }
    world.trace.say(|| "all is well".to_owned());
}

/// Ends all faults.
async fn mend(world: &Arc<World>) {
    world.trace.say(|| "all faults end".to_owned());
    lights(world).await;
    world.network.heal();
    for number in world.numbers() {
        let disk = Arc::clone(&world.node(number).machine.disk);
        disk.set_full(false);
        disk.clear_fuse();
        world.node(number).machine.await_ballot(false);
        world.node(number).machine.await_donation(false);
        disk.slow(Duration::ZERO);
        if let Some(process) = world.node(number).process.clone() {
            process.resume();
        }
        let down = world.node(number).process.is_none();
        if down {
            world.start(number);
        }
    }
}

/// Machines whose power was to fail in the middle of something.
async fn lights(world: &World) {
    for number in world.numbers() {
        let burnt = world.node(number).machine.disk.burnt();
        if burnt {
            world.trace.say(|| format!("the power of n{number} fails"));
            world.power_loss(number).await;
        }
    }
}

async fn look(world: &Arc<World>) {
    lights(world).await;
    world.tend().await;
    world.tend_pods();
    let mut uses = Vec::new();
    for number in world.numbers() {
        let node = world.node(number);
        uses.extend(node.pods.values().filter_map(|pod| Some((number, pod.address()?))));
        let Some(agent) = &node.agent else { continue };
        for (key, pod) in &node.pods {
            let Some(address) = pod.address() else { continue };
            if !agent.ipam.addresses(key).contains(&address) {
                world.checker.fail(format!(
                    "acknowledged lease lost: {key} of n{number} uses {address}, its agent does not know"
                ));
            }
        }
        agent.ipam.with_leases(|leases| {
            let held = leases.values().flat_map(|lease| &lease.addresses);
            uses.extend(held.map(|address| (number, *address)));
        });
    }
    let ids: Vec<_> = world.numbers().map(|n| world.node(n).identities.clone()).collect();
    world.checker.in_use(
        uses.iter().map(|(number, address)| (*number, ids[number - 1].as_slice(), *address)),
    );
}

/// What is not (yet) well.
fn well(world: &Arc<World>) -> Result<(), String> {
    let newest = world.checker.newest();
    let mut places = BTreeMap::new();
    for number in world.numbers() {
        let node = world.node(number);
        places.extend(node.identities.iter().map(|id| (*id, node.ip)));
    }
    for number in world.numbers() {
        let Some(agent) = world.agent(number) else { return Err(format!("n{number} is down")) };
        let status = || agent.consensus.status().waiting.unwrap_or_default();
        let ledger = agent.consensus.ledger();
        if ledger.head() != newest.head() {
            let (at, of) = (ledger.head().index, newest.head().index);
            return Err(format!("n{number} is at {at} of {of}: {}", status()));
        }
        if !agent.consensus.joined() {
            return Err(format!("n{number} is not a member: {}", status()));
        }
        if !agent.consensus.status().quorum {
            return Err(format!("n{number} sees no quorum: {}", status()));
        }
        let open = agent.donations.open();
        if !open.is_empty() {
            return Err(format!("n{number} has open promises: {open:?}"));
        }
        let sum = agent.ipam.sum();
        if sum.followed != newest.head().index || sum.withheld > 0 {
            return Err(format!("n{number} holds {sum:?}"));
        }
        if sum.owned != sum.free + sum.leased {
            return Err(format!("n{number} has leaked addresses: {sum:?}"));
        }
        let wrong = difference(&world.node(number).kernel, &ledger, &agent, &places);
        if let Some(wrong) = wrong {
            return Err(format!("routes of n{number}: {wrong}"));
        }
    }
    for (node, info) in newest.members() {
        let current = world.machine_of(node);
        if current.is_none_or(|n| world.node(n).identities.last() != Some(&node)) {
            return Err(format!("{} ({}) is a member, and nobody", info.name, node.short()));
        }
    }
    let waiting = world.waiting_pods();
    if waiting > 0 { Err(format!("{waiting} pods wait for an answer")) } else { Ok(()) }
}

async fn perform(world: &Arc<World>, action: Action) {
    world.trace.count(action.word());
    world.trace.say(|| format!("* {action}"));
    let known = |n: usize| world.numbers().contains(&n);
    match action {
        Action::Crash(n) if known(n) => world.kill(n).await,
        Action::Power(n) if known(n) => world.power_loss(n).await,
        Action::Fuse(n, changes) if known(n) && world.node(n).process.is_some() => {
            world.node(n).machine.disk.set_fuse(changes);
        }
        Action::Stop(n) if known(n) => {
            if let Some(agent) = world.agent(n) {
                let consensus = agent.consensus.clone();
                let ended = agent.process.spawn(async move { consensus.shutdown().await });
                let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
            }
            world.kill(n).await;
        }
        Action::Start(n) if known(n) => world.start(n),
        Action::Pause(n) if known(n) => {
            let process = world.node(n).process.clone();
            process.iter().for_each(|process| process.stop());
        }
        Action::Resume(n) if known(n) => {
            let process = world.node(n).process.clone();
            process.iter().for_each(|process| process.resume());
        }
        Action::Cut(a, b) => world.network.cut(a, b, true),
        Action::Mend(a, b) => world.network.cut(a, b, false),
        Action::Split(mask) => split(world, mask),
        Action::Heal => world.network.heal(),
        Action::Loss(k) => {
            let weather = world.network.weather();
            world.network.set_weather(Weather { loss: k as f64 / 1000.0, ..weather });
        }
        Action::Twice(k) => {
            let weather = world.network.weather();
            world.network.set_weather(Weather { twice: k as f64 / 1000.0, ..weather });
        }
        Action::Lag(ms) => {
            let weather = world.network.weather();
            world.network.set_weather(Weather { delay_us: (200, ms * 1000), ..weather });
        }
        Action::Jump(n, by) if known(n) => {
            let mut node = world.node(n);
            node.machine.jump_clock(by);
            node.clock_jumped = true;
        }
        Action::Slow(n, ms) if known(n) => {
            world.node(n).machine.disk.slow(Duration::from_millis(ms));
        }
        Action::Full(n) if known(n) => world.node(n).machine.disk.set_full(true),
        Action::Room(n) if known(n) => world.node(n).machine.disk.set_full(false),
        Action::Wipe(n) if known(n) && operator::may_lose(world, n) => world.wipe(n).await,
        Action::Add(n, count) if known(n) => {
            (0..count).for_each(|_| drop(world.add_pod(n)));
        }
        Action::Del(n, count) if known(n) => world.end_pods(n, count),
        Action::Evict(a, b) if known(a) && known(b) => evict(world, a, b, false),
        // Its vote is lost with it, like that of a machine whose disk is.
        Action::Force(a, b) if known(a) && known(b) && operator::may_lose(world, b) => {
            evict(world, a, b, true);
        }
        Action::Move(n) if known(n) => world.relocate(n),
        Action::Grow(n) if known(n) => grow(world, n),
        Action::Ballot(n) if known(n) && world.node(n).process.is_some() => {
            world.node(n).machine.await_ballot(true);
        }
        Action::Donor(n) if known(n) => world.node(n).machine.await_donation(true),
        Action::Mute(k) => {
            let weather = world.network.weather();
            world.network.set_weather(Weather { mute: k as f64 / 1000.0, ..weather });
        }
        Action::Recover(n) if known(n) => operator::disaster(world, n).await,
        Action::Forget(n) if known(n) => {
            let (disk, run) = {
                let node = world.node(n);
                (Arc::clone(&node.machine.disk), node.machine.run_dir())
            };
            disk.wipe(&run);
        }
        _ => {}
    }
}

fn split(world: &World, mask: u64) {
    let side = |n: usize| mask & (1 << ((n - 1) % 64)) != 0;
    for a in world.numbers() {
        for b in world.numbers().filter(|b| side(a) != side(*b)) {
            world.network.cut(a, b, true);
        }
    }
}

/// As `app::remove::evict`.
fn evict(world: &Arc<World>, by: usize, whom: usize, force: bool) {
    let Some(agent) = world.agent(by) else { return };
    let ledger = agent.consensus.ledger();
    let Some(node) = ledger.node_by_name(&format!("n{whom}")) else { return };
    if node == agent.me || (agent.mesh.view().is_alive(node) && !force) {
        return;
    }
    let world = Arc::clone(world);
    Arc::clone(&agent.process).spawn(async move {
        let request = agent.registry.next_request();
        let answer = agent.registry.propose(request, Op::Evict { node }, OPERATOR).await;
        world.trace.say(|| format!("rmpeer n{whom}: {answer:?}"));
        if matches!(answer, Ok((_, Outcome::Done))) {
            world.trace.count("evictions");
            agent.mesh.remove(node);
        }
    });
}

/// As `Backend::grow`.
fn grow(world: &Arc<World>, on: usize) {
    let Some(agent) = world.agent(on) else { return };
    let Some(range) = agent.consensus.ledger().ranges().first().copied() else { return };
    let Some(wider) = range.supernet().filter(|wider| wider.prefix_len() >= 12) else { return };
    Arc::clone(&agent.process).spawn(async move {
        let request = agent.registry.next_request();
        let _ = agent.registry.propose(request, Op::Grow { range: wider }, OPERATOR).await;
    });
}

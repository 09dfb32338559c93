//! Failure detection: the SWIM library wrapped as a state machine that takes
//! the time and returns what to send. No socket, no clock.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use foca::{AccumulatingRuntime, Codec, Config, Foca, Message, NoCustomBroadcast, State, Timer};
use rand10::SeedableRng;
use rand10::rngs::SmallRng;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Standing;

use super::due::Due;
use super::net::Liveness;
use super::swim_codec::{SwimCodec, SwimId};
use super::swim_far::FarProbe;

/// Fits a QUIC datagram on the smallest MTU QUIC allows, with our header.
const PACKET: usize = 1100;
/// A rumor is told at least so often.
const TELLINGS: u8 = 12;
/// In a cluster of more than so many, so often.
const MANY: u32 = 128;
const TELLINGS_OF_MANY: u8 = 8;
/// Nodes known by record only that are greeted in one round.
const STRANGERS: usize = 4;

/// Something happened.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// A packet of an authenticated peer.
    Packet(NodeId, Vec<u8>),
    /// A connection to this life of a node is up.
    Connected(NodeId, u64),
    /// The last connection to a node was lost.
    Lost(NodeId),
    /// The last connection to a node was closed on purpose; that says nothing of the node.
    Closed(NodeId),
    /// Nothing has come over a connection for longer than it should.
    Silent(NodeId),
    /// What a peer, which takes so many for alive, holds of some members.
    Standings { from: NodeId, alive: u32, standings: Vec<Standing> },
    /// This node must appear in a newer life (its clock ran backwards).
    NewLife(u64),
    /// This node goes away.
    Leave,
}

/// The state machine.
pub(super) struct Swim {
    pub(super) foca: Foca<SwimId, SwimCodec, SmallRng, NoCustomBroadcast>,
    pub(super) out: AccumulatingRuntime<SwimId>,
    pub(super) timers: BinaryHeap<Reverse<Due<Instant, Timer<SwimId>>>>,
    /// The timer of gossip: five times a second, and mostly with nothing to say.
    pub(super) gossip: Option<(Instant, Timer<SwimId>)>,
    /// The next probe, in a cluster that is no full mesh.
    pub(super) probe: Option<FarProbe>,
    /// There has been one already.
    pub(super) probed: bool,
    /// Number of the probe that has not been answered.
    pub(super) asked: Option<u8>,
    /// Members whose connection was lost, and until when they may refute what follows of it.
    pub(super) accused: BTreeMap<SwimId, (u16, Instant)>,
    pub(super) seed: u64,
    /// The last fingerprint, while nothing has happened since.
    pub(super) print: Cell<Option<u64>>,
    /// The fingerprint at which everybody connected was a member.
    greeted: Option<u64>,
    seq: u64,
    sized_for: u32,
    /// Connected peers and the life we talk to.
    pub(super) connected: BTreeMap<NodeId, u64>,
    left: bool,
    /// Where the next round of greetings starts.
    round: usize,
}

pub(super) fn config(size: u32) -> Config {
    let mut config = Config::new_lan(NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN));
    if let Some(packet) = NonZeroUsize::new(PACKET) {
        config.max_packet_size = packet;
    }
    // The library tells a rumor log10(size) * 4 times: three times in a small cluster, and two
    // lost packets are enough for a suspect never to hear that it is one, or not to be heard.
    let tellings = NonZeroU8::MIN.saturating_add(TELLINGS - 1);
    config.max_transmissions = config.max_transmissions.max(tellings);
    if size > MANY {
        // What is missed is found by comparing; a thousand restarts at once are talked of
        // for long enough.
        config.max_transmissions = NonZeroU8::MIN.saturating_add(TELLINGS_OF_MANY - 1);
    }
    // The library waits 4 s (times log10 of the size) before a suspect is
    // dead; 2.5 s keeps death within about 5 s in a small cluster, and still
    // leaves a busy node a dozen rounds of gossip to refute.
    config.suspect_to_down_after = config.suspect_to_down_after.mul_f64(0.625);
    config
}

impl Swim {
    /// A cluster of one.
    pub(super) fn new(node: NodeId, session: u64, seed: u64) -> Self {
        let id = SwimId { node, session, rejoins: 0 };
        Self {
            foca: Foca::new(id, config(8), SmallRng::seed_from_u64(seed), SwimCodec),
            out: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            gossip: None,
            probe: None,
            probed: false,
            asked: None,
            accused: BTreeMap::new(),
            seed,
            print: Cell::new(None),
            greeted: None,
            seq: 0,
            sized_for: 8,
            connected: BTreeMap::new(),
            left: false,
            round: 0,
        }
    }

    pub(super) fn me(&self) -> SwimId {
        *self.foca.identity()
    }

    /// Takes an input. An error is a bad packet (or one that came too late).
    pub(super) fn handle(&mut self, now: Instant, input: Input) -> Result<(), String> {
        if self.left {
            return Ok(());
        }
        if matches!(input, Input::Connected(..) | Input::Closed(_) | Input::Lost(_)) {
            self.greeted = None;
        }
        let result = match input {
            Input::Packet(from, data) => self.packet(from, &data),
            Input::Connected(node, session) => {
                self.connected.insert(node, session);
                let peer = SwimId { node, session, rejoins: 0 };
                self.foca.announce(peer, &mut self.out).map_err(|e| e.to_string())
            }
            Input::Closed(node) => {
                self.connected.remove(&node);
                Ok(())
            }
            Input::Lost(node) => {
                self.connected.remove(&node);
                self.accuse(now, node)
            }
            Input::Silent(node) => self.accuse(now, node),
            Input::Standings { from, alive, standings } => self.compare(from, alive, &standings),
            Input::NewLife(session) => {
                let id = SwimId { session, rejoins: 0, ..self.me() };
                self.foca.change_identity(id, &mut self.out).map_err(|e| e.to_string())
            }
            Input::Leave => {
                self.left = true;
                self.foca.leave_cluster(&mut self.out).map_err(|e| e.to_string())
            }
        };
        self.collect(now);
        result
    }

    fn packet(&mut self, from: NodeId, data: &[u8]) -> Result<(), String> {
        // The connection tells who sent it; the packet cannot claim otherwise.
        let header = SwimCodec.decode_header(data).map_err(|e| e.to_string())?;
        if header.src.node != from {
            return Err(format!("packet of {} in the name of {}", from, header.src.node));
        }
        self.answered(&header.message);
        self.foca.handle_data(data, &mut self.out).map_err(|e| e.to_string())
    }

    /// Runs the timers that are due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(Reverse(due)) = self.timers.peek() {
            if due.at > now {
                break;
            }
            if let Some(Reverse(due)) = self.timers.pop() {
                // An error here is a probe cycle the scheduler was late for;
                // the library recovers by itself.
                let _ = self.foca.handle_timer(due.what, &mut self.out);
                self.collect(now);
            }
        }
        if let Some(probe) = self.probe.take_if(|probe| probe.due(self.asked) <= now) {
            self.asked = None;
            let _ = self.foca.handle_timer(probe.timer, &mut self.out);
            self.collect(now);
        }
        self.judge_accused(now);
        if let Some((_, timer)) = self.gossip.take_if(|(at, _)| *at <= now) {
            let _ = self.foca.handle_timer(timer, &mut self.out);
            self.collect(now);
        }
    }

    /// Once in a while: whoever is connected but not a member (after a healed
    /// partition, or a lost packet) is greeted again; timeouts follow the size.
    /// So are, a few at a time, nodes that have a record (`known`, with their
    /// life) and of which gossip has told nothing: it is only sent so often.
    pub(super) fn greet(&mut self, now: Instant, known: &[(NodeId, u64)]) {
        if self.left {
            return;
        }
        let size = u32::try_from(self.foca.num_members()).unwrap_or(u32::MAX).saturating_add(1);
        if size > self.sized_for.saturating_mul(2) || size < self.sized_for / 4 {
            let size = size.max(8);
            if self.foca.set_config(config(size)).is_ok() {
                self.sized_for = size;
            }
        }
        let print = self.fingerprint();
        if known.is_empty() && self.greeted == Some(print) {
            return;
        }
        let mut absent = self.connected.clone();
        self.foca.iter_members().for_each(|m| {
            absent.remove(&m.id().node);
        });
        self.greeted = absent.is_empty().then_some(print);
        let heard: BTreeSet<NodeId> =
            self.foca.iter_membership_state().map(|m| m.id().node).collect();
        let me = self.me().node;
        let unheard: Vec<_> =
            known.iter().filter(|(node, _)| *node != me && !heard.contains(node)).collect();
        self.round = self.round.wrapping_add(STRANGERS);
        let start = self.round % unheard.len().max(1);
        let strangers = unheard.iter().cycle().skip(start).take(unheard.len().min(STRANGERS));
        let greeted = absent.into_iter().take(16).chain(strangers.map(|n| **n));
        for (node, session) in greeted.collect::<Vec<_>>() {
            let _ = self.foca.announce(SwimId { node, session, rejoins: 0 }, &mut self.out);
        }
        self.collect(now);
    }

    pub(super) fn collect(&mut self, now: Instant) {
        self.print.set(None);
        while let Some((after, timer)) = self.out.to_schedule() {
            if matches!(timer, Timer::PeriodicGossip(_)) {
                // A new one replaces that of a former life, which would do nothing.
                self.gossip = Some((now + after, timer));
                continue;
            }
            let Some((after, timer)) = self.stretched(now, after, timer) else { continue };
            self.seq += 1;
            self.timers.push(Reverse(Due { at: now + after, seq: self.seq, what: timer }));
        }
        // Liveness is read from the members, not from the notifications.
        while self.out.to_notify().is_some() {}
    }

    /// Next packet to send.
    pub(super) fn poll(&mut self) -> Option<(NodeId, Vec<u8>)> {
        loop {
            let (to, data) = self.out.to_send()?;
            if self.wrongs(to, &data) {
                continue;
            }
            let (to, data) = self.directed(to, &data);
            // A liar names lives of this node that never were, and the library asks them.
            if to != self.me().node {
                return Some((to, data));
            }
        }
    }

    /// When the time of a suspect is up the library tells it that it is dead, also if it has
    /// long refuted that (foca 2.0.0). It would give up its identity, not answer to it any
    /// more, and really be taken for dead until its new one is known.
    fn wrongs(&self, to: SwimId, data: &[u8]) -> bool {
        let dead = |message: Message<SwimId>| matches!(message, Message::TurnUndead);
        SwimCodec.decode_header(data).is_ok_and(|header| dead(header.message))
            && self.foca.iter_members().any(|member| *member.id() == to)
    }

    /// When [`Swim::tick`] wants to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse(due)| due.at);
        // Nobody is woken to say nothing; with news, gossip that is late comes at once.
        let news = self.foca.updates_backlog() > 0;
        let gossip = self.gossip.as_ref().filter(|_| news).map(|(at, _)| *at);
        let probe = self.probe.as_ref().map(|probe| probe.due(self.asked));
        let accused = self.accused.values().map(|(_, until)| *until).min();
        timer.into_iter().chain(gossip).chain(probe).chain(accused).min()
    }

    /// What is known of every other member.
    pub(super) fn liveness(&self) -> BTreeMap<NodeId, Liveness> {
        self.foca
            .iter_membership_state()
            .map(|m| {
                let liveness = match m.state() {
                    State::Alive => Liveness::Alive,
                    State::Suspect => Liveness::Suspect,
                    State::Down => Liveness::Dead,
                };
                (m.id().node, liveness)
            })
            .collect()
    }
}

/// How often [`Swim::greet`] is due.
pub(super) const GREET: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use rand10::RngExt;

    use super::*;

    const STEP: Duration = Duration::from_millis(20);

    /// Nodes, a clock and a network that loses what goes to or from the dead.
    struct World {
        now: Instant,
        nodes: BTreeMap<NodeId, Swim>,
        /// Nodes up to this one cannot talk to those after it.
        cut_after: u8,
        /// So many of a hundred packets are lost.
        loss: u32,
        dice: SmallRng,
    }

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    impl World {
        fn new(count: u8) -> Self {
            let nodes = (1..=count).map(|n| (id(n), Swim::new(id(n), 1, u64::from(n)))).collect();
            let dice = SmallRng::seed_from_u64(1);
            let mut world = Self { now: Instant::now(), nodes, cut_after: 0, loss: 0, dice };
            for n in 2..=count {
                world.connect(1, n, 1);
            }
            world
        }

        fn connect(&mut self, a: u8, b: u8, session: u64) {
            let now = self.now;
            self.nodes
                .get_mut(&id(a))
                .unwrap()
                .handle(now, Input::Connected(id(b), session))
                .unwrap();
        }

        fn step(&mut self) {
            self.now += STEP;
            let mut mail = Vec::new();
            for (from, node) in &mut self.nodes {
                node.tick(self.now);
                while let Some((to, data)) = node.poll() {
                    mail.push((*from, to, data));
                }
            }
            for (from, to, data) in mail {
                let cut = |n: NodeId| n.0[0] <= self.cut_after;
                if cut(from) != cut(to) || self.dice.random_ratio(self.loss, 100) {
                    continue;
                }
                if let Some(node) = self.nodes.get_mut(&to) {
                    let _ = node.handle(self.now, Input::Packet(from, data));
                }
            }
        }

        fn until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
            let start = self.now;
            while !done(self) {
                assert!(self.now - start < limit, "not within {limit:?}");
                self.step();
            }
            self.now - start
        }

        fn sees(&self, who: u8, whom: u8) -> Option<Liveness> {
            self.nodes[&id(who)].liveness().get(&id(whom)).copied()
        }
    }

    #[test]
    fn members_meet_die_and_return() {
        let mut world = World::new(8);
        world.until(Duration::from_secs(10), |w| w.nodes.values().all(|n| n.liveness().len() == 7));
        world.nodes.remove(&id(8));
        let took = world.until(Duration::from_secs(20), |w| {
            (1..8).all(|n| w.sees(n, 8) == Some(Liveness::Dead))
        });
        assert!(took < Duration::from_secs(8), "virtual time {took:?}");
        world.nodes.insert(id(8), Swim::new(id(8), 2, 88));
        world.connect(8, 1, 1);
        world.until(Duration::from_secs(5), |w| {
            (1..8).all(|n| w.sees(n, 8) == Some(Liveness::Alive))
        });
    }

    #[test]
    fn a_healed_partition_is_one_cluster_again() {
        let mut world = World::new(6);
        let everywhere = |w: &World, liveness| {
            (1..=6).all(|a| {
                (1..=6).filter(|b| a != *b).all(|b| {
                    let apart = (a <= w.cut_after) != (b <= w.cut_after);
                    w.sees(a, b) == Some(if apart { liveness } else { Liveness::Alive })
                })
            })
        };
        world.until(Duration::from_secs(20), |w| everywhere(w, Liveness::Alive));
        world.cut_after = 3;
        world.until(Duration::from_secs(60), |w| everywhere(w, Liveness::Dead));
        world.cut_after = 0;
        world.connect(2, 5, 1);
        world.connect(5, 2, 1);
        let healed = world.now;
        while !everywhere(&world, Liveness::Alive) {
            assert!(world.now - healed < Duration::from_secs(30), "still apart");
            for _ in 0..50 {
                world.step();
            }
            let now = world.now;
            world.nodes.values_mut().for_each(|n| n.greet(now, &[]));
        }
    }

    #[test]
    fn who_is_known_by_record_only_is_greeted() {
        let mut world = World::new(1);
        for n in 2..=7 {
            world.nodes.insert(id(n), Swim::new(id(n), 5, u64::from(n)));
        }
        let known: Vec<_> = (1..=9).map(|n| (id(n), 5)).collect();
        for _ in 0..4 {
            let now = world.now;
            world.nodes.get_mut(&id(1)).unwrap().greet(now, &known);
            (0..5).for_each(|_| world.step());
        }
        assert!((2..=7).all(|n| world.sees(1, n) == Some(Liveness::Alive)));
        assert_eq!(world.sees(1, 9), None);
    }

    #[test]
    fn a_lost_connection_makes_a_suspect_that_refutes() {
        let mut world = World::new(3);
        world.until(Duration::from_secs(10), |w| w.sees(1, 3) == Some(Liveness::Alive));
        let now = world.now;
        world.nodes.get_mut(&id(1)).unwrap().handle(now, Input::Lost(id(3))).unwrap();
        assert_eq!(world.sees(1, 3), Some(Liveness::Suspect));
        world.until(Duration::from_secs(10), |w| w.sees(1, 3) == Some(Liveness::Alive));
    }

    /// How often somebody living was taken for dead in an hour. All are connected.
    fn false_deaths(nodes: u8, loss: u32) -> usize {
        let mut world = World::new(nodes);
        for (a, b) in (1..=nodes).flat_map(|a| (1..=nodes).map(move |b| (a, b))) {
            if a != b {
                world.connect(a, b, 1);
            }
        }
        let all = usize::from(nodes) - 1;
        let met = |w: &World| w.nodes.values().all(|n| n.liveness().len() == all);
        world.until(Duration::from_secs(20), met);
        world.loss = loss;
        let mut dead = BTreeSet::new();
        let mut deaths = 0;
        for step in 0..Duration::from_secs(3600).as_millis() / STEP.as_millis() {
            world.step();
            if step % (GREET.as_millis() / STEP.as_millis()) == 0 {
                let now = world.now;
                world.nodes.values_mut().for_each(|n| n.greet(now, &[]));
            }
            let mut now = BTreeSet::new();
            for (who, swim) in &world.nodes {
                let gone = swim.liveness().into_iter().filter(|(_, l)| *l == Liveness::Dead);
                now.extend(gone.map(|(whom, _)| (*who, whom)));
            }
            deaths += now.difference(&dead).count();
            dead = now;
        }
        deaths
    }

    #[test]
    fn packets_lost_by_chance_kill_nobody() {
        for nodes in [3, 8] {
            let deaths = [5, 10, 30].map(|loss| false_deaths(nodes, loss));
            assert_eq!(deaths, [0, 0, 0], "{nodes} nodes, an hour at 5, 10, 30 % loss");
        }
    }

    #[test]
    fn a_packet_cannot_speak_for_another() {
        let mut world = World::new(3);
        let now = world.now;
        let (_, packet) = world.nodes.get_mut(&id(1)).unwrap().poll().unwrap();
        let three = world.nodes.get_mut(&id(3)).unwrap();
        assert!(three.handle(now, Input::Packet(id(2), packet)).is_err());
        assert!(three.handle(now, Input::Packet(id(2), vec![0; 5])).is_err());
        assert!(three.liveness().is_empty());
    }
}

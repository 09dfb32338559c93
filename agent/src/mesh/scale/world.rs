//! The queue of events, and what each does to a node. As the tasks of `mesh` do it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{LedgerHead, NodeRecord, Standing, SyncPartReply};

use super::super::backoff::pause;
use super::super::density::{self, ACTIVE, FULL_MESH};
use super::super::due::Due;
use super::super::records::Offer;
use super::super::swim::{GREET, Input};
use super::super::sync::{COALESCE, FAN_OUT, RUMOR, interval};
use super::super::tls::IDLE;
use super::host::{Conn, Host, record_of};
use super::wire::{self, Msg};

/// As `dialer::ROUND` and `pool::SILENT`.
const ROUND: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_millis(4500);
/// A dial that nobody answers is given up.
const DEADLINE: Duration = Duration::from_secs(5);

enum Event {
    Deliver(NodeId, Msg),
    Wake,
    Greet,
    Maintain,
    Rumor,
    Compare,
    Pursue(usize, u32),
    /// A dial to this node has come to its end.
    Dialled(NodeId, bool),
}

/// For one life of a host.
struct Errand {
    host: usize,
    session: u64,
    event: Event,
}

/// Nodes, their network and a clock.
pub struct World {
    start: Instant,
    pub(super) now: Duration,
    queue: BinaryHeap<Reverse<Due<Duration, Errand>>>,
    seq: u64,
    pub(super) hosts: Vec<Host>,
    index: HashMap<NodeId, usize>,
    shared: HashMap<(NodeId, u64, u64), Arc<NodeRecord>>,
    rng: SmallRng,
    pub(super) parted: bool,
}

impl World {
    /// So many nodes, none of which has started.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        let hosts: Vec<_> = (0..count).map(|index| Host::new(index, 1_000_000)).collect();
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            seq: 0,
            index: hosts.iter().enumerate().map(|(index, host)| (host.me, index)).collect(),
            hosts,
            shared: HashMap::new(),
            rng: SmallRng::seed_from_u64(seed),
            parted: false,
        }
    }

    /// All know each other, connections are as dense as they should be, nothing is new.
    pub(super) fn settled(count: usize, seed: u64) -> Self {
        let mut world = Self::new(count, seed);
        let records: Vec<_> = (0..count).map(|i| Arc::new(record_of(i, 1_000_000))).collect();
        let standings: Vec<_> = records
            .iter()
            .map(|r| Standing {
                node: r.node,
                session: r.incarnation,
                rejoins: 0,
                incarnation: 0,
                down: false,
            })
            .collect();
        let now = world.instant();
        let fill = |hosts: &mut [Host]| {
            for host in hosts {
                records.iter().for_each(|r| {
                    host.records.offer(Arc::clone(r));
                });
                let alive = u32::try_from(count).unwrap_or(u32::MAX);
                let others = standings.iter().filter(|s| s.node != host.me).copied().collect();
                let input = Input::Standings { from: host.me, alive, standings: others };
                let _ = host.swim.handle(now, input);
                host.swim.greet(now, &[]);
            }
        };
        let half = count / 2;
        let (one, two) = world.hosts.split_at_mut(half);
        std::thread::scope(|scope| {
            scope.spawn(|| fill(one));
            fill(two);
        });
        for a in 0..count {
            while world.hosts[a].conns.len() < ACTIVE.min(count - 1)
                || (count <= FULL_MESH && world.hosts[a].conns.len() < count - 1)
            {
                let b = world.rng.random_range(0..count);
                if a != b && !world.hosts[a].conns.contains_key(&world.hosts[b].me) {
                    world.join_ends(a, b);
                }
            }
        }
        for host in &mut world.hosts {
            while host.swim.poll().is_some() {}
        }
        (0..count).for_each(|host| world.begin(host));
        world
    }

    fn join_ends(&mut self, a: usize, b: usize) {
        let now = self.instant();
        for (here, there) in [(a, b), (b, a)] {
            let (peer, session) = (self.hosts[there].me, self.hosts[there].session);
            let used = self.now;
            let host = &mut self.hosts[here];
            host.conns.insert(peer, Conn { used, silent: None });
            host.dials.remove(&peer);
            host.records.connected(peer);
            let _ = host.swim.handle(now, Input::Connected(peer, session));
        }
    }

    /// Starts a node's tasks.
    pub(super) fn begin(&mut self, host: usize) {
        self.hosts[host].up = true;
        let random = Duration::from_secs_f64(self.rng.random());
        self.after(host, random.mul_f64(GREET.as_secs_f64()), Event::Greet);
        let random = Duration::from_secs_f64(self.rng.random());
        self.after(host, random.mul_f64(ROUND.as_secs_f64()), Event::Maintain);
        let pause = interval(self.hosts[host].records.len(), self.rng.random());
        self.after(host, pause, Event::Compare);
        self.pursue_all(host);
        self.settle(host);
    }

    /// A new node, or a new life of one, that knows nobody but `targets`.
    pub(super) fn start_anew(&mut self, host: usize, session: u64, targets: Vec<usize>) {
        if host == self.hosts.len() {
            self.hosts.push(Host::new(host, session));
            self.index.insert(self.hosts[host].me, host);
        }
        let traffic = (self.hosts[host].sent, self.hosts[host].received);
        let side = self.hosts[host].side;
        self.hosts[host] = Host::new(host, session);
        (self.hosts[host].sent, self.hosts[host].received) = traffic;
        self.hosts[host].side = side;
        self.hosts[host].targets = targets;
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn after(&mut self, host: usize, after: Duration, event: Event) {
        self.at(host, self.now + after, event);
    }

    fn at(&mut self, host: usize, at: Duration, event: Event) {
        self.seq += 1;
        let session = self.hosts[host].session;
        let what = Errand { host, session, event };
        self.queue.push(Reverse(Due { at, seq: self.seq, what }));
    }

    /// Runs for so long.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse(due)) = self.queue.peek() {
            if due.at > end {
                break;
            }
            let Some(Reverse(due)) = self.queue.pop() else { break };
            self.now = due.at;
            let errand = due.what;
            let host = &self.hosts[errand.host];
            if host.up && host.session == errand.session {
                self.handle(errand.host, errand.event);
            }
        }
        self.now = end;
    }

    /// Runs until it is so, looking every `step`; `None` if it is not within `most`.
    pub(super) fn until(
        &mut self,
        step: Duration,
        most: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let begin = self.now;
        while self.now - begin < most {
            self.run(step);
            if done(self) {
                return Some(self.now - begin);
            }
        }
        None
    }

    fn can_talk(&self, a: usize, b: usize) -> bool {
        self.hosts[b].up && !(self.parted && self.hosts[a].side != self.hosts[b].side)
    }

    fn handle(&mut self, host: usize, event: Event) {
        let now = self.instant();
        match event {
            Event::Deliver(from, msg) => self.deliver(host, from, msg),
            Event::Wake => {
                self.hosts[host].wake = Duration::MAX;
                self.hosts[host].swim.tick(now);
            }
            Event::Greet => {
                let node = &mut self.hosts[host];
                let things = (node.records.generation(), node.swim.fingerprint());
                let mut unheard = Vec::new();
                if node.complete.map(|(_, seen)| seen) != Some(things.1)
                    || things.0 != node.complete.map_or(0, |c| c.0)
                {
                    let heard = node.swim.heard();
                    let known = node.records.iter().filter(|r| !heard.contains(&r.node));
                    unheard = known.map(|r| (r.node, r.incarnation)).collect();
                    node.complete = unheard.is_empty().then_some(things);
                }
                node.swim.greet(now, &unheard);
                self.after(host, GREET, Event::Greet);
            }
            Event::Maintain => self.maintain(host),
            Event::Rumor => self.rumor(host),
            Event::Compare => {
                let pause = interval(self.hosts[host].records.len(), self.rng.random());
                self.after(host, pause, Event::Compare);
                let peer = self.hosts[host].conns.keys().copied().choose(&mut self.rng);
                if let Some(peer) = peer {
                    self.compare(host, peer);
                }
            }
            Event::Pursue(place, failures) => self.pursue(host, place, failures),
            Event::Dialled(node, ok) => self.dialled(host, node, ok),
        }
        self.settle(host);
    }

    /// Sends what membership wants sent, and sees that it is woken in time.
    fn settle(&mut self, host: usize) {
        while let Some((to, packet)) = self.hosts[host].swim.poll() {
            self.notify(host, to, Msg::Swim(packet));
        }
        if let Some(due) = self.hosts[host].deadline(self.start)
            && due < self.hosts[host].wake
        {
            let due = due.max(self.now);
            self.hosts[host].wake = due;
            self.at(host, due, Event::Wake);
        }
    }

    /// Sends over the connection there is, or one made for it.
    fn notify(&mut self, host: usize, to: NodeId, msg: Msg) {
        if self.hosts[host].conns.contains_key(&to) {
            return self.send(host, to, msg);
        }
        self.dial(host, to);
        if let Some(dial) = self.hosts[host].dials.get_mut(&to).filter(|d| d.running) {
            dial.waiting.push(msg);
        }
    }

    fn send(&mut self, host: usize, to: NodeId, msg: Msg) {
        let Some(peer) = self.index.get(&to).copied() else { return };
        let (bytes, acks) = msg.cost();
        let at = self.transmit(host, bytes);
        if self.can_talk(host, peer) {
            self.hosts[peer].received += bytes;
            self.hosts[peer].sent += acks;
            self.hosts[host].received += acks;
            let from = self.hosts[host].me;
            self.at(peer, at + wire::LATENCY, Event::Deliver(from, msg));
        }
        let now = self.now;
        if let Some(conn) = self.hosts[host].conns.get_mut(&to) {
            conn.used = now;
        }
    }

    /// When the last byte has left.
    fn transmit(&mut self, host: usize, bytes: u64) -> Duration {
        let node = &mut self.hosts[host];
        node.sent += bytes;
        let at = self.now.max(node.uplink_free) + Duration::from_micros(bytes / wire::UPLINK);
        node.uplink_free = at;
        at
    }

    /// As `dialer::reach`.
    fn dial(&mut self, host: usize, to: NodeId) {
        let now = self.now;
        let known = self.hosts[host].records.get(to).is_some() || self.is_target(host, to);
        let dial = self.hosts[host].dials.entry(to).or_default();
        if dial.running || dial.not_before > now || !known {
            return;
        }
        dial.running = true;
        let Some(peer) = self.index.get(&to).copied() else { return };
        let left = self.transmit(host, wire::DIAL);
        if !self.can_talk(host, peer) {
            return self.after(host, DEADLINE, Event::Dialled(to, false));
        }
        self.hosts[peer].received += wire::DIAL;
        self.hosts[peer].sent += wire::ACCEPT;
        self.hosts[host].received += wire::ACCEPT;
        self.hosts[peer].handshakes += 1;
        // The other side's thread does one after the other.
        let turn = (left + wire::LATENCY).max(self.hosts[peer].cpu_free) + wire::HANDSHAKE;
        self.hosts[peer].cpu_free = turn;
        let done = turn + wire::LATENCY * 3;
        let ok = done - now < DEADLINE;
        self.at(host, done.min(now + DEADLINE), Event::Dialled(to, ok));
    }

    fn is_target(&self, host: usize, node: NodeId) -> bool {
        self.hosts[host].targets.iter().any(|t| self.hosts[*t].me == node)
    }

    fn dialled(&mut self, host: usize, node: NodeId, ok: bool) {
        let peer = self.index.get(&node).copied().filter(|peer| ok && self.can_talk(host, *peer));
        let waiting = self.hosts[host].dials.get_mut(&node).map(|d| std::mem::take(&mut d.waiting));
        let Some(peer) = peer else {
            let (now, random) = (self.now, self.rng.random());
            let dial = self.hosts[host].dials.entry(node).or_default();
            dial.running = false;
            dial.failures += 1;
            dial.not_before = now + pause(dial.failures, random);
            return;
        };
        if self.hosts[host].conns.contains_key(&node) {
            self.hosts[host].dials.remove(&node);
        } else {
            self.join_ends(host, peer);
            self.compare(host, node);
            self.settle(peer);
        }
        waiting.into_iter().flatten().for_each(|msg| self.send(host, node, msg));
    }

    /// Begins to pursue the targets a node has been given since it began.
    pub(super) fn pursue_all(&mut self, host: usize) {
        for place in 0..self.hosts[host].targets.len() {
            self.after(host, Duration::ZERO, Event::Pursue(place, 0));
        }
    }

    fn pursue(&mut self, host: usize, place: usize, failures: u32) {
        let target = self.hosts[host].targets[place];
        let node = self.hosts[target].me;
        let here = &self.hosts[host];
        let many = here.conns.len() >= ACTIVE
            && here.swim.living().take(FULL_MESH + 1).count() > FULL_MESH;
        let content = here.conns.contains_key(&node) || (many && here.takes_for_alive(node));
        if content || target == host {
            return self.after(host, ROUND, Event::Pursue(place, 0));
        }
        self.dial(host, node);
        let wait = pause(failures + 1, self.rng.random());
        self.after(host, wait, Event::Pursue(place, failures + 1));
    }

    /// As `dialer::maintain_loop`.
    fn maintain(&mut self, host: usize) {
        self.after(host, ROUND, Event::Maintain);
        let instant = self.instant();
        let peers: Vec<NodeId> = self.hosts[host].conns.keys().copied().collect();
        let far = self.hosts[host].swim.living().take(FULL_MESH).count() >= FULL_MESH;
        for peer in peers {
            self.hosts[host].sent += wire::KEEP_ALIVE;
            self.hosts[host].received += wire::KEEP_ALIVE;
            let there = self.index[&peer];
            // What is lost at the other end, or belongs to its former life, is silent.
            let talks = self.can_talk(host, there)
                && self.hosts[there].conns.contains_key(&self.hosts[host].me);
            let now = self.now;
            let Some(conn) = self.hosts[host].conns.get_mut(&peer) else { continue };
            if talks {
                conn.silent = None;
                continue;
            }
            let silent = now - *conn.silent.get_or_insert(now);
            if silent > SILENT {
                self.compared(host, peer);
            }
            if silent > IDLE {
                self.hosts[host].conns.remove(&peer);
                let _ = self.hosts[host].swim.handle(instant, Input::Lost(peer));
            } else if silent > SILENT && far {
                let _ = self.hosts[host].swim.handle(instant, Input::Silent(peer));
            }
        }
        let node = &self.hosts[host];
        let have = node.conns.len();
        let missing: Vec<NodeId> = if !far || have < ACTIVE {
            node.swim
                .living()
                .filter(|n| !node.conns.contains_key(n) && node.records.get(*n).is_some())
                .collect()
        } else {
            Vec::new()
        };
        let me = node.me;
        for to in density::dials(me, &missing, have, !far, usize::MAX, &mut self.rng) {
            self.dial(host, to);
        }
        if far {
            let conns: Vec<_> =
                self.hosts[host].conns.iter().map(|(n, c)| (*n, self.now - c.used)).collect();
            for peer in density::closes(&conns, &[]) {
                let there = self.index[&peer];
                for (a, b) in [(host, peer), (there, me)] {
                    self.hosts[a].conns.remove(&b);
                    let _ = self.hosts[a].swim.handle(instant, Input::Closed(b));
                }
            }
        }
    }

    /// As `sync::rumor_loop`.
    fn rumor(&mut self, host: usize) {
        let node = &mut self.hosts[host];
        node.rumor_due = false;
        let me = node.me;
        let mut groups: BTreeMap<Option<NodeId>, Vec<Arc<NodeRecord>>> = BTreeMap::new();
        for (fresh, from) in std::mem::take(&mut node.fresh) {
            if let Some(record) = node.records.shared(fresh) {
                groups.entry(from).or_default().push(Arc::clone(record));
            }
        }
        for (from, records) in groups {
            let own = records.iter().any(|r| r.node == me);
            let count = if own { usize::MAX } else { FAN_OUT };
            let peers: Vec<_> =
                self.hosts[host].conns.keys().filter(|n| Some(**n) != from).copied().collect();
            for chunk in records.chunks(RUMOR) {
                for peer in peers.choose_multiple(&mut self.rng, count) {
                    self.send(host, *peer, Msg::Rumor(chunk.to_vec()));
                }
            }
        }
    }

    /// The first step of an exchange; not more than two at a time.
    fn compare(&mut self, host: usize, peer: NodeId) {
        if self.hosts[host].exchanging.len() >= 2 {
            let queued = &mut self.hosts[host].queued;
            if !queued.contains(&peer) {
                queued.push(peer);
            }
            return;
        }
        let there = self.index.get(&peer).copied();
        if there.is_some_and(|there| self.can_talk(host, there)) {
            self.hosts[host].exchanging.insert(peer);
        }
        let msg = self.hosts[host].summary();
        self.send(host, peer, msg);
    }

    fn compared(&mut self, host: usize, peer: NodeId) {
        self.hosts[host].exchanging.remove(&peer);
        if let Some(next) = self.hosts[host].queued.pop()
            && self.hosts[host].conns.contains_key(&next)
        {
            self.compare(host, next);
        }
    }

    fn share(&mut self, record: NodeRecord) -> Arc<NodeRecord> {
        let key = (record.node, record.incarnation, record.version);
        Arc::clone(self.shared.entry(key).or_insert_with(|| Arc::new(record)))
    }

    fn deliver(&mut self, host: usize, from: NodeId, msg: Msg) {
        let now = self.instant();
        if !self.hosts[host].conns.contains_key(&from) {
            return;
        }
        let head = LedgerHead::default();
        match msg {
            Msg::Swim(packet) => {
                let _ = self.hosts[host].swim.handle(now, Input::Packet(from, packet));
            }
            Msg::Rumor(records) => self.take(host, from, records),
            Msg::Summary(summary) => {
                let leaves = self.hosts[host].stand().leaves(&summary, head);
                self.send(host, from, Msg::Leaves(leaves));
            }
            Msg::Leaves(leaves) => {
                let part = self.hosts[host].stand().part(&leaves, head);
                match part {
                    Some(part) => self.send(host, from, Msg::Part(part)),
                    None => self.compared(host, from),
                }
            }
            Msg::Part(part) => {
                let reply = self.hosts[host].stand().compare_part(&part, head);
                let Some(reply) = reply else { return };
                let bytes = wire::length(&reply);
                let SyncPartReply { records, wanted, standings, alive, .. } = reply;
                let records = records.into_iter().map(|r| self.share(r)).collect();
                self.send(host, from, Msg::Reply { records, wanted, standings, alive, bytes });
                self.stand_as(host, from, part.alive, part.standings);
            }
            Msg::Reply { records, wanted, standings, alive, .. } => {
                self.take(host, from, records);
                let node = &self.hosts[host];
                let wanted: Vec<_> =
                    wanted.iter().filter_map(|n| node.records.shared(*n).cloned()).collect();
                for chunk in wanted.chunks(RUMOR) {
                    self.send(host, from, Msg::Rumor(chunk.to_vec()));
                }
                self.stand_as(host, from, alive, standings);
                self.compared(host, from);
            }
        }
    }

    fn stand_as(&mut self, host: usize, from: NodeId, alive: u32, standings: Vec<Standing>) {
        if !standings.is_empty() {
            let now = self.instant();
            let input = Input::Standings { from, alive, standings };
            let _ = self.hosts[host].swim.handle(now, input);
        }
    }

    /// As `sync::take_records`, among honest nodes.
    fn take(&mut self, host: usize, from: NodeId, records: Vec<Arc<NodeRecord>>) {
        let now = self.instant();
        let node = &mut self.hosts[host];
        for record in records {
            let (of, me) = (record.node, node.me);
            let offer = match of == from {
                true => node.records.told_by_itself(record),
                false => node.records.offer(record),
            };
            match offer {
                Offer::Fresh => drop(node.fresh.insert(of, Some(from).filter(|_| of != me))),
                Offer::Overtaken => {
                    node.fresh.insert(of, None);
                    if let Some(own) = node.records.own() {
                        let _ = node.swim.handle(now, Input::NewLife(own.incarnation));
                    }
                }
                Offer::Old | Offer::Refused(_) => {}
            }
        }
        if !node.fresh.is_empty() && !node.rumor_due {
            node.rumor_due = true;
            self.after(host, COALESCE, Event::Rumor);
        }
    }

    /// Sent and received by all.
    pub(super) fn traffic(&self) -> u64 {
        self.hosts.iter().map(|host| host.sent).sum()
    }
}

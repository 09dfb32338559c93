//! Membership where not everybody is connected to everybody: what would make a connection
//! to a random node every second goes to neighbours, or happens rarely. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use foca::{AccumulatingRuntime, Codec, Foca, Member, Message, State, Timer};
use rand10::SeedableRng;
use rand10::rngs::SmallRng;
use rand10::seq::IteratorRandom;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Standing;

use super::density::FULL_MESH;
use super::digest;
use super::swim::{Swim, config};
use super::swim_codec::{SwimCodec, SwimId};

/// A random member is probed so often. Neighbours notice the dead sooner; this is for those
/// that have none, and costs a connection each time.
const FAR_PROBE: Duration = Duration::from_secs(30);
/// Such a probe has to make a connection first: its patience, until others are asked to
/// probe too, and until the verdict.
const FAR_INDIRECT: Duration = Duration::from_secs(2);
const FAR_VERDICT: Duration = Duration::from_secs(4);
/// Two views that differ in more than this part of the members are of two clusters that
/// were apart, not of news that is late.
const APART: usize = 8;

/// A probe that waits for its time.
pub(super) struct FarProbe {
    verdict: Instant,
    next: Instant,
    pub(super) timer: Timer<SwimId>,
}

impl FarProbe {
    /// When: soon if the last one has not been answered.
    pub(super) fn due(&self, asked: Option<u8>) -> Instant {
        if asked.is_some() { self.verdict } else { self.next }
    }
}

fn member(standing: &Standing) -> Member<SwimId> {
    let id = SwimId { node: standing.node, session: standing.session, rejoins: standing.rejoins };
    let state = if standing.down { State::Down } else { State::Alive };
    Member::new(id, standing.incarnation, state)
}

impl Swim {
    /// True if this is no full mesh.
    fn far(&self) -> bool {
        self.foca.num_members() >= FULL_MESH
    }

    /// A timer of the library as it is here; `None` if it was put aside.
    pub(super) fn stretched(
        &mut self,
        now: Instant,
        after: Duration,
        timer: Timer<SwimId>,
    ) -> Option<(Duration, Timer<SwimId>)> {
        match timer {
            Timer::ProbeRandomMember(_) if self.far() => {
                // The first of a life comes at any time: not all probe in step.
                let share = f64::from(u32::try_from(self.seed % 1024).unwrap_or(0)) / 1024.0;
                let next = if self.probed { FAR_PROBE } else { FAR_PROBE.mul_f64(share) };
                self.probed = true;
                self.probe = Some(FarProbe { verdict: now + FAR_VERDICT, next: now + next, timer });
                None
            }
            Timer::ProbeRandomMember(_) => {
                (self.probe, self.probed) = (None, false);
                Some((after, timer))
            }
            Timer::SendIndirectProbe { .. } if self.far() => Some((FAR_INDIRECT, timer)),
            // It asks a random member for some others: comparing does that better.
            Timer::PeriodicAnnounce(_) if self.far() => Some((after * 10, timer)),
            _ => Some((after, timer)),
        }
    }

    /// Somebody has said something.
    pub(super) fn answered(&mut self, message: &Message<SwimId>) {
        if let Message::Ack(number) | Message::ForwardedAck { probe_number: number, .. } = message
            && self.asked == Some(*number)
        {
            self.asked = None;
        }
    }

    /// Where a packet goes: gossip for a stranger to a neighbour instead.
    pub(super) fn directed(&mut self, to: SwimId, data: &[u8]) -> (NodeId, Vec<u8>) {
        let mut rest = data;
        let Ok(mut header) = SwimCodec.decode_header(&mut rest) else {
            return (to.node, data.to_vec());
        };
        if let Message::Ping(number) = header.message {
            self.asked = Some(number);
        }
        if !matches!(header.message, Message::Gossip) || self.connected.contains_key(&to.node) {
            return (to.node, data.to_vec());
        }
        let mut dice = SmallRng::seed_from_u64(self.seed);
        self.seed =
            self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let members = self.foca.iter_members().map(Member::id);
        let Some(neighbour) =
            members.filter(|id| self.connected.contains_key(&id.node)).choose(&mut dice)
        else {
            return (to.node, data.to_vec());
        };
        header.dst = *neighbour;
        let mut packet = Vec::with_capacity(data.len());
        match SwimCodec.encode_header(&header, &mut packet) {
            Ok(()) => {
                packet.extend_from_slice(rest);
                (header.dst.node, packet)
            }
            Err(_) => (to.node, data.to_vec()),
        }
    }

    /// A neighbour is gone, or silent. In a full mesh the probes of all will tell; else few
    /// have a reason to ask it, and its time to refute begins.
    pub(super) fn accuse(&mut self, now: Instant, node: NodeId) -> Result<(), String> {
        let accused: Vec<_> =
            self.foca.iter_members().filter(|m| m.id().node == node).cloned().collect();
        if self.far() {
            let size = u32::try_from(self.foca.num_members()).unwrap_or(u32::MAX);
            let until = now + config(size).suspect_to_down_after;
            for m in &accused {
                let entry = self.accused.entry(*m.id()).or_insert((m.incarnation(), until));
                if entry.0 != m.incarnation() {
                    *entry = (m.incarnation(), until);
                }
            }
        }
        let suspects = accused
            .into_iter()
            .filter(|m| m.state() == State::Alive)
            .map(|m| Member::new(*m.id(), m.incarnation(), State::Suspect));
        self.foca.apply_many(suspects, true, &mut self.out).map_err(|e| e.to_string())
    }

    /// Who has not refuted in time is dead.
    pub(super) fn judge_accused(&mut self, now: Instant) {
        let due: Vec<_> = self
            .accused
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(id, a)| (*id, a.0))
            .collect();
        if due.is_empty() {
            return;
        }
        for (id, _) in &due {
            self.accused.remove(id);
        }
        let still: Vec<_> = self
            .foca
            .iter_members()
            .filter(|m| m.state() == State::Suspect && due.contains(&(*m.id(), m.incarnation())))
            .map(|m| Member::new(*m.id(), m.incarnation(), State::Down))
            .collect();
        let _ = self.foca.apply_many(still.into_iter(), true, &mut self.out);
        self.collect(now);
    }

    /// Takes in what a peer holds of members. It is not told on: everybody compares.
    ///
    /// A few that differ are news that were missed. If the two take many of each other's
    /// living for dead, they were apart: who sees fewer begins anew with what the other
    /// sees, so that only the smaller part has to come back.
    pub(super) fn compare(
        &mut self,
        from: NodeId,
        alive: u32,
        standings: &[Standing],
    ) -> Result<(), String> {
        let me = self.me();
        let mine: BTreeMap<NodeId, (SwimId, bool)> = self
            .foca
            .iter_membership_state()
            .map(|m| (m.id().node, (*m.id(), m.state() == State::Down)))
            .collect();
        let known = |s: &Standing| {
            mine.get(&s.node)
                .filter(|(id, _)| (id.session, id.rejoins) == (s.session, s.rejoins))
                .map(|(_, down)| *down)
        };
        let buried = standings.iter().filter(|s| !s.down && known(s) == Some(true)).count();
        let mourned = standings.iter().filter(|s| s.down && known(s) == Some(false)).count();
        let here = self.foca.num_members() + 1;
        let there = usize::try_from(alive).unwrap_or(usize::MAX);
        let many = here.max(there).div_ceil(APART).max(FULL_MESH / 2);
        if buried >= many && (there, from) > (here, me.node) {
            return self.begin_anew(from, standings);
        }
        // A part that was cut off must not bury the rest.
        let trusted = mourned < many || (there, from) > (here, me.node);
        let news: Vec<_> = standings
            .iter()
            .filter(|s| trusted || !s.down || s.node == me.node)
            .filter(|s| s.node != me.node || (s.down && there >= here / 2))
            .map(member)
            .collect();
        self.foca.apply_many(news.into_iter(), false, &mut self.out).map_err(|e| e.to_string())
    }

    fn begin_anew(&mut self, from: NodeId, standings: &[Standing]) -> Result<(), String> {
        let before = self.me();
        let id = SwimId { rejoins: before.rejoins.wrapping_add(1), ..before };
        let size = u32::try_from(standings.len()).unwrap_or(u32::MAX).max(8);
        self.seed = self.seed.wrapping_add(1);
        self.foca = Foca::new(id, config(size), SmallRng::seed_from_u64(self.seed), SwimCodec);
        self.out = AccumulatingRuntime::new();
        self.timers.clear();
        self.accused.clear();
        (self.gossip, self.probe, self.asked) = (None, None, None);
        let others = standings.iter().filter(|s| s.node != id.node).map(member);
        self.foca.apply_many(others, false, &mut self.out).map_err(|e| e.to_string())?;
        // The others hear of this life by any packet of it.
        let peer = standings.iter().find(|s| s.node == from).map(|s| *member(s).id());
        let session = self.connected.get(&from).copied().unwrap_or(0);
        let peer = peer.unwrap_or(SwimId { node: from, session, rejoins: 0 });
        self.foca.announce(peer, &mut self.out).map_err(|e| e.to_string())
    }

    /// Another number whenever what is known of any member has changed.
    pub(super) fn fingerprint(&self) -> u64 {
        let print = self.print.get().unwrap_or_else(|| self.reckon());
        self.print.set(Some(print));
        print
    }

    fn reckon(&self) -> u64 {
        let me = self.me();
        let own = Standing {
            node: me.node,
            session: me.session,
            rejoins: me.rejoins,
            incarnation: 0,
            down: false,
        };
        self.foca
            .iter_membership_state()
            .map(|m| {
                let id = m.id();
                let [a, b, c, d, e, f, g, h, ..] = id.node.0;
                let word = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                let state = match m.state() {
                    State::Alive => 1,
                    State::Suspect => 2,
                    State::Down => 3,
                };
                digest::mix(word ^ id.session.rotate_left(20) ^ u64::from(id.rejoins) << 2 ^ state)
            })
            .fold(digest::of_standing(&own), |all, sum| all ^ sum)
    }

    /// Everybody the library holds, this node included.
    pub(super) fn heard(&self) -> BTreeSet<NodeId> {
        let others = self.foca.iter_membership_state().map(|m| m.id().node);
        others.chain([self.me().node]).collect()
    }

    /// Members that answer, or have not been silent long enough.
    pub(super) fn living(&self) -> impl Iterator<Item = NodeId> {
        self.foca.iter_members().map(|m| m.id().node)
    }

    /// What is known of every member, this node included.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let me = Member::alive(self.me());
        self.foca
            .iter_membership_state()
            .chain([&me])
            .map(|m| Standing {
                node: m.id().node,
                session: m.id().session,
                rejoins: m.id().rejoins,
                incarnation: m.incarnation(),
                down: m.state() == State::Down,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::net::Liveness;
    use super::super::swim::Input;
    use super::*;

    const MANY: u8 = 100;

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn standing(n: u8, down: bool) -> Standing {
        Standing { node: id(n), session: 5, rejoins: 0, incarnation: 0, down }
    }

    fn standings(from: NodeId, alive: u8, down: bool) -> Input {
        let standings = (2..=MANY).map(|n| standing(n, down)).collect();
        Input::Standings { from, alive: alive.into(), standings }
    }

    /// Node 1 among a hundred, connected to 2, 3 and 4.
    fn among_many(now: Instant) -> Swim {
        let mut swim = Swim::new(id(1), 5, 9);
        swim.handle(now, standings(id(2), MANY, false)).unwrap();
        swim.greet(now, &[]);
        for n in 2..=4 {
            swim.handle(now, Input::Connected(id(n), 5)).unwrap();
        }
        while swim.poll().is_some() {}
        swim
    }

    fn run(swim: &mut Swim, from: Instant, time: Duration) -> (Instant, Vec<(NodeId, Vec<u8>)>) {
        let mut sent = Vec::new();
        let mut now = from;
        while now < from + time {
            now += Duration::from_millis(50);
            swim.tick(now);
            sent.extend(std::iter::from_fn(|| swim.poll()));
        }
        (now, sent)
    }

    #[test]
    fn news_go_to_neighbours_and_probes_to_anybody_now_and_then() {
        let start = Instant::now();
        let mut swim = among_many(start);
        let (now, quiet) = run(&mut swim, start, FAR_PROBE * 2);
        let pings = |sent: &[(NodeId, Vec<u8>)]| {
            let ping = |data: &Vec<u8>| {
                let header = SwimCodec.decode_header(&data[..]).unwrap();
                matches!(header.message, Message::Ping(_))
            };
            sent.iter().filter(|(_, data)| ping(data)).count()
        };
        // Nobody answers here: a verdict is followed by the next probe.
        assert!((1..=16).contains(&pings(&quiet)), "{}", pings(&quiet));
        swim.handle(now, Input::Silent(id(3))).unwrap();
        let (_, sent) = run(&mut swim, now, Duration::from_secs(3));
        let mut told = 0;
        for (to, data) in sent {
            let header = SwimCodec.decode_header(&data[..]).unwrap();
            assert_eq!(header.dst.node, to);
            if matches!(header.message, Message::Gossip) {
                assert!((2..=4).contains(&to.0[0]), "gossip for {to}");
                told += 1;
            }
        }
        assert!(told > 5, "{told}");
    }

    #[test]
    fn a_silent_neighbour_is_dead_unless_it_refutes() {
        let start = Instant::now();
        for refutes in [false, true] {
            let mut swim = among_many(start);
            swim.handle(start, Input::Silent(id(3))).unwrap();
            assert_eq!(swim.liveness()[&id(3)], Liveness::Suspect);
            let (now, _) = run(&mut swim, start, Duration::from_secs(1));
            if refutes {
                let standings = vec![Standing { incarnation: 1, ..standing(3, false) }];
                let input = Input::Standings { from: id(2), alive: MANY.into(), standings };
                swim.handle(now, input).unwrap();
            }
            run(&mut swim, now, Duration::from_secs(10));
            let expected = if refutes { Liveness::Alive } else { Liveness::Dead };
            assert_eq!(swim.liveness()[&id(3)], expected);
        }
    }

    #[test]
    fn who_was_cut_off_begins_anew_and_buries_nobody() {
        let now = Instant::now();
        let mut alone = Swim::new(id(1), 5, 9);
        alone.handle(now, standings(id(2), 1, true)).unwrap();
        assert_eq!(alone.living().count(), 0);
        alone.handle(now, standings(id(2), MANY, false)).unwrap();
        assert_eq!(alone.living().count(), usize::from(MANY) - 1);
        assert_eq!(alone.me().rejoins, 1, "the others think it dead");
        let mut rest = among_many(now);
        rest.handle(now, standings(id(2), 1, true)).unwrap();
        assert_eq!(rest.living().count(), usize::from(MANY) - 1);
        assert_eq!(rest.me().rejoins, 0);
    }

    #[test]
    fn what_was_missed_is_learned_and_a_rumor_of_the_own_death_refuted() {
        let now = Instant::now();
        let mut swim = among_many(now);
        let before = swim.fingerprint();
        let news = vec![standing(7, true), standing(1, true)];
        swim.handle(now, Input::Standings { from: id(2), alive: 99, standings: news }).unwrap();
        assert_eq!(swim.liveness()[&id(7)], Liveness::Dead);
        assert_eq!(swim.me().rejoins, 1);
        assert_ne!(swim.fingerprint(), before);
    }
}

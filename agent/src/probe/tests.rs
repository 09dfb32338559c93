//! The core under a made-up network and clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use weft_proto::id::NodeId;
use weft_proto::names::PROBE_PORT;

use super::*;

fn node(n: u16) -> NodeId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
}

fn address(n: u16) -> IpAddr {
    let [a, b] = n.to_be_bytes();
    IpAddr::from([10, 32, a, b])
}

fn peer(n: u16) -> Peer {
    Peer { address: address(n), mtu: 1450, life: 1, sure: true }
}

/// A network that loses what it is told to lose.
struct World {
    prober: Prober,
    now: Duration,
    nonce: u64,
    asked: BTreeMap<NodeId, Vec<Duration>>,
}

impl World {
    fn new(peers: u16) -> Self {
        let mut world = Self {
            prober: Prober::default(),
            now: Duration::ZERO,
            nonce: 0,
            asked: BTreeMap::new(),
        };
        world.set((1..=peers).map(|n| (node(n), peer(n))).collect());
        world
    }

    fn set(&mut self, peers: BTreeMap<NodeId, Peer>) {
        self.prober.set_peers(self.now, peers);
    }

    /// One second; `passes` says what comes back.
    fn second(&mut self, passes: impl Fn(&Ask) -> bool) -> Vec<Ask> {
        self.now += Duration::from_secs(1);
        let nonce = &mut self.nonce;
        let asks = self.prober.tick(self.now, || {
            *nonce += 1;
            *nonce
        });
        for ask in &asks {
            if ask.large.is_none() {
                self.asked.entry(ask.node).or_default().push(self.now);
            }
            if passes(ask) {
                let at = self.now + Duration::from_millis(3);
                assert!(self.prober.answer(at, ask.address, ask.nonce));
            }
        }
        asks
    }

    fn seconds(&mut self, count: usize, passes: impl Fn(&Ask) -> bool) {
        for _ in 0..count {
            self.second(&passes);
        }
    }

    fn fault(&self, n: u16) -> Option<Fault> {
        self.prober.verdict(node(n)).unwrap().fault.map(|(fault, _)| fault)
    }
}

#[test]
fn all_is_well() {
    let mut world = World::new(3);
    world.seconds(5, |_| true);
    for n in 1..=3 {
        let verdict = world.prober.verdict(node(n)).unwrap();
        assert_eq!((verdict.ok, verdict.fault), (Some(true), None));
        assert_eq!(verdict.rtt, Some(Duration::from_millis(3)));
    }
    let counters = world.prober.counters();
    assert_eq!((counters.sent, counters.lost, counters.strange), (counters.answered, 0, 0));
}

#[test]
fn a_dead_path_is_named_and_heals() {
    let mut world = World::new(2);
    world.seconds(5, |_| true);
    let broken = world.now;
    world.seconds(15, |ask| ask.node != node(1));
    assert_eq!((world.fault(1), world.fault(2)), (Some(Fault::All), None));
    let (_, since) = world.prober.verdict(node(1)).unwrap().fault.unwrap();
    assert!(since > broken && since <= broken + Duration::from_secs(5), "{since:?}");
    world.seconds(5, |_| true);
    assert_eq!(world.fault(1), None);
    assert_eq!(world.prober.verdict(node(1)).unwrap().ok, Some(true));
}

#[test]
fn an_mtu_black_hole_is_told_apart() {
    let mut world = World::new(2);
    world.seconds(30, |ask| ask.node != node(1) || ask.large.is_none());
    assert_eq!((world.fault(1), world.fault(2)), (Some(Fault::Large), None));
    world.seconds(15, |ask| ask.node != node(1));
    assert_eq!(world.fault(1), Some(Fault::All));
    // Small ones first; the large ones are judged afresh.
    world.second(|_| true);
    world.seconds(6, |ask| ask.large.is_none());
    assert_ne!(world.fault(1), Some(Fault::All));
    world.seconds(6, |_| true);
    assert_eq!(world.fault(1), None);
}

#[test]
fn nobody_is_blamed_while_it_starts() {
    let mut world = World::new(2);
    world.seconds(9, |_| false);
    assert_eq!(world.fault(1), None);
    // A restart is a start.
    world.seconds(40, |_| false);
    assert_eq!(world.fault(1), Some(Fault::All));
    let fresh = Peer { life: 2, ..peer(1) };
    world.set([(node(1), fresh), (node(2), peer(2))].into());
    assert_eq!((world.fault(1), world.fault(2)), (None, Some(Fault::All)));
    world.seconds(9, |_| false);
    assert_eq!(world.fault(1), None);
}

#[test]
fn a_suspect_is_left_alone() {
    let mut world = World::new(1);
    world.seconds(5, |_| true);
    world.seconds(5, |_| false);
    world.set([(node(1), Peer { sure: false, ..peer(1) })].into());
    for _ in 0..30 {
        assert_eq!(world.second(|_| false), []);
    }
    assert_eq!(world.fault(1), None);
    world.set(BTreeMap::new());
    assert_eq!(world.prober.verdict(node(1)), None);
    assert_eq!(world.second(|_| true), []);
}

#[test]
fn forged_and_late_answers_do_not_count() {
    let mut world = World::new(1);
    let asks = world.second(|_| false);
    let late = world.now + Duration::from_secs(3);
    for ask in &asks {
        assert!(!world.prober.answer(world.now, address(9), ask.nonce));
        assert!(!world.prober.answer(world.now, ask.address, ask.nonce + 77));
    }
    world.prober.tick(late, || 1000);
    assert!(!world.prober.answer(late, asks[0].address, asks[0].nonce));
    assert_eq!(world.prober.counters().strange, 5);
    assert_eq!(world.prober.verdict(node(1)).unwrap().ok, None);
}

#[test]
fn answers_are_bounded() {
    let ranges = ["10.32.0.0/12".parse().unwrap()];
    let mut echo = Echo::default();
    let now = Duration::from_secs(1);
    let from = |ip: IpAddr| SocketAddr::new(ip, PROBE_PORT);
    assert!(!echo.allows(now, from("192.0.2.1".parse().unwrap()), &ranges));
    assert!(!echo.allows(now, SocketAddr::new(address(1), 53), &ranges));
    let given = (0..100).filter(|_| echo.allows(now, from(address(1)), &ranges)).count();
    assert_eq!(given, 8);
    assert!(echo.allows(now, from(address(2)), &ranges), "others are still served");
    let given = (0..60_000).filter(|n| echo.allows(now, from(address(*n)), &ranges)).count();
    assert!(given <= 2048, "{given}");
    assert!(echo.allows(now * 2, from(address(1)), &ranges));
}

#[test]
fn payloads_fill_the_mtu() {
    assert_eq!(udp_payload(address(1), 1450), 1422);
    assert_eq!(udp_payload("fd00::1".parse().unwrap(), 1430), 1382);
    assert_eq!(udp_payload(address(1), 0), SMALLEST);
    assert_eq!(Packet::Ask(7).encode(1422).len(), 1422);
}

proptest! {
    #[test]
    fn packets_survive_and_garbage_is_refused(nonce: u64, length in 0..2000_usize, junk: Vec<u8>) {
        for packet in [Packet::Ask(nonce), Packet::Answer(nonce)] {
            prop_assert_eq!(Packet::decode(&packet.encode(length)), Some(packet));
            for cut in 0..SMALLEST {
                prop_assert_eq!(Packet::decode(&packet.encode(0)[..cut]), None);
            }
        }
        if !junk.starts_with(b"WP") {
            prop_assert_eq!(Packet::decode(&junk), None);
        }
    }

    /// Everybody in turn, never more than about the logarithm a second.
    #[test]
    fn turns_are_fair_and_few(peers in 1..400_u16, dead in 0..400_u16) {
        let mut world = World::new(peers);
        let budget = Prober::budget(usize::from(peers));
        prop_assert!(budget <= 11);
        // Twice: one that is still waiting for an answer is passed over.
        let turn = usize::from(peers).div_ceil(budget) * 2 + 1;
        for _ in 0..turn {
            let asks = world.second(|ask| ask.node != node(dead));
            let asked: std::collections::BTreeSet<_> = asks.iter().map(|a| a.node).collect();
            prop_assert!(asked.len() <= 2 * budget && asks.len() <= 4 * budget);
        }
        prop_assert_eq!(world.asked.len(), usize::from(peers));
        if peers <= 25 {
            for times in world.asked.values() {
                prop_assert!(times.windows(2).all(|w| w[1] - w[0] <= Duration::from_secs(6)));
            }
        }
    }

    /// Whatever was lost before: a minute of silence is named, a minute of
    /// answers is not, and nobody but the silent is.
    #[test]
    fn verdicts_follow_the_network(
        history in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..60),
        silent in 1..6_u16,
    ) {
        let mut world = World::new(5);
        for (small, large, sure) in history {
            world.set((1..=5).map(|n| (node(n), Peer { sure, ..peer(n) })).collect());
            world.second(|ask| if ask.large.is_some() { large } else { small });
        }
        world.set((1..=5).map(|n| (node(n), peer(n))).collect());
        world.seconds(60, |ask| ask.node != node(silent));
        for n in 1..=5 {
            prop_assert_eq!(world.fault(n), (n == silent).then_some(Fault::All));
        }
        world.seconds(60, |ask| ask.node != node(silent) || ask.large.is_none());
        prop_assert_eq!(world.fault(silent), Some(Fault::Large));
        world.seconds(60, |_| true);
        prop_assert!(world.prober.verdicts().all(|(_, v)| v.ok == Some(true)));
    }
}

/// Nodes of the version before answer only this.
#[test]
fn the_bytes_of_a_probe_are_frozen() {
    let ask = [b'W', b'P', 1, 1, 0, 0, 0, 0, 0, 0, 1, 2];
    assert_eq!(Packet::Ask(258).encode(12), ask);
    assert_eq!(Packet::Ask(258).encode(14), [&ask[..], &[0, 0]].concat());
    let answer = [b'W', b'P', 1, 2, 0, 0, 0, 0, 0, 0, 1, 2];
    assert_eq!(Packet::Answer(258).encode(0), answer);
}

//! Nodes race for the founding: every order of reads and writes, crashes,
//! lost disks and pauses.

use proptest::prelude::*;

use super::*;

const NODES: usize = 4;

/// What a node holds, and what it loses how.
#[derive(Debug, Clone)]
struct Node {
    /// Disk.
    id: NodeId,
    ledger: Option<ClusterId>,
    /// The record has named its cluster: pods may have addresses of it.
    confirmed: bool,
    /// Memory.
    read: Option<Option<(Record, u64)>>,
    /// Version last seen, and when it was first seen.
    heard: Option<(u64, Duration)>,
    /// When its own claim was last written.
    wrote: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Event {
    Read(usize),
    Act(usize),
    Crash(usize),
    LoseDisk(usize),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..NODES;
    prop_oneof![
        4 => node.clone().prop_map(Event::Read),
        4 => node.clone().prop_map(Event::Act),
        1 => node.clone().prop_map(Event::Crash),
        1 => node.prop_map(Event::LoseDisk),
        1 => prop_oneof![0u64..8, 50u64..80].prop_map(Event::Wait),
    ]
}

struct World {
    now: Duration,
    record: Option<(Record, u64)>,
    nodes: Vec<Node>,
    fresh_id: u8,
    versions: u64,
}

impl World {
    fn new() -> Self {
        let node = |n: usize| Node {
            id: NodeId([u8::try_from(n).unwrap(); 16]),
            ledger: None,
            confirmed: false,
            read: None,
            heard: None,
            wrote: None,
        };
        Self {
            now: Duration::from_secs(1000),
            record: None,
            nodes: (0..NODES).map(node).collect(),
            fresh_id: 100,
            versions: 0,
        }
    }

    fn me(&self, n: usize) -> Me {
        let node = &self.nodes[n];
        Me { name: format!("n{n}"), id: node.id, cluster: node.ledger }
    }

    fn read(&mut self, n: usize) {
        let seen = self.record.clone();
        let node = &mut self.nodes[n];
        if let Some((_, version)) = &seen
            && node.heard.is_none_or(|(known, _)| known != *version)
        {
            node.heard = Some((*version, self.now));
        }
        node.read = Some(seen);
    }

    /// Compare and swap, as the server does it.
    fn write(&mut self, expected: Option<u64>, record: Record) -> bool {
        if self.record.as_ref().map(|(_, version)| *version) != expected {
            return false;
        }
        if let Some((before, _)) = &self.record
            && before.founded
        {
            panic!("a founded record was changed: {before:?} to {record:?}");
        }
        self.versions += 1;
        self.record = Some((record, self.versions));
        true
    }

    fn act(&mut self, n: usize) {
        let Some(seen) = self.nodes[n].read.take() else { return };
        let me = self.me(n);
        let unheard = self.nodes[n].heard.map_or(Duration::ZERO, |(_, since)| self.now - since);
        let fresh = self.nodes[n].wrote.is_some_and(|at| self.now - at < FRESH);
        let version = seen.as_ref().map(|(_, version)| *version);
        match decide(seen.as_ref().map(|(record, _)| record), &me, unheard, fresh) {
            Step::Create(record) | Step::Replace(record) => {
                let mine = record.founder_id == Some(me.id);
                if self.write(version, record) && mine {
                    self.nodes[n].wrote = Some(self.now);
                }
            }
            Step::Found => {
                let (record, _) = self.record.clone().unwrap();
                assert_eq!(record.founder_id, Some(me.id), "founded on a claim taken over");
                // It may have been marked by a founder that was stopped for long:
                // then this one's ledger is the late one, and given up below.
                self.fresh_id += 1;
                self.nodes[n].ledger = Some(ClusterId([self.fresh_id; 16]));
            }
            Step::Follow => {
                if let Some((record, _)) = seen
                    && record.founded
                {
                    self.nodes[n].ledger = record.cluster;
                    self.nodes[n].confirmed = true;
                }
            }
            // It gives its ledger up.
            Step::Differs(_) => {
                assert!(!self.nodes[n].confirmed, "the record has changed its cluster");
                self.nodes[n].ledger = None;
            }
        }
    }

    fn forget(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.read, node.heard, node.wrote) = (None, None, None);
    }

    fn play(&mut self, event: &Event) {
        match event {
            Event::Read(n) => self.read(*n),
            Event::Act(n) => self.act(*n),
            Event::Crash(n) => self.forget(*n),
            Event::LoseDisk(n) => {
                self.forget(*n);
                self.fresh_id += 1;
                self.nodes[*n].id = NodeId([self.fresh_id; 16]);
                self.nodes[*n].ledger = None;
                self.nodes[*n].confirmed = false;
            }
            Event::Wait(seconds) => self.now += Duration::from_secs(*seconds),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens: a founded record stays, and once all is quiet every
    /// node that was let work ends up in the cluster that the record names.
    #[test]
    fn one_cluster_in_the_end(events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::new();
        events.iter().for_each(|event| world.play(event));
        for _ in 0..6 {
            for n in 0..NODES {
                for _ in 0..4 {
                    world.read(n);
                    world.act(n);
                }
            }
            world.now += CLAIM;
        }
        let (record, _) = world.record.clone().unwrap();
        prop_assert!(record.founded && record.cluster.is_some());
        for node in &world.nodes {
            prop_assert_eq!(node.ledger, record.cluster);
        }
    }
}

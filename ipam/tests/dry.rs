//! Three nodes share a range too small for them: acquire, then ask the others.
//! Every usable address must come out, exactly once, whoever asks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{Log, addresses, granted, net, node};
use proptest::collection::vec;
use proptest::prelude::*;
use weft_ipam::leases::AllocError;
use weft_ipam::{LeaseTable, is_reserved};
use weft_proto::attachment::AttachmentKey;
use weft_proto::ledger::{Op, Outcome, Refusal};

const NODES: usize = 3;

struct Cluster {
    log: Log,
    tables: Vec<LeaseTable>,
    pods: BTreeMap<IpAddr, (usize, AttachmentKey)>,
    serial: u32,
    ipv6: bool,
}

impl Cluster {
    fn new(range: &str) -> Self {
        let log = Log::with_nodes(&[range], 0, NODES as u8);
        let tables = vec![LeaseTable::new(1_000); NODES];
        Self { log, tables, pods: BTreeMap::new(), serial: 0, ipv6: net(range).addr().is_ipv6() }
    }

    fn refresh(&mut self, who: usize) {
        let own: Vec<_> =
            self.log.ledger.blocks_of(node(who as u8 + 1)).map(|b| b.prefix).collect();
        let lost = self.tables[who].set_blocks(self.log.ledger.ranges(), &own);
        assert_eq!(lost, []);
    }

    /// More addresses for a node; false if there are none anywhere.
    fn refill(&mut self, who: usize) -> bool {
        let me = node(who as u8 + 1);
        match self.log.run(Op::Acquire { node: me, ipv6: self.ipv6, count: 1 }) {
            Outcome::Granted(_) => {
                self.refresh(who);
                return true;
            }
            Outcome::Refused(Refusal::Exhausted { .. }) => {}
            other => panic!("{other:?}"),
        }
        for other in (0..NODES).filter(|other| *other != who) {
            let Some(prefix) = self.tables[other].donation(self.ipv6, None) else { continue };
            self.tables[other].withhold(prefix).unwrap();
            let give = Op::Transfer { from: node(other as u8 + 1), to: me, prefix };
            assert_eq!(granted(&self.log.run(give)), [prefix.to_string()]);
            self.refresh(other);
            self.tables[other].unwithhold(prefix);
            self.refresh(who);
            return true;
        }
        false
    }

    fn allocate(&mut self, who: usize) -> Option<IpAddr> {
        self.serial += 1;
        let key = AttachmentKey { container_id: self.serial.to_string(), ifname: "eth0".into() };
        let now = u64::from(self.serial);
        loop {
            match self.tables[who].allocate(&key, self.ipv6, None, now) {
                Ok(address) => {
                    assert_eq!(self.pods.insert(address, (who, key)), None, "{address} twice");
                    return Some(address);
                }
                Err(AllocError::Full) => {
                    if !self.refill(who) {
                        return None;
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn check(&self) {
        let range = self.log.ledger.ranges()[0];
        let owned: u64 = self.tables.iter().map(|table| table.owned(self.ipv6)).sum();
        let parts: u64 = self.tables.iter().map(|t| t.free(self.ipv6) + t.len() as u64).sum();
        assert_eq!(owned, parts);
        for address in addresses(&range) {
            let owner = self.log.ledger.owner_of(address).map(|block| block.owner);
            if let Some((who, _)) = self.pods.get(&address) {
                assert_eq!(owner, Some(node(*who as u8 + 1)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_usable_address_comes_out_once(
        range in prop::sample::select(vec![
            "10.32.1.0/28", "10.32.1.16/29", "10.32.1.4/30", "10.32.1.0/26", "fd00::/125",
        ]),
        steps in vec((0..NODES, 0..4u8, any::<prop::sample::Index>()), 0..60),
        last in 0..NODES,
    ) {
        let mut cluster = Cluster::new(range);
        for (who, kind, index) in steps {
            if kind == 0 && !cluster.pods.is_empty() {
                let address = *index.get(&cluster.pods.keys().copied().collect::<Vec<_>>());
                let (who, key) = cluster.pods.remove(&address).unwrap();
                cluster.serial += 1;
                let now = u64::from(cluster.serial);
                prop_assert_eq!(cluster.tables[who].release(&key, now), vec![address]);
            } else {
                cluster.allocate(who);
            }
            cluster.check();
        }
        // Whatever happened before, one node can have all the rest.
        while cluster.allocate(last).is_some() {
            cluster.check();
        }
        let all = addresses(&net(range));
        let usable = all.into_iter().filter(|a| !is_reserved(&[net(range)], *a));
        prop_assert_eq!(cluster.pods.keys().copied().collect::<Vec<_>>(), usable.collect::<Vec<_>>());
        for who in 0..NODES {
            prop_assert_eq!(cluster.allocate(who), None);
        }
    }
}

//! The lease table against sets of addresses.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{addresses, ip, net, nets};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use weft_ipam::leases::{AllocError, ClaimError, Held};
use weft_ipam::{LeaseTable, is_reserved, usable_in};
use weft_proto::attachment::AttachmentKey;

fn key(number: u8) -> AttachmentKey {
    AttachmentKey { container_id: format!("c{number}"), ifname: "eth0".into() }
}

fn table(ranges: &[&str], blocks: &[&str]) -> LeaseTable {
    let mut table = LeaseTable::new(100);
    assert_eq!(table.set_blocks(&nets(ranges), &nets(blocks)), []);
    table
}

#[test]
fn freed_addresses_come_back_last_and_oldest_first() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/29"]);
    let first: Vec<_> = (1..=3).map(|n| t.allocate(&key(n), false, None, 0).unwrap()).collect();
    assert_eq!(first, [ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3")]);
    t.release(&key(2), 10);
    t.release(&key(1), 20);
    assert_eq!((t.free(false), t.ready(false, 109), t.ready(false, 110)), (6, 4, 5));
    let order: Vec<_> = (4..=9).map(|n| t.allocate(&key(n), false, None, 30).unwrap()).collect();
    let want = ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.2", "10.0.0.1"];
    assert_eq!(order, want.map(ip));
    assert_eq!(t.allocate(&key(10), false, None, 30), Err(AllocError::Full));
    // The same question, the same answer; another family, another address.
    assert_eq!(t.allocate(&key(4), false, None, 99), Ok(ip("10.0.0.4")));
    assert_eq!(t.allocate(&key(4), true, None, 99), Err(AllocError::Full));
}

#[test]
fn what_an_earlier_life_freed_comes_back_last() {
    let mut before = table(&["10.0.0.0/24"], &["10.0.0.0/29"]);
    for n in 1..=3 {
        before.allocate(&key(n), false, None, 0).unwrap();
    }
    before.release(&key(2), 10);
    before.release(&key(1), 20);
    let freed = before.freed();
    assert_eq!(freed, [(ip("10.0.0.2"), 10), (ip("10.0.0.1"), 20)]);

    let mut t = LeaseTable::new(100);
    for (address, at_ms) in &freed {
        t.remember_freed(*address, *at_ms);
    }
    t.adopt(&key(3), ip("10.0.0.3")).unwrap();
    // Whether they are still own is not known yet: nothing is given out.
    assert_eq!(t.allocate(&key(4), false, None, 30), Err(AllocError::Full));
    assert_eq!(t.freed(), freed);
    t.set_blocks(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.0/29"]));
    assert_eq!((t.free(false), t.ready(false, 109)), (6, 4));
    let order: Vec<_> = (4..=9).map(|n| t.allocate(&key(n), false, None, 30).unwrap()).collect();
    let want = ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.2", "10.0.0.1"];
    assert_eq!(order, want.map(ip));
    assert_eq!(t.freed(), []);

    // What has gone to another node in the meantime is none of ours; it may come back.
    let mut t = LeaseTable::new(100);
    t.remember_freed(ip("10.0.0.2"), 10);
    t.set_blocks(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.8/29"]));
    assert_eq!(t.freed(), [(ip("10.0.0.2"), 10)]);
    assert_eq!(t.allocate(&key(1), false, None, 30), Ok(ip("10.0.0.8")));
}

#[test]
fn what_cools_down_does_so_also_while_its_block_is_away() {
    let range = nets(&["10.0.0.0/24"]);
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.8/30"]);
    for n in 1..=3 {
        t.allocate(&key(n), false, None, 0).unwrap();
    }
    t.release(&key(1), 50);
    // The block is lost, with a pod in it, and is back a moment later.
    t.set_blocks(&range, &[]);
    t.release(&key(2), 60);
    assert_eq!(t.freed(), [(ip("10.0.0.8"), 50), (ip("10.0.0.9"), 60)]);
    t.set_blocks(&range, &nets(&["10.0.0.8/30"]));
    assert_eq!((t.free(false), t.ready(false, 149)), (3, 1));
    let order: Vec<_> = (4..=6).map(|n| t.allocate(&key(n), false, None, 70).unwrap()).collect();
    assert_eq!(order, ["10.0.0.11", "10.0.0.8", "10.0.0.9"].map(ip));

    // Handed over, and refused by the ledger after the block had gone and come back.
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.8/31"]);
    t.allocate(&key(1), false, None, 0).unwrap();
    t.release(&key(1), 50);
    t.withhold(net("10.0.0.8/31")).unwrap();
    t.set_blocks(&range, &[]);
    t.unwithhold(net("10.0.0.8/31"));
    t.set_blocks(&range, &nets(&["10.0.0.8/31"]));
    assert_eq!(t.allocate(&key(2), false, None, 60), Ok(ip("10.0.0.9")));

    // Nothing is kept in mind for longer than it matters.
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.8/31"]);
    for n in 1..=2 {
        t.allocate(&key(n), false, None, 0).unwrap();
    }
    t.set_blocks(&range, &[]);
    t.release(&key(1), 50);
    t.release(&key(2), 150);
    assert_eq!(t.freed(), [(ip("10.0.0.9"), 150)]);
}

#[test]
fn a_clock_that_jumps_back_keeps_the_order() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.8/31"]);
    for n in [1, 2] {
        t.allocate(&key(n), false, None, 1_000).unwrap();
    }
    t.release(&key(2), 1_000);
    t.release(&key(1), 5);
    assert_eq!(t.allocate(&key(3), false, None, 5), Ok(ip("10.0.0.9")));
}

#[test]
fn within_a_subnet() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/28"]);
    let subnet = Some(net("10.0.0.4/30"));
    assert_eq!(t.allocate(&key(1), false, subnet, 0), Ok(ip("10.0.0.5")));
    assert_eq!(t.allocate(&key(1), false, subnet, 0), Ok(ip("10.0.0.5")));
    assert_eq!(t.allocate(&key(1), false, Some(net("10.0.0.8/29")), 0), Ok(ip("10.0.0.9")));
    assert_eq!(t.addresses(&key(1)).len(), 2);
    assert_eq!(t.allocate(&key(2), false, subnet, 0), Ok(ip("10.0.0.6")));
    assert_eq!(t.allocate(&key(3), false, subnet, 0), Err(AllocError::Full));
    t.release_one(&key(1), ip("10.0.0.5"), 1);
    assert_eq!(t.allocate(&key(3), false, subnet, 1), Ok(ip("10.0.0.5")));
    let outside = net("10.9.0.0/24");
    assert_eq!(
        t.allocate(&key(4), false, Some(outside), 0),
        Err(AllocError::OutOfRange { within: outside })
    );
    assert!(t.allocate(&key(4), true, subnet, 0).is_err());
}

#[test]
fn claiming_and_adopting() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/29"]);
    assert_eq!(t.claim(&key(1), ip("10.0.0.3"), 0), Ok(()));
    assert_eq!(t.claim(&key(1), ip("10.0.0.3"), 0), Ok(()));
    let held = ClaimError::Held { by: key(1) };
    assert_eq!(t.claim(&key(2), ip("10.0.0.3"), 0), Err(held));
    assert_eq!(t.claim(&key(2), ip("10.0.0.0"), 0), Err(ClaimError::Reserved));
    assert_eq!(t.claim(&key(2), ip("10.0.0.9"), 0), Err(ClaimError::NotOwned));
    assert_eq!(t.claim(&key(2), ip("10.1.0.9"), 0), Err(ClaimError::OutOfRange));
    t.withhold(net("10.0.0.4/31")).unwrap();
    assert_eq!(t.claim(&key(2), ip("10.0.0.4"), 0), Err(ClaimError::Withheld));

    assert_eq!(t.adopt(&key(3), ip("10.0.0.3")), Err(Held { by: key(1) }));
    assert_eq!(t.adopt(&key(3), ip("10.0.0.77")), Ok(()));
    assert_eq!(t.foreign(), [(key(3), ip("10.0.0.77"))]);
    assert_eq!(t.release(&key(3), 0), [ip("10.0.0.77")]);
    assert_eq!((t.free(false), t.owned(false), t.len()), (4, 7, 1));
}

#[test]
fn leases_survive_the_loss_of_their_block() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/29", "10.0.0.8/29"]);
    t.claim(&key(1), ip("10.0.0.9"), 0).unwrap();
    t.claim(&key(2), ip("10.0.0.10"), 0).unwrap();
    t.release(&key(2), 5);
    let lost = t.set_blocks(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.0/29"]));
    assert_eq!(lost, [(key(1), ip("10.0.0.9"))]);
    assert_eq!(t.holder(ip("10.0.0.9")), Some(&key(1)));
    // Back again: still leased, not handed out a second time.
    assert_eq!(t.set_blocks(&nets(&["10.0.0.0/24"]), &nets(&["10.0.0.8/29"])), []);
    assert_eq!(t.free(false), 7);
    assert_eq!(t.claim(&key(3), ip("10.0.0.9"), 9), Err(ClaimError::Held { by: key(1) }));
}

#[test]
fn donations() {
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/28", "10.0.0.64/26"]);
    // 15 + 64 are free: half is 39, so a /27, from the top.
    assert_eq!(t.donation(false, None), Some(net("10.0.0.96/27")));
    t.withhold(net("10.0.0.96/27")).unwrap();
    assert!(t.withhold(net("10.0.0.96/28")).is_err());
    assert_eq!(t.donation(false, None), Some(net("10.0.0.80/28")));
    assert_eq!(t.donation(true, None), None);
    assert_eq!(t.donation(false, Some(ip("10.0.0.5"))), Some(net("10.0.0.5/32")));
    for no in ["10.0.0.0", "10.0.0.96", "10.0.0.200", "fd00::1"] {
        assert_eq!(t.donation(false, Some(ip(no))), None, "{no}");
    }
    assert_eq!(t.idle_blocks(), nets(&["10.0.0.0/28"]));
    t.unwithhold(net("10.0.0.96/27"));
    assert_eq!(t.idle_blocks().len(), 2);
    t.allocate(&key(1), false, None, 0).unwrap();
    assert_eq!(t.idle_blocks(), nets(&["10.0.0.64/26"]));
    assert!(t.withhold(net("10.0.0.0/29")).is_err());
    t.release(&key(1), 50);
    assert!(t.cooling(net("10.0.0.0/28"), 149) && !t.cooling(net("10.0.0.0/28"), 150));

    // A part never used goes before one that was.
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.8/30"]);
    t.claim(&key(1), ip("10.0.0.10"), 0).unwrap();
    t.release(&key(1), 0);
    assert_eq!(t.donation(false, None), Some(net("10.0.0.8/31")));

    // The last address may go, the useless one never.
    let mut t = table(&["10.0.0.0/24"], &["10.0.0.0/31"]);
    assert_eq!(t.donation(false, None), Some(net("10.0.0.0/31")));
    t.allocate(&key(1), false, None, 0).unwrap();
    assert_eq!(t.donation(false, None), None);
}

#[test]
fn vast_blocks_cost_nothing() {
    let mut t = table(&["10.0.0.0/8", "fd00::/48"], &["10.0.0.0/8", "fd00::/48"]);
    assert_eq!(t.allocate(&key(1), true, None, 0), Ok(ip("fd00::1")));
    assert_eq!(t.allocate(&key(1), false, None, 0), Ok(ip("10.0.0.1")));
    assert_eq!(t.free(true), u64::MAX);
    assert_eq!(t.free(false), (1 << 24) - 3);
    assert_eq!(t.donation(false, None), Some(net("10.192.0.0/10")));
    assert_eq!(t.donation(true, None).map(|p| p.prefix_len()), Some(50));
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8, Option<(Index, u8)>),
    Claim(u8, Index),
    Adopt(u8, Index),
    Release(u8),
    ReleaseOne(Index),
    Blocks(Vec<Index>),
    Donate(Option<Index>),
    Unwithhold(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let who = || 0..12u8;
    prop_oneof![
        8 => (who(), prop::option::weighted(0.2, (index(), 1..4u8))).prop_map(|(n, w)| Step::Allocate(n, w)),
        3 => (who(), index()).prop_map(|(n, i)| Step::Claim(n, i)),
        1 => (who(), index()).prop_map(|(n, i)| Step::Adopt(n, i)),
        4 => who().prop_map(Step::Release),
        3 => index().prop_map(Step::ReleaseOne),
        2 => vec(index(), 0..7).prop_map(Step::Blocks),
        3 => prop::option::weighted(0.3, index()).prop_map(Step::Donate),
        3 => index().prop_map(Step::Unwithhold),
    ]
}

const RANGE: &str = "10.0.0.0/27";

/// What each address is, one by one.
#[derive(Default)]
struct Model {
    blocks: Vec<IpNet>,
    held: BTreeMap<IpAddr, AttachmentKey>,
    withheld: BTreeSet<IpNet>,
    /// Order in which addresses were freed; nothing cools down in so short a time.
    freed: BTreeMap<IpAddr, u64>,
}

impl Model {
    fn own(&self, address: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.contains(&address))
    }

    fn free(&self) -> Vec<IpAddr> {
        let free = |a: &IpAddr| {
            self.own(*a)
                && !is_reserved(&nets(&[RANGE]), *a)
                && !self.held.contains_key(a)
                && !self.withheld.iter().any(|net| net.contains(a))
        };
        addresses(&net(RANGE)).into_iter().filter(free).collect()
    }

    /// Never used first, then oldest freed.
    fn next(&self, within: Option<IpNet>) -> Option<IpAddr> {
        let fits = |a: &IpAddr| match within {
            None => true,
            Some(net) if net.prefix_len() > 30 => net.contains(a),
            Some(net) => net.contains(a) && *a != net.network() && *a != net.broadcast(),
        };
        let order = |a: &IpAddr| (self.freed.get(a).copied().unwrap_or(0), *a);
        self.free().into_iter().filter(fits).min_by_key(order)
    }

    fn release(&mut self, address: IpAddr, serial: u64) {
        self.held.remove(&address);
        self.freed.insert(address, serial);
    }

    fn hold(&mut self, address: IpAddr, key: AttachmentKey) {
        self.freed.remove(&address);
        self.held.insert(address, key);
    }
}

fn check(table: &LeaseTable, model: &Model) {
    let range = nets(&[RANGE]);
    for address in addresses(&range[0]) {
        assert_eq!(table.holder(address), model.held.get(&address));
    }
    let mut listed: Vec<_> =
        table.iter().flat_map(|(k, list)| list.iter().map(|a| (*a, k.clone()))).collect();
    listed.sort();
    assert_eq!(listed, model.held.clone().into_iter().collect::<Vec<_>>());
    let free = model.free();
    assert_eq!(table.free(false), free.len() as u64);
    let owned: u128 = model.blocks.iter().map(|block| usable_in(&range, block)).sum();
    assert_eq!(u128::from(table.owned(false)), owned);
    assert_eq!(
        table.withheld().collect::<Vec<_>>(),
        model.withheld.iter().copied().collect::<Vec<_>>()
    );

    let given = table.donation(false, None);
    assert_eq!(given.is_none(), free.is_empty());
    if let Some(part) = given {
        let count = usable_in(&range, &part) as usize;
        assert!(count >= 1 && count <= (free.len() / 2).max(1), "{part} of {free:?}");
        for address in addresses(&part) {
            assert!(is_reserved(&range, address) || free.contains(&address));
        }
    }
    for block in table.idle_blocks() {
        assert!(addresses(&block).iter().all(|a| is_reserved(&range, *a) || free.contains(a)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn like_sets_of_addresses(steps in vec(step(), 0..120)) {
        let range = nets(&[RANGE]);
        let all = addresses(&range[0]);
        let quarters: Vec<IpNet> = range[0].subnets(30).unwrap().collect();
        let mut table = LeaseTable::new(1_000);
        table.set_blocks(&range, &nets(&["10.0.0.0/29", "10.0.0.24/29"]));
        let mut model = Model { blocks: nets(&["10.0.0.0/29", "10.0.0.24/29"]), ..Model::default() };
        for (step, serial) in steps.into_iter().zip(1u64..) {
            match step {
                Step::Allocate(n, within) => {
                    let within = within
                        .map(|(i, bits)| IpNet::new(*i.get(&all), 32 - bits).unwrap().trunc());
                    let fits = |a: &IpAddr| within.is_none_or(|net| net.contains(a));
                    let got = table.allocate(&key(n), false, within, serial);
                    let known = model.held.iter().any(|(a, k)| *k == key(n) && fits(a));
                    if known {
                        let address = got.unwrap();
                        prop_assert_eq!(model.held.get(&address), Some(&key(n)));
                        prop_assert!(fits(&address));
                    } else {
                        prop_assert_eq!(got.ok(), model.next(within));
                        if let Ok(address) = got {
                            model.hold(address, key(n));
                        }
                    }
                }
                Step::Claim(n, index) => {
                    let address = *index.get(&all);
                    let fair = model.free().contains(&address)
                        || model.held.get(&address) == Some(&key(n));
                    prop_assert_eq!(table.claim(&key(n), address, serial).is_ok(), fair);
                    if fair {
                        model.hold(address, key(n));
                    }
                }
                Step::Adopt(n, index) => {
                    let address = *index.get(&all);
                    let fair = model.held.get(&address).is_none_or(|k| *k == key(n));
                    prop_assert_eq!(table.adopt(&key(n), address).is_ok(), fair);
                    if fair {
                        model.hold(address, key(n));
                    }
                }
                Step::Release(n) => {
                    for address in table.release(&key(n), serial) {
                        prop_assert_eq!(model.held.get(&address), Some(&key(n)));
                        // Several at once keep their order.
                        let place = model.freed.len() as u64;
                        model.release(address, serial * 1_000 + place);
                    }
                }
                Step::ReleaseOne(index) => {
                    let address = *index.get(&all);
                    let holder = model.held.get(&address).cloned();
                    let done = table.release_one(&holder.clone().unwrap_or_else(|| key(0)), address, serial);
                    prop_assert_eq!(done, holder.is_some());
                    if done {
                        model.release(address, serial * 1_000);
                    }
                }
                Step::Blocks(list) => {
                    let blocks: BTreeSet<_> = list.iter().map(|i| *i.get(&quarters)).collect();
                    model.blocks = blocks.into_iter().collect();
                    let lost = table.set_blocks(&range, &model.blocks);
                    let want: Vec<_> = model
                        .held
                        .iter()
                        .filter(|(a, _)| !model.own(**a))
                        .map(|(a, k)| (k.clone(), *a))
                        .collect();
                    prop_assert_eq!(lost, want);
                }
                Step::Donate(address) => {
                    let address = address.map(|i| *i.get(&all));
                    if let Some(prefix) = table.donation(false, address) {
                        table.withhold(prefix).unwrap();
                        model.withheld.insert(prefix);
                    } else if let Some(address) = address {
                        prop_assert!(!model.free().contains(&address));
                    }
                }
                Step::Unwithhold(index) => {
                    if !model.withheld.is_empty() {
                        let prefix = *index.get(&model.withheld.iter().copied().collect::<Vec<_>>());
                        table.unwithhold(prefix);
                        model.withheld.remove(&prefix);
                    }
                }
            }
            check(&table, &model);
        }
    }
}

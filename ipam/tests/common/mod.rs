//! What the tests share: nodes, requests, and all addresses of small ranges.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::net::IpAddr;

use ipnet::IpNet;
use weft_ipam::Ledger;
use weft_proto::id::{ClusterId, NodeId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome};

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| net(text)).collect()
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId([number; 16])
}

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

/// Every address of a small prefix, reserved ones too.
pub(crate) fn addresses(prefix: &IpNet) -> Vec<IpAddr> {
    let count = 1u128 << (prefix.max_prefix_len() - prefix.prefix_len());
    let at = |offset: u128| match prefix.network() {
        IpAddr::V4(a) => IpAddr::from(std::net::Ipv4Addr::from_bits(a.to_bits() + offset as u32)),
        IpAddr::V6(a) => IpAddr::from(std::net::Ipv6Addr::from_bits(a.to_bits() + offset)),
    };
    (0..count).map(at).collect()
}

/// Drives a ledger the way consensus does.
pub(crate) struct Log {
    pub(crate) ledger: Ledger,
    pub(crate) entries: Vec<Command>,
    seq: u64,
    pub(crate) now: u64,
}

impl Log {
    pub(crate) fn founded(ranges: &[&str], quarantine_ms: u64) -> Self {
        let mut log = Self { ledger: Ledger::new(), entries: Vec::new(), seq: 0, now: 1_000 };
        let ranges = nets(ranges);
        let found = Op::Found { cluster: CLUSTER, ranges, quarantine_ms };
        assert_eq!(log.run(found), Outcome::Done);
        log
    }

    pub(crate) fn with_nodes(ranges: &[&str], quarantine_ms: u64, nodes: u8) -> Self {
        let mut log = Self::founded(ranges, quarantine_ms);
        for number in 1..=nodes {
            assert_eq!(log.join(number), Outcome::Joined { cluster: CLUSTER });
        }
        log
    }

    pub(crate) fn join(&mut self, number: u8) -> Outcome {
        let ranges = self.ledger.ranges().to_vec();
        let name = format!("node{number}");
        self.run(Op::Join { node: node(number), name, ranges, replace: false })
    }

    pub(crate) fn acquire(&mut self, number: u8, count: u32) -> Outcome {
        self.run(Op::Acquire { node: node(number), ipv6: false, count })
    }

    pub(crate) fn claim(&mut self, number: u8, address: &str) -> Outcome {
        self.run(Op::Claim { node: node(number), address: ip(address) })
    }

    pub(crate) fn run(&mut self, op: Op) -> Outcome {
        self.seq += 1;
        let request = RequestId { node: node(0xee), session: 1, seq: self.seq };
        self.apply(Command { request, at_ms: self.now, op })
    }

    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        let position = self.ledger.head().index + 1;
        let outcome = self.ledger.apply(position, Some(&command)).unwrap();
        self.entries.push(command);
        outcome
    }
}

/// The prefixes of an answer.
pub(crate) fn granted(outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::Granted(blocks) => blocks.iter().map(|b| b.prefix.to_string()).collect(),
        other => panic!("not granted: {other:?}"),
    }
}

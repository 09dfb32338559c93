//! Pure hot paths, so many times: for `bench check`, which counts their instructions.
//!
//! `bench hot-path NAME COUNT`. What is set up does not depend on COUNT, so the difference
//! of two runs is the path alone.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use weft_agent::dataplane::desired::{DesiredPods, NodeFacts, desired, desired_pods};
use weft_agent::dataplane::intent::{Intent, PeerIntent, PodIntent};
use weft_agent::dataplane::model::Observed;
use weft_agent::dataplane::plan::plan;
use weft_ipam::leases::LeaseTable;
use weft_ipam::ledger::Ledger;
use weft_proto::attachment::AttachmentKey;
use weft_proto::frame::Frame;
use weft_proto::id::{ClusterId, NodeId, RequestId};
use weft_proto::ledger::{Command, Op};
use weft_proto::names::{host_ifname, pod_mac};
use weft_proto::wire::v1::Hello;

const NODES: u32 = 1000;
const PEERS: u32 = 5000;
const PODS: u32 = 100;

fn node(number: u32) -> NodeId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    NodeId(id)
}

fn net(address: u32, length: u8) -> Result<IpNet> {
    Ok(Ipv4Net::new(Ipv4Addr::from(address), length)?.into())
}

fn key(number: u32) -> AttachmentKey {
    AttachmentKey { container_id: format!("container-{number:08}"), ifname: "eth0".to_owned() }
}

/// A block for one of a thousand members.
fn ledger_apply(count: u32) -> Result<()> {
    let mut ledger = Ledger::new();
    let ranges = vec![net(0x0a20_0000, 12)?];
    let cluster = ClusterId([7; 16]);
    let found = Op::Found { cluster, ranges: ranges.clone(), quarantine_ms: 1000 };
    let join = |n: u32| Op::Join {
        node: node(n),
        name: format!("n{n}"),
        ranges: ranges.clone(),
        replace: false,
    };
    let acquire = |n: u32| Op::Acquire { node: node(n % NODES), ipv6: false, count: 1 };
    let ops = [found].into_iter().chain((0..NODES).map(join)).chain((0..count).map(acquire));
    for (op, seq) in ops.zip(1_u64..) {
        let request = RequestId { node: node(NODES), session: 1, seq };
        ledger.apply(seq, Some(&Command { request, at_ms: seq, op }))?;
    }
    black_box(&ledger);
    Ok(())
}

/// An address taken and given back, beside a hundred others.
fn lease_allocate(count: u32) -> Result<()> {
    let mut table = LeaseTable::new(0);
    let blocks: Vec<IpNet> =
        (0..8).map(|n| net(0x0a20_0000 + n * 64, 26)).collect::<Result<_>>()?;
    table.set_blocks(&[net(0x0a20_0000, 12)?], &blocks);
    for number in 0..PODS {
        table.allocate(&key(number), false, None, 1)?;
    }
    let own = key(PODS);
    for now in 0..u64::from(count) {
        black_box(table.allocate(&own, false, None, now)?);
        black_box(table.release(&own, now));
    }
    Ok(())
}

/// A node with tunnels to all peers.
pub(crate) fn facts(id: NodeId, underlay: IpNet) -> NodeFacts {
    NodeFacts {
        name: "n".to_owned(),
        id,
        device: Some("eth0".to_owned()),
        underlay: vec![underlay],
        mtu: 1450,
        vxlan_port: 6784,
        direct_routing: false,
        hairpin: true,
        rp_filter_all: 0,
        accepts_ra: false,
    }
}

/// A look that finds nothing to do, with five thousand peers.
fn plan_quiet(count: u32) -> Result<()> {
    let peer = |n: u32| {
        let underlay = IpAddr::from(Ipv4Addr::from(0x0a00_0100 + n));
        let blocks = vec![net(0x0a20_0000 + (n + 2) * 64, 26)?];
        Ok((node(n), PeerIntent { underlay, blocks }))
    };
    let pod = |n: u32| {
        let address = IpAddr::from(Ipv4Addr::from(0x0a20_0002 + n));
        let key = key(n);
        let pod = PodIntent {
            host_ifname: host_ifname(&key.container_id, &key.ifname),
            mac: pod_mac(address),
            addresses: vec![address],
            port_mappings: Vec::new(),
        };
        (key, pod)
    };
    let intent = Intent {
        ranges: vec![net(0x0a20_0000, 12)?],
        own: vec![IpAddr::from([10, 32, 0, 1])],
        peers: Arc::new((0..PEERS).map(peer).collect::<Result<_>>()?),
        pods: (0..PODS).map(pod).collect(),
        settling: false,
    };
    let facts = facts(node(PEERS), net(0x0a00_0001, 16)?);
    let wanted = desired(&intent, &facts);
    let pods: DesiredPods = desired_pods(&intent, true);
    let mut there = Observed::default();
    for op in plan(&wanted, &pods, &there, false).ops {
        there.apply(&op);
    }
    if !plan(&wanted, &pods, &there, false).ops.is_empty() {
        bail!("a plan that was carried out leaves something to do");
    }
    for _ in 0..count {
        black_box(plan(black_box(&wanted), &pods, &there, false));
    }
    Ok(())
}

/// The first message of every connection.
fn frame_decode(count: u32) -> Result<()> {
    let hello = Hello {
        node: node(1),
        name: "a-node-of-usual-name".to_owned(),
        cluster: Some(ClusterId([3; 16])),
        ranges: vec![net(0x0a20_0000, 12)?],
        session: 1_700_000_000_000,
        software: "0.1.0".to_owned(),
        observed: ([192, 0, 2, 1], 6783).into(),
        proof: [6; 32],
    };
    let frame = Frame::new(&hello)?;
    for _ in 0..count {
        black_box(black_box(&frame).decode::<Hello>()?);
    }
    Ok(())
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [name, count] = arguments else { bail!("usage: bench hot-path NAME COUNT") };
    let count = count.parse().with_context(|| format!("{count}: not a number"))?;
    match name.as_str() {
        "ledger-apply" => ledger_apply(count),
        "lease-allocate" => lease_allocate(count),
        "plan-5000-peers" => plan_quiet(count),
        "frame-decode" => frame_decode(count),
        other => bail!("no hot path {other:?}"),
    }
}

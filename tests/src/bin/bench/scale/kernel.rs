//! The real data plane in a namespace of its own, with thousands of peers: what it costs
//! to put all of them into the kernel, to change one, and to look without a difference.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use weft_agent::dataplane::desired::{DesiredPods, desired};
use weft_agent::dataplane::intent::{Intent, PeerIntent};
use weft_agent::dataplane::model::Observed;
use weft_agent::dataplane::peers::{change, differing};
use weft_agent::dataplane::plan::plan;
use weft_agent::dataplane::{Dataplane, DataplaneConfig, DataplaneHandle};
use weft_agent::lab::netns::Netns;
use weft_proto::id::NodeId;
use weft_tests::stats::{ms, percentile};
use weft_tests::wait_until;

use crate::hot_paths::facts;

const ROUNDS: usize = 20;

/// Milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Kernel {
    pub(crate) peers: usize,
    /// From the intent to the last object in the kernel, nothing there before.
    pub(crate) cold_ms: f64,
    /// The agent's part of that: time of its thread on a processor.
    pub(crate) cold_cpu_ms: f64,
    /// One peer has another address, is gone, is there again: until it is in the kernel;
    /// medians, and the worst of all.
    pub(crate) change_ms: f64,
    pub(crate) leave_ms: f64,
    pub(crate) join_ms: f64,
    pub(crate) change_worst_ms: f64,
    /// Of that, to find out what is to be done: from this peer alone, and as if all
    /// had changed.
    pub(crate) few_ms: f64,
    pub(crate) anew_ms: f64,
    /// Start with all of it in the kernel already, and the same intent.
    pub(crate) warm_ms: f64,
    /// Looking at the kernel, planning, finding nothing: time of the thread.
    pub(crate) look_cpu_ms: f64,
}

struct Namespace(Netns);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.delete();
    }
}

fn peer(number: usize) -> Result<(NodeId, PeerIntent)> {
    let n = u32::try_from(number)?;
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
    id[4..8].copy_from_slice(&n.to_be_bytes());
    let block = Ipv4Net::new(Ipv4Addr::from(0x0a20_0040 + n * 64), 26)?;
    let underlay = IpAddr::V4(Ipv4Addr::from(0xac10_0002 + n));
    Ok((NodeId(id), PeerIntent { underlay, blocks: vec![IpNet::V4(block)] }))
}

fn intent(peers: usize) -> Result<Intent> {
    Ok(Intent {
        ranges: vec!["10.32.0.0/12".parse()?],
        own: vec!["10.32.0.1".parse()?],
        peers: Arc::new((0..peers).map(peer).collect::<Result<_>>()?),
        ..Intent::default()
    })
}

/// Time on a processor of this process's threads of that name.
fn cpu(name: &str) -> Result<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        let Ok(comm) = std::fs::read_to_string(path.join("comm")) else { continue };
        if comm.trim() == name {
            let stat = std::fs::read_to_string(path.join("schedstat"))?;
            sum += stat.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(sum))
}

fn settle(runtime: &tokio::runtime::Runtime, plane: &DataplaneHandle) -> Result<()> {
    let settled = async { tokio::time::timeout(Duration::from_secs(60), plane.settled()).await };
    Ok(runtime.block_on(settled)??)
}

/// What it takes to find out what one peer's new address changes, without a kernel: from
/// this peer alone, and from all of them.
fn computing(intent: &Intent) -> Result<(Duration, Duration)> {
    let facts = facts(NodeId([1; 16]), "172.16.0.1/12".parse()?);
    let no_pods = DesiredPods::default();
    let mut wanted = desired(intent, &facts);
    let mut there = Observed::default();
    for op in plan(&wanted, &no_pods, &there, false).ops {
        there.apply(&op);
    }
    let (mut few, mut anew) = (Vec::new(), Vec::new());
    let mut now = intent.clone();
    for round in 0..ROUNDS {
        let before = Arc::clone(&now.peers);
        let (node, peer) = peer(round * before.len() / ROUNDS)?;
        Arc::make_mut(&mut now.peers).insert(node, peer);
        let begun = Instant::now();
        let all = plan(&desired(&now, &facts), &no_pods, &there, false);
        anew.push(begun.elapsed());
        let begun = Instant::now();
        let changes = differing(&before, &now.peers).context("more than a few differ")?;
        let plan = change(&changes, &facts, &mut wanted, &there, false).context("unusual")?;
        few.push(begun.elapsed());
        ensure!(plan == all, "{plan:?} is not {all:?}");
        plan.ops.iter().for_each(|op| there.apply(op));
    }
    Ok((percentile(&few, 50), percentile(&anew, 50)))
}

pub(crate) fn measure(peers: usize) -> Result<Kernel> {
    let netns = Netns::named(format!("wscale-{}", std::process::id()));
    netns.create()?;
    let space = Namespace(netns);
    let ip = |line: &str| {
        let argv: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
        space.0.exec(&argv)
    };
    ip("link set lo up")?;
    // Not every kernel has dummy devices; the other end swallows all.
    ip("link add eth0 type veth peer name peer0")?;
    ip("link set peer0 up")?;
    ip("addr add 172.16.0.1/12 dev eth0")?;
    ip("link set eth0 up")?;
    ip("route add default via 172.16.255.254")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = || -> Result<DataplaneHandle> {
        let config = DataplaneConfig::new("n1", NodeId([1; 16]));
        Ok(space.0.run(|| Dataplane::start(config))??)
    };
    let mut wanted = intent(peers)?;
    let plane = start()?;
    let begun = (Instant::now(), cpu("dataplane")?);
    plane.set_intent(wanted.clone());
    settle(&runtime, &plane)?;
    let (cold, cold_cpu) = (begun.0.elapsed(), cpu("dataplane")? - begun.1);
    let routes = ip("route show proto 117")?.lines().count();
    ensure!(routes >= peers, "{routes} routes of {peers} are in the kernel");

    let (mut moves, mut leaves, mut joins) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (node, mut peer) = peer(round * peers / ROUNDS)?;
        peer.underlay = IpAddr::V4(Ipv4Addr::from(0xac1e_0000 + u32::try_from(round)?));
        let steps = [(&mut moves, Some(&peer)), (&mut leaves, None), (&mut joins, Some(&peer))];
        for (times, now) in steps {
            // The list of peers is made by others, for every change anew.
            let peers = Arc::make_mut(&mut wanted.peers);
            match now {
                Some(peer) => drop(peers.insert(node, peer.clone())),
                None => drop(peers.remove(&node)),
            }
            let begun = Instant::now();
            plane.set_intent(wanted.clone());
            settle(&runtime, &plane)?;
            times.push(begun.elapsed());
        }
    }
    let all: Vec<Duration> = [&moves, &leaves, &joins].into_iter().flatten().copied().collect();
    let (few, anew) = computing(&wanted)?;

    // A device of somebody else: it is looked at everything, and nothing differs.
    let mut looks = Vec::new();
    for round in 0..ROUNDS / 4 {
        let quiet = || -> Result<Duration> {
            let mut last = cpu("dataplane")?;
            wait_until("the data plane is at rest", Duration::from_secs(30), || {
                std::thread::sleep(Duration::from_millis(700));
                let now = cpu("dataplane")?;
                Ok(std::mem::replace(&mut last, now) == now)
            })?;
            Ok(last)
        };
        let before = quiet()?;
        ip(&format!("addr add 192.0.2.{}/32 dev eth0", round + 1))?;
        wait_until("it has looked", Duration::from_secs(10), || Ok(cpu("dataplane")? > before))?;
        looks.push(quiet()? - before);
    }

    drop(plane);
    wait_until("its thread has ended", Duration::from_secs(10), || {
        Ok(cpu("dataplane")? == Duration::ZERO)
    })?;
    let begun = Instant::now();
    let plane = start()?;
    plane.set_intent(wanted);
    settle(&runtime, &plane)?;
    let warm = begun.elapsed();
    Ok(Kernel {
        peers,
        cold_ms: ms(cold),
        cold_cpu_ms: ms(cold_cpu),
        change_ms: ms(percentile(&moves, 50)),
        leave_ms: ms(percentile(&leaves, 50)),
        join_ms: ms(percentile(&joins, 50)),
        change_worst_ms: ms(percentile(&all, 100)),
        few_ms: ms(few),
        anew_ms: ms(anew),
        warm_ms: ms(warm),
        look_cpu_ms: ms(percentile(&looks, 50)),
    })
}

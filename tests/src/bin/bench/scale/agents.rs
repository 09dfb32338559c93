//! Real agents: nine that know thousands of members, of whom only nine exist.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use weft_agent::lab::netns::Netns;
use weft_proto::frame::Frame;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};
use weft_proto::names::MESH_PORT;
use weft_proto::wire::v1::{
    LedgerHead, NodeRecord, Propose, ProposeReply, Rumor, Standing, SyncPart,
};
use weft_tests::cluster::KEY;
use weft_tests::stranger::Stranger;
use weft_tests::{Cluster, wait_until};

const REAL: usize = 9;
/// Members that enter at the same time.
const AT_ONCE: usize = 16;
const SESSION: u64 = 1_700_000_000_000;
const WINDOW: Duration = Duration::from_secs(30);

/// Of one agent.
#[derive(Debug, Serialize)]
pub(crate) struct Agents {
    pub(crate) members: usize,
    /// Memory before and with all members: resident, MiB.
    pub(crate) rss_few_mib: f64,
    pub(crate) rss_mib: f64,
    /// Of which not files: what it has allocated.
    pub(crate) heap_mib: f64,
    /// Share of one processor at rest, percent, averaged over all real agents.
    pub(crate) cpu_percent: f64,
    /// Bytes per second that one sends on the underlay at rest, counted by the kernel.
    pub(crate) sent: f64,
    /// Seconds for all Joins and Acquires, some at once, through one agent.
    pub(crate) ledger_s: f64,
    /// Routes of the first agent.
    pub(crate) routes: usize,
}

struct Usage {
    ticks: u64,
    sent: u64,
}

fn field(pid: i32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(name)).context("no such field")?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

fn usage(cluster: &Cluster, number: usize) -> Result<Usage> {
    let node = cluster.node(number);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.agent()?.pid()))?;
    let (_, rest) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let counters = node.exec(&["cat", "/proc/net/dev"])?;
    let mut sent = 0;
    for line in counters.lines().filter(|l| l.contains("eth0")) {
        let numbers: Vec<&str> = line.split_whitespace().collect();
        sent += numbers.get(9).context("no counter")?.parse::<u64>()?;
    }
    Ok(Usage { ticks: fields[11].parse::<u64>()? + fields[12].parse::<u64>()?, sent })
}

/// One member that does not exist: it joins and takes a block, with a key of its own.
fn enter(cluster: &Cluster, to: SocketAddr, number: usize) -> Result<NodeRecord> {
    let stranger = Stranger::new(&Netns::named(&cluster.plan.underlay))?;
    let name = format!("absent-{number}.compute.internal");
    let connection = stranger.join(to, KEY, &name)?;
    let node = stranger.node();
    let ranges = vec!["10.32.0.0/12".parse()?];
    let ops = [
        Op::Join { node, name: name.clone(), ranges, replace: false },
        Op::Acquire { node, ipv6: false, count: 1 },
    ];
    for (seq, op) in (1..).zip(ops) {
        let request = RequestId { node, session: SESSION, seq };
        let reply = stranger.ask(&connection, &Frame::new(&Propose { request, op, hops: 1 })?)?;
        let reply: ProposeReply = reply.decode().context("the proposal failed")?;
        ensure!(!matches!(reply.outcome, Outcome::Refused(_)), "refused: {:?}", reply.outcome);
    }
    stranger.leave(&connection)?;
    let host = u32::try_from(number)?;
    Ok(NodeRecord {
        underlay: vec![IpAddr::V4(Ipv4Addr::from(0xc612_0000 + host))],
        ledger_index: 1,
        free4: 60,
        leases: 2,
        software: "absent".to_owned(),
        ..NodeRecord::new(node, name, SESSION)
    })
}

pub(crate) fn measure(members: usize) -> Result<Agents> {
    let cluster = Cluster::builder().nodes(REAL).start()?;
    let pid = cluster.node(1).agent()?.pid();
    let rss_few_mib = field(pid, "VmRSS")?;
    let to = SocketAddr::from((cluster.node(1).plan.address, MESH_PORT));
    let begun = Instant::now();
    // Each waits for the ledger twice: many at once, as when a cluster grows.
    let records: Vec<NodeRecord> = std::thread::scope(|scope| {
        let cluster = &cluster;
        let some = move |first: usize| -> Result<Vec<NodeRecord>> {
            (first..=members - REAL).step_by(AT_ONCE).map(|n| enter(cluster, to, n)).collect()
        };
        let threads: Vec<_> = (1..=AT_ONCE).map(|first| scope.spawn(move || some(first))).collect();
        let all = threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("panicked"))?);
        Ok::<_, anyhow::Error>(all.collect::<Result<Vec<_>>>()?.concat())
    })?;
    let ledger_s = begun.elapsed().as_secs_f64();
    let teller = Stranger::new(&Netns::named(&cluster.plan.underlay))?;
    let connection = teller.join(to, KEY, "teller")?;
    for chunk in records.chunks(200) {
        teller.tell(&connection, &Frame::new(&Rumor { records: chunk.to_vec() })?)?;
    }
    let standings: Vec<Standing> = records
        .iter()
        .map(|r| Standing {
            node: NodeId(r.node.0),
            session: SESSION,
            rejoins: 0,
            incarnation: 0,
            down: false,
        })
        .collect();
    let alive = u32::try_from(members)?;
    wait_until("everybody is routed to by all", Duration::from_secs(90), || {
        let part = SyncPart {
            of: 1,
            leaves: vec![0],
            records: Vec::new(),
            standings: standings.clone(),
            alive,
            ledger: LedgerHead::default(),
        };
        teller.ask(&connection, &Frame::new(&part)?)?;
        for node in cluster.nodes() {
            let routes = node.exec(&["ip", "route", "show", "proto", "117"])?.lines().count();
            if routes + 1 < members {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    connection.close(0_u32.into(), b"done");
    // Nothing to wait for: what is measured is what goes on while nothing happens.
    std::thread::sleep(Duration::from_secs(10));
    let before: Vec<_> = (1..=REAL).map(|n| usage(&cluster, n)).collect::<Result<_>>()?;
    std::thread::sleep(WINDOW);
    let after: Vec<_> = (1..=REAL).map(|n| usage(&cluster, n)).collect::<Result<_>>()?;
    let per = WINDOW.as_secs_f64() * f64::from(u32::try_from(REAL)?);
    let ticks: u64 = after.iter().zip(&before).map(|(a, b)| a.ticks - b.ticks).sum();
    let sent: u64 = after.iter().zip(&before).map(|(a, b)| a.sent - b.sent).sum();
    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    let (ticks, sent) = (ticks as f64, sent as f64);
    Ok(Agents {
        members,
        rss_few_mib,
        rss_mib: field(pid, "VmRSS")?,
        heap_mib: field(pid, "RssAnon")?,
        // 100 ticks a second, on every Linux there is.
        cpu_percent: ticks / per,
        sent: sent / per,
        ledger_s,
        routes: cluster.node(1).exec(&["ip", "route", "show", "proto", "117"])?.lines().count(),
    })
}

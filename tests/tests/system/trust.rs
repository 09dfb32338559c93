//! Who is on the path, members that lie, floods, and processes of this machine that
//! are not root: nothing gets in, memory stays bounded, and all others go on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use weft_agent::lab::http;
use weft_agent::lab::netns::Netns;
use weft_proto::frame::Frame;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::Op;
use weft_proto::names;
use weft_proto::wire::v1::{
    Failure, LedgerHead, NodeRecord, Propose, Rumor, Swim, SyncDigest, SyncReply,
};
use weft_tests::cluster::KEY;
use weft_tests::middle::Middle;
use weft_tests::pinger::Pinger;
use weft_tests::stranger::Stranger;
use weft_tests::{Cluster, Node, Pod, Result, wait_until};

/// What an agent may grow by, whatever is done to it.
const GROWTH_KIB: u64 = 32 << 10;
const PATIENCE: Duration = Duration::from_secs(30);

fn counters(node: &Node, about: &str) -> Result<u64> {
    let counters = node.status()?.mesh.counters;
    Ok(counters.iter().filter(|(name, _)| name.contains(about)).map(|(_, count)| count).sum())
}

/// Runs `attack` while a ping goes from pod to pod: no reply may be missing, the
/// agents may not grow, and afterwards all is as it was.
fn meanwhile<T>(
    what: &str,
    cluster: &Cluster,
    pods: &[Pod],
    attack: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let memory = |node: &Node| node.agent()?.rss_kib().context("the agent lives");
    let blocks =
        |node: &Node| -> Result<String> { Ok(format!("{:?}", node.status()?.ipam.blocks)) };
    let honest = &cluster.nodes()[..2];
    let before = honest.iter().map(|n| Ok((memory(n)?, blocks(n)?))).collect::<Result<Vec<_>>>()?;
    let pinger = Pinger::start(&pods[0], pods[1].address(), Duration::from_millis(20))?;
    let done = attack()?;
    let tally = pinger.stop()?;
    for (node, (had, owned)) in honest.iter().zip(before) {
        let has = memory(node)?;
        println!("{what}: {} had {} MiB, has {} MiB", node.plan.name, had >> 10, has >> 10);
        ensure!(has < had + GROWTH_KIB, "{} grew from {had} to {has} KiB", node.plan.name);
        ensure!(blocks(node)? == owned, "{}: blocks differ", node.plan.name);
    }
    println!("{what}: {} pings, {} lost", tally.sent, tally.lost.len());
    ensure!(tally.lost.is_empty(), "pings were lost: {:?}", tally.lost);
    cluster.assert_reachable(pods)?;
    honest[0].add_pod()?;
    Ok(done)
}

#[test]
fn who_is_on_the_path_passes_on_proofs_in_vain() -> Result {
    let mut cluster = Cluster::builder().peers(2).stopped().start()?;
    // Node 3 takes the gateway for the other node: so it is with a forged answer of DNS.
    let there = cluster.plan.gateway.to_string();
    cluster.node_mut(3).spec_mut().peers = there;
    for number in [1, 2] {
        cluster.node_mut(number).start()?;
    }
    for number in [1, 2] {
        cluster.node_mut(number).wait_ready(PATIENCE)?;
    }
    let pods = [cluster.node(1).add_pod()?, cluster.node(2).add_pod()?];
    cluster.assert_reachable(&pods)?;
    let underlay = Netns::named(&cluster.plan.underlay);
    let here = SocketAddr::from((cluster.plan.gateway, names::MESH_PORT));
    let there = SocketAddr::from((cluster.node(1).plan.address, names::MESH_PORT));
    let middle = Middle::start(&underlay, here, there)?;
    cluster.node_mut(3).start()?;
    let cluster = cluster;
    meanwhile("the middle", &cluster, &pods, || {
        wait_until("greetings that were passed on", PATIENCE, || Ok(middle.passed() >= 2))?;
        wait_until("both ends to notice", PATIENCE, || {
            Ok(counters(cluster.node(1), "wrong_key")? > 0
                && counters(cluster.node(3), "wrong_key")? > 0)
        })
    })?;
    println!("passed on {} greetings", middle.passed());
    let names = |node: &Node| -> Result<Vec<String>> {
        Ok(node.status()?.mesh.members.into_iter().map(|m| m.name).collect())
    };
    ensure!(names(cluster.node(1))? == ["n2"], "{:?}", names(cluster.node(1)));
    ensure!(names(cluster.node(3))?.is_empty(), "{:?}", names(cluster.node(3)));
    let readiness = cluster.node(3).agent()?.readiness();
    ensure!(!readiness.is_ok_and(|r| r.ready), "node 3 serves pods");
    Ok(())
}

/// The record of a node as another one tells it.
fn record(liar: &Stranger, connection: &quinn::Connection, of: NodeId) -> Result<NodeRecord> {
    let digest = SyncDigest { records: Vec::new(), ledger: LedgerHead::default() };
    let reply: SyncReply = liar.ask(connection, &Frame::new(&digest)?)?.decode()?;
    reply.records.into_iter().find(|r| r.node == of).context("a record of the victim")
}

#[test]
fn a_member_that_lies_moves_no_packet_and_no_block() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(1);
    let to = SocketAddr::from((node.plan.address, names::MESH_PORT));
    let victim: NodeId = cluster.node(2).status()?.node.id.parse()?;
    let witness: NodeId = node.status()?.node.id.parse()?;
    let cluster_id = node.status()?.node.cluster.parse()?;
    let block = cluster.node(2).status()?.ipam.blocks[0];
    let nexthops = || node.exec(&["ip", "nexthop"]);
    let routes = nexthops()?;

    let liar = Stranger::new(&Netns::named(&cluster.plan.underlay))?;
    let connection = liar.join(to, KEY, "liar")?;
    let truth = record(&liar, &connection, victim)?;
    let own_truth = record(&liar, &connection, witness)?;
    let evil = vec![cluster.plan.gateway.into()];
    meanwhile("the liar", &cluster, &pods, || {
        for round in 1..=30_u64 {
            // Where the victim is; where the listener is; what the liar is called.
            let records = vec![
                NodeRecord {
                    underlay: evil.clone(),
                    overlay: Vec::new(),
                    incarnation: truth.incarnation + round,
                    ..truth.clone()
                },
                NodeRecord { underlay: evil.clone(), version: u64::MAX, ..own_truth.clone() },
                NodeRecord { node: liar.node(), version: round, ..truth.clone() },
                // Its own name, the victim's addresses, and more to give than there is.
                NodeRecord {
                    node: liar.node(),
                    name: "liar".to_owned(),
                    version: round,
                    free4: u32::MAX,
                    ledger_index: u64::MAX,
                    raft_id: truth.raft_id,
                    ..truth.clone()
                },
            ];
            liar.tell(&connection, &Frame::new(&Rumor { records })?)?;
            // Further than everybody.
            let head = LedgerHead { cluster: Some(cluster_id), index: u64::MAX - round };
            liar.tell(&connection, &Frame::new(&head)?)?;
            // In the name of the victim.
            let packet = Swim([&victim.0[..], &[0; 64]].concat());
            liar.tell(&connection, &Frame::new(&packet)?)?;
        }
        // A crowd that does not exist.
        let crowd: Vec<_> = (0..2000_u32)
            .map(|n| {
                let mut id = [0xee; 16];
                id[..4].copy_from_slice(&n.to_be_bytes());
                NodeRecord { node: NodeId(id), name: format!("ghost{n}"), ..truth.clone() }
            })
            .collect();
        for records in crowd.chunks(200) {
            liar.tell(&connection, &Frame::new(&Rumor { records: records.to_vec() })?)?;
        }
        // The victim's blocks: given back, handed over, taken; directly and as if
        // somebody else had asked.
        let ops = [
            Op::Release { node: victim, prefixes: vec![block] },
            Op::Transfer { from: victim, to: liar.node(), prefix: block },
            Op::Claim { node: victim, address: block.addr() },
            Op::Found { cluster: cluster_id, ranges: vec![block], quarantine_ms: 0 },
        ];
        for op in ops {
            for hops in [1, 2, 3] {
                let request = RequestId { node: victim, session: u64::MAX, seq: 1 };
                let propose = Propose { request, op: op.clone(), hops };
                let answer = liar.ask(&connection, &Frame::new(&propose)?)?;
                let failure: Failure =
                    answer.decode().with_context(|| format!("{op:?} was done"))?;
                ensure!(failure.code == Failure::BAD_REQUEST, "{op:?}: {}", failure.message);
            }
        }
        Ok(())
    })?;
    wait_until("what is hearsay to be counted", PATIENCE, || {
        Ok(counters(node, "record_hearsay")? > 0 && counters(node, "record_refused")? > 0)
    })?;
    for (a, b) in [(1, 2), (2, 1)] {
        let other = &cluster.node(b).plan;
        let of_that_name = || -> Result<Vec<_>> {
            let members = cluster.node(a).status()?.mesh.members;
            Ok(members.into_iter().filter(|m| m.name == other.name).collect())
        };
        // A busy machine may make anybody a suspect for a moment.
        let alive = format!("{} to be alive", other.name);
        wait_until(&alive, PATIENCE, || Ok(of_that_name()?.iter().all(|m| m.state == "alive")))?;
        let same = of_that_name()?;
        ensure!(same.len() == 1, "{} members are named {}", same.len(), other.name);
        ensure!(same[0].underlay == [other.address], "{:?}", same[0].underlay);
    }
    ensure!(nexthops()? == routes, "packets go elsewhere: {}", nexthops()?);
    let kept = cluster.node(2).status()?.ipam.blocks;
    ensure!(kept.contains(&block), "the block is gone: {kept:?}");
    Ok(())
}

#[test]
fn a_flood_of_connections_to_the_mesh() -> Result {
    const COUNT: usize = 1500;
    let mut cluster = Cluster::builder().peers(2).stopped().start()?;
    for number in [1, 2] {
        cluster.node_mut(number).start()?;
    }
    for number in [1, 2] {
        cluster.node_mut(number).wait_ready(PATIENCE)?;
    }
    let pods = [cluster.node(1).add_pod()?, cluster.node(2).add_pod()?];
    cluster.assert_reachable(&pods)?;
    let to = SocketAddr::from((cluster.node(1).plan.address, names::MESH_PORT));
    let stranger = Stranger::new(&Netns::named(&cluster.plan.underlay))?;
    let begun = Instant::now();
    let shaken = meanwhile("the flood", &cluster, &pods, || Ok(stranger.flood(to, COUNT, 200)))?;
    let (overflow, retry) =
        (counters(cluster.node(1), "overflow")?, counters(cluster.node(1), "retry")?);
    println!(
        "{COUNT} connections in {:?}: {shaken} with TLS, {overflow} refused, {retry} asked to prove their address",
        begun.elapsed()
    );
    ensure!(overflow + retry > 0, "the flood was none");
    // A node that joins finds its way in.
    cluster.node_mut(3).start()?;
    cluster.node_mut(3).wait_ready(PATIENCE).map(drop)
}

#[test]
fn a_flood_of_connections_to_the_local_api() -> Result {
    const COUNT: usize = 2000;
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(1);
    let local: SocketAddr = names::HTTP_ADDR.parse()?;
    meanwhile("the API's flood", &cluster, &pods, || {
        let mut open = Vec::new();
        for n in 0..COUNT {
            let Ok(stream) = node.netns().run(|| TcpStream::connect(local))? else { continue };
            stream.set_nonblocking(true)?;
            // Some say nothing, some a little, some ask and never read the answer.
            let _ = match n % 3 {
                0 => Ok(0),
                1 => (&stream).write(b"POST /v1/attachments HTTP/1.1\r\nHost: 127."),
                _ => (&stream).write(b"GET /report HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
            };
            // One file descriptor for each would be too many here.
            if open.len() == 700 {
                open.remove(0);
            }
            open.push(stream);
        }
        // They stay as they are; the plugin is served.
        wait_until("an ADD beside them", PATIENCE, || Ok(node.add_pod().is_ok())).map(|took| {
            println!("ADD beside {} open connections of {COUNT}: after {took:?}", open.len());
        })
    })?;
    ensure!(node.status()?.health == cluster.node(2).status()?.health);
    Ok(())
}

#[test]
fn a_process_that_is_not_root_and_a_web_page() -> Result {
    const NOBODY: u32 = 65534;
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    // Files first: neither the token nor the keys can be read.
    let directory = &node.spec().directory;
    let mut secrets = Vec::new();
    let mut left = vec![directory.clone()];
    while let Some(path) = left.pop() {
        for entry in std::fs::read_dir(&path)? {
            let path = entry?.path();
            match path.is_dir() {
                true => left.push(path),
                false => secrets.push(path),
            }
        }
    }
    for name in ["token", "identity.key", "consensus.redb", "leases.json"] {
        let path = secrets.iter().find(|path| path.ends_with(name)).context(name)?;
        let read = Command::new("cat").arg(path).uid(NOBODY).gid(NOBODY).output()?;
        ensure!(!read.status.success(), "nobody can read {}", path.display());
    }
    // What it may ask without the token, it may only look at.
    let local: SocketAddr = names::HTTP_ADDR.parse()?;
    let leases = node.status()?.ipam.leases;
    let ask = |head: &str| -> Result<http::Response> {
        let mut stream = node.netns().run(|| TcpStream::connect(local))??;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(
            format!("{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes(),
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        let code = head.split(' ').nth(1).context("no code")?.parse()?;
        Ok(http::Response { code, head: head.to_owned(), body: body.as_bytes().to_vec() })
    };
    let host = "Host: 127.0.0.1:6784\r\n";
    let page = "Origin: https://evil.example\r\n";
    let preflight =
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-weft-token\r\n";
    let token = std::fs::read_to_string(
        secrets.iter().find(|path| path.ends_with("token")).context("token")?,
    )?;
    let token = format!("x-weft-token: {}\r\n", token.trim());
    let cases = [
        (format!("POST /v1/attachments HTTP/1.1\r\n{host}"), 403),
        (format!("DELETE /peer HTTP/1.1\r\n{host}"), 403),
        (format!("POST /v1/recover HTTP/1.1\r\n{host}"), 403),
        (format!("POST /v1/gc HTTP/1.1\r\n{host}x-weft-token: {}\r\n", "0".repeat(64)), 403),
        // A page: it cannot even look, and no preflight lets it.
        (format!("GET /v1/status HTTP/1.1\r\n{host}{page}"), 403),
        (format!("OPTIONS /v1/attachments HTTP/1.1\r\n{host}{page}{preflight}"), 403),
        (format!("POST /v1/gc HTTP/1.1\r\n{host}{page}{token}"), 403),
        // A name that was made to point here.
        (format!("GET /v1/status HTTP/1.1\r\nHost: evil.example:6784\r\n{token}"), 403),
        (format!("POST /v1/gc HTTP/1.1\r\n{host}Host: evil.example\r\n{token}"), 400),
        (format!("GET http://evil.example/v1/status HTTP/1.1\r\n{host}"), 403),
        (format!("GET /v1/status HTTP/1.1\r\n{host}"), 200),
    ];
    for (head, code) in cases {
        let answer = ask(&head)?;
        let first = head.lines().next().unwrap_or_default();
        println!("{first:<45} {}", answer.code);
        ensure!(answer.code == code, "{head}: {} {}", answer.code, answer.text());
        let lower = answer.head.to_lowercase();
        ensure!(!lower.contains("access-control-allow"), "{head}: {}", answer.head);
        if answer.code != 200 {
            ensure!(!answer.text().contains(token.trim_start_matches("x-weft-token: ").trim()));
        }
    }
    if node.status()?.ipam.leases != leases {
        bail!("something changed");
    }
    Ok(())
}

//! Strangers, garbage, and clients that will not go away: an error with a name,
//! a counter, and nothing else changes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use weft_agent::lab::http;
use weft_agent::lab::netns::Netns;
use weft_proto::names;
use weft_tests::stranger::Stranger;
use weft_tests::{Cluster, Node, Result, wait_until};

fn counters(node: &Node, about: &str) -> Result<u64> {
    let counters = node.status()?.mesh.counters;
    Ok(counters.iter().filter(|(name, _)| name.contains(about)).map(|(_, count)| count).sum())
}

/// Nothing that matters may differ: members, ledger, leases.
fn essence(node: &Node) -> Result<String> {
    let status = node.status()?;
    let mut members: Vec<_> = status.mesh.members.into_iter().map(|m| (m.id, m.name)).collect();
    members.sort();
    let ipam = status.ipam;
    Ok(format!("{members:?} {:?} {} {}", ipam.blocks, ipam.leases, ipam.unowned))
}

#[test]
fn a_stranger_without_the_key_is_counted_and_kept_out() -> Result {
    let mut cluster =
        Cluster::builder().node_env(3, "PASSWORD", "not the key").no_wait().start()?;
    for number in [1, 2] {
        cluster.node_mut(number).wait_ready(Duration::from_secs(30))?;
    }
    let pods = [cluster.node(1).add_pod()?, cluster.node(2).add_pod()?];
    cluster.assert_reachable(&pods)?;
    wait_until("a counted attempt", Duration::from_secs(20), || {
        Ok(counters(cluster.node(1), "key")? + counters(cluster.node(2), "key")? > 0)
    })?;
    for number in [1, 2] {
        let members = cluster.node(number).status()?.mesh.members;
        ensure!(members.iter().all(|m| m.name != "n3"), "the stranger is a member: {members:?}");
    }
    let stranger = cluster.node(3).agent()?.readiness();
    ensure!(!stranger.is_ok_and(|r| r.ready), "the stranger serves pods");
    let address = cluster.node(3).plan.address.to_string();
    cluster.node(1).wait_log(&[&address], Duration::from_secs(10)).map(|line| println!("{line}"))
}

#[test]
fn garbage_on_every_port_changes_nothing() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(1);
    let before = essence(node)?;
    let outside = Netns::named(&cluster.plan.underlay);

    let socket = outside.run(|| UdpSocket::bind((cluster.plan.gateway, 0)))??;
    let mut noise = 0x2545_f491_u32;
    for round in 0..2000_usize {
        let packet: Vec<u8> = (0..round % 1400)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 17;
                noise ^= noise << 5;
                noise as u8
            })
            .collect();
        for port in [names::MESH_PORT, names::VXLAN_PORT] {
            let _ = socket.send_to(&packet, (node.plan.address, port));
        }
    }

    let local: SocketAddr = names::HTTP_ADDR.parse()?;
    let lines: [&[u8]; 7] = [
        b"\0\x01\x02\xff\xfe\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /ip/x HTTP/1.1\r\nHost: 127.0.0.1:6784\r\nConnection: close\r\n\r\n",
        b"POST /v1/attachments HTTP/1.1\r\nHost: 127.0.0.1:6784\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/attachments HTTP/1.1\r\nHost: 127.0.0.1:6784\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{]}",
        b"DELETE /ip/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1:6784\r\nConnection: close\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ];
    for line in lines {
        let mut stream = node.netns().run(|| TcpStream::connect(local))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(line)?;
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        let first = text.lines().next().unwrap_or("closed without a word");
        println!("{:<45.45} -> {first}", String::from_utf8_lossy(line).replace("\r\n", " "));
        ensure!(!first.contains(" 200 "), "garbage was welcome: {text}");
        ensure!(!first.contains(" 500 "), "garbage broke something: {text}");
    }

    let huge = vec![b'x'; 64 << 20];
    let rss = node.agent()?.rss_kib().context("the agent has memory")?;
    let answer = node.request("POST", "/v1/attachments", &huge);
    println!("64 MiB of body: {:?}", answer.map(|a| a.code).map_err(|e| e.to_string()));
    let grown = node.agent()?.rss_kib().context("the agent lives")?.saturating_sub(rss);
    ensure!(grown < 16 * 1024, "the agent grew by {grown} KiB");

    ensure!(essence(node)? == before, "garbage changed the state");
    cluster.assert_reachable(&pods)?;
    node.add_pod().map(drop)
}

#[test]
fn strangers_with_a_valid_handshake_send_garbage() -> Result {
    // What they may do before they are thrown out, times how often they try.
    const ROUNDS: usize = 40;
    let cluster = Cluster::builder().nodes(2).start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(1);
    let before = essence(node)?;
    let health = node.status()?.health;
    let to = SocketAddr::from((node.plan.address, names::MESH_PORT));
    let stranger = Stranger::new(&Netns::named(&cluster.plan.underlay))?;

    // Magic, kind, version, three zeros, length: as frames begin.
    let head = |kind: u16, length: u32| {
        [&b"WF"[..], &kind.to_be_bytes(), &[1, 0, 0, 0], &length.to_be_bytes()].concat()
    };
    let body = vec![0xa5; 4 << 20];
    let cases = [
        ("a web request", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "frame_garbage"),
        ("a head that promises 4 GiB", head(1, u32::MAX), "frame_too_long"),
        (
            "4 MiB of what only members may send",
            [head(40, 4 << 20), body].concat(),
            "frame_too_long",
        ),
        ("half a head", b"WF\0".to_vec(), "frame_bad"),
        ("a greeting of noise", [head(1, 8), vec![0xff; 8]].concat(), "frame_bad"),
    ];
    let rss = node.agent()?.rss_kib().context("the agent has memory")?;
    for (what, bytes, counter) in &cases {
        let had = counters(node, counter)?;
        for _ in 0..ROUNDS {
            let connection = stranger.connect(to)?;
            stranger.send(&connection, bytes)?;
            stranger.closed(&connection)?;
        }
        wait_until(&format!("{counter} to count {what}"), Duration::from_secs(10), || {
            let counted = counters(node, counter)? - had;
            if counted < ROUNDS as u64 {
                bail!("only {counted}");
            }
            Ok(true)
        })?;
    }
    let grown = node.agent()?.rss_kib().context("the agent lives")?.saturating_sub(rss);
    println!("{} connections of strangers: the agent grew by {grown} KiB", ROUNDS * cases.len());
    ensure!(grown < 16 * 1024, "the agent grew by {grown} KiB");
    ensure!(essence(node)? == before, "strangers changed the state");
    ensure!(node.status()?.health == health, "{:?}", node.status()?.conditions);
    cluster.assert_reachable(&pods)?;
    node.add_pod().map(drop)
}

#[test]
fn changes_need_the_token() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let before = essence(node)?;
    let local: SocketAddr = names::HTTP_ADDR.parse()?;
    let body = br#"{"container_id":"thief","ifname":"eth0"}"#;
    let wrong = "0".repeat(64);
    for token in [None, Some(wrong.as_str())] {
        for (method, path) in [
            ("POST", "/v1/attachments"),
            ("DELETE", "/v1/attachments/thief/eth0"),
            ("POST", "/ip/thief"),
            ("DELETE", "/ip/thief"),
            ("DELETE", "/peer"),
        ] {
            let answer = node.netns().run(|| http::request(local, method, path, token, body))??;
            ensure!(
                (400..500).contains(&answer.code),
                "{method} {path} without a good token: {} {}",
                answer.code,
                answer.text()
            );
        }
    }
    ensure!(essence(node)? == before, "it changed something");
    Ok(())
}

#[test]
fn the_socket_file_is_roots_alone_and_has_the_same_checks() -> Result {
    let mut cluster = Cluster::builder().nodes(1).start()?;
    let path = cluster.node(1).spec().run_dir().join(names::SOCKET_FILE);
    let mode = || Ok::<_, std::io::Error>(fs::metadata(&path)?.permissions().mode() & 0o777);
    let expect = |head: &str, code: u16| -> Result {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(stream, "{head}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{head:?}: {answer}");
        Ok(())
    };
    ensure!(mode()? == 0o600, "others can connect");
    expect("GET /v1/ready HTTP/1.1\r\nHost: localhost", 200)?;
    expect("GET /v1/ready HTTP/1.1\r\nHost: evil.example", 403)?;
    expect("GET /v1/ready HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example", 403)?;
    expect("DELETE /v1/attachments/thief/eth0 HTTP/1.1\r\nHost: localhost", 403)?;
    expect("DELETE /peer HTTP/1.1\r\nHost: localhost", 403)?;
    // Without it the plugin goes by TCP; the next start makes it anew.
    fs::remove_file(&path)?;
    let first = cluster.node(1).add_pod()?;
    cluster.node_mut(1).restart()?;
    ensure!(mode()? == 0o600, "others can connect after a restart");
    expect("GET /v1/ready HTTP/1.1\r\nHost: localhost", 200)?;
    let second = cluster.node(1).add_pod()?;
    cluster.assert_reachable(&[first, second]).map(drop)
}

#[test]
fn slow_clients_do_not_keep_others_waiting() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let local: SocketAddr = names::HTTP_ADDR.parse()?;
    let mut slow = node.netns().run(|| {
        (0..200).map(|_| TcpStream::connect(local)).collect::<std::io::Result<Vec<_>>>()
    })??;
    for stream in &mut slow {
        // A server that already hung up is fine.
        let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: 127.");
        stream.set_nonblocking(true)?;
    }
    let start = Instant::now();
    node.add_pod()?;
    println!("ADD beside 200 slow clients: {:?}", start.elapsed());
    wait_until("the end of the slow clients", Duration::from_secs(60), || {
        let open = slow
            .iter_mut()
            .filter_map(|stream| stream.read(&mut [0; 512]).err())
            .filter(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            .count();
        if open > 0 {
            bail!("{open} are still open");
        }
        Ok(true)
    })
    .map(drop)
}

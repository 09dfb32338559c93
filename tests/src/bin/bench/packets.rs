//! What policies cost: new connections per second and round trips with 0, 100 and
//! 10,000 policies over 10,000 pods, in one run; and how long a change takes from
//! the API server to the packet.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use weft_agent::lab::netns::Netns;
use weft_tests::apiserver::objects;
use weft_tests::pin::pin;
use weft_tests::policy_lab::{LabPod, PolicyLab};
use weft_tests::ratios::quantiles;
use weft_tests::stats::{ms, percentile};

const PODS: usize = 10_000;
const SPACES: usize = 100;
const STEPS: [usize; 3] = [0, 100, 10_000];
/// Per figure: short and many, so that what disturbs one round disturbs few.
const ROUND: Duration = Duration::from_millis(50);
const ROUNDS: usize = 101;
/// A quarter of all rounds are below the first, half below the second, a quarter above the third.
const QUARTERS: [f64; 3] = [0.25, 0.5, 0.75];
const CHANGES: usize = 100;
const PORT: u16 = 9000;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<()> {
    let labs = STEPS.iter().map(|step| Loaded::start(*step)).collect::<Result<Vec<_>>>()?;
    // On a thread of its own: what follows wants all processors.
    std::thread::scope(|s| {
        s.spawn(|| pin().and_then(|()| compare(&labs))).join().map_err(|_| anyhow!("panicked"))
    })??;
    let [none, .., full] = &labs[..] else { bail!("too few labs") };
    let [bare, pods, all] = full.memory;
    println!(
        "memory of an agent: {:.1} MiB, {:.2} KiB more per pod, {:.2} KiB more per policy",
        bare as f64 / 1024.0,
        pods.saturating_sub(bare) as f64 / PODS as f64,
        all.saturating_sub(pods) as f64 / full.policies as f64
    );
    first_policy(&none.lab, &none.client, &none.servers[1])?;
    changes(&full.lab, &full.client, &full.servers[1])?;
    rebuild(&full.lab)
}

/// A cluster of its own with that many policies, so that all can be measured in turn.
struct Loaded {
    lab: PolicyLab,
    policies: usize,
    client: LabPod,
    /// On the client's node, and on another.
    servers: [Server; 2],
    /// Of n2's agent, KiB: bare, with the pods, with pods and policies.
    memory: [u64; 3],
}

impl Loaded {
    fn start(policies: usize) -> Result<Self> {
        let mut lab = PolicyLab::start(|b| b)?;
        lab.api.put(&objects::namespace("bench", &[("ns", "bench")]))?;
        let client = lab.add("bench", "client", 1, &[("app", "client"), ("friend", "yes")])?;
        let near = lab.add("bench", "near", 1, &[("app", "server")])?;
        let far = lab.add("bench", "far", 2, &[("app", "server")])?;
        let servers = [Server::start(&near)?, Server::start(&far)?];
        lab.converge()?;
        let bare = memory(&lab)?;
        for space in 0..SPACES {
            let label = format!("team{}", space % 10);
            lab.api.put(&objects::namespace(&format!("s{space}"), &[("team", &label)]))?;
        }
        for number in 0..PODS {
            let (space, name) = (format!("s{}", number % SPACES), format!("p{number}"));
            let (a, b) = (number / 250, number % 250 + 1);
            // Outside the range: no address of a real pod.
            let address = Ipv4Addr::new(10, 200, u8::try_from(a)?, u8::try_from(b)?);
            let app = format!("app{}", number % 7);
            let pod = objects::pod(&space, &name).node("elsewhere").label("app", &app);
            lab.api.put(&pod.running(&[address.into()]).build())?;
        }
        let put = |number: usize| {
            // Every hundredth speaks of the pods that are measured.
            let speaks = number.is_multiple_of(100);
            let space = if speaks { "bench" } else { &format!("s{}", number % SPACES) };
            lab.api.put(&policy(space, number))
        };
        // Pods are asked for once there is a policy.
        if policies > 0 {
            put(0)?;
        }
        lab.converge()?;
        let with_pods = memory(&lab)?;
        let start = Instant::now();
        for number in 1..policies {
            put(number)?;
        }
        let wrote = start.elapsed();
        let took = lab.converge()?;
        let table = lab.policy(2)?.table;
        println!(
            "{policies} policies: written in {:.2} s, enforced {:.2} s later; n2: {} sets, {} elements, {} chains, {} addresses",
            wrote.as_secs_f64(),
            took.as_secs_f64(),
            table.sets,
            table.elements,
            table.chains,
            table.subjects
        );
        let memory = [bare, with_pods, memory(&lab)?];
        Ok(Self { lab, policies, client, servers, memory })
    }
}

/// New connections and round trips, all clusters in turn; ratios within a round.
fn compare(labs: &[Loaded]) -> Result<()> {
    println!(
        "\n{:>9} {:>6} {:>14} {:>22} {:>11} {:>22}",
        "policies", "path", "connections/s", "to none [half]", "RTT us", "to none [half]"
    );
    for (at, path) in ["node", "tunnel"].into_iter().enumerate() {
        let mut figures: Vec<Vec<Figure>> = labs.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            for turn in 0..labs.len() {
                // Whoever is first in a round is another each time.
                let which = (turn + round) % labs.len();
                let one = &labs[which];
                figures[which].push(measure(&one.client, &one.servers[at])?);
            }
        }
        for (one, own) in labs.iter().zip(&figures) {
            let of = |take: fn(&Figure) -> f64| {
                let ratios = own.iter().zip(&figures[0]).map(|(own, none)| take(own) / take(none));
                let [low, median, high] = quantiles(ratios, QUARTERS);
                let [_, value, _] = quantiles(own.iter().map(take), QUARTERS);
                (value, format!("{median:.3} [{low:.3}, {high:.3}]"))
            };
            let ((rate, rates), (rtt, rtts)) = (of(|f| f.rate), of(|f| f.rtt_us));
            println!(
                "{:>9} {path:>6} {rate:>14.0} {rates:>22} {rtt:>11.1} {rtts:>22}",
                one.policies
            );
        }
    }
    println!("wanted: 0.950 to 1.050 between none and {}\n", STEPS[STEPS.len() - 1]);
    Ok(())
}

/// One of many policies; those of the measured pods let the client in.
fn policy(space: &str, number: usize) -> serde_json::Value {
    let team = format!("team{}", number % 10);
    let app = format!("app{}", number % 7);
    objects::network_policy(
        space,
        &format!("p{number}"),
        json!({
            "podSelector": { "matchLabels": { "app": if space == "bench" { "server" } else { &app } } },
            "ingress": [{
                "from": [
                    { "namespaceSelector": { "matchLabels": { "team": team } },
                      "podSelector": { "matchLabels": { "app": app } } },
                    { "podSelector": { "matchLabels": { "friend": "yes" } } },
                    { "ipBlock": { "cidr": format!("198.51.{}.0/24", number % 200) } },
                ],
                "ports": [{ "port": PORT }, { "port": PORT, "protocol": "UDP" }],
            }],
        }),
    )
}

struct Figure {
    rate: f64,
    rtt_us: f64,
}

/// Accepts, closes, echoes, until dropped.
struct Server {
    address: Ipv4Addr,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(pod: &LabPod) -> Result<Self> {
        let at = SocketAddrV4::new(pod.address, PORT);
        let (tcp, udp) =
            Netns::named(&pod.plan.netns).run(|| (TcpListener::bind(at), UdpSocket::bind(at)))?;
        let (tcp, udp) = (tcp?, udp?);
        let stop = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(100)))?;
        tcp.set_nonblocking(false)?;
        std::thread::spawn(move || {
            let _ = pin();
            // One answer each, so that the client never runs ahead of the queue.
            while let Ok((mut stream, _)) = tcp.accept() {
                let _ = stream.write_all(b".");
            }
        });
        std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let _ = pin();
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(&buffer[..length], from);
                    }
                }
            }
        });
        Ok(Self { address: pod.address, stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn measure(client: &LabPod, server: &Server) -> Result<Figure> {
    let netns = Netns::named(&client.plan.netns);
    let to = SocketAddrV4::new(server.address, PORT);
    let rate = netns.run(|| connections(to))??;
    let rtt_us = netns.run(|| round_trip(to))??;
    Ok(Figure { rate, rtt_us })
}

fn connections(to: SocketAddrV4) -> Result<f64> {
    use nix::sys::socket::{setsockopt, sockopt};
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < ROUND {
        let mut stream = TcpStream::connect(to).context("a connection that policy allows")?;
        stream.read_exact(&mut [0])?;
        // No TIME-WAIT: source ports must not run out.
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn round_trip(to: SocketAddrV4) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < ROUND {
        let sent = Instant::now();
        socket.send(b"?")?;
        socket.recv(&mut [0; 8]).context("an echo that policy allows")?;
        times.push(sent.elapsed());
    }
    Ok(percentile(&times, 50).as_secs_f64() * 1e6)
}

fn memory(lab: &PolicyLab) -> Result<u64> {
    lab.cluster.node(2).agent()?.rss_kib().context("no memory of n2")
}

/// From a label of the client at the API server to the first packet that gets through.
fn changes(lab: &PolicyLab, client: &LabPod, server: &Server) -> Result<()> {
    let netns = Netns::named(&client.plan.netns);
    let to = SocketAddrV4::new(server.address, PORT);
    let mut times = Vec::new();
    let mut kernel = Vec::new();
    // Of flows that were let through: their end is made to follow, but not waited for.
    let mut used = BTreeSet::new();
    for _ in 0..CHANGES {
        label(lab, false)?;
        lab.converge_on(&[2])?;
        // Each try is a flow of its own: none profits from an earlier one.
        let sockets: Vec<UdpSocket> = netns.run(|| {
            (0..2000).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<std::io::Result<_>>()
        })??;
        let fresh = |s: &UdpSocket| s.local_addr().is_ok_and(|at| !used.contains(&at.port()));
        let closed = sockets.iter().find(|s| fresh(s)).context("no port that is new")?;
        closed.connect(to)?;
        closed.set_read_timeout(Some(Duration::from_millis(20)))?;
        closed.send(b"!")?;
        ensure!(closed.recv(&mut [0; 8]).is_err(), "open without the label");
        let start = Instant::now();
        label(lab, true)?;
        let mut through = None;
        for socket in &sockets {
            used.insert(socket.local_addr()?.port());
            socket.set_nonblocking(true)?;
            socket.connect(to)?;
            socket.send(b"!")?;
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_micros(400) && through.is_none() {
                match socket.recv(&mut [0; 8]) {
                    Ok(_) => through = Some(start.elapsed()),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => bail!("{e}"),
                }
            }
            if through.is_some() {
                break;
            }
        }
        times.push(through.context("the label had no effect within a second")?);
        kernel.push(Duration::from_micros(lab.policy(2)?.table.last_us));
    }
    println!(
        "one label: from the API server to the first packet p50 {:.1} ms, p99 {:.1} ms \
         (wanted 50 at p99); its transaction p50 {:.2} ms, p99 {:.2} ms",
        ms(percentile(&times, 50)),
        ms(percentile(&times, 99)),
        ms(percentile(&kernel, 50)),
        ms(percentile(&kernel, 99)),
    );
    Ok(())
}

/// The only policy of the cluster comes and goes, with all those pods known.
fn first_policy(lab: &PolicyLab, client: &LabPod, server: &Server) -> Result<()> {
    let netns = Netns::named(&client.plan.netns);
    let to = SocketAddrV4::new(server.address, PORT);
    // A flow of its own each time; an answer takes microseconds.
    let open = || -> Result<bool> {
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        socket.send(b"?")?;
        Ok(socket.recv(&mut [0; 8]).is_ok())
    };
    let deny = objects::network_policy("bench", "deny", json!({ "podSelector": {} }));
    let [mut closed, mut opened] = [Vec::new(), Vec::new()];
    for _ in 0..20 {
        lab.converge_on(&[2])?;
        ensure!(open()?, "closed without a policy");
        let start = Instant::now();
        lab.api.put(&deny)?;
        while open()? {
            ensure!(start.elapsed() < PATIENCE, "the policy had no effect");
        }
        closed.push(start.elapsed());
        lab.converge_on(&[2])?;
        let start = Instant::now();
        lab.api.delete("networkpolicies", "bench", "deny")?;
        while !open()? {
            ensure!(start.elapsed() < PATIENCE, "the policy is gone, its effect is not");
        }
        opened.push(start.elapsed());
    }
    println!(
        "the first policy, with {PODS} pods: refuses after p50 {:.1} ms, p99 {:.1} ms; its end: after p50 {:.1} ms, p99 {:.1} ms",
        ms(percentile(&closed, 50)),
        ms(percentile(&closed, 99)),
        ms(percentile(&opened, 50)),
        ms(percentile(&opened, 99)),
    );
    Ok(())
}

fn label(lab: &PolicyLab, friend: bool) -> Result<()> {
    lab.api.edit("pods", "bench", "client", |pod| {
        pod["metadata"]["labels"]["friend"] = json!(if friend { "yes" } else { "no" });
    })?;
    Ok(())
}

/// The table of a node is deleted: how long until it is whole again.
fn rebuild(lab: &PolicyLab) -> Result<()> {
    let before = lab.policy(2)?.table.repairs;
    let start = Instant::now();
    lab.cluster.node(2).exec(&["nft", "delete", "table", "inet", "weft-policy"])?;
    weft_tests::wait_until("the table is back", Duration::from_secs(30), || {
        let table = lab.policy(2)?.table;
        Ok(table.in_sync && table.repairs > before)
    })?;
    println!(
        "deleted table whole again, as the report says, after {:.2} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

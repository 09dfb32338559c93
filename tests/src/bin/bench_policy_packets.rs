//! What policies cost: new connections per second and round trips with 0, 100 and
//! 10,000 policies over 10,000 pods, in one run; and how long a change takes from
//! the API server to the packet.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_agent::lab::netns::Netns;
use weft_tests::apiserver::objects;
use weft_tests::policy_lab::{LabPod, PolicyLab};
use weft_tests::stats::{ms, percentile};

const PODS: usize = 10_000;
const SPACES: usize = 100;
const STEPS: [usize; 3] = [0, 100, 10_000];
/// Per figure; each is taken several times and the best counts.
const ROUND: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;
const CHANGES: usize = 100;
const PORT: u16 = 9000;

fn main() -> Result<()> {
    let mut lab = PolicyLab::start(|b| b)?;
    lab.api.put(&objects::namespace("bench", &[("ns", "bench")]))?;
    let client = lab.add("bench", "client", 1, &[("app", "client"), ("friend", "yes")])?;
    let near = lab.add("bench", "near", 1, &[("app", "server")])?;
    let far = lab.add("bench", "far", 2, &[("app", "server")])?;
    let servers = [Server::start(&near)?, Server::start(&far)?];

    let start = Instant::now();
    for space in 0..SPACES {
        let label = format!("team{}", space % 10);
        lab.api.put(&objects::namespace(&format!("s{space}"), &[("team", &label)]))?;
    }
    for number in 0..PODS {
        let (space, name) = (format!("s{}", number % SPACES), format!("p{number}"));
        let (a, b) = (number / 250, number % 250 + 1);
        let address = Ipv4Addr::new(10, 40, u8::try_from(a)?, u8::try_from(b)?);
        let app = format!("app{}", number % 7);
        let pod = objects::pod(&space, &name).node("elsewhere").label("app", &app);
        lab.api.put(&pod.running(&[address.into()]).build())?;
    }
    println!(
        "{PODS} pods in {SPACES} namespaces written in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let bare = memory(&lab)?;

    let mut figures = Vec::new();
    let mut written = 0;
    for step in STEPS {
        let start = Instant::now();
        while written < step {
            // Every hundredth speaks of the pods that are measured.
            let space = if written % 100 == 0 {
                "bench".to_owned()
            } else {
                format!("s{}", written % SPACES)
            };
            lab.api.put(&policy(&space, written))?;
            written += 1;
        }
        let wrote = start.elapsed();
        let took = lab.converge()?;
        let table = lab.policy(2)?.table;
        println!(
            "{step} policies: written in {:.2} s, enforced {:.2} s later; n2: {} sets, {} elements, {} chains, {} addresses",
            wrote.as_secs_f64(),
            took.as_secs_f64(),
            table.sets,
            table.elements,
            table.chains,
            table.subjects
        );
        println!("memory of n2's agent: {:.1} MiB", memory(&lab)? as f64 / 1024.0);
        for server in &servers {
            figures.push((step, measure(&client, server)?));
        }
    }
    println!("\n{:>9} {:>6} {:>16} {:>12}", "policies", "path", "connections/s", "RTT p50 us");
    for ((step, figure), path) in figures.iter().zip(["node", "tunnel"].iter().cycle()) {
        println!("{step:>9} {path:>6} {:>16.0} {:>12.1}", figure.rate, figure.rtt_us);
    }
    for (at, path) in ["node", "tunnel"].into_iter().enumerate() {
        let (first, last) = (&figures[at].1, &figures[figures.len() - 2 + at].1);
        println!(
            "{path}: connections/s with {} policies / with none: {:.3}; RTT: {:.3} (wanted 0.95 to 1.05)",
            STEPS[2],
            last.rate / first.rate,
            last.rtt_us / first.rtt_us
        );
    }
    let full = memory(&lab)?;
    println!(
        "memory of an agent: {:.1} MiB more with {PODS} pods and {written} policies: {:.2} KiB per pod",
        (full.saturating_sub(bare)) as f64 / 1024.0,
        (full.saturating_sub(bare)) as f64 / PODS as f64
    );
    changes(&lab, &client, &servers[1])?;
    rebuild(&lab)
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
        std::thread::spawn(move || while tcp.accept().is_ok() {});
        std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
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
    let mut rates = Vec::new();
    let mut rtts = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(netns.run(|| connections(to))??);
        rtts.push(netns.run(|| round_trip(to))??);
    }
    // The best of the rounds: what else the machine does only ever costs time.
    rates.sort_by(f64::total_cmp);
    rtts.sort_by(f64::total_cmp);
    Ok(Figure { rate: rates[ROUNDS - 1], rtt_us: rtts[0] })
}

fn connections(to: SocketAddrV4) -> Result<f64> {
    use nix::sys::socket::{setsockopt, sockopt};
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < ROUND {
        let stream = TcpStream::connect(to).context("a connection that policy allows")?;
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
    for _ in 0..CHANGES {
        label(lab, false)?;
        lab.converge_on(&[2])?;
        // Each try is a flow of its own: none profits from an earlier one.
        let sockets: Vec<UdpSocket> = netns.run(|| {
            (0..2000).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<std::io::Result<_>>()
        })??;
        let start = Instant::now();
        label(lab, true)?;
        let mut through = None;
        for socket in &sockets {
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

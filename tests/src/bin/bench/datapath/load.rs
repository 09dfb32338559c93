//! What is sent over a path, and how it is counted.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use weft_tests::pin::pin;
use weft_tests::stats::percentile;

use super::arrangements::Path;

const PORT: u16 = 9100;
const CHUNK: usize = 128 * 1024;
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_millis(200);
const STUCK: Duration = Duration::from_secs(10);

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// A byte there and back over one connection.
    TcpRr,
    /// The same in datagrams.
    UdpRr,
    /// A connection, a byte there and back, and its end.
    TcpCrr,
    /// As much as goes, over so many connections at once.
    Streams(usize),
}

impl Load {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::TcpRr, Self::UdpRr, Self::TcpCrr, Self::Streams(1), Self::Streams(4)];

    /// As the table calls it, and its unit.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::TcpRr => ("TCP_RR", "us"),
            Self::UdpRr => ("UDP_RR", "us"),
            Self::TcpCrr => ("TCP_CRR", "us"),
            Self::Streams(1) => ("1 stream", "Gb/s"),
            Self::Streams(_) => ("4 streams", "Gb/s"),
        }
    }

    /// Whether more is better.
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Self::Streams(_))
    }

    /// One round over `path`, to its [`Server`].
    pub(crate) fn run(self, path: &Path) -> Result<f64> {
        let to = SocketAddr::new(path.address, PORT);
        match self {
            Self::TcpRr => path.from.run(|| pin().and_then(|()| tcp_rr(to)))?,
            Self::UdpRr => path.from.run(|| pin().and_then(|()| udp_rr(to)))?,
            Self::TcpCrr => path.from.run(|| pin().and_then(|()| tcp_crr(to)))?,
            Self::Streams(count) => streams(path, to, count),
        }
        .with_context(|| format!("{} from {} to {to}", self.name().0, path.from.name()))
    }
}

/// The same congestion control for all, whatever the machine prefers.
fn plain(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    Ok(setsockopt(stream, sockopt::TcpCongestion, &"cubic".into())?)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, STUCK)?;
    plain(&stream)?;
    Ok(stream)
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Median of the round trips within a round.
fn trips(mut trip: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < SHORT {
        let sent = Instant::now();
        trip()?;
        times.push(sent.elapsed());
    }
    Ok(us(percentile(&times, 50)))
}

fn tcp_rr(to: SocketAddr) -> Result<f64> {
    let mut stream = connect(to)?;
    stream.write_all(b"e")?;
    trips(|| {
        stream.write_all(b"?")?;
        Ok(stream.read_exact(&mut [0])?)
    })
}

fn udp_rr(to: SocketAddr) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(STUCK))?;
    trips(|| {
        socket.send(b"?")?;
        socket.recv(&mut [0; 8])?;
        Ok(())
    })
}

fn tcp_crr(to: SocketAddr) -> Result<f64> {
    trips(|| {
        let mut stream = connect(to)?;
        stream.write_all(b"c")?;
        stream.read_exact(&mut [0])?;
        // No TIME-WAIT: source ports must not run out.
        Ok(setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?)
    })
}

/// Bits that arrived, until the last one did.
fn streams(path: &Path, to: SocketAddr, count: usize) -> Result<f64> {
    let open: Vec<TcpStream> =
        path.from.run(|| (0..count).map(|_| connect(to)).collect::<Result<_>>())??;
    let start = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let senders: Vec<_> = open.into_iter().map(|s| scope.spawn(|| send(s, start))).collect();
        senders.into_iter().try_fold(0, |sum, sender| {
            Ok::<_, anyhow::Error>(sum + sender.join().map_err(|_| anyhow!("panicked"))??)
        })
    })?;
    Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

fn send(mut stream: TcpStream, start: Instant) -> Result<u64> {
    let chunk = vec![0x5a; CHUNK];
    stream.write_all(b"s")?;
    let mut bytes = 0;
    while start.elapsed() < LONG {
        stream.write_all(&chunk)?;
        bytes += CHUNK as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Its end follows the last byte that arrived.
    stream.read_to_end(&mut Vec::new())?;
    Ok(bytes)
}

/// Answers at the end of a path, until dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Serves all loads.
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let at = SocketAddr::new(path.address, PORT);
        let (tcp, udp) = path.to.run(|| (TcpListener::bind(at), UdpSocket::bind(at)))?;
        let (tcp, udp) = (tcp?, udp?);
        let stop = Arc::new(AtomicBool::new(false));
        let all = sched_getaffinity(Pid::from_raw(0))?;
        // Both threads wait in the kernel and end with the program.
        std::thread::spawn(move || {
            let _ = pin();
            while let Ok((stream, _)) = tcp.accept() {
                let _ = serve(stream, all);
            }
        });
        udp.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = pin();
            let _ = echo(&udp, &stopped);
        });
        Ok(Self { stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn echo(udp: &UdpSocket, stopped: &AtomicBool) -> Result<()> {
    let mut buffer = [0; 64];
    while !stopped.load(Ordering::Relaxed) {
        match udp.recv_from(&mut buffer) {
            Ok((length, from)) => drop(udp.send_to(&buffer[..length], from)?),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream, all: CpuSet) -> Result<()> {
    plain(&stream)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match &kind {
        b"c" => stream.write_all(b".")?,
        b"e" => drop(std::thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        })),
        _ => drop(std::thread::spawn(move || {
            let _ = sched_setaffinity(Pid::from_raw(0), &all);
            let mut chunk = vec![0; CHUNK];
            while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
        })),
    }
    Ok(())
}

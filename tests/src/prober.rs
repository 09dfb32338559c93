//! Who reaches whom, really: every cell of a matrix of pods, ports and protocols
//! is tried with packets of its own, all at once.
//!
//! TCP connects, UDP wants an echo. SCTP is an INIT written by hand that must
//! arrive: not every kernel speaks SCTP, but every kernel judges it. Each try has
//! a source port that was not used before, so that no earlier connection answers
//! for it. What is refused gets no answer; whatever arrives late nevertheless is
//! remembered as a leak, because packets say which try they belong to.
//!
//! On a busy machine a packet may wait, and a full queue loses it. So a round ends
//! when no packet waits in any processor's queue, and what must get through is
//! sent again, as TCP does by itself.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    getsockopt, recv, sendto, setsockopt, socket, sockopt,
};
use weft_agent::lab::netns::Netns;
use weft_agent::policy::state::Protocol;

use crate::{Result, sctp};

/// Nothing more is on its way when nothing came for so long: a packet from pod
/// to pod takes less than a tenth of a millisecond here.
const QUIET: Duration = Duration::from_millis(25);
/// Others may send without end: their packets are not waited for longer.
const BUSY: Duration = Duration::from_secs(1);
/// For what is expected to get through.
const PATIENCE: Duration = Duration::from_secs(8);
/// What must get through is sent again after this.
const AGAIN: Duration = Duration::from_millis(250);
/// Source ports: below the ephemeral ones of nobody, above the ports probed.
const FIRST_PORT: u16 = 2000;

/// One try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Station that opens.
    pub from: usize,
    /// Station that listens.
    pub to: usize,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// What should become of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It is waited for.
    Through,
    /// It must not arrive, not even late.
    Refused,
    /// Rules change just now: either is right.
    Either,
}

/// A pod that listens and opens, in one family.
#[derive(Debug)]
struct Station {
    netns: Netns,
    address: IpAddr,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    raw: OwnedFd,
    next: u16,
}

impl Station {
    fn open(netns: &Netns, address: IpAddr, ports: &[u16]) -> Result<Self> {
        let opened = netns.run(|| -> Result<_> {
            let mut tcp = Vec::new();
            let mut udp = Vec::new();
            for port in ports {
                let at = SocketAddr::new(address, *port);
                let listener = TcpListener::bind(at).with_context(|| format!("TCP {at}"))?;
                listener.set_nonblocking(true)?;
                tcp.push(listener);
                let server = UdpSocket::bind(at).with_context(|| format!("UDP {at}"))?;
                server.set_nonblocking(true)?;
                udp.push(server);
            }
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let raw = socket(family(address), SockType::Raw, flags, SockProtocol::Sctp)
                .context("a raw socket for SCTP")?;
            Ok((tcp, udp, raw))
        })?;
        let (tcp, udp, raw) = opened.with_context(|| format!("station {}", netns.name()))?;
        Ok(Self { netns: netns.clone(), address, tcp, udp, raw, next: FIRST_PORT })
    }

    fn port(&mut self) -> u16 {
        let port = self.next;
        self.next = port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }
}

/// Stations, and what was tried between them.
#[derive(Debug)]
pub struct Prober {
    ports: Vec<u16>,
    stations: Vec<Station>,
    round: u32,
    /// Tries that were refused: none of them may arrive any more.
    refused: HashSet<u64>,
    leaks: Vec<String>,
}

/// A try under way.
struct Try {
    cell: Cell,
    token: u64,
    source: u16,
    socket: Option<OwnedFd>,
    expect: Expect,
    done: bool,
}

impl Try {
    fn missing(&self) -> bool {
        self.expect == Expect::Through && !self.done
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

impl Prober {
    /// Every station listens on all of `ports`.
    pub fn new(ports: &[u16]) -> Self {
        Self {
            ports: ports.to_vec(),
            stations: Vec::new(),
            round: 0,
            refused: HashSet::new(),
            leaks: Vec::new(),
        }
    }

    /// One more station; its number.
    pub fn add(&mut self, netns: &Netns, address: IpAddr) -> Result<usize> {
        self.stations.push(Station::open(netns, address, &self.ports)?);
        Ok(self.stations.len() - 1)
    }

    /// The pod of a station was made again. Source ports go on: its address may be
    /// the old one.
    pub fn replace(&mut self, at: usize, netns: &Netns, address: IpAddr) -> Result {
        let next = self.stations.iter().map(|s| s.next).max().unwrap_or(FIRST_PORT);
        self.stations[at] = Station::open(netns, address, &self.ports)?;
        self.stations[at].next = next;
        Ok(())
    }

    /// All cells between all stations of one family, those to themselves included.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for from in 0..self.stations.len() {
            let v6 = self.stations[from].address.is_ipv6();
            for to in (0..self.stations.len()).filter(|n| self.stations[*n].address.is_ipv6() == v6)
            {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    for port in &self.ports {
                        cells.push(Cell { from, to, protocol, port: *port });
                    }
                }
            }
        }
        cells
    }

    /// Tries all `cells` at once. Waits for those that must get through, and then
    /// until nothing more comes. What got through, by cell.
    pub fn run(
        &mut self,
        cells: &[Cell],
        expected: impl Fn(&Cell) -> Expect,
    ) -> Result<BTreeMap<Cell, bool>> {
        self.round += 1;
        let mut tries = self.open(cells, expected)?;
        for one in &mut tries {
            self.fire(one)?;
        }
        let start = Instant::now();
        let (mut last, mut sent) = (start, start);
        while start.elapsed() < PATIENCE {
            let missing = tries.iter().any(Try::missing);
            // Refused packets, too, must be judged before rules change again.
            let quiet = last.elapsed();
            if !missing && (quiet >= QUIET && !packets_wait() || quiet >= BUSY) {
                break;
            }
            if missing && sent.elapsed() >= AGAIN {
                sent = Instant::now();
                // TCP sends again by itself.
                let again = |t: &&mut Try| t.missing() && t.cell.protocol != Protocol::Tcp;
                for one in tries.iter_mut().filter(again) {
                    self.fire(one)?;
                }
            }
            if self.step(&mut tries, QUIET)? {
                last = Instant::now();
            }
        }
        let refused = tries.iter().filter(|t| !t.done && t.expect == Expect::Refused);
        self.refused.extend(refused.map(|t| t.token));
        if let Some(leak) = self.leaks.first() {
            bail!("what was refused arrived late: {leak}");
        }
        Ok(tries.into_iter().map(|t| (t.cell, t.done)).collect())
    }

    /// Sockets for all tries, those of one station in one visit.
    fn open(&mut self, cells: &[Cell], expected: impl Fn(&Cell) -> Expect) -> Result<Vec<Try>> {
        let round = u64::from(self.round) << 32;
        let mut tries: Vec<Try> = cells
            .iter()
            .zip(0_u64..)
            .map(|(cell, n)| Try {
                cell: *cell,
                token: round | n,
                source: self.stations[cell.from].port(),
                socket: None,
                expect: expected(cell),
                done: false,
            })
            .collect();
        for (number, station) in self.stations.iter().enumerate() {
            let own = tries.iter_mut().filter(|t| t.cell.from == number);
            let wanted = own.filter(|t| t.cell.protocol != Protocol::Sctp).collect::<Vec<_>>();
            if wanted.is_empty() {
                continue;
            }
            let address = station.address;
            station.netns.run(move || -> Result {
                for one in wanted {
                    let kind = match one.cell.protocol {
                        Protocol::Tcp => SockType::Stream,
                        _ => SockType::Datagram,
                    };
                    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                    let fd = socket(family(address), kind, flags, None)?;
                    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
                    if kind == SockType::Stream {
                        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                        setsockopt(&fd, sockopt::Linger, &linger)?;
                    }
                    let at = SockaddrStorage::from(SocketAddr::new(address, one.source));
                    bind(fd.as_raw_fd(), &at)
                        .with_context(|| format!("source port {} of {address}", one.source))?;
                    one.socket = Some(fd);
                }
                Ok(())
            })??;
        }
        Ok(tries)
    }

    fn fire(&self, one: &mut Try) -> Result {
        let (from, to) = (&self.stations[one.cell.from], &self.stations[one.cell.to]);
        let target = SockaddrStorage::from(SocketAddr::new(to.address, one.cell.port));
        match (one.cell.protocol, &one.socket) {
            (Protocol::Sctp, _) => {
                let packet = sctp::init(one.source, one.cell.port, one.token);
                let target = SockaddrStorage::from(SocketAddr::new(to.address, 0));
                refused_or(sendto(from.raw.as_raw_fd(), &packet, &target, MsgFlags::empty()))
            }
            (Protocol::Tcp, Some(fd)) => match connect(fd.as_raw_fd(), &target) {
                Ok(()) => {
                    one.done = true;
                    Ok(())
                }
                Err(Errno::EINPROGRESS) => Ok(()),
                Err(e) => bail!("TCP to {} port {}: {e}", to.address, one.cell.port),
            },
            (Protocol::Udp, Some(fd)) => {
                let payload = one.token.to_be_bytes();
                refused_or(sendto(fd.as_raw_fd(), &payload, &target, MsgFlags::empty()))
            }
            (_, None) => bail!("a try without a socket"),
        }
    }

    /// Waits for something and takes it in; false if nothing came in time.
    fn step(&mut self, tries: &mut [Try], patience: Duration) -> Result<bool> {
        let waiting: Vec<usize> =
            (0..tries.len()).filter(|n| !tries[*n].done && tries[*n].socket.is_some()).collect();
        let ready: Vec<bool> = {
            let mut fds = Vec::new();
            for n in &waiting {
                if let Some(fd) = &tries[*n].socket {
                    let tcp = tries[*n].cell.protocol == Protocol::Tcp;
                    let events = if tcp { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                    fds.push(PollFd::new(fd.as_fd(), events));
                }
            }
            for station in &self.stations {
                let tcp = station.tcp.iter().map(AsFd::as_fd);
                let udp = station.udp.iter().map(AsFd::as_fd);
                for fd in tcp.chain(udp).chain([station.raw.as_fd()]) {
                    fds.push(PollFd::new(fd, PollFlags::POLLIN));
                }
            }
            let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX).max(1);
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => bail!("poll: {e}"),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
        };
        for (n, _) in waiting.iter().zip(&ready).filter(|(_, ready)| **ready) {
            answered(&mut tries[*n])?;
        }
        self.serve(tries)?;
        Ok(true)
    }

    /// Everything that waits at the listeners.
    fn serve(&mut self, tries: &mut [Try]) -> Result {
        let mut arrived = Vec::new();
        for station in &self.stations {
            for listener in &station.tcp {
                while listener.accept().is_ok() {}
            }
            for server in &station.udp {
                let mut buffer = [0; 64];
                loop {
                    match server.recv_from(&mut buffer) {
                        Ok((8, from)) => {
                            arrived.push((u64::from_be_bytes(buffer[..8].try_into()?), false));
                            let _ = server.send_to(&buffer[..8], from);
                        }
                        Ok(_) => {}
                        Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                        Err(_) => break,
                    }
                }
            }
            let mut buffer = [0; 256];
            while let Ok(length) = recv(station.raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                let v6 = station.address.is_ipv6();
                if let Some(token) = sctp::token(&buffer[..length], v6) {
                    arrived.push((token, true));
                }
            }
        }
        for (token, sctp) in arrived {
            let current = tries.iter_mut().find(|one| one.token == token);
            match current {
                // What should get through must also be answered; what should not
                // must not even arrive.
                Some(one) => one.done |= sctp || one.expect != Expect::Through,
                None if self.refused.contains(&token) => {
                    self.leaks.push(format!("round {}, try {}", token >> 32, token & 0xffff_ffff));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Packets wait in a processor's queue, of whatever namespace. Kernels that do not
/// tell how many have none.
fn packets_wait() -> bool {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let waits = |line: &str| {
        let field = line.split_whitespace().nth(11);
        field.is_some_and(|field| u32::from_str_radix(field, 16).is_ok_and(|n| n > 0))
    };
    text.lines().any(waits)
}

/// Sending may be refused at once, with the errors a dropped packet gives its sender.
fn refused_or(result: nix::Result<usize>) -> Result {
    match result {
        Ok(_) | Err(Errno::EPERM | Errno::EACCES | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
            Ok(())
        }
        Err(e) => Err(e).context("send"),
    }
}

fn answered(one: &mut Try) -> Result {
    let Some(fd) = &one.socket else { return Ok(()) };
    if one.cell.protocol == Protocol::Tcp {
        match getsockopt(fd, sockopt::SocketError)? {
            0 => one.done = true,
            // Told by somebody on the way that it is forbidden, or unreachable.
            code => {
                if Errno::from_raw(code) == Errno::ECONNREFUSED {
                    bail!("{:?}: nobody listens", one.cell);
                }
                one.socket = None;
            }
        }
        return Ok(());
    }
    let mut buffer = [0; 64];
    while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        one.done |= buffer[..length] == one.token.to_be_bytes();
    }
    Ok(())
}

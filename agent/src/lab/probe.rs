//! ICMP echo from inside a pod: no `ping` needed, and every knob the tests want.

#![allow(unsafe_code, reason = "the standard library cannot set IP_MTU_DISCOVER")]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use super::netns::Netns;

const HEADER: usize = 8;
/// Bytes that wait to be read, as the kernel counts them: thousands of replies.
const BUFFER: usize = 8 << 20;

static IDENTIFIERS: AtomicU16 = AtomicU16::new(1);

/// A socket for echo requests to one address. It may be used outside the
/// namespace it was opened in.
#[derive(Debug)]
pub struct Echo {
    // A raw ICMP socket: UdpSocket is only the safe wrapper around its calls.
    socket: UdpSocket,
    target: IpAddr,
    identifier: u16,
}

impl Echo {
    /// Opens it inside `netns`.
    pub fn open(netns: &Netns, target: IpAddr) -> anyhow::Result<Self> {
        Ok(netns.run(|| Self::open_here(target))??)
    }

    fn open_here(target: IpAddr) -> io::Result<Self> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // A reader that gets no processor for seconds must not look like a lost packet.
        setsockopt(&raw, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Self {
            socket: UdpSocket::from(raw),
            target,
            // Every raw socket sees all echoes of its namespace.
            identifier: (std::process::id() as u16)
                ^ IDENTIFIERS.fetch_add(1, Ordering::Relaxed).rotate_left(8),
        })
    }

    /// Never fragment; a packet over the path's MTU is an error (IPv4).
    pub fn dont_fragment(&self) -> io::Result<()> {
        let value: libc::c_int = libc::IP_PMTUDISC_DO;
        // SAFETY: the socket is open, and the pointer is to an int that lives
        // through the call, with its size.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends request `sequence` with `payload` bytes after the ICMP header.
    pub fn send(&self, sequence: u16, payload: usize) -> io::Result<()> {
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![0x5a; HEADER + payload];
        packet[0] = kind;
        packet[1..4].fill(0);
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        // The kernel does it for ICMPv6, over the pseudo header.
        if self.target.is_ipv4() {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&packet, SocketAddr::new(self.target, 0)).map(|_| ())
    }

    /// The sequence number of the next reply to this socket's requests;
    /// `None` if there is none within `patience`.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<u16>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) if from.ip() == self.target => {
                    if let Some(sequence) = self.reply(&buffer[..length]) {
                        return Ok(Some(sequence));
                    }
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn reply(&self, packet: &[u8]) -> Option<u16> {
        let (kind, icmp) = match self.target {
            // Raw IPv4 sockets deliver the IP header, too.
            IpAddr::V4(_) => (0, packet.get(usize::from(packet.first()? & 0xf) * 4..)?),
            IpAddr::V6(_) => (129, packet),
        };
        let header = icmp.first_chunk::<HEADER>()?;
        let ours = header[0] == kind && header[4..6] == self.identifier.to_be_bytes();
        ours.then(|| u16::from_be_bytes([header[6], header[7]]))
    }

    /// One request and its reply: the round-trip time, `None` if it was lost.
    pub fn ping(
        &self,
        sequence: u16,
        payload: usize,
        patience: Duration,
    ) -> io::Result<Option<Duration>> {
        let start = Instant::now();
        match self.send(sequence, payload) {
            Ok(()) => {}
            // Not (yet) routed is the same as lost.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        loop {
            let left = patience.saturating_sub(start.elapsed());
            match self.receive(left)? {
                Some(got) if got == sequence => return Ok(Some(start.elapsed())),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The fastest of a few echoes once the first got through; `None` if none did
/// before `deadline`.
pub fn round_trip(
    netns: &Netns,
    target: IpAddr,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> anyhow::Result<Option<Duration>> {
    const SAMPLES: u16 = 3;
    const PATIENCE: Duration = Duration::from_millis(200);
    let echo = Echo::open(netns, target)?;
    let mut sequence = 0_u16;
    let mut best: Option<Duration> = None;
    let mut samples = 0;
    while samples < SAMPLES && !give_up() {
        sequence = sequence.wrapping_add(1);
        let before = Instant::now();
        match echo.ping(sequence, 56, PATIENCE)? {
            Some(took) => {
                best = Some(best.map_or(took, |least| least.min(took)));
                samples += 1;
            }
            None if Instant::now() >= deadline => break,
            None => std::thread::sleep(Duration::from_millis(50).saturating_sub(before.elapsed())),
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_verifies_to_zero() {
        let mut packet = vec![8, 0, 0, 0, 1, 2, 3, 4, 9];
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&packet), 0);
    }
}

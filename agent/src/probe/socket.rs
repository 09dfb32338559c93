//! The socket of probes: on one own overlay address, never fragmenting.
#![allow(unsafe_code, reason = "IP_MTU_DISCOVER and AsyncFd have no safe way")]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use weft_proto::names::PROBE_PORT;

/// A socket for asks and answers.
#[derive(Debug)]
pub struct ProbeSocket {
    address: IpAddr,
    /// Watched for packets only: sending does not wait, so that room to send
    /// again is not worth waking up for.
    socket: AsyncFd<UdpSocket>,
}

impl ProbeSocket {
    /// Binds to an address of this node; fails until the bridge carries it.
    pub fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, PROBE_PORT))?;
        socket.set_nonblocking(true)?;
        // "Don't fragment" on every packet, and no smaller size learned from
        // ICMP either: what the probe is to find out must not be remembered away.
        let (level, option, value) = match address {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            IpAddr::V6(_) => {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
            }
        };
        let value: libc::c_int = value;
        // SAFETY: the descriptor is open while `socket` lives; the kernel reads
        // `size_of::<c_int>()` bytes at the pointer, which is what is there.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the socket owns its descriptor, and neither changes nor closes
        // it before it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self { address, socket })
    }

    /// The address it is bound to.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Sends now or not at all.
    pub fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.get_ref().send_to(bytes, to).map(drop)
    }

    /// A packet that is already there.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.get_ref().recv_from(buffer)
    }

    /// Waits for a packet.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.async_io(Interest::READABLE, |socket| socket.recv_from(buffer)).await
    }
}

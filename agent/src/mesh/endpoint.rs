//! The UDP socket of the mesh.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

/// Binds. An unspecified address means both families, or IPv4 alone on a host
/// without IPv6.
pub(super) fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    if !address.ip().is_unspecified() {
        return UdpSocket::bind(address);
    }
    match dual_stack(address.port()) {
        Ok(socket) => Ok(socket),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(e),
        Err(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port())),
    }
}

fn dual_stack(port: u16) -> io::Result<UdpSocket> {
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    let any =
        SockaddrIn6::from(std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0));
    bind(socket.as_raw_fd(), &any)?;
    Ok(UdpSocket::from(socket))
}

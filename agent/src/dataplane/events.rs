//! Kernel notifications: a reason to look again, never the truth itself.

use std::os::fd::{AsRawFd, RawFd};

use ipnet::IpNet;
use netlink_sys::{Socket, protocols};
use weft_proto::names::{NFT_TABLE, RT_PROTOCOL};

use super::facts::is_ours;
use super::netlink::codec::{attr, ip, messages, text, u16_at, u32_at};
use super::netlink::socket::raise_receive_buffer;
use super::nft::forward;

const MSG_DONTWAIT: i32 = 0x40;
/// RTNLGRP_*: link, neighbour, IPv4 and IPv6 addresses and routes, nexthops.
const ROUTE_GROUPS: [u32; 7] = [1, 3, 5, 7, 9, 11, 32];
const NFNLGRP_NFTABLES: u32 = 7;
const TABLE_MAIN: u8 = 254;

/// Which of our sockets speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Route,
    /// Of the table of that name.
    Nftables(&'static str),
}

/// A socket that hears notifications of one kind.
pub(crate) struct Events {
    socket: Socket,
    source: Source,
    buf: Vec<u8>,
}

impl Events {
    pub(crate) fn open(source: Source) -> std::io::Result<Self> {
        let (protocol, groups) = match source {
            Source::Route => (protocols::NETLINK_ROUTE, ROUTE_GROUPS.as_slice()),
            Source::Nftables(_) => (protocols::NETLINK_NETFILTER, [NFNLGRP_NFTABLES].as_slice()),
        };
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_rx_buf_sz(1_u32 << 20)?;
        if matches!(source, Source::Nftables(_)) {
            // Each of thousands of elements is told, also of those set by us.
            raise_receive_buffer(&socket, 16 << 20);
        }
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket, source, buf: Vec::with_capacity(1 << 16) })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads all that waits. True if something changed that may concern us;
    /// `own` are the ports of our own request sockets, `devices` the indexes
    /// of our devices and of the underlay, `ranges` the pod network.
    pub(crate) fn drain(&mut self, own: &[u32], devices: &[u32], ranges: &[IpNet]) -> bool {
        let mut relevant = false;
        loop {
            self.buf.clear();
            match self.socket.recv(&mut self.buf, MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return relevant,
                // Some were lost: whatever they said, look.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    relevant = true;
                    continue;
                }
                Err(_) => return true,
            }
            relevant |= messages(&self.buf)
                .filter(|message| message.port == 0 || !own.contains(&message.port))
                .any(|message| match self.source {
                    Source::Route => route_matters(message.kind, message.payload, devices, ranges),
                    Source::Nftables(table) => nft_matters(message.kind, message.payload, table),
                });
        }
    }
}

pub(super) fn nft_matters(kind: u16, payload: &[u8], table: &str) -> bool {
    // Every kind of nftables message names its table in attribute 1, except
    // the closing "new generation", where it is a number.
    (table == NFT_TABLE && forward::matters(kind & 0xff, payload))
        || payload.get(4..).and_then(|body| attr(body, 1)).map(text).as_deref() == Some(table)
}

pub(super) fn route_matters(kind: u16, payload: &[u8], devices: &[u32], ranges: &[IpNet]) -> bool {
    let of_device = |at| u32_at(payload, at).is_some_and(|index| devices.contains(&index));
    match kind {
        16 | 17 => {
            let name = payload.get(16..).and_then(|body| attr(body, 3)).map(text);
            of_device(4) || name.is_some_and(|name| is_ours(&name))
        }
        // An address of any device may be the underlay's new one: rare.
        20 | 21 => true,
        24 | 25 => route_of_interest(payload, ranges),
        // Of neighbours only permanent ones, and the FDB.
        28 | 29 => of_device(4) && neighbour_of_interest(kind, payload),
        104 | 105 => payload.get(2) == Some(&RT_PROTOCOL),
        _ => false,
    }
}

fn route_of_interest(payload: &[u8], ranges: &[IpNet]) -> bool {
    let main = payload.get(4) == Some(&TABLE_MAIN);
    let ours = payload.get(5) == Some(&RT_PROTOCOL);
    let default = payload.get(1) == Some(&0);
    let inside = || {
        let dst = payload.get(12..).and_then(|body| attr(body, 1)).and_then(ip);
        dst.is_some_and(|dst| ranges.iter().any(|range| range.contains(&dst)))
    };
    main && (ours || default || inside())
}

fn neighbour_of_interest(kind: u16, payload: &[u8]) -> bool {
    const PERMANENT_OR_STATIC: u16 = 0x80 | 0x40;
    let state = u16_at(payload, 8).unwrap_or(0);
    kind == 29 || state & PERMANENT_OR_STATIC != 0
}

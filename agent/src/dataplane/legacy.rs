//! iptables-legacy: whether its FORWARD chain drops pod traffic.
//!
//! Its tables are no part of nftables; they are read the way its own program
//! does, without that program. The thread's network namespace counts.
#![allow(unsafe_code, reason = "getsockopt with structures that no crate has")]

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;
use weft_proto::api::Condition;
use weft_proto::names::BRIDGE;

use super::desired::condition;

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, hooks, offsets per hook, number, size.
const INFO: usize = 84;
/// `struct ipt_get_entries` before its entries.
const HEAD: usize = 40;
const HOOK_FORWARD: usize = 2;
/// `-NF_DROP - 1`.
const DROP: i32 = -1;
/// A table larger than this is not somebody's few rules.
const LARGEST: usize = 64 << 20;

/// What an operator should know about it.
pub(crate) fn conditions() -> Vec<Condition> {
    // Asking for a table that is not in use would load it.
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
    if !tables.unwrap_or_default().lines().any(|name| name == "filter") {
        return Vec::new();
    }
    let (policy, entries) = match filter() {
        Ok(Some(found)) => found,
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::debug!(%error, "iptables-legacy's filter table not read");
            return Vec::new();
        }
    };
    if !drops(&entries, policy) {
        return Vec::new();
    }
    let message = "iptables-legacy's FORWARD chain has policy DROP, and no rule there lets pod \
                   traffic pass; an accept of weft's cannot overrule it";
    let hint = format!(
        "iptables-legacy -I FORWARD -i {BRIDGE}+ -j ACCEPT && \
         iptables-legacy -I FORWARD -o {BRIDGE}+ -j ACCEPT"
    );
    vec![condition("ForwardDrop", message.to_owned(), &hint)]
}

/// The policy's place among the entries of the table, and the entries.
fn filter() -> std::io::Result<Option<(usize, Vec<u8>)>> {
    // Any IPv4 socket will do; a raw one would need CAP_NET_RAW.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut info = vec![0_u8; INFO];
    info[..6].copy_from_slice(b"filter");
    get(&socket, GET_INFO, &mut info)?;
    let (Some(policy), Some(size)) =
        (u32_at(&info, 32 + 4 + 20 + 4 * HOOK_FORWARD), u32_at(&info, 80))
    else {
        return Ok(None);
    };
    if size > LARGEST {
        return Ok(None);
    }
    let mut entries = vec![0_u8; HEAD + size];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&info[80..84]);
    get(&socket, GET_ENTRIES, &mut entries)?;
    Ok(Some((policy, entries.split_off(HEAD))))
}

fn get(socket: &UdpSocket, what: libc::c_int, into: &mut [u8]) -> std::io::Result<()> {
    let mut len = libc::socklen_t::try_from(into.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes into the buffer of that length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            what,
            into.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The policy drops, and no entry of the table names our devices.
pub(super) fn drops(entries: &[u8], policy: usize) -> bool {
    let verdict = || {
        let target = usize::from(u16_at(entries, policy + 88)?);
        let verdict = entries.get(policy + target + 32..)?.get(..4)?;
        Some(i32::from_ne_bytes(verdict.try_into().ok()?))
    };
    let mut at = 0;
    while let Some(next) = u16_at(entries, at + 90).filter(|next| *next > 0) {
        // Incoming and outgoing interface of `struct ipt_ip`.
        let names = |offset| entries.get(at + offset..).is_some_and(|n| n.starts_with(OURS));
        if names(16) || names(32) {
            return false;
        }
        at += usize::from(next);
    }
    verdict() == Some(DROP)
}

const OURS: &[u8] = BRIDGE.as_bytes();

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    super::netlink::codec::u16_at(bytes, at)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    super::netlink::codec::u32_at(bytes, at).map(|value| value as usize)
}

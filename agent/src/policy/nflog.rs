//! Refused packets as the kernel logs them: decoding (total on any bytes) and the
//! socket of the log group.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::nft::LOG_GROUP;
use super::nft::layout::{PREFIX, STRAY};
use crate::dataplane::netlink::codec::{F_ACK, Writer, attr, ip, messages, text};
use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::dataplane::nft::batch::header;
use crate::policy::state::Direction;

const SUBSYS: u16 = 4 << 8;
const PACKET: u16 = SUBSYS;
const CONFIG: u16 = SUBSYS | 1;
const MSG_DONTWAIT: i32 = 0x40;
/// Messages of one turn; the rest waits in the socket, or is lost there.
const TURN: usize = 256;

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// By the policy of this direction.
    Policy(Direction),
    /// TCP that opens no connection and belongs to none.
    Stray,
}

/// A refused packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Drop {
    pub(crate) cause: Cause,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Number of the protocol.
    pub(crate) protocol: u8,
    /// Source and destination port, of protocols that have them.
    pub(crate) ports: Option<(u16, u16)>,
}

/// Reads a message of the log group.
pub(crate) fn decode(payload: &[u8]) -> Option<Drop> {
    let body = payload.get(4..)?;
    let prefix = attr(body, 10).map(text)?;
    let cause = match prefix.trim_end_matches(':').strip_prefix(PREFIX)?.trim() {
        "in" => Cause::Policy(Direction::Ingress),
        "out" => Cause::Policy(Direction::Egress),
        STRAY => Cause::Stray,
        _ => return None,
    };
    packet(cause, attr(body, 9)?)
}

pub(crate) fn packet(cause: Cause, bytes: &[u8]) -> Option<Drop> {
    let (from, to, protocol, rest) = match bytes.first()? >> 4 {
        4 => {
            let len = usize::from(bytes.first()? & 0x0f) * 4;
            let (from, to) = (ip(bytes.get(12..16)?)?, ip(bytes.get(16..20)?)?);
            (from, to, *bytes.get(9)?, bytes.get(len.max(20)..).unwrap_or_default())
        }
        6 => {
            let (from, to) = (ip(bytes.get(8..24)?)?, ip(bytes.get(24..40)?)?);
            let (protocol, rest) = upper(*bytes.get(6)?, bytes.get(40..).unwrap_or_default());
            (from, to, protocol, rest)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let ports = matches!(protocol, 6 | 17 | 132).then(|| Some((port(0)?, port(2)?))).flatten();
    Some(Drop { cause, from, to, protocol, ports })
}

/// Skips IPv6 extension headers.
fn upper(mut next: u8, mut bytes: &[u8]) -> (u8, &[u8]) {
    // Hop-by-hop, routing, fragment, destination options.
    for _ in 0..8 {
        let len = match (next, bytes) {
            (0 | 43 | 60, [_, len, ..]) => usize::from(*len) * 8 + 8,
            (44, _) => 8,
            _ => break,
        };
        let Some(rest) = bytes.get(len..) else { break };
        next = bytes[0];
        bytes = rest;
    }
    (next, bytes)
}

/// Name of a protocol, or its number.
pub(crate) fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// The log group, open for reading.
pub(crate) struct Reader {
    socket: Socket,
    buf: Vec<u8>,
}

impl Reader {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Refused> {
        // Asked for on a socket that waits for the answer, then kept.
        let mut requests = Requests::open(NETLINK_NETFILTER)?;
        let mut batch = Writer::default();
        let mut config = |attribute: u16, value: &[u8]| {
            let seq = requests.next_seq();
            batch.message(CONFIG, F_ACK, seq, |w| {
                header(w, 0, LOG_GROUP);
                w.attr(attribute, value);
            });
        };
        const BIND: u8 = 1;
        const COPY_PACKET: u8 = 2;
        config(1, &[BIND]);
        config(2, &[0, 0, 0, 128, COPY_PACKET, 0]);
        // Deliver after 0.1 s, or when some have gathered.
        config(4, &10_u32.to_be_bytes());
        config(5, &32_u32.to_be_bytes());
        if let Some(refused) = requests.send(&batch)?.into_iter().next() {
            return Err(refused);
        }
        Ok(Self { socket: requests.into_socket(), buf: Vec::with_capacity(1 << 16) })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// What has come, at most so much in a turn. Lost messages are no error.
    pub(crate) fn read(&mut self) -> Vec<Drop> {
        let mut out = Vec::new();
        for _ in 0..TURN {
            self.buf.clear();
            match self.socket.recv(&mut self.buf, MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => continue,
                Err(_) => break,
            }
            let packets = messages(&self.buf).filter(|message| message.kind == PACKET);
            out.extend(packets.filter_map(|message| decode(message.payload)));
        }
        out
    }
}

/// Who may write to the log: the same once in a while, and not too many in all.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seen: HashMap<Drop, Instant>,
    window: Option<(Instant, u32)>,
}

impl Pace {
    const SAME: Duration = Duration::from_secs(30);
    const WINDOW: Duration = Duration::from_secs(1);
    const PER_WINDOW: u32 = 10;
    const REMEMBERED: usize = 1024;

    /// True if this one is to be told. Source ports make no difference.
    pub(crate) fn admit(&mut self, mut drop: Drop, now: Instant) -> bool {
        drop.ports = drop.ports.map(|(_, to)| (0, to));
        if self.seen.get(&drop).is_some_and(|at| now.duration_since(*at) < Self::SAME) {
            return false;
        }
        let (began, told) = match self.window {
            Some((began, told)) if now.duration_since(began) < Self::WINDOW => (began, told),
            _ => (now, 0),
        };
        if told >= Self::PER_WINDOW {
            return false;
        }
        self.window = Some((began, told + 1));
        if self.seen.len() >= Self::REMEMBERED {
            self.seen.retain(|_, at| now.duration_since(*at) < Self::SAME);
            if self.seen.len() >= Self::REMEMBERED {
                self.seen.clear();
            }
        }
        self.seen.insert(drop, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(prefix: &str, packet: &[u8]) -> Vec<u8> {
        let mut w = Writer::default();
        header(&mut w, 2, LOG_GROUP);
        w.attr_str(10, prefix);
        w.attr(9, packet);
        w.bytes().to_vec()
    }

    fn syn4() -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend([10, 32, 0, 2, 10, 32, 0, 3]);
        packet.extend([1, 1, 1, 1]); // an option
        packet.extend(4444_u16.to_be_bytes());
        packet.extend(80_u16.to_be_bytes());
        packet
    }

    #[test]
    fn both_families_and_their_ports() {
        let drop = decode(&message("weft-policy in", &syn4())).unwrap();
        assert_eq!(drop.cause, Cause::Policy(Direction::Ingress));
        assert_eq!((drop.from, drop.to), ([10, 32, 0, 2].into(), [10, 32, 0, 3].into()));
        assert_eq!((drop.protocol, drop.ports), (6, Some((4444, 80))));
        let mut packet = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        packet.extend([0xfd; 32]);
        packet.extend([17, 0, 0, 0, 0, 0, 0, 0]); // a fragment header
        packet.extend([0, 53, 0, 54]);
        let drop = decode(&message("weft-policy stray", &packet)).unwrap();
        assert_eq!((drop.cause, drop.protocol, drop.ports), (Cause::Stray, 17, Some((53, 54))));
        assert_eq!(decode(&message("of somebody else", &syn4())), None);
        // Cut short: what is there counts.
        let drop = decode(&message("weft-policy out", &syn4()[..24])).unwrap();
        assert_eq!((drop.protocol, drop.ports), (6, None));
    }

    #[test]
    fn the_log_is_not_flooded() {
        let mut pace = Pace::default();
        let drop = decode(&message("weft-policy in", &syn4())).unwrap();
        let at = |port| Drop { ports: Some((port, 80 + port)), ..drop };
        let now = Instant::now();
        assert!(pace.admit(drop, now));
        assert!(!pace.admit(Drop { ports: Some((5555, 80)), ..drop }, now), "the same again");
        let told = (1..1000).filter(|port| pace.admit(at(*port), now)).count();
        assert_eq!(told, 9);
        assert!(pace.admit(at(2000), now + Pace::WINDOW));
        assert!(pace.admit(drop, now + Pace::SAME));
        for n in 0..5000_u32 {
            let later = now + Pace::SAME * (n + 2);
            assert!(pace.admit(at(u16::try_from(n).unwrap()), later));
        }
        assert!(pace.seen.len() <= Pace::REMEMBERED);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            prefix in "weft-policy (in|out|stray|x)",
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode(&bytes);
            let _ = decode(&message(&prefix, &bytes));
            for version in [0x45, 0x4f, 0x60] {
                let mut packet = bytes.clone();
                if let Some(first) = packet.first_mut() {
                    *first = version;
                }
                let _ = decode(&message(&prefix, &packet));
            }
        }
    }
}

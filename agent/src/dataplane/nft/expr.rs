//! nftables expressions as the kernel reads them.
//!
//! Registers: 8 to 23, four bytes each. Numbers are big-endian on the wire;
//! values compared are in the order of the packet or of the host, whichever
//! the kernel loads.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::dataplane::netlink::codec::Writer;

/// First 4-byte register.
pub(crate) const REG: u32 = 8;

const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

pub(crate) const ETHERTYPE_IP: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const BASE_LINK: u32 = 0;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

pub(crate) const DROP: i32 = 0;
pub(crate) const ACCEPT: i32 = 1;
pub(crate) const JUMP: i32 = -3;
pub(crate) const GOTO: i32 = -4;
pub(crate) const RETURN: i32 = -5;

/// A rule under construction: its expressions, encoded.
#[derive(Default)]
pub(crate) struct Rule {
    w: Writer,
}

impl Rule {
    /// The encoded expressions.
    pub(crate) fn build(self) -> Vec<u8> {
        self.w.bytes().to_vec()
    }

    fn expr(mut self, name: &str, data: impl FnOnce(&mut Writer)) -> Self {
        self.w.nest(1, |w| {
            w.attr_str(1, name);
            w.nest(2, data);
        });
        self
    }

    fn meta(self, key: u32, reg: u32) -> Self {
        self.expr("meta", |w| {
            w.attr_be32(1, reg);
            w.attr_be32(2, key);
        })
    }

    fn payload(self, base: u32, offset: u32, len: u32, reg: u32) -> Self {
        self.expr("payload", |w| {
            w.attr_be32(1, reg);
            w.attr_be32(2, base);
            w.attr_be32(3, offset);
            w.attr_be32(4, len);
        })
    }

    fn cmp(self, reg: u32, equal: bool, value: &[u8]) -> Self {
        self.compare(reg, u32::from(!equal), value)
    }

    fn compare(self, reg: u32, how: u32, value: &[u8]) -> Self {
        self.expr("cmp", |w| {
            w.attr_be32(1, reg);
            w.attr_be32(2, how);
            w.nest(3, |w| w.attr(1, value));
        })
    }

    fn mask(self, reg: u32, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or(0);
        self.expr("bitwise", |w| {
            w.attr_be32(1, reg);
            w.attr_be32(2, reg);
            w.attr_be32(3, len);
            w.nest(4, |w| w.attr(1, mask));
            w.nest(5, |w| w.attr(1, &vec![0; mask.len()]));
        })
    }

    pub(crate) fn ethertype(self, ethertype: u16) -> Self {
        self.meta(META_PROTOCOL, REG).cmp(REG, true, &ethertype.to_be_bytes())
    }

    pub(crate) fn family(self, ipv6: bool) -> Self {
        let family = if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        self.meta(META_NFPROTO, REG).cmp(REG, true, &[family])
    }

    pub(crate) fn l4proto(self, proto: u8) -> Self {
        self.meta(META_L4PROTO, REG).cmp(REG, true, &[proto])
    }

    /// Incoming interface is (or is not) `name`.
    pub(crate) fn iif(self, equal: bool, name: &str) -> Self {
        self.meta(META_IIFNAME, REG).cmp(REG, equal, &ifname(name))
    }

    /// A name loaded at `reg` begins with `prefix`.
    pub(crate) fn begins_with(self, reg: u32, prefix: &str) -> Self {
        self.cmp(reg, true, prefix.as_bytes())
    }

    /// Incoming interface's name begins with `prefix`.
    pub(crate) fn iif_prefix(self, prefix: &str) -> Self {
        self.meta(META_IIFNAME, REG).cmp(REG, true, prefix.as_bytes())
    }

    /// Outgoing interface's name begins with `prefix`.
    pub(crate) fn oif_prefix(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, REG).cmp(REG, true, prefix.as_bytes())
    }

    pub(crate) fn oif(self, equal: bool, name: &str) -> Self {
        self.meta(META_OIFNAME, REG).cmp(REG, equal, &ifname(name))
    }

    /// Source (or destination) address is in `net`. Needs the family checked, before or after.
    pub(crate) fn address(self, source: bool, net: IpNet) -> Self {
        let rule = self.load_address(source, net.addr().is_ipv6(), REG);
        let (network, mask) = (octets(net.network()), octets(net.netmask()));
        let host = usize::from(net.prefix_len()) == network.len() * 8;
        let rule = if host { rule } else { rule.mask(REG, &mask) };
        rule.cmp(REG, true, &network)
    }

    pub(crate) fn load_address(self, source: bool, ipv6: bool, reg: u32) -> Self {
        let (offset, len) = match (ipv6, source) {
            (false, true) => (12, 4),
            (false, false) => (16, 4),
            (true, true) => (8, 16),
            (true, false) => (24, 16),
        };
        self.payload(BASE_NETWORK, offset, len, reg)
    }

    pub(crate) fn load_iif(self, reg: u32) -> Self {
        self.meta(META_IIFNAME, reg)
    }

    pub(crate) fn load_ether_source(self, reg: u32) -> Self {
        self.payload(BASE_LINK, 6, 6, reg)
    }

    pub(crate) fn load_l4proto(self, reg: u32) -> Self {
        self.meta(META_L4PROTO, reg)
    }

    pub(crate) fn load_dport(self, reg: u32) -> Self {
        self.payload(BASE_TRANSPORT, 2, 2, reg)
    }

    /// Destination port lies in a range, ends included. Needs the protocol checked.
    pub(crate) fn dport(self, first: u16, last: u16) -> Self {
        const LTE: u32 = 3;
        const GTE: u32 = 5;
        let rule = self.load_dport(REG);
        if first == last {
            return rule.cmp(REG, true, &first.to_be_bytes());
        }
        let rule = if first > 0 { rule.compare(REG, GTE, &first.to_be_bytes()) } else { rule };
        rule.compare(REG, LTE, &last.to_be_bytes())
    }

    /// First byte after the network header: ICMP type.
    pub(crate) fn icmp_type(self, value: u8) -> Self {
        self.payload(BASE_TRANSPORT, 0, 1, REG).cmp(REG, true, &[value])
    }

    /// The key that begins at `reg` is in a set, or found in a map whose value goes to `to`.
    pub(crate) fn lookup(self, set: &str, reg: u32, to: Option<u32>) -> Self {
        self.expr("lookup", |w| {
            w.attr_str(1, set);
            w.attr_be32(2, reg);
            if let Some(to) = to {
                w.attr_be32(3, to);
            }
        })
    }

    /// Destination is one of this node's own addresses.
    pub(crate) fn destination_local(self) -> Self {
        const RTN_LOCAL: u32 = 2;
        self.expr("fib", |w| {
            w.attr_be32(1, REG);
            w.attr_be32(2, 3); // address type
            w.attr_be32(3, 2); // of the destination
        })
        .cmp(REG, true, &RTN_LOCAL.to_ne_bytes())
    }

    /// The connection's destination was rewritten.
    pub(crate) fn was_dnat(self) -> Self {
        const DST_NAT: u32 = 1 << 5;
        self.expr("ct", |w| {
            w.attr_be32(1, REG);
            w.attr_be32(2, 2); // status
        })
        .mask(REG, &DST_NAT.to_ne_bytes())
        .cmp(REG, false, &[0; 4])
    }

    pub(crate) fn dnat(self, ipv6: bool, address: u32, port: u32) -> Self {
        let family = if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        self.expr("nat", |w| {
            w.attr_be32(1, 1);
            w.attr_be32(2, family.into());
            w.attr_be32(3, address);
            w.attr_be32(5, port);
        })
    }

    pub(crate) fn masquerade(self) -> Self {
        const RANDOM_FULLY: u32 = 1 << 4;
        self.expr("masq", |w| w.attr_be32(1, RANDOM_FULLY))
    }

    /// The packet's connection is not tracked.
    pub(crate) fn notrack(self) -> Self {
        self.expr("notrack", |_| {})
    }

    /// Counts, as every rule that iptables makes.
    pub(crate) fn counter(self) -> Self {
        self.expr("counter", |w| {
            w.attr(1, &[0; 8]);
            w.attr(2, &[0; 8]);
        })
    }

    pub(crate) fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expr("immediate", |w| {
            w.attr_be32(1, 0);
            w.nest(2, |w| {
                w.nest(2, |w| {
                    w.attr_be32(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        w.attr_str(2, chain);
                    }
                });
            });
        })
    }

    /// The connection is established, or the packet belongs to one that is.
    pub(crate) fn established(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.expr("ct", |w| {
            w.attr_be32(1, REG);
            w.attr_be32(2, 0); // state
        })
        .mask(REG, &ESTABLISHED_OR_RELATED.to_ne_bytes())
        .cmp(REG, false, &[0; 4])
    }

    /// A TCP packet that does not open a connection.
    pub(crate) fn tcp_not_opening(self) -> Self {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        self.l4proto(6).payload(BASE_TRANSPORT, 13, 1, REG).mask(REG, &[FIN_SYN_RST_ACK]).cmp(
            REG,
            false,
            &[SYN],
        )
    }

    /// Goes on only so many times a second.
    pub(crate) fn limit(self, per_second: u64, burst: u32) -> Self {
        self.expr("limit", |w| {
            w.attr(1, &per_second.to_be_bytes());
            w.attr(2, &1_u64.to_be_bytes());
            w.attr_be32(3, burst);
        })
    }

    /// Sends the first bytes of the packet to the listeners of a group.
    pub(crate) fn log(self, prefix: &str, group: u16, bytes: u32) -> Self {
        self.expr("log", |w| {
            w.attr(1, &group.to_be_bytes());
            w.attr_str(2, prefix);
            w.attr_be32(3, bytes);
        })
    }

    /// Counts by the key that begins at `reg`, in a set that grows with it.
    pub(crate) fn count_in(self, set: &str, reg: u32) -> Self {
        self.expr("dynset", |w| {
            w.attr_str(1, set);
            w.attr_be32(3, 1); // update
            w.attr_be32(4, reg);
            w.nest(7, |w| {
                w.attr_str(1, "counter");
                w.nest(2, |_| {});
            });
        })
    }

    /// A TCP packet that opens a connection.
    pub(crate) fn tcp_syn(self) -> Self {
        const SYN_RST: u8 = 0x06;
        const SYN: u8 = 0x02;
        // The flags first: most packets fail there, and reading them costs least.
        self.payload(BASE_TRANSPORT, 13, 1, REG)
            .mask(REG, &[SYN_RST])
            .cmp(REG, true, &[SYN])
            .l4proto(6)
    }

    /// Sets the TCP segment size option to what the route allows.
    pub(crate) fn clamp_mss(self) -> Self {
        self.expr("rt", |w| {
            w.attr_be32(1, REG);
            w.attr_be32(2, 3); // tcpmss
        })
        .expr("byteorder", |w| {
            w.attr_be32(1, REG);
            w.attr_be32(2, REG);
            w.attr_be32(3, 1); // host to network
            w.attr_be32(4, 2);
            w.attr_be32(5, 2);
        })
        .expr("exthdr", |w| {
            w.attr_be32(7, REG);
            w.attr_u8(2, 2); // option "maximum segment size"
            w.attr_be32(3, 2);
            w.attr_be32(4, 2);
            w.attr_be32(6, 1); // of TCP
        })
    }
}

/// An interface name as it lies in a register.
pub(crate) fn ifname(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    out
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

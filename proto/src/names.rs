//! Names, numbers and limits that more than one part must know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// QUIC port of the mesh (UDP), Weave's control port number.
pub const MESH_PORT: u16 = 6783;
/// VXLAN port (UDP), Weave's fast data path port number.
pub const VXLAN_PORT: u16 = 6784;
/// Echo of overlay probes (UDP), bound to the node's own overlay address only.
pub const PROBE_PORT: u16 = 6785;
/// Where the agent serves IPAM to this node's shim.
pub const HTTP_ADDR: &str = "127.0.0.1:6784";
/// Where the agent serves Prometheus metrics.
pub const METRICS_ADDR: &str = "0.0.0.0:6782";
/// ALPN protocol of the mesh.
pub const ALPN: &[u8] = b"weft/1";
/// The overlay's one VXLAN network identifier (24 bits; "weft" has none of its own).
pub const VNI: u32 = 6784;

/// Pod network when `IPALLOC_RANGE` is not set.
pub const DEFAULT_RANGE: &str = "10.32.0.0/12";
/// Default state directory: identity, consensus log, ledger replica. Survives reboots.
pub const STATE_DIR: &str = "/var/lib/weft";
/// Default run directory: leases, token. Vanishes with a reboot, as pods do.
pub const RUN_DIR: &str = "/run/weft";
/// Lease store, below the run directory.
pub const LEASES_FILE: &str = "leases.json";
/// Local API token, below the run directory (mode 0600, 64 hex digits and a newline).
pub const TOKEN_FILE: &str = "token";
/// Unix socket of the local API, below the run directory (mode 0600): the shim's way.
pub const SOCKET_FILE: &str = "agent.sock";
/// Directory below the run directory where the shim leaves a note of a DEL
/// that the agent was not there to hear.
pub const RELEASED_DIR: &str = "released";

/// The bridge pods hang off.
pub const BRIDGE: &str = "weft";
/// The VXLAN device.
pub const VXLAN: &str = "weft-vx";
/// First letters of the host end of every pod's veth.
pub const VETH_PREFIX: &str = "weft";
/// Our number in `rtm_protocol`, `nda_protocol`: "ours" for the reconciler.
pub const RT_PROTOCOL: u8 = 117;
/// nftables table in families `inet` and `bridge`.
pub const NFT_TABLE: &str = "weft";

/// The gateway every pod sees (IPv4): link-local, the bridge's MAC behind a permanent neighbour.
pub const POD_GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The gateway every pod sees (IPv6).
pub const POD_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x77, 0x6566, 0x7402);

/// Lease holder of a node's own address, Weave's name for it.
pub const EXPOSE_ID: &str = "weave:expose";

/// Bytes VXLAN adds on an IPv4 underlay: Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub const OVERHEAD4: u32 = 50;
/// Bytes VXLAN adds on an IPv6 underlay.
pub const OVERHEAD6: u32 = 70;
/// Smallest overlay MTU: IPv6 requires it (RFC 8200 section 5), IPv4 survives on it.
pub const MIN_MTU: u32 = 1280;

/// How long the agent may let the shim wait for an address before it says "try again later".
pub const ADD_PATIENCE: Duration = Duration::from_secs(20);
/// How long CNI STATUS may take in all (runtimes poll it without a timeout of their own).
pub const STATUS_PATIENCE: Duration = Duration::from_millis(200);

/// FNV-1a, 64 bits: for names that must come out the same in every binary and
/// need no secrecy. Every part ends with a byte of its own, so that parts
/// cannot run together.
pub fn fnv64(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// Name of the host end of the veth of one attachment: `weft` and 11 base-32
/// digits (55 bits) of a hash over container id and interface name. 15 bytes,
/// the longest the kernel takes (IFNAMSIZ - 1).
pub fn host_ifname(container_id: &str, ifname: &str) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = fnv64(&[container_id.as_bytes(), ifname.as_bytes()]);
    let mut name = String::from(VETH_PREFIX);
    for _ in 0..11 {
        name.push(char::from(DIGITS[(hash & 31) as usize]));
        hash >>= 5;
    }
    name
}

/// True for a name [`host_ifname`] could have made (so not the bridge or the VXLAN device).
pub fn is_host_ifname(name: &str) -> bool {
    name.len() == 15
        && name
            .strip_prefix(VETH_PREFIX)
            .is_some_and(|rest| rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')))
}

/// MAC of the bridge, the gateway of all pods of a node: from the node's name,
/// so that it survives everything but a change of name.
pub fn bridge_mac(node_name: &str) -> [u8; 6] {
    local_mac(0x0a, fnv64(&[b"bridge", node_name.as_bytes()]))
}

/// MAC of a pod's interface: from its address, so that a neighbour entry made
/// before the interface is right.
pub fn pod_mac(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(v6) => local_mac(0x0e, fnv64(&[b"pod", &v6.octets()])),
    }
}

/// MAC of a node's `weft-vx`, from its identity. One for all nodes would not
/// do: the kernel drops a tunnelled frame whose source is its own address.
pub fn vxlan_mac(node: &[u8; 16]) -> [u8; 6] {
    local_mac(0x0e, fnv64(&[b"vxlan", node]))
}

/// Gateway on `weft-vx` that stands for a VTEP: the VTEP's own address where
/// IPv4 goes over IPv4, a link-local one made from it otherwise.
pub fn vxlan_gateway(vtep: IpAddr, ipv6_route: bool) -> IpAddr {
    match vtep {
        IpAddr::V4(_) if !ipv6_route => vtep,
        IpAddr::V4(v4) => link_local(fnv64(&[b"vtep", &v4.octets()])),
        IpAddr::V6(v6) => link_local(fnv64(&[b"vtep", &v6.octets()])),
    }
}

fn link_local(hash: u64) -> IpAddr {
    Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(hash)).into()
}

fn local_mac(first: u8, hash: u64) -> [u8; 6] {
    let b = hash.to_be_bytes();
    [first, b[3], b[4], b[5], b[6], b[7]]
}

/// `0a:58:…`, the usual way of writing a MAC.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_and_differ() {
        let name = host_ifname("0123456789abcdef", "eth0");
        assert_eq!(name.len(), 15);
        assert!(is_host_ifname(&name));
        assert!(!is_host_ifname(BRIDGE) && !is_host_ifname(VXLAN));
        assert_ne!(name, host_ifname("0123456789abcdef", "eth1"));
        assert_ne!(host_ifname("ab", "c"), host_ifname("a", "bc"));
    }

    #[test]
    fn macs_are_local_unicast() {
        let pod = pod_mac("10.32.0.1".parse().unwrap());
        for mac in [bridge_mac("n1"), pod, vxlan_mac(&[7; 16])] {
            assert_eq!(mac[0] & 3, 2);
        }
        assert_eq!(format_mac(pod_mac("10.32.0.1".parse().unwrap())), "0a:58:0a:20:00:01");
    }
}

//! Every family of pods over every family of underlay: packets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;

use super::ns::{Ns, eventually, pod, settle, wire};
use crate::dataplane::intent::{Intent, PeerIntent, PodIntent};
use crate::dataplane::{DataplaneConfig, DataplaneHandle};

/// Two nodes and a bridge, which is also "the outside".
struct Pair {
    outside: Ns,
    nodes: Vec<(Ns, DataplaneHandle)>,
    pods: Vec<(Ns, AttachmentKey, PodIntent)>,
}

/// Pods' addresses on node `n`: both families.
fn addresses(n: u8, p: u8) -> Vec<IpAddr> {
    vec![format!("10.32.{n}.{p}").parse().unwrap(), format!("fd00:77::{n}:{p}").parse().unwrap()]
}

impl Pair {
    /// The underlay's addresses are `{underlay}1` and so on.
    fn new(underlay: &str, len: u8) -> Self {
        let outside = Ns::new("out");
        outside.sh(&format!(
            "ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up &&
             ip addr add {underlay}99/{len} dev br0 nodad"
        ));
        let mut pair = Self { outside, nodes: Vec::new(), pods: Vec::new() };
        for n in [1, 2] {
            pair.add_node(underlay, len, n);
        }
        pair
    }

    fn add_node(&mut self, underlay: &str, len: u8, n: u8) {
        let ns = Ns::new("n");
        self.outside.sh(&format!(
            "ip link add n{n} type veth peer name eth0 netns {} && ip link set n{n} master br0 up",
            ns.name
        ));
        ns.sh(&format!(
            "ip addr add {underlay}{n}/{len} dev eth0 nodad && ip link set eth0 up &&
             ip route add default via {underlay}99"
        ));
        let other = 3 - n;
        let peer = PeerIntent {
            underlay: format!("{underlay}{other}").parse().unwrap(),
            blocks: vec![
                format!("10.32.{other}.0/24").parse().unwrap(),
                format!("fd00:77::{other}:0/112").parse().unwrap(),
            ],
        };
        let mut intent = Intent {
            ranges: vec!["10.32.0.0/12".parse().unwrap(), "fd00:77::/48".parse().unwrap()],
            own: addresses(n, 1),
            peers: Arc::new(BTreeMap::from([(NodeId([other; 16]), peer)])),
            ..Intent::default()
        };
        let handle = ns.start(DataplaneConfig::new(format!("n{n}"), NodeId([n; 16])));
        let first: IpAddr = format!("{underlay}{n}").parse().unwrap();
        assert_eq!(handle.underlay(), vec![first]);
        for p in [2, 3] {
            let all = addresses(n, p);
            let (key, mut one) = pod(&all[0].to_string(), &all[0].to_string());
            one.addresses = all;
            intent.pods.insert(key.clone(), one.clone());
            settle(&handle, &intent);
            let pod_ns = Ns::new("p");
            wire(&ns, &pod_ns, &key, &one);
            self.pods.push((pod_ns, key, one));
        }
        assert_eq!(handle.status().errors, Vec::<String>::new());
        self.nodes.push((ns, handle));
    }

    fn check(&self, mtu: u32) {
        for (from, ..) in &self.pods {
            for (_, _, to) in &self.pods {
                for address in &to.addresses {
                    eventually(&format!("{} to {address}", from.name), || {
                        from.try_sh(&format!("ping -q -c1 -W1 {address}")).0
                    });
                }
            }
        }
        // Pods to the nodes' overlay addresses, nodes to remote pods.
        let (a, ..) = &self.pods[0];
        for address in addresses(2, 1).into_iter().chain(addresses(1, 1)) {
            a.sh(&format!("ping -q -c1 -W2 {address}"));
        }
        for address in addresses(2, 3) {
            self.nodes[0].0.sh(&format!("ping -q -c1 -W2 {address}"));
        }
        // Full-sized packets fit exactly.
        assert_eq!(self.nodes[0].1.mtu(), mtu);
        a.sh(&format!("ip link set eth0 mtu {mtu}"));
        self.nodes[0].0.sh(&format!("ip link set {} mtu {mtu}", self.pods[0].2.host_ifname));
        a.sh(&format!("ping -q -c1 -W2 -M do -s {} 10.32.2.2", mtu - 28));
        a.sh(&format!("ping -q -c1 -W2 -M do -s {} fd00:77::2:2", mtu - 48));
        assert!(!a.try_sh(&format!("ping -q -c1 -W1 -M do -s {} 10.32.2.2", mtu - 27)).0);
        assert!(!a.try_sh(&format!("ping -q -c1 -W1 -M do -s {} fd00:77::2:2", mtu - 47)).0);
        // Not with another's address.
        for (stolen, victim) in [("10.32.1.99", "10.32.1.3"), ("fd00:77::1:99", "fd00:77::1:3")] {
            a.sh(&format!("ip addr add {stolen} dev eth0"));
            assert!(!a.try_sh(&format!("ping -q -c1 -W1 -I {stolen} {victim}")).0, "{stolen}");
        }
        // Nothing to repair, and an address nobody has goes nowhere.
        for (ns, handle) in &self.nodes {
            // While a pod is being wired the agent may be first with a part of it.
            eventually("nothing to repair", || {
                let before = handle.status().repairs;
                ns.sh("ip addr add 203.0.113.1/32 dev lo; ip addr del 203.0.113.1/32 dev lo");
                std::thread::sleep(std::time::Duration::from_millis(200));
                handle.status().repairs == before
            });
            assert_eq!(handle.conditions(), Vec::new());
            for nobody in ["10.40.0.1", "fd00:77::9:1"] {
                assert!(!ns.try_sh(&format!("ping -q -c1 -W1 {nobody}")).0);
            }
        }
    }
}

#[test]
fn both_families_over_ipv4() {
    let pair = Pair::new("192.0.2.", 24);
    pair.check(1450);
    pair.pods[0].0.sh("ping -q -c1 -W2 192.0.2.99");
}

#[test]
fn both_families_over_ipv6() {
    let pair = Pair::new("fd00:99::", 64);
    pair.check(1430);
    // The outside knows no pod: the answer comes because of masquerading.
    pair.pods[0].0.sh("ping -q -c1 -W2 fd00:99::99");
}

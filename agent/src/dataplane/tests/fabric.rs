//! Three nodes on one underlay, pods that talk.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::api::PortMapping;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;

use super::ns::{Ns, eventually, pod, settle, wire};
use crate::dataplane::intent::{Intent, PeerIntent, PodIntent};
use crate::dataplane::{DataplaneConfig, DataplaneHandle};

struct Node {
    ns: Ns,
    handle: DataplaneHandle,
    intent: Intent,
}

/// Three nodes 192.0.2.1 to .3 on a bridge, which is also "the outside" (.254).
struct Fabric {
    outside: Ns,
    nodes: Vec<Node>,
    pods: Vec<(Ns, AttachmentKey, PodIntent)>,
}

impl Fabric {
    fn new(direct_routing: bool) -> Self {
        let outside = Ns::new("out");
        outside.sh("ip link add br0 type bridge && ip addr add 192.0.2.254/24 dev br0 &&
                    ip link set br0 up");
        let nodes = (1..=3).map(|n| Self::node(&outside, n, direct_routing)).collect();
        let mut fabric = Self { outside, nodes, pods: Vec::new() };
        for n in 1..=3_usize {
            for p in [2, 3] {
                fabric.add_pod(n, &format!("10.32.{n}.{p}"));
            }
        }
        fabric
    }

    fn node(outside: &Ns, n: u8, direct_routing: bool) -> Node {
        let ns = Ns::new("n");
        outside.sh(&format!(
            "ip link add n{n} type veth peer name eth0 netns {} && ip link set n{n} master br0 up",
            ns.name
        ));
        ns.sh(&format!(
            "ip addr add 192.0.2.{n}/24 dev eth0 && ip link set eth0 up &&
             ip route add default via 192.0.2.254"
        ));
        let peers = (1..=3_u8).filter(|m| *m != n).map(|m| {
            let peer = PeerIntent {
                underlay: format!("192.0.2.{m}").parse().unwrap(),
                blocks: vec![format!("10.32.{m}.0/24").parse().unwrap()],
            };
            (NodeId([m; 16]), peer)
        });
        let intent = Intent {
            ranges: vec!["10.32.0.0/12".parse().unwrap()],
            own: vec![format!("10.32.{n}.1").parse().unwrap()],
            peers: Arc::new(peers.collect()),
            pods: BTreeMap::new(),
            settling: false,
        };
        let mut config = DataplaneConfig::new(format!("n{n}"), NodeId([n; 16]));
        config.direct_routing = direct_routing;
        let handle = ns.start(config);
        settle(&handle, &intent);
        Node { ns, handle, intent }
    }

    fn add_pod(&mut self, n: usize, address: &str) {
        let node = &mut self.nodes[n - 1];
        let (key, mut pod) = pod(address, address);
        if address == "10.32.1.2" {
            pod.port_mappings.push(PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: None,
            });
        }
        node.intent.pods.insert(key.clone(), pod.clone());
        settle(&node.handle, &node.intent);
        let pod_ns = Ns::new("p");
        wire(&node.ns, &pod_ns, &key, &pod);
        self.pods.push((pod_ns, key, pod));
    }

    fn ping_all(&self, options: &str) {
        for (from, _, _) in &self.pods {
            for (_, _, to) in &self.pods {
                from.sh(&format!("ping -q -c1 -W2 {options} {}", to.addresses[0]));
            }
        }
    }
}

/// A process that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has_ping() -> bool {
    super::ns::sh("command -v ping || true").contains("ping")
}

#[test]
fn pods_reach_each_other_and_nothing_else_passes() {
    assert!(has_ping(), "install iputils-ping");
    let fabric = Fabric::new(false);
    fabric.ping_all("");
    // Full-sized packets fit exactly.
    let (a, ..) = &fabric.pods[0];
    a.sh("ip link set eth0 mtu 1450");
    fabric.nodes[0].ns.sh(&format!("ip link set {} mtu 1450", fabric.pods[0].2.host_ifname));
    a.sh("ping -q -c1 -W2 -M do -s 1422 10.32.2.2");
    assert!(!a.try_sh("ping -q -c1 -W1 -M do -s 1423 10.32.2.2").0);
    // Connections of pods are tracked, their tunnels are not.
    for node in &fabric.nodes {
        let tracked = node.ns.sh("conntrack -L 2>&1");
        assert!(tracked.contains("src=10.32."), "{tracked}");
        assert!(!tracked.contains("dport=6784"), "{tracked}");
    }
    // From the node itself, with its overlay address, to a remote pod and back.
    fabric.nodes[0].ns.sh("ping -q -c1 -W2 10.32.3.3");
    a.sh("ping -q -c1 -W2 10.32.2.1");
    // To the outside, as the node.
    let outside = &fabric.outside;
    outside.sh("printf '%s\\n' 'table ip t {' 'chain c {' 'type filter hook input priority 0;' \
         'icmp type echo-request ip saddr 10.0.0.0/8 counter drop' \
         'icmp type echo-request ip saddr 192.0.2.1 counter' '}' '}' | nft -f -");
    a.sh("ping -q -c1 -W2 192.0.2.254");
    assert!(outside.sh("nft list ruleset").contains("192.0.2.1 counter packets 1"));
    // An address nobody has: swallowed, not sent along the default route.
    assert!(!a.try_sh("ping -q -c1 -W1 10.40.0.1").0);
    assert!(outside.sh("nft list ruleset").contains("ip saddr 10.0.0.0/8 counter packets 0"));
    // No redirects between pods of one node, also where somebody switches them on.
    fabric.nodes[0].ns.sh("echo 1 >/proc/sys/net/ipv4/conf/all/send_redirects
                           echo 1 >/proc/sys/net/ipv4/conf/weft/send_redirects");
    a.sh("ping -q -c3 -i0.1 -W2 10.32.1.3");
    let redirects = a.sh("cat /proc/net/snmp | grep Icmp: | tail -1 | cut -d' ' -f9");
    assert_eq!(redirects.trim(), "0");
    // Not with another's address, nor with another MAC.
    a.sh("ip addr add 10.32.1.99/32 dev eth0");
    assert!(!a.try_sh("ping -q -c1 -W1 -I 10.32.1.99 10.32.1.3").0);
    assert!(!a.try_sh("ping -q -c1 -W1 -I 10.32.1.99 10.32.2.3").0);
    let gateway = a.sh("ip neigh show 169.254.1.1 | cut -d' ' -f5");
    let with_mac = |mac: &str| {
        // A new address takes the permanent neighbours along.
        a.sh(&format!(
            "ip link set eth0 address {mac} &&
            ip neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent",
            gateway.trim()
        ));
        a.try_sh("ping -q -c1 -W1 10.32.1.3").0
    };
    assert!(!with_mac("0a:58:0a:20:01:03"));
    assert!(with_mac("0a:58:0a:20:01:02"));
}

#[test]
fn host_ports_work_from_everywhere() {
    let fabric = Fabric::new(false);
    let (server, ..) = &fabric.pods[0];
    let ns = server.name.clone();
    let web = std::process::Command::new("ip")
        .args(["netns", "exec", &ns, "python3", "-c",
            "import socket\ns=socket.create_server(('',80))\nwhile 1:\n c,a=s.accept()\n c.sendall(a[0].encode());c.close()"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _web = Killed(web);
    let get = |ns: &Ns, to: &str| {
        ns.try_sh(&format!(
            "python3 -c \"import socket\ns=socket.create_connection(('{to}',8080),2)\nprint(s.recv(99).decode())\""
        ))
    };
    let node = &fabric.nodes[0].ns;
    eventually("listening", || server.try_sh("ss -ltn | grep -q :80").0);
    for (from, to, seen) in [
        (&fabric.outside, "192.0.2.1", Some("192.0.2.254")),
        (&fabric.nodes[1].ns, "192.0.2.1", Some("192.0.2.2")),
        (node, "127.0.0.1", None),
        (node, "192.0.2.1", None),
        (server, "192.0.2.1", None),
        (&fabric.pods[1].0, "192.0.2.1", Some("10.32.1.3")),
        (&fabric.pods[2].0, "192.0.2.1", Some("192.0.2.2")),
    ] {
        let (ok, text) = get(from, to);
        assert!(ok, "{} to {to}: {text}", from.name);
        if let Some(seen) = seen {
            assert_eq!(text.trim(), seen, "as seen by the pod, to {to}");
        }
    }
}

#[test]
fn direct_routing_uses_no_tunnel() {
    let fabric = Fabric::new(true);
    let routes = fabric.nodes[0].ns.sh("ip nexthop; ip route");
    assert!(routes.contains("via 192.0.2.2 dev eth0") && !routes.contains("encap"), "{routes}");
    fabric.ping_all("");
}

#[test]
fn a_restart_loses_nothing() {
    let mut fabric = Fabric::new(false);
    let (a, ..) = &fabric.pods[0];
    let mut ping = std::process::Command::new("ip")
        .args(["netns", "exec", &a.name, "ping", "-q", "-i0.002", "-c1500", "-W2", "10.32.2.2"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        let node = &mut fabric.nodes[0];
        node.handle = node.ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
        settle(&node.handle, &node.intent);
        assert_eq!(node.handle.status().repairs, 0);
    }
    assert!(ping.wait().unwrap().success());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut ping.stdout.take().unwrap(), &mut text).unwrap();
    assert!(text.contains("1500 received"), "{text}");
}

//! One node against the real kernel: bring up, repair, adopt, refuse.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::api::PortMapping;
use weft_proto::id::NodeId;

use super::ns::{Ns, block, eventually, pod, settle, wire};
use crate::dataplane::intent::{Intent, PeerIntent};
use crate::dataplane::{DataplaneConfig, cleanup, overlaps};

pub(super) fn intent() -> Intent {
    let peer = |n: u8| {
        let peer = PeerIntent {
            underlay: format!("192.0.2.{n}").parse().unwrap(),
            blocks: vec![
                format!("10.32.{n}.0/26").parse().unwrap(),
                format!("fd00:32::{n}:0/112").parse().unwrap(),
            ],
        };
        (NodeId([n; 16]), peer)
    };
    Intent {
        ranges: vec!["10.32.0.0/12".parse().unwrap(), "fd00:32::/64".parse().unwrap()],
        own: vec!["10.32.0.1".parse().unwrap(), "fd00:32::1".parse().unwrap()],
        peers: Arc::new(BTreeMap::from([peer(2), peer(3)])),
        ..Intent::default()
    }
}

/// A node with an underlay device of MTU 1500.
pub(super) fn node(what: &str) -> Ns {
    let ns = Ns::new(what);
    ns.sh("ip link add eth0 type veth peer name far && ip link set eth0 up &&
           ip link set far up && ip addr add 192.0.2.1/24 dev eth0 &&
           ip route add default via 192.0.2.254");
    ns
}

/// Everything of ours, without what changes by itself.
fn snapshot(ns: &Ns) -> String {
    ns.sh("ip -d link show weft; ip -d link show weft-vx; ip addr show weft; ip nexthop;
           ip route show proto 117; ip -6 route show proto 117; ip neigh show dev weft-vx;
           nft -a list ruleset")
        .lines()
        .filter(|line| !line.contains("valid_lft") && !line.contains("gc_timer"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn brings_up_everything_once() {
    let ns = node("up");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    assert_eq!(handle.underlay(), vec!["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    settle(&handle, &intent());
    assert_eq!(handle.status().errors, Vec::<String>::new());
    assert_eq!((handle.mtu(), handle.status().routes), (1450, 4));
    let shown = snapshot(&ns);
    println!("{shown}");
    for part in [
        "inet 10.32.0.1/12",
        "inet6 fd00:32::1/64",
        "noprefixroute",
        "external",
        "dstport 6784",
        "encap ip id 6784",
        "dst 192.0.2.2",
        "10.32.2.0/26 nhid",
        "src 10.32.0.1",
        "fd00:32::2:0/112 nhid",
        "blackhole 10.32.0.0/12",
        "192.0.2.2 lladdr 0e:",
        "masquerade fully-random",
        "table bridge weft",
    ] {
        assert!(shown.contains(part), "missing `{part}` in\n{shown}");
    }
    assert!(!shown.contains("10.32.0.0/12 dev weft"));
    // A second look, and a new agent, find nothing to do.
    eventually("quiet", || handle.status().in_sync);
    let repairs = handle.status().repairs;
    drop(handle);
    let again = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    settle(&again, &intent());
    assert_eq!(snapshot(&ns), shown);
    assert_eq!(again.status().repairs, 0);
    assert_eq!(repairs, 0);
    drop(again);
    ns.run(|| cleanup().unwrap());
    let left = ns.sh("ip -o link; ip route; ip -6 route; ip nexthop; nft list ruleset");
    assert!(!left.contains("weft") && !left.contains("117"), "{left}");
}

#[test]
fn the_first_host_port_is_in_force_when_it_is_settled() {
    let ns = node("ports");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    settle(&handle, &intent());
    let chains = || ns.sh("nft list ruleset; cat /proc/sys/net/ipv4/conf/weft/route_localnet");
    assert!(!chains().contains("dnat"), "{}", chains());
    let (key, mut p) = pod("c1", "10.32.0.2");
    p.port_mappings.push(PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: None,
    });
    handle.change_pods(vec![(key, Some(p))]);
    block(handle.settled()).unwrap();
    let shown = chains();
    assert!(shown.contains("dnat") && shown.contains("8080"), "{shown}");
    assert!(shown.ends_with("1\n"), "{shown}");
}

#[test]
fn restores_whatever_is_deleted() {
    let ns = node("repair");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    let mut intent = intent();
    let (key, mut p) = pod("c1", "10.32.0.2");
    p.port_mappings.push(PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: None,
    });
    intent.pods.insert(key.clone(), p.clone());
    settle(&handle, &intent);
    let pod_ns = Ns::new("pod");
    wire(&ns, &pod_ns, &key, &p);
    let host = &p.host_ifname;
    let wired = || {
        ns.try_sh(&format!(
            "ip route show 10.32.0.2; ip neigh show 10.32.0.2 | cut -d' ' -f1-6; bridge fdb show br weft | grep static;
             bridge -d link show dev {host} | tr ' ' '\n' | grep -A1 -E 'isolated|learning'"
        ))
        .1
    };
    let normal = |text: String| {
        text.lines()
            .filter(|l| !l.contains("nft_gen"))
            .map(|l| l.split(" # handle").next().unwrap_or("").to_owned())
            .map(|l| {
                // Indexes and handles differ after a re-creation.
                let mut words: Vec<_> = l.split_whitespace().map(str::to_owned).collect();
                if words.first().is_some_and(|w| w.ends_with(':')) {
                    words.remove(0);
                }
                words.retain(|w| !w.starts_with("weft@"));
                words.join(" ")
            })
            .collect::<Vec<_>>()
            .join("\n")
    };
    let state = || {
        let links = ns.sh("ip addr show weft | grep inet | grep -v valid | grep -v 'inet6 fe80';
            ip nexthop | sort; ip route show proto 117 | sort; ip -6 route show proto 117 | sort;
            ip neigh show dev weft-vx nud permanent | sort; cat /sys/class/net/weft/mtu;
            cat /sys/class/net/weft/address; cat /sys/class/net/weft-vx/address; nft list ruleset;
            cat /proc/sys/net/ipv4/ip_forward");
        normal(links) + "\n" + &wired()
    };
    eventually("in sync", || handle.status().in_sync);
    let before = state();
    for harm in [
        "ip link del weft-vx",
        "ip link del weft",
        "ip link set weft-vx down",
        "ip link set weft down",
        "ip route flush proto 117",
        "ip route del 10.32.2.0/26",
        "ip -6 route flush proto 117",
        "ip nexthop flush",
        "ip addr flush dev weft",
        "ip neigh flush all nud permanent",
        "ip link set weft address 0a:00:00:00:00:01",
        "ip link set weft-vx address 0a:00:00:00:00:02",
        "ip link set weft mtu 1300",
        "nft flush ruleset",
        "nft delete table bridge weft",
        "nft flush chain inet weft postrouting",
        "nft insert rule inet weft forward counter drop",
        "nft flush set bridge weft pods4",
        "nft flush map inet weft ports4",
        "ip route replace 10.32.3.0/26 dev lo proto 117",
        "ip link set HOST nomaster",
        "bridge link set dev HOST isolated off learning on",
        "bridge fdb del $(cat /sys/class/net/HOST/../HOST/address) dev HOST master; bridge fdb del 0a:58:0a:20:00:02 dev HOST master",
    ] {
        let script = harm.replace("HOST", host);
        let (_, said) = ns.try_sh(&script);
        let mut now = state();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while now != before {
            if std::time::Instant::now() > end {
                let missing: Vec<_> = before.lines().filter(|l| !now.contains(*l)).collect();
                let extra: Vec<_> = now.lines().filter(|l| !before.contains(*l)).collect();
                panic!("{harm}: missing {missing:#?} extra {extra:#?} {:?}", handle.status());
            }
            now = state();
        }
        println!("restored: {harm} {said}");
    }
    eventually("quiet", || handle.status().in_sync);
    let repairs = handle.status().repairs;
    assert!(repairs > 20);
}

#[test]
fn foreign_objects_are_conditions() {
    let ns = node("foreign");
    ns.sh("ip link add weft type veth peer name x1; ip link set eth0 mtu 1400;
           ip link add vx9 type vxlan external dstport 6784; ip link set vx9 up;
           ip route add 10.32.2.0/26 via 192.0.2.9");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    settle(&handle, &intent());
    let reasons: Vec<_> = handle.conditions().into_iter().map(|c| c.reason).collect();
    println!("{:?}", handle.conditions());
    assert!(reasons.iter().any(|r| r == "ForeignDevice"), "{reasons:?}");
    assert!(reasons.iter().any(|r| r == "KernelRefused"), "{reasons:?}");
    assert!(reasons.iter().any(|r| r == "RouteOverlap"), "{reasons:?}");
    assert!(ns.sh("ip route").contains("10.32.2.0/26 via 192.0.2.9"));
    assert_eq!(handle.mtu(), 1350);
    let found = ns.run(|| overlaps(&["10.32.0.0/12".parse().unwrap()]).unwrap());
    assert_eq!(found.len(), 1, "{found:?}");
    // Out of the way, and all is well without a restart.
    ns.sh(
        "ip link del weft; ip link del vx9; ip route del 10.32.2.0/26; ip link set eth0 mtu 1500",
    );
    eventually("healed", || handle.conditions().is_empty() && handle.mtu() == 1450);
    assert!(ns.sh("ip route").contains("10.32.2.0/26 nhid"));
}

#[test]
fn released_pods_are_reaped_and_survivors_adopted() {
    let ns = node("reap");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    let mut intent = intent();
    let pods: Vec<_> = (2..12).map(|n| pod(&format!("c{n}"), &format!("10.32.0.{n}"))).collect();
    intent.pods.extend(pods.iter().cloned());
    settle(&handle, &intent);
    let namespaces: Vec<_> = pods
        .iter()
        .map(|(key, pod)| {
            let pod_ns = Ns::new("p");
            wire(&ns, &pod_ns, key, pod);
            pod_ns
        })
        .collect();
    assert_eq!(block(handle.wired()).unwrap().len(), 10);
    drop(handle);
    // A new agent that knows nothing yet removes nothing.
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    let settling = Intent { settling: true, pods: BTreeMap::new(), ..intent.clone() };
    settle(&handle, &settling);
    assert_eq!(block(handle.wired()).unwrap().len(), 10);
    assert!(ns.sh("nft list set bridge weft pods4").contains("10.32.0.11"));
    settle(&handle, &intent);
    assert_eq!(handle.status().repairs, 0);
    let (stay, _) = &pods[0];
    intent.pods.retain(|key, _| key == stay);
    settle(&handle, &intent);
    // At once: routes, neighbours, rules. Soon: the devices.
    assert_eq!(ns.sh("ip route show dev weft proto 117 scope link").lines().count(), 1);
    assert!(!ns.sh("nft list set bridge weft pods4").contains("10.32.0.11"));
    eventually("reaped", || block(handle.wired()).unwrap().len() == 1);
    assert_eq!(block(handle.wired()).unwrap()[0].alias.key, *stay);
    drop(namespaces);
}

/// Prints figures; asserts only what must hold on any machine.
#[test]
#[ignore = "a measurement: cargo test -- --ignored --nocapture scale"]
fn scale() {
    let ns = node("scale");
    let handle = ns.start(DataplaneConfig::new("n1", NodeId([1; 16])));
    let mut intent = intent();
    intent.ranges.truncate(1);
    intent.own.truncate(1);
    intent.peers = (0..5000_u32)
        .map(|n| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let peer = PeerIntent {
                underlay: std::net::Ipv4Addr::from(0xc612_0001 + n).into(),
                blocks: vec![
                    format!("{}/26", std::net::Ipv4Addr::from(0x0a21_0000 + n * 64))
                        .parse()
                        .unwrap(),
                ],
            };
            (NodeId(id), peer)
        })
        .collect::<BTreeMap<_, _>>()
        .into();
    let start = std::time::Instant::now();
    settle(&handle, &intent);
    println!("5000 peers: {:?}, errors {:?}", start.elapsed(), handle.status().errors);
    eventually("quiet", || handle.status().in_sync);
    let start = std::time::Instant::now();
    assert_eq!(ns.run(|| overlaps(&["192.0.2.1/32".parse().unwrap()]).unwrap()).len(), 2);
    println!("overlaps with 5000 routes: {:?}", start.elapsed());
    let mut times = Vec::new();
    for n in 0..250 {
        let (key, pod) = pod(&format!("c{n}"), &format!("10.32.{}.{}", n / 200, 2 + n % 200));
        intent.pods.insert(key, pod);
        let wanted = intent.clone();
        let start = std::time::Instant::now();
        handle.set_intent(wanted);
        block(handle.settled()).unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("attach with 5000 peers: p50 {:?} p99 {:?}", times[125], times[247]);
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let words: Vec<_> = stat.split(' ').collect();
        words[13].parse::<u64>().unwrap() + words[14].parse::<u64>().unwrap()
    };
    let before = cpu();
    std::thread::sleep(std::time::Duration::from_secs(5));
    println!("idle for 5 s: {} ticks of 10 ms", cpu() - before);
    ns.sh("ip link del weft-vx");
    let start = std::time::Instant::now();
    eventually("back", || ns.sh("ip route show proto 117 | wc -l").trim() == "5001");
    println!("tunnel device deleted with 5000 routes: back after {:?}", start.elapsed());
}

//! The plugin, verb by verb, on a real kernel.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use rig::{Node, eventually, sh};
use serde_json::{Value, json};
use weft_proto::names::host_ifname;

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn pings(from: &str, to: &str) {
    eventually(&format!("{from} reaches {to}"), || {
        std::process::Command::new("ip")
            .args(["netns", "exec", from, "ping", "-c1", "-W1", "-q", to])
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    });
}

#[test]
fn results_of_every_version() {
    let mut node = Node::new();
    for version in VERSIONS {
        let pod = node.pod();
        let id = format!("c{}", version.replace('.', "-"));
        let result = node
            .add(&id, &pod)
            .conf("cniVersion", json!(version))
            .conf("dns", json!({"nameservers": ["10.96.0.10"]}))
            .ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
        let default = json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]);
        let address = if version < "0.3" {
            assert!(result.get("ips").is_none());
            assert_eq!(result["ip4"]["routes"], default);
            assert_eq!(result["ip4"]["gateway"], "169.254.1.1");
            result["ip4"]["ip"].clone()
        } else {
            let interfaces = result["interfaces"].as_array().unwrap();
            assert_eq!(interfaces[0]["name"], host_ifname(&id, "eth0"));
            assert!(interfaces[0].get("sandbox").is_none());
            assert_eq!(interfaces[1]["name"], "eth0");
            assert_eq!(interfaces[1]["sandbox"], format!("/run/netns/{pod}"));
            assert!(interfaces[1]["mac"].as_str().unwrap().starts_with("0a:58:"));
            assert_eq!(interfaces[1].get("mtu"), (version == "1.1.0").then_some(&json!(1400)));
            let ip = &result["ips"][0];
            assert_eq!(ip["interface"], 1);
            assert_eq!(ip.get("version"), (version < "1.0").then_some(&json!("4")));
            assert_eq!(result["routes"], default);
            ip["address"].clone()
        };
        let address = address.as_str().unwrap().strip_suffix("/32").unwrap().to_owned();
        pings(&node.namespace, &address);
        pings(&pod, "10.47.255.254");
        let del = node.del(&id).netns(&pod).conf("cniVersion", json!(version));
        assert!(del.conf("prevResult", result).output().stdout.is_empty());
    }
}

#[test]
fn pods_reach_each_other_and_the_port_is_as_designed() {
    let mut node = Node::new();
    node.state().dual_stack = true;
    let (a, b) = (node.pod(), node.pod());
    sh(&format!(
        "ip netns exec {a} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
    ));
    node.add("a", &a).ok();
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;X=y";
    node.add("b", &b)
        .env("CNI_ARGS", args)
        .env("TRACEPARENT", "00-1-2-01")
        .conf("hairpinMode", json!(true))
        .ok();
    assert!(node.state().headers.contains("traceparent: 00-1-2-01"));
    assert_eq!(node.state().leases["b/eth0"].1["args"]["K8S_POD_NAME"], "web");
    for to in ["10.32.0.2", "fd00:77::2"] {
        pings(&a, to);
    }
    let name = host_ifname("b", "eth0");
    let link: Value =
        serde_json::from_str(&node.sh(&format!("ip -j -d link show {name}"))).unwrap();
    let (link, port) = (&link[0], &link[0]["linkinfo"]["info_slave_data"]);
    assert_eq!(link["ifalias"], "weft1 b eth0 10.32.0.2,fd00:77::2 default/web");
    assert_eq!((&link["master"], &link["mtu"]), (&json!("weft"), &json!(1400)));
    for (flag, value) in [
        ("isolated", true),
        ("learning", false),
        ("flood", false),
        ("mcast_flood", false),
        ("bcast_flood", false),
        ("hairpin", true),
    ] {
        assert_eq!(port[flag], value, "{flag}");
    }
    assert_eq!((&link["inet6_addr_gen_mode"], &link["operstate"]), (&json!("none"), &json!("UP")));
    let fdb = node.sh(&format!("bridge fdb show dev {name}"));
    assert!(fdb.contains("0a:58:0a:20:00:02") && fdb.contains("static"), "{fdb}");
    assert!(node.kernel().contains("10.32.0.2 dev weft scope link"));
    let inside = sh(&format!("ip -n {b} -o addr; ip -n {b} route; ip -n {b} neigh"));
    for text in [
        "10.32.0.2/32",
        "fd00:77::2/128",
        "default via 169.254.1.1 dev eth0",
        "169.254.1.1 dev eth0 lladdr",
    ] {
        assert!(inside.contains(text), "{text}: {inside}");
    }
    assert!(inside.contains("fd00:77::2/128 scope global nodad"), "{inside}");
}

#[test]
fn add_and_del_are_idempotent() {
    let mut node = Node::new();
    let pod = node.pod();
    let first = node.add("a", &pod).ok();
    let kernel = node.kernel();
    assert_eq!(node.add("a", &pod).ok(), first);
    // Whatever was lost since is put back.
    node.sh("ip route del 10.32.0.1");
    sh(&format!("ip -n {pod} route del default"));
    assert_eq!(node.add("a", &pod).ok(), first);
    assert_eq!(node.kernel(), kernel);
    for _ in 0..2 {
        node.del("a").ok();
        node.del("a").netns(&pod).ok();
        node.del("a").netns("no-such-namespace").ok();
    }
    assert!(node.state().leases.is_empty());
}

#[test]
fn left_overs_are_replaced_and_foreign_interfaces_are_not() {
    let mut node = Node::new();
    let pod = node.pod();
    node.add("a", &pod).ok();
    // Freed, the device still to be removed; the same sandbox gets a new address.
    node.del("a").ok();
    let result = node.add("a", &pod).ok();
    assert_eq!(result["ips"][0]["address"], "10.32.0.2/32");
    pings(&node.namespace, "10.32.0.2");
    // Another container id in the same namespace: in use, then left over.
    node.add("b", &pod).fails(101);
    assert_eq!(node.state().leases.len(), 1);
    pings(&node.namespace, "10.32.0.2");
    node.del("a").ok();
    node.add("b", &pod).ok();
    assert!(!node.kernel().contains(&host_ifname("a", "eth0")));

    let other = node.pod();
    sh(&format!("ip -n {other} link add eth0 type veth peer name x"));
    let error = node.add("c", &other).fails(101);
    assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
    assert!(!node.state().leases.contains_key("c/eth0"));
    node.add("c", &other).env("CNI_IFNAME", "lo").fails(101);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let mut node = Node::new();
    let pod = node.pod();
    let clean = node.kernel();
    let broken = [
        ("mac", json!("nonsense")),
        ("mac", json!("01:00:5e:00:00:01")),
        ("addresses", json!([])),
        ("addresses", json!(["224.0.0.1"])),
        ("bridge", json!("lo")),
    ];
    for (field, value) in broken {
        node.state().override_with = vec![(field.to_owned(), value.clone())];
        let output = node.add("a", &pod).output();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{field} {value}: {text}");
        assert_eq!(node.kernel(), clean, "{field} {value}: {text}");
        assert!(node.state().leases.is_empty(), "{field} {value}: {text}");
        assert!(!sh(&format!("ip -n {pod} -o link")).contains("eth0"), "{text}");
    }
    node.state().override_with.clear();
    node.add("a", &pod).conf("mtu", json!(9000)).fails(7);
    // The last step fails: everything else was made already.
    sh(&format!("ip -n {pod} link set lo up; ip -n {pod} route add 10.32.0.0/12 dev lo"));
    let routes = json!({"routes": [{"dst": "10.32.0.0/12"}]});
    let error = node.add("a", &pod).conf("ipam", routes).fails(102);
    assert!(error["msg"].as_str().unwrap().contains("10.32.0.0/12"), "{error}");
    assert_eq!(node.kernel(), clean);
    assert!(node.state().leases.is_empty());
    node.sh("ip link del weft");
    node.add("a", &pod).fails(11);
    assert!(node.state().leases.is_empty());
}

#[test]
fn the_agents_refusals_reach_the_runtime() {
    let mut node = Node::new();
    let pod = node.pod();
    let full = "no free address in 10.32.1.0/28";
    let refusal = json!({"error": "exhausted", "message": full, "retry_after_ms": 1000});
    node.state().refuse = Some((503, refusal));
    assert_eq!(node.add("a", &pod).fails(11)["msg"], full);
    node.state().refuse = Some((409, json!({"error": "conflict", "message": "port 80 is taken"})));
    node.add("a", &pod).fails(100);
    node.state().refuse = Some((200, json!("unexpected")));
    node.add("a", &pod).fails(11);
    node.state().refuse = None;
    std::fs::write(node.run_dir.join("token"), "wrong").unwrap();
    node.add("a", &pod).fails(100);
    std::fs::remove_file(node.run_dir.join("token")).unwrap();
    assert!(node.add("a", &pod).fails(5)["msg"].as_str().unwrap().contains("token"));
    node.stop_agent();
    assert!(node.add("a", &pod).fails(11)["msg"].as_str().unwrap().contains("127.0.0.1:6784"));
}

#[test]
fn del_without_the_agent_leaves_nothing_but_a_note() {
    let mut node = Node::new();
    node.state().dual_stack = true;
    let clean = node.kernel();
    let (a, b, c) = (node.pod(), node.pod(), node.pod());
    node.add("a", &a).ok();
    let gone = node.add("b", &b).ok();
    node.add("keep", &c).ok();
    node.stop_agent();
    node.del("a").netns(&a).ok();
    node.del("a").ok();
    // Its namespace took the pair along; prevResult tells what else there was.
    sh(&format!("ip netns del {b}"));
    eventually("the pair is gone", || !node.kernel().contains(&host_ifname("b", "eth0")));
    node.del("b").conf("prevResult", gone).ok();
    let rest = node.kernel();
    assert!(!rest.contains("10.32.0.1 ") && !rest.contains("10.32.0.2 "), "{rest}");
    assert!(!rest.contains("fd00:77::1 ") && !rest.contains("fd00:77::2 "), "{rest}");
    pings(&node.namespace, "10.32.0.3");
    // Somebody else's address is not touched, whatever an old result says.
    let stale = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.32.0.3/32"}]});
    node.del("late").conf("prevResult", stale).ok();
    pings(&node.namespace, "10.32.0.3");

    let note = node.run_dir.join("released").join(format!("{}.json", host_ifname("a", "eth0")));
    let text: Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    assert_eq!(text, json!({"container_id": "a", "ifname": "eth0"}));
    // A new ADD makes the note untrue.
    node.start_agent();
    node.add("a", &a).ok();
    assert!(!note.exists());
    node.stop_agent();
    node.del("a").ok();
    node.del("keep").ok();
    assert_eq!(node.kernel(), clean);
}

#[test]
fn del_with_a_hanging_agent_is_bounded() {
    let mut node = Node::new();
    let clean = node.kernel();
    let pod = node.pod();
    node.add("a", &pod).ok();
    node.state().hang = true;
    node.del("a").ok();
    assert_eq!(node.kernel(), clean);
}

#[test]
fn second_interfaces() {
    let mut node = Node::new();
    let (pod, peer, foreign) = (node.pod(), node.pod(), node.pod());
    node.add("peer", &peer).ok();
    node.add("a", &pod).ok();
    node.call("ADD").key("a", "net1").netns(&pod).ok();
    // Both addresses answer, each by its own interface.
    for address in ["10.32.0.2", "10.32.0.3"] {
        pings(&peer, address);
    }
    assert!(sh(&format!("ip -n {pod} route show default")).contains("dev eth0"));
    let table = sh(&format!("ip -n {pod} rule"));
    assert!(table.contains("from 10.32.0.3 lookup"), "{table}");

    // Behind another network's default route: the range, not the default.
    sh(&format!("ip -n {foreign} link add eth0 type veth peer name x"));
    sh(&format!("ip -n {foreign} link set eth0 up; ip -n {foreign} link set x up"));
    sh(&format!("ip -n {foreign} addr add 192.0.2.2/24 dev eth0"));
    sh(&format!("ip -n {foreign} route add default via 192.0.2.1"));
    let result = node.call("ADD").key("b", "net1").netns(&foreign).ok();
    assert_eq!(result["routes"][0], json!({"dst": "10.32.0.0/12", "gw": "169.254.1.1"}));
    assert!(result["routes"][1]["table"].is_number());
    assert!(sh(&format!("ip -n {foreign} route show default")).contains("192.0.2.1"));
    pings(&foreign, "10.32.0.1");
    let check = node.call("CHECK").key("b", "net1").netns(&foreign);
    check.conf("prevResult", result).ok();
}

#[test]
fn chaining_keeps_the_earlier_result() {
    let mut node = Node::new();
    let pod = node.pod();
    let prev = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "first", "custom": 1}],
                      "ips": [{"address": "192.0.2.9/24", "interface": 0}]});
    let result =
        node.add("a", &pod).conf("cniVersion", json!("1.0.0")).conf("prevResult", prev).ok();
    assert_eq!(result["interfaces"][0], json!({"name": "first", "custom": 1}));
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
}

#[test]
fn ports_bandwidth_mtu_and_routes() {
    let mut node = Node::new();
    let pod = node.pod();
    node.add("a", &pod)
        .conf("mtu", json!(1300))
        .conf("ipam", json!({"routes": [{"dst": "10.32.0.0/12"}]}))
        .conf(
            "runtimeConfig",
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                              "egressRate": 40_000_000_000_u64, "egressBurst": 800_000_000},
            }),
        )
        .ok();
    assert_eq!(
        node.state().leases["a/eth0"].1["port_mappings"],
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    );
    let to = node.sh(&format!("tc qdisc show dev {}", host_ifname("a", "eth0")));
    assert!(to.contains("tbf") && to.contains("rate 8Mbit"), "{to}");
    let from = sh(&format!("tc -n {pod} qdisc show dev eth0"));
    assert!(from.contains("tbf") && from.contains("rate 40Gbit"), "{from}");
    assert!(sh(&format!("ip -n {pod} link show eth0")).contains("mtu 1300"));
    let routes = sh(&format!("ip -n {pod} route"));
    assert!(
        routes.contains("10.32.0.0/12 via 169.254.1.1") && !routes.contains("default"),
        "{routes}"
    );
    pings(&pod, "10.47.255.254");
    node.add("b", &pod).conf("ipam", json!({"type": "host-local"})).fails(2);
}

#[test]
fn check_sees_what_is_missing() {
    let mut node = Node::new();
    let pod = node.pod();
    let result = node.add("a", &pod).ok();
    let check =
        || node.call("CHECK").key("a", "eth0").netns(&pod).conf("prevResult", result.clone());
    check().ok();
    node.call("CHECK").key("a", "eth0").netns(&pod).fails(7);
    check().conf("cniVersion", json!("0.3.1")).fails(1);
    let name = host_ifname("a", "eth0");
    let inside = |what: &str| format!("-n {pod} {what}");
    let outside = |what: &str| format!("-n {} {what}", node.namespace);
    for damage in [
        outside("route del 10.32.0.1"),
        outside("neigh del 10.32.0.1 dev weft"),
        outside(&format!("link set {name} nomaster")),
        outside(&format!("link set {name} down")),
        inside("route del default"),
        inside("neigh del 169.254.1.1 dev eth0"),
        inside("addr del 10.32.0.1/32 dev eth0"),
        inside("link set eth0 address 0a:58:00:00:00:07"),
        inside("link set eth0 mtu 1280"),
        inside("link set eth0 down"),
    ] {
        sh(&format!("ip {damage}"));
        check().fails(103);
        node.del("a").ok();
        // Anew: the address must be the same for the same result.
        sh(&format!("ip -n {} link del {name}", node.namespace));
        node.state()
            .leases
            .insert("a/eth0".into(), (vec!["10.32.0.1".parse().unwrap()], json!({})));
        let again = node.add("a", &pod).ok();
        assert_eq!(again["ips"], result["ips"]);
        check().ok();
    }
    node.state().leases.clear();
    check().fails(103);
}

#[test]
fn status_gc_and_version() {
    let mut node = Node::new();
    node.call("STATUS").ok();
    node.call("STATUS").conf("cniVersion", json!("1.0.0")).fails(1);
    node.state().ready =
        Some(json!({"ready": false, "connectivity": true, "reasons": ["range full", "add one"]}));
    let error = node.call("STATUS").fails(50);
    assert_eq!((&error["msg"], &error["details"]), (&json!("range full"), &json!("add one")));
    node.state().ready = Some(json!({"ready": false, "connectivity": false}));
    node.call("STATUS").fails(51);

    node.call("GC").fails(7);
    let list = json!([{"containerID": "a", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        node.call("GC").conf(key, list.clone()).ok();
        let state = node.state();
        let (method, path, body) = state.requests.last().unwrap();
        assert_eq!((method.as_str(), path.as_str()), ("POST", "/v1/gc"));
        assert_eq!(*body, json!({"keep": [{"container_id": "a", "ifname": "eth0"}]}));
    }
    let before = node.state().requests.len();
    node.call("GC").conf("cni.dev/attachments", list.clone()).conf("disableGC", json!(true)).ok();
    assert_eq!(node.state().requests.len(), before);

    node.stop_agent();
    node.call("STATUS").fails(50);
    node.call("GC").conf("cni.dev/attachments", list).fails(11);
    for version in VERSIONS {
        let answer = node.call("VERSION").conf("cniVersion", json!(version)).ok();
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    assert!(node.call("VERSION").output_with(b"").status.success());
}

#[test]
fn bad_calls_change_nothing() {
    let mut node = Node::new();
    let pod = node.pod();
    node.call("NONSENSE").fails(4);
    node.call("ADD").fails(4);
    node.add("a/b", &pod).fails(4);
    node.add("a", &pod).env("CNI_IFNAME", "much-too-long-a-name").fails(4);
    node.add("a", &pod).env("CNI_ARGS", "FOO=bar").fails(4);
    node.add("a", "no-such-namespace").fails(8);
    let own = node.namespace.clone();
    let error = node.add("a", &own).fails(8);
    assert!(error["msg"].as_str().unwrap().contains("own"), "{error}");
    node.add("a", &pod).env("CNI_NETNS", "/dev/null").fails(8);
    node.add("a", &pod).conf("cniVersion", json!("3.0.0")).fails(1);
    for (input, code) in [(b"".as_slice(), 6), (b"{", 6), (b"[]", 6), (b"{}", 7), (b"\xff", 6)] {
        let output = node.add("a", &pod).output_with(input);
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["code"], code, "{error}");
    }
    assert!(node.state().requests.is_empty());
    assert!(!node.kernel().contains("weft"));
}

//! Every kind of rule, with real packets.

use super::states::{Build, ip, isolated, of, rule, set, tcp};
use super::wires::{BOTH, Node, passes};
use crate::policy::nft::layout::{base, layout};
use crate::policy::nft::model::{diff, rebuild};
use crate::policy::state::{
    Action, Chain, Direction, Element, Peers, PolicyState, Ports, Protocol, SetKind,
};

const P1: &[&str] = &["10.32.1.2", "fd00:1::2"];
const P2: &[&str] = &["10.32.2.2", "fd00:2::2"];
const ACCEPT: Action = Action::Accept;
const DENY: Action = Action::Deny;
const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;

#[test]
fn what_is_written_is_read() {
    let node = Node::new(0);
    node.hold(&PolicyState::default());
    let many = (0..100_000_u32).map(|n| Element::Address(std::net::Ipv4Addr::from(n + 1).into()));
    let ranges = vec![
        Element::Range(ip("10.0.0.0"), ip("10.0.0.9")),
        Element::Range(ip("255.255.255.0"), ip("255.255.255.255")),
        Element::Range(ip("fd00::"), ip("fd00::ff")),
        Element::Range(ip("ff00::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
    ];
    let admin = vec![rule(of("r"), Ports::Any, Action::Pass), rule(of("many"), tcp(1, 9), DENY)];
    let chain = Chain { direction: IN, admin, main: vec![], end: DENY };
    let state = Build::default()
        .set("many", SetKind::Addresses, many.collect())
        .set("r", SetKind::Ranges, ranges)
        .set("p", SetKind::Ports, vec![Element::Port(ip(P1[0]), Protocol::Sctp, 9)])
        .chain("x", chain, P1)
        .chain(
            "y",
            isolated(OUT, vec![rule(of("r"), Ports::PerDestination(set("p")), ACCEPT)]),
            P1,
        );
    let began = std::time::Instant::now();
    node.hold(&state.0);
    eprintln!("100,000 elements: written, and read twice, in {:?}", began.elapsed());
    // Found again, it is left alone.
    assert!(diff(&layout(&state.0, BOTH), &node.read()).is_empty());
    node.hold(&PolicyState::default());
}

#[test]
fn ingress_by_peer_and_port() {
    let node = Node::new(3);
    let state = Build::default()
        .pods("two", P2)
        .chain("in", isolated(IN, vec![rule(of("two"), tcp(80, 81), ACCEPT)]), P1)
        .0;
    node.hold(&state);
    node.check(2, 1, 80, true, false);
    node.check(2, 1, 81, true, false);
    node.check(2, 1, 90, false, false);
    node.check(3, 1, 80, false, false);
    // Its own connections are not restricted, nor those of others.
    node.check(1, 3, 80, true, true);
    node.check(2, 3, 90, true, true);
    // The node itself reaches it always (kubelet's probes), and it the node.
    let probe = "python3 -c 'import socket; socket.create_connection((\"10.32.1.2\", 90), 5)'";
    node.ns.sh(probe);
    node.pods[0].ns.sh("ping -q -c1 -W5 10.32.1.1");
    // Refused packets were counted with the pod, and by port.
    let rules = node.rules();
    let refused = rules.lines().find(|l| l.contains("10.32.1.2 counter packets")).unwrap_or("");
    assert!(!refused.is_empty() && !refused.contains("packets 0"), "{rules}");
    assert!(rules.contains("tcp . 90 counter packets"), "{rules}");
}

#[test]
fn egress_accepts_leave_ingress_its_say() {
    let node = Node::new(3);
    let state = Build::default()
        .pods("three", &["10.32.3.2", "fd00:3::2"])
        .chain("out", isolated(OUT, vec![rule(Peers::Any, tcp(80, 80), ACCEPT)]), P1)
        .chain("in", isolated(IN, vec![rule(of("three"), Ports::Any, ACCEPT)]), P2)
        .0;
    node.hold(&state);
    node.check(1, 3, 80, true, false);
    node.check(1, 3, 81, false, false);
    node.check(1, 2, 80, false, false);
    node.check(3, 2, 90, true, true);
    node.check(3, 1, 90, true, true);
}

#[test]
fn blocks_ranges_and_named_ports() {
    let node = Node::new(3);
    let blocks = vec![
        Element::Range(ip("10.32.2.0"), ip("10.32.2.255")),
        Element::Range(ip("fd00:2::"), ip("fd00:2::ffff")),
    ];
    let names = |pod: &[&str], port| {
        pod.iter().map(|a| Element::Port(ip(a), Protocol::Tcp, port)).collect::<Vec<_>>()
    };
    let web = [names(P1, 81), names(P2, 90)].concat();
    let state = Build::default()
        .set("blocks", SetKind::Ranges, blocks)
        .set("web", SetKind::Ports, web)
        .chain(
            "in",
            isolated(IN, vec![rule(of("blocks"), Ports::PerDestination(set("web")), ACCEPT)]),
            P1,
        )
        .chain(
            "out",
            isolated(OUT, vec![rule(Peers::Any, Ports::PerDestination(set("web")), ACCEPT)]),
            &["10.32.3.2", "fd00:3::2"],
        )
        .0;
    node.hold(&state);
    node.check(2, 1, 81, true, false);
    node.check(2, 1, 90, false, false);
    node.check(3, 1, 81, false, false);
    node.check(3, 2, 90, true, false);
    node.check(3, 2, 81, false, false);
}

#[test]
fn tiers_pass_and_refuse() {
    let node = Node::new(3);
    let admin = vec![
        rule(Peers::Any, tcp(80, 80), Action::Pass),
        rule(of("two"), tcp(81, 81), ACCEPT),
        rule(of("two"), Ports::Any, DENY),
    ];
    let main = vec![rule(of("two"), tcp(80, 80), ACCEPT), rule(Peers::Any, tcp(90, 90), DENY)];
    let state = Build::default()
        .pods("two", P2)
        .chain("in", Chain { direction: IN, admin, main, end: ACCEPT }, P1)
        .0;
    node.hold(&state);
    node.check(2, 1, 80, true, false);
    node.check(2, 1, 81, true, false);
    node.check(2, 1, 90, false, false);
    node.check(3, 1, 80, true, true);
    node.check(3, 1, 90, false, true);
}

#[test]
fn a_pod_reaches_itself_through_a_host_port() {
    let node = Node::new(2);
    // As a host port: rewritten on the way in, and back to the same pod.
    node.ns.sh(
        "printf '%s\\n' 'table ip t {' 'chain pre {' 'type nat hook prerouting priority -100;' \
         'ip daddr 10.32.1.1 tcp dport 8080 dnat to 10.32.1.2:80' '}' \
         'chain post {' 'type nat hook postrouting priority 100;' \
         'ip saddr 10.32.1.2 ip daddr 10.32.1.2 masquerade' '}' '}' | nft -f -",
    );
    let only_two = isolated(IN, vec![rule(of("two"), tcp(80, 80), ACCEPT)]);
    let state = Build::default().pods("two", P2).chain("in", only_two, P1).chain(
        "out",
        isolated(OUT, vec![]),
        P1,
    );
    node.hold(&state.0);
    let connect = "python3 -c 'import socket; socket.create_connection((\"10.32.1.1\", 8080), 1)'";
    assert!(node.pods[0].ns.try_sh(connect).0, "itself");
    // Judged by the pod's port and the client's address.
    assert!(node.pods[1].ns.try_sh(connect).0, "{}", node.rules());
    node.hold(
        &Build::default()
            .chain("in", isolated(IN, vec![rule(Peers::Any, tcp(8080, 8080), ACCEPT)]), P1)
            .0,
    );
    assert!(!node.pods[1].ns.try_sh(connect).0);
}

#[test]
fn a_forgotten_connection_does_not_come_back_reversed() {
    let node = Node::new(2);
    for v6 in [false, true] {
        node.hold(&PolicyState::default());
        let (mut client, mut server) = node.connection(2, 1, v6);
        assert!(passes(&mut client, &mut server, true));
        // Established: stays until its entry goes.
        node.hold(&Build::default().chain("in", isolated(IN, vec![]), P1).0);
        assert!(passes(&mut client, &mut server, true));
        node.ns.sh("conntrack -F 2>&1");
        assert!(!passes(&mut server, &mut client, false), "{}", node.rules());
        assert!(!passes(&mut client, &mut server, false), "{}", node.rules());
    }
}

#[test]
fn sctp_is_judged_by_its_ports() {
    // Sockets of that protocol are not in every kernel: packets by hand.
    let node = Node::new(2);
    let state = Build::default().chain(
        "in",
        isolated(IN, vec![rule(Peers::Any, Ports::Listed(vec![(Protocol::Sctp, 80, 80)]), ACCEPT)]),
        P1,
    );
    node.hold(&state.0);
    let arrives = |port: u16| {
        let script = format!(
            "import socket, struct\n\
             r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)\n\
             open('/proc/self/fd/1', 'w').write('ready\\n')\n\
             r.settimeout(3)\n\
             try:\n\x20 while r.recv(99)[22:24] != struct.pack('>H', {port}): pass\n\x20 print('yes')\n\
             except socket.timeout: print('no')\n"
        );
        let mut listener = std::process::Command::new("ip")
            .args(["netns", "exec", &node.pods[0].ns.name, "python3", "-uc", &script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(listener.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        // An INIT chunk of 20 bytes.
        node.pods[1].ns.sh(&format!(
            "python3 -c 'import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132); \
             p = struct.pack(\">HHII\", 4000, {port}, 0, 0) + struct.pack(\">BBHIIHHI\", 1, 0, 20, 7, 65535, 1, 1, 7); \
             s.sendto(p, (\"10.32.1.2\", 0))'"
        ));
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        listener.wait().unwrap();
        line.trim() == "yes"
    };
    assert!(arrives(80), "{}", node.rules());
    assert!(!arrives(81));
    assert!(node.rules().contains("sctp . 81 counter packets 1"), "{}", node.rules());
}

#[test]
fn edited_by_others_it_is_mended() {
    let node = Node::new(0);
    let state = Build::default()
        .pods("two", P2)
        .chain("in", isolated(IN, vec![rule(of("two"), Ports::Any, ACCEPT)]), P1)
        .0;
    for script in [
        "flush table inet weft-policy",
        "delete table inet weft-policy",
        "add table inet weft-policy { flags dormant; }",
        "flush chain inet weft-policy judge4",
        "insert rule inet weft-policy forward accept",
        "add rule inet weft-policy in4-in accept",
        "delete element inet weft-policy pods4-two { 10.32.2.2 }",
        "add element inet weft-policy pods4-two { 10.32.3.2 }",
        "add element inet weft-policy itself4 { 10.32.3.2 . 10.32.3.3 }",
        "delete element inet weft-policy ingress6 { fd00:1::2 }",
        "add element inet weft-policy ingress4 { 10.32.9.2 : jump in4-in }",
        "add chain inet weft-policy another { type filter hook forward priority 0; policy drop; }",
        "add set inet weft-policy more { type ipv4_addr; }",
        "delete element inet weft-policy ingress4 { 10.32.1.2 }; add element inet weft-policy ingress4 { 10.32.1.2 : accept }",
        "add chain inet weft-policy forward { policy drop; }",
    ] {
        node.hold(&state);
        node.ns.sh(&format!("nft '{script}'"));
        let edit = diff(&layout(&state, BOTH), &node.read());
        assert!(!edit.is_empty(), "not noticed: {script}");
        node.hold(&state);
    }
    node.write(&rebuild(&base()));
}

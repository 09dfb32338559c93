//! A status with one of everything.

use weft_proto::api::*;

/// Node `n1` with a live peer, a dead one and a condition.
pub(crate) fn status() -> Status {
    let ip = |text: &str| text.parse().unwrap();
    let id = |digit: char| digit.to_string().repeat(32);
    Status {
        health: Health::Degraded,
        conditions: vec![Condition {
            health: Health::Degraded,
            reason: "PeerUnreachable".into(),
            message: "n3 has not answered for 5m".into(),
            hint: "if it is gone for good: agent rmpeer n3".into(),
        }],
        node: NodeStatus {
            id: id('a'),
            name: "n1".into(),
            version: "0.1.0".into(),
            cluster: id('c'),
            uptime_s: 3725,
            underlay: vec![ip("192.0.2.1")],
            overlay: vec![ip("10.32.0.1")],
        },
        mesh: MeshStatus {
            keyed: true,
            targets: vec!["192.0.2.2".into(), "192.0.2.3:6783".into()],
            connections: vec![
                ConnectionStatus {
                    address: "192.0.2.2:6783".parse().unwrap(),
                    outbound: true,
                    state: "established".into(),
                    node: Some(id('b')),
                    name: Some("n2".into()),
                    info: String::new(),
                    rtt_us: Some(412),
                },
                ConnectionStatus {
                    address: "192.0.2.3:6783".parse().unwrap(),
                    outbound: true,
                    state: "retrying".into(),
                    node: None,
                    name: None,
                    info: "timed out\u{1b}[31m, retry in 3s".into(),
                    rtt_us: None,
                },
            ],
            members: vec![member(&id('b'), "n2", "alive", 2), member(&id('d'), "n3", "dead", 3)],
            counters: [("connections_lost".into(), 4), ("handshake_wrong_key".into(), 2)].into(),
        },
        consensus: ConsensusStatus {
            role: "leader".into(),
            waiting: None,
            leader: Some("n1".into()),
            term: 3,
            voters: vec![voter("n1", true), voter("n2", true), voter("n3", false)],
            applied: 42,
            quorum: true,
        },
        ipam: IpamStatus {
            state: "ready".into(),
            ranges: vec!["10.32.0.0/24".parse().unwrap()],
            usable: 254,
            blocks: vec!["10.32.0.0/26".parse().unwrap()],
            owned: 63,
            leases: 2,
            waiting: vec![],
            owners: vec![
                owner(&id('b'), "n2", 64, true),
                owner(&id('d'), "n3", 63, false),
                owner(&id('a'), "n1", 63, true),
            ],
            unowned: 64,
            quarantined: 0,
        },
        dataplane: DataplaneStatus {
            in_sync: true,
            mtu: 1450,
            mtu_source: "eth0 1500 minus 50".into(),
            routes: 2,
            pods: 1,
            repairs: 1,
            last_repair: Some("route 10.32.0.64/26 put back".into()),
            errors: vec![],
        },
        overlay: OverlayStatus {
            counters: [("answered".into(), 9), ("sent".into(), 10)].into(),
            peers_ok: 1,
            ..OverlayStatus::default()
        },
        policy: Some(policy()),
        kubernetes: Some(KubernetesStatus {
            server: "https://10.96.0.1".into(),
            via: None,
            reachable: true,
            since_s: 60,
            last_answer_s: Some(3),
            founder: Some("n1".into()),
            last_error: None,
            requests: vec![KubernetesRequests {
                verb: "get".into(),
                resource: "nodes".into(),
                code: "ok".into(),
                count: 7,
            }],
        }),
    }
}

fn member(id: &str, name: &str, state: &str, host: u8) -> MemberStatus {
    MemberStatus {
        id: id.into(),
        name: name.into(),
        state: state.into(),
        underlay: vec![std::net::IpAddr::from([192, 0, 2, host])],
        overlay: vec![],
        blocks: 1,
        leases: 5,
        version: "0.1.0".into(),
        ledger_index: 42,
        overlay_rtt_us: (state == "alive").then_some(534),
        overlay_ok: (state == "alive").then_some(true),
    }
}

fn voter(name: &str, alive: bool) -> VoterStatus {
    VoterStatus { seat: name.into(), name: Some(name.into()), alive }
}

fn owner(id: &str, name: &str, addresses: u64, alive: bool) -> OwnerStatus {
    OwnerStatus { id: id.into(), name: name.into(), addresses, blocks: 1, leases: 5, alive }
}

/// Two pods with policies, one that is not known yet.
pub(crate) fn policy() -> PolicyStatus {
    let direction = |isolated: bool, policies: &[&str], refused| PolicyDirection {
        isolated,
        restricted: isolated,
        policies: policies.iter().map(|p| (*p).to_owned()).collect(),
        refused,
    };
    let pod = |namespace: &str, name: &str, address: &str, ingress, egress| PolicyPod {
        namespace: namespace.into(),
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        missing: (namespace == "new").then(|| "Pod".into()),
        ingress,
        egress,
    };
    let source = |name: &str, objects, failing_s, why: Option<&str>| PolicySource {
        name: name.into(),
        complete: true,
        objects,
        version: 7,
        heard_s: Some(2),
        failing_s,
        why: why.map(str::to_owned),
    };
    let db = ["NetworkPolicy shop/db", "ClusterNetworkPolicy guard rail"];
    let open = || direction(false, &[], 0);
    let mut from_db = open();
    from_db.refused = 1;
    PolicyStatus {
        remembered_ms: None,
        synced: true,
        enforced: true,
        busy: false,
        pods: vec![
            pod("shop", "front", "10.32.0.6", open(), open()),
            pod("shop", "db", "10.32.0.5", direction(true, &db, 12), from_db),
            pod("new", "pod", "10.32.0.9", direction(true, &[], 0), direction(true, &[], 0)),
        ],
        table: PolicyTable {
            in_sync: true,
            sets: 4,
            elements: 21,
            chains: 2,
            subjects: 2,
            transactions: 7,
            last_us: 900,
            longest_us: 1500,
            ..PolicyTable::default()
        },
        refused_in: 12,
        refused_out: 1,
        refused_ports: vec![PolicyRefusedPort { protocol: "tcp".into(), port: 80, packets: 13 }],
        established_dropped: 1,
        sources: vec![
            source("pods of this node", 3, None, None),
            source("NetworkPolicies", 2, Some(65), Some("connection refused")),
        ],
        problems: vec![PolicyProblem {
            policy: "NetworkPolicy shop/db".into(),
            field: "spec.ingress[0].ports[0].port".into(),
            what: "no such port; it matches nothing".into(),
            hint: "write a number or the name of a container port".into(),
        }],
    }
}

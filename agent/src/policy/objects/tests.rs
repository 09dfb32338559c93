use serde_json::{Value, json};

use super::network::{Namespaces, Peer, Port};
use super::*;
use crate::policy::selector::Selector;
use crate::policy::state::{Action, Protocol};

fn network(spec: &Value) -> NetworkPolicy {
    let meta = json!({ "name": "p", "namespace": "shop", "uid": "u-1" });
    serde_json::from_value(json!({ "metadata": meta, "spec": spec })).unwrap()
}

fn cluster(spec: &Value) -> ClusterPolicy {
    serde_json::from_value(json!({ "metadata": { "name": "c" }, "spec": spec })).unwrap()
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

/// The one ingress rule of a policy with this entry.
fn ingress(entry: &Value) -> (Option<Rule>, Vec<String>) {
    let policy = network(&json!({ "podSelector": {}, "ingress": [entry] }));
    let noted = policy.problems.iter().map(|problem| problem.field.clone()).collect();
    (policy.ingress.unwrap().pop(), noted)
}

#[test]
fn a_pod_as_the_api_server_sends_it() {
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u-7",
            "labels": { "b": "2", "a": "1" }, "annotations": { "big": "thing" },
            "creationTimestamp": "2026-02-03T04:05:06Z", "deletionTimestamp": "2026-02-03T05:00:00Z",
            "ownerReferences": null,
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": true,
            "containers": [
                { "name": "main", "ports": [
                    { "name": "http", "containerPort": 8080 },
                    { "containerPort": 9999 },
                    { "name": "bad", "containerPort": 70000 },
                ] },
                { "name": "quiet", "ports": null },
            ],
            "initContainers": [{ "name": "sidecar", "restartPolicy": "Always", "ports": [
                { "name": "dns", "containerPort": 53, "protocol": "UDP" }] }],
        },
        "status": {
            "phase": "Failed", "podIP": "10.32.0.9",
            "podIPs": [{ "ip": "10.32.0.9" }, { "ip": "fd00::9" }, { "ip": "" }],
        },
    }))
    .unwrap();
    assert_eq!(pod.key, PodRef::new("shop", "web-0"));
    assert_eq!(&*pod.uid, "u-7");
    assert_eq!(pod.labels.get("a").map(|value| &**value), Some("1"));
    assert_eq!(pod.labels.iter().count(), 2);
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert!(pod.host_network && pod.terminating && pod.phase == Phase::Finished);
    let ports: Vec<_> = pod.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("dns", Protocol::Udp, 53), ("http", Protocol::Tcp, 8080)]);
    assert_eq!(pod.addresses.len(), 2);
    let later = Stamp::parse("2026-02-03T04:05:07Z");
    assert!(later > pod.created && pod.created > Stamp::default());
}

#[test]
fn little_is_enough_for_a_pod_but_a_name() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "p", "labels": null }, "spec": null, "status": { "podIP": "10.1.1.1" },
    }))
    .unwrap();
    assert_eq!(pod.key, PodRef::new("default", "p"));
    assert_eq!(pod.addresses.len(), 1);
    let error = serde_json::from_value::<Pod>(json!({ "metadata": {} })).unwrap_err();
    assert_eq!(error.to_string(), "Pod without metadata.name");
}

#[test]
fn nodes_and_namespaces() {
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": "n1", "labels": { "zone": "a" } },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "Hostname", "address": "n1" }] },
    }))
    .unwrap();
    assert_eq!(node.addresses.len(), 1);
    let space: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "shop" } })).unwrap();
    assert_eq!(space.labels, Labels::default());
}

#[test]
fn directions_that_a_policy_isolates() {
    let isolates = |spec: Value| {
        let policy = network(&spec);
        (policy.ingress.is_some(), policy.egress.is_some(), policy.problems.len())
    };
    assert_eq!(isolates(json!({})), (true, false, 0));
    assert_eq!(isolates(json!({ "egress": [] })), (true, false, 0));
    assert_eq!(isolates(json!({ "egress": [{}] })), (true, true, 0));
    assert_eq!(isolates(json!({ "egress": [{}], "policyTypes": ["Ingress"] })), (true, false, 0));
    assert_eq!(isolates(json!({ "policyTypes": ["Egress"] })), (false, true, 0));
    assert_eq!(isolates(json!({ "policyTypes": ["Egress", "Up"] })), (true, true, 1));
    assert_eq!(isolates(json!({ "policyTypes": "Egress" })), (true, true, 1));
    assert_eq!(isolates(json!("nonsense")), (true, true, 1));
}

#[test]
fn absent_and_empty_mean_all_and_a_list_of_nonsense_means_nothing() {
    let (rule, noted) = ingress(&json!({}));
    let rule = rule.unwrap();
    assert_eq!((rule.peers, rule.ports, noted.len()), (None, None, 0));
    let (rule, noted) = ingress(&json!({ "from": [], "ports": [] }));
    let rule = rule.unwrap();
    assert_eq!((rule.peers, rule.ports, noted.len()), (None, None, 0));
    let (rule, noted) = ingress(&json!({ "from": [{}], "ports": [{ "port": 0 }] }));
    let rule = rule.unwrap();
    assert_eq!((rule.peers, rule.ports), (Some(vec![]), Some(vec![])));
    assert_eq!(noted, ["spec.ingress[0].from[0]", "spec.ingress[0].ports[0].port"]);
    let (rule, noted) = ingress(&json!({ "from": [], "via": "proxy" }));
    assert_eq!((rule, noted), (None, vec!["spec.ingress[0].via".to_owned()]));
}

#[test]
fn peers() {
    let of = |peer: Value| ingress(&json!({ "from": [peer] })).0.unwrap().peers.unwrap().pop();
    let all = Selector::all;
    assert_eq!(of(json!({ "podSelector": {} })), Some(Peer::Pods(Namespaces::Own, all())));
    let everywhere = Some(Peer::Pods(Namespaces::Matching(all()), all()));
    assert_eq!(of(json!({ "namespaceSelector": {} })), everywhere);
    assert_eq!(of(json!({ "namespaceSelector": {}, "podSelector": {} })), everywhere);
    let block =
        Some(Peer::Block("10.0.0.0/8".parse().unwrap(), vec!["10.1.0.0/16".parse().unwrap()]));
    let written = json!({ "ipBlock": { "cidr": "10.0.0.3/8", "except": ["10.1.0.0/16"] } });
    assert_eq!(of(written), block);
    for nothing in [
        json!({ "ipBlock": { "cidr": "10.0.0.0/99" } }),
        json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["x"] } }),
        json!({ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} }),
        json!({ "ipBlock": { "cidr": "10.0.0.0/8", "via": 1 } }),
        json!({ "serviceSelector": {} }),
        json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Gt" }] } }),
        json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "In" }] } }),
        json!({ "podSelector": { "matchLabels": { "a": 1 } } }),
        json!(7),
    ] {
        let (rule, noted) = ingress(&json!({ "from": [nothing] }));
        assert_eq!(rule.unwrap().peers, Some(vec![]), "{nothing}");
        assert_eq!(noted.len(), 1, "{nothing}");
    }
}

#[test]
fn ports() {
    let of = |port: Value| ingress(&json!({ "ports": [port] })).0.unwrap().ports.unwrap().pop();
    let range = |protocol, low, high| Some(Port::Range(protocol, low, high));
    assert_eq!(of(json!({})), range(Protocol::Tcp, 0, 65535));
    assert_eq!(of(json!({ "protocol": "SCTP" })), range(Protocol::Sctp, 0, 65535));
    assert_eq!(of(json!({ "port": 80 })), range(Protocol::Tcp, 80, 80));
    assert_eq!(of(json!({ "port": 80, "endPort": 90 })), range(Protocol::Tcp, 80, 90));
    let named = Some(Port::Named(Some(Protocol::Udp), "dns".into()));
    assert_eq!(of(json!({ "port": "dns", "protocol": "UDP" })), named);
    for nothing in [
        json!({ "port": "" }),
        json!({ "port": "80" }),
        json!({ "port": "a-name-that-is-too-long" }),
        json!({ "port": 65536 }),
        json!({ "port": 80.5 }),
        json!({ "port": 80, "endPort": 79 }),
        json!({ "port": "http", "endPort": 81 }),
        json!({ "endPort": 81 }),
        json!({ "port": 80, "protocol": "ICMP" }),
        json!({ "port": 80, "host": "x" }),
    ] {
        assert_eq!(of(nothing.clone()), None, "{nothing}");
    }
}

#[test]
fn a_subject_that_cannot_be_read_isolates_its_namespace() {
    let bad = json!({ "matchExpressions": [{ "key": "a", "operator": "Near", "values": ["b"] }] });
    let policy = network(&json!({ "podSelector": bad, "ingress": [{}] }));
    assert_eq!((policy.subject, policy.ingress), (Selector::all(), Some(vec![])));
    assert_eq!(
        fields(&policy.problems),
        ["spec.podSelector.matchExpressions[0].operator", "spec.podSelector"]
    );
}

#[test]
fn problems_are_bounded_and_the_rest_is_kept() {
    let mut from: Vec<Value> = (0..10_000).map(|_| json!({})).collect();
    from.push(json!({ "podSelector": {} }));
    let policy = network(&json!({ "ingress": [{ "from": from }] }));
    assert_eq!(policy.problems.len(), 17);
    assert_eq!(policy.problems[16].what, "9984 more parts cannot be understood");
    assert_eq!(policy.ingress.unwrap()[0].peers.as_ref().map(Vec::len), Some(1));
    let text = policy.problems[0].to_string();
    assert!(text.starts_with("NetworkPolicy shop/p: spec.ingress[0].from[0]: "), "{text}");
}

fn rules(entry: &Value) -> (Vec<ClusterRule>, usize) {
    let policy = cluster(&json!({
        "tier": "Admin", "priority": 5, "subject": { "namespaces": {} }, "egress": [entry],
    }));
    (policy.egress, policy.problems.len())
}

#[test]
fn cluster_policies() {
    let policy = cluster(&json!({
        "tier": "Baseline", "priority": 7,
        "subject": { "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "a": "b" } } } },
        "ingress": [{ "name": "x", "action": "Pass", "from": [{ "namespaces": {} }] }],
        "egress": [{ "action": "Deny", "to": [{ "nodes": {} }, { "networks": ["10.0.0.0/8", "fd00::/8"] }],
            "protocols": [{ "tcp": { "destinationPort": { "number": 53 } } },
                { "udp": { "destinationPort": { "range": { "start": 1, "end": 9 } } } }] }],
    }));
    assert_eq!(policy.problems, []);
    assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 7));
    assert_eq!(policy.ingress[0].name.as_deref(), Some("x"));
    assert_eq!(policy.ingress[0].action, Action::Pass);
    let egress = &policy.egress[0];
    assert_eq!(egress.peers.as_ref().map(Vec::len), Some(3));
    let ports = vec![Port::Range(Protocol::Tcp, 53, 53), Port::Range(Protocol::Udp, 1, 9)];
    assert_eq!(egress.ports, Some(ports));
    let (rules, _) = rules(&json!({ "action": "Accept", "to": [{ "namespaces": {} }],
        "protocols": [{ "destinationNamedPort": "web" }] }));
    assert_eq!(rules[0].ports, Some(vec![Port::Named(None, "web".into())]));
}

#[test]
fn what_an_accept_does_not_understand_it_does_not_allow() {
    let domain = json!({ "domainNames": ["*.example.org"] });
    let (none, noted) = rules(&json!({ "action": "Accept", "to": [domain] }));
    assert_eq!((none.len(), noted), (0, 1));
    let (some, noted) =
        rules(&json!({ "action": "Accept", "to": [domain, { "networks": ["10.0.0.0/8"] }] }));
    assert_eq!((some[0].peers.as_ref().map(Vec::len), noted), (Some(1), 1));
    // A field of an older or newer schema would have narrowed the rule.
    let (none, noted) = rules(&json!({ "action": "Accept", "to": [{ "namespaces": {} }],
        "ports": [{ "portNumber": { "port": 80 } }] }));
    assert_eq!((none.len(), noted), (0, 1));
    let (some, noted) = rules(&json!({ "action": "Accept", "to": [{ "namespaces": {} }],
        "protocols": [{ "quic": {} }] }));
    assert_eq!((some[0].ports.clone(), noted), (Some(vec![]), 1));
    let (none, noted) = rules(&json!({ "action": "Accept", "to": [] }));
    assert_eq!((none.len(), noted), (0, 1));
}

#[test]
fn what_a_deny_or_pass_does_not_understand_it_denies() {
    for action in ["Deny", "Pass", "Reject"] {
        let spaces = json!({ "namespaces": {} });
        for entry in [
            json!({ "action": action, "to": [spaces, { "planets": {} }] }),
            json!({ "action": action, "to": [{ "networks": ["10.0.0.0/8", "x"] }] }),
            json!({ "action": action, "to": [] }),
            json!({ "action": action, "to": [spaces], "when": "night" }),
        ] {
            let (rules, noted) = rules(&entry);
            let rule = &rules[0];
            assert_eq!((rule.action, &rule.peers, &rule.ports), (Action::Deny, &None, &None));
            assert!(noted >= 1);
        }
        let (rules, noted) = rules(&json!({ "action": action, "to": [spaces],
            "protocols": [{ "tcp": { "destinationPort": {} } }] }));
        assert_eq!((rules[0].action, &rules[0].ports), (Action::Deny, &None));
        assert_eq!(rules[0].peers.as_ref().map(Vec::len), Some(1));
        assert!(noted >= 1);
    }
}

#[test]
fn a_cluster_policy_without_a_place_only_denies() {
    let policy = cluster(&json!({
        "tier": "Middle", "priority": 5, "subject": { "namespaces": {} },
        "ingress": [
            { "action": "Accept", "from": [{ "namespaces": {} }] },
            { "action": "Deny", "from": [{ "namespaces": {} }] },
        ],
    }));
    assert_eq!(policy.tier, Tier::Admin);
    let actions: Vec<Action> = policy.ingress.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [Action::Deny]);
    assert_eq!(fields(&policy.problems), ["spec.tier", "spec"]);
}

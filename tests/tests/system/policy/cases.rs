//! Policies by chance, out of every field the API has.

use serde_json::{Value, json};
use weft_tests::apiserver::objects;
use weft_tests::dice::Dice;

const SPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];

fn pick<'a, T>(dice: &mut Dice, from: &'a [T]) -> &'a T {
    &from[dice.below(from.len())]
}

fn one_in(dice: &mut Dice, n: usize) -> bool {
    dice.below(n) == 0
}

/// A label selector over `key`, whose values are `values`.
fn selector(dice: &mut Dice, key: &str, values: &[&str]) -> Value {
    match dice.below(8) {
        0 => json!({}),
        1 | 2 => json!({ "matchLabels": { key: pick(dice, values) } }),
        3 => {
            let some = [pick(dice, values), pick(dice, values)];
            json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": some }] })
        }
        4 => {
            let one = [pick(dice, values)];
            json!({ "matchExpressions": [{ "key": key, "operator": "NotIn", "values": one }] })
        }
        5 => json!({ "matchExpressions": [{ "key": "extra", "operator": "Exists" }] }),
        6 => json!({ "matchExpressions": [{ "key": "extra", "operator": "DoesNotExist" }] }),
        _ => json!({
            "matchLabels": { key: pick(dice, values) },
            "matchExpressions": [{ "key": "extra", "operator": "DoesNotExist" }],
        }),
    }
}

fn spaces(dice: &mut Dice) -> Value {
    selector(dice, "ns", &SPACES)
}

fn pods(dice: &mut Dice) -> Value {
    selector(dice, "pod", &PODS)
}

/// A block, with or without exceptions; `addresses` are those of pods.
fn block(dice: &mut Dice, addresses: &[String]) -> Value {
    let own = pick(dice, addresses);
    let v6 = own.contains(':');
    let of_family: Vec<&String> = addresses.iter().filter(|a| a.contains(':') == v6).collect();
    let one = |dice: &mut Dice| format!("{}/{}", pick(dice, &of_family), if v6 { 128 } else { 32 });
    let [all, range, part, foreign] = if v6 {
        ["::/0", "fd00:77::/48", "124", "2001:db8::/32"]
    } else {
        ["0.0.0.0/0", "10.32.0.0/12", "28", "192.0.2.0/24"]
    };
    match dice.below(5) {
        0 => json!({ "cidr": one(dice) }),
        1 => json!({ "cidr": all, "except": [one(dice), one(dice)] }),
        2 => json!({ "cidr": range }),
        3 => json!({ "cidr": format!("{own}/{part}"), "except": [one(dice)] }),
        _ => json!({ "cidr": foreign }),
    }
}

fn peer(dice: &mut Dice, addresses: &[String]) -> Value {
    match dice.below(4) {
        0 => json!({ "podSelector": pods(dice) }),
        1 => json!({ "namespaceSelector": spaces(dice) }),
        2 => json!({ "namespaceSelector": spaces(dice), "podSelector": pods(dice) }),
        _ => json!({ "ipBlock": block(dice, addresses) }),
    }
}

fn port(dice: &mut Dice) -> Value {
    let mut port = match dice.below(6) {
        0 => json!({}),
        1 => json!({ "port": 80 }),
        2 => json!({ "port": 81 }),
        3 => json!({ "port": 79, "endPort": 80 + dice.below(2) }),
        4 => json!({ "port": "web" }),
        _ => {
            json!({ "port": pick(dice, &["serve-80-tcp", "serve-81-udp", "serve-81-sctp", "no"]) })
        }
    };
    match port["port"].as_str() {
        // A name is looked for with its protocol.
        Some(name) if name.starts_with("serve") => {
            let protocol = name.rsplit('-').next().unwrap_or_default().to_uppercase();
            port["protocol"] = json!(protocol);
        }
        _ if one_in(dice, 3) => {}
        _ => port["protocol"] = json!(pick(dice, &["TCP", "UDP", "SCTP"])),
    }
    port
}

fn list(dice: &mut Dice, most: usize, mut item: impl FnMut(&mut Dice) -> Value) -> Value {
    (0..=dice.below(most)).map(|_| item(dice)).collect()
}

fn rules(dice: &mut Dice, side: &str, addresses: &[String]) -> Value {
    if one_in(dice, 5) {
        return json!([]);
    }
    list(dice, 2, |dice| {
        let mut rule = json!({});
        if !one_in(dice, 4) {
            rule[side] = list(dice, 2, |dice| peer(dice, addresses));
        }
        if !one_in(dice, 3) {
            rule["ports"] = list(dice, 2, port);
        }
        rule
    })
}

/// A NetworkPolicy in one of the three namespaces.
pub(crate) fn network_policy(dice: &mut Dice, name: &str, addresses: &[String]) -> Value {
    let mut spec = json!({ "podSelector": pods(dice) });
    match dice.below(4) {
        0 => {}
        1 => spec["policyTypes"] = json!(["Ingress"]),
        2 => spec["policyTypes"] = json!(["Egress"]),
        _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
    }
    if !one_in(dice, 4) {
        spec["ingress"] = rules(dice, "from", addresses);
    }
    if !one_in(dice, 3) {
        spec["egress"] = rules(dice, "to", addresses);
    }
    objects::network_policy(SPACES[dice.below(SPACES.len())], name, spec)
}

fn cluster_peer(dice: &mut Dice, egress: bool, addresses: &[String]) -> Value {
    let pods_of = |dice: &mut Dice| json!({ "pods": { "namespaceSelector": spaces(dice), "podSelector": pods(dice) } });
    match dice.below(if egress { 4 } else { 2 }) {
        0 => json!({ "namespaces": spaces(dice) }),
        1 => pods_of(dice),
        2 => {
            let own = pick(dice, addresses);
            let length = if own.contains(':') { 128 } else { 32 };
            json!({ "networks": [format!("{own}/{length}"), "192.0.2.0/24"] })
        }
        _ => json!({ "nodes": { "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "Exists" }] } }),
    }
}

/// Names belong to pods: they are not taken together with blocks and nodes.
fn cluster_port(dice: &mut Dice, named: bool) -> Value {
    let protocol = *pick(dice, &["tcp", "udp", "sctp"]);
    match dice.below(4) {
        0 if named => json!({ "destinationNamedPort": "web" }),
        1 => json!({ protocol: { "destinationPort": { "range": { "start": 79, "end": 80 } } } }),
        _ => json!({ protocol: { "destinationPort": { "number": 80 + dice.below(2) } } }),
    }
}

fn cluster_rules(dice: &mut Dice, side: &str, tier: &str, addresses: &[String]) -> Value {
    list(dice, 2, |dice| {
        let actions: &[&str] =
            if tier == "Admin" { &["Accept", "Deny", "Pass"] } else { &["Accept", "Deny"] };
        let mut rule = json!({ "action": pick(dice, actions) });
        rule[side] = list(dice, 2, |dice| cluster_peer(dice, side == "to", addresses));
        if !one_in(dice, 2) {
            let peers = rule[side].as_array().map_or(&[][..], Vec::as_slice);
            let pods = peers.iter().all(|p| p["networks"].is_null() && p["nodes"].is_null());
            rule["protocols"] = list(dice, 2, |dice| cluster_port(dice, pods));
        }
        rule
    })
}

/// A ClusterNetworkPolicy.
pub(crate) fn cluster_policy(dice: &mut Dice, name: &str, addresses: &[String]) -> Value {
    let tier = *pick(dice, &["Admin", "Baseline"]);
    let subject = if one_in(dice, 2) {
        json!({ "namespaces": spaces(dice) })
    } else {
        json!({ "pods": { "namespaceSelector": spaces(dice), "podSelector": pods(dice) } })
    };
    let mut spec = json!({ "tier": tier, "priority": dice.below(5), "subject": subject });
    if !one_in(dice, 3) {
        spec["ingress"] = cluster_rules(dice, "from", tier, addresses);
    }
    if !one_in(dice, 3) {
        spec["egress"] = cluster_rules(dice, "to", tier, addresses);
    }
    objects::cluster_network_policy(name, spec)
}

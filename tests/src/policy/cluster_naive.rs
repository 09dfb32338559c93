//! ClusterNetworkPolicy, read word by word.

use std::net::IpAddr;

use serde_json::Value;

use super::naive::{Connection, Way, has_port, in_block, items, pod_at, selects, space_of};
use super::objects::Objects;

/// What a tier decides, if it decides: the lowest priority first, then the name.
pub(super) fn tier(
    objects: &Objects,
    connection: Connection<'_>,
    way: Way,
    pod: &Value,
    tier: &str,
) -> Option<bool> {
    let mut policies: Vec<&Value> = objects
        .cluster_policies
        .iter()
        .filter(|policy| policy["spec"]["tier"] == tier)
        .filter(|policy| is_subject(objects, &policy["spec"]["subject"], pod))
        .collect();
    policies.sort_by_key(|policy| {
        let name = policy["metadata"]["name"].as_str().unwrap_or_default();
        (policy["spec"]["priority"].as_i64(), name.to_owned())
    });
    for policy in policies {
        for rule in items(&policy["spec"][way.rules()]) {
            match decide(objects, rule, connection, way, pod) {
                Some("Accept") => return Some(true),
                Some("Deny") => return Some(false),
                Some(_) => return None,
                None => {}
            }
        }
    }
    None
}

fn is_subject(objects: &Objects, subject: &Value, pod: &Value) -> bool {
    if subject["pods"].is_null() {
        space_of(objects, pod).is_some_and(|s| selects(&subject["namespaces"], s) == Some(true))
    } else {
        namespaced(objects, &subject["pods"], pod) == Some(true)
    }
}

fn namespaced(objects: &Objects, peer: &Value, pod: &Value) -> Option<bool> {
    let space = match space_of(objects, pod) {
        Some(space) => selects(&peer["namespaceSelector"], space)?,
        None => false,
    };
    Some(selects(&peer["podSelector"], pod)? && space)
}

/// The action, if the rule applies.
fn decide<'a>(
    objects: &Objects,
    rule: &'a Value,
    connection: Connection<'_>,
    way: Way,
    subject: &Value,
) -> Option<&'a str> {
    let action = rule["action"].as_str().unwrap_or("Deny");
    let address = if way == Way::Ingress { connection.from } else { connection.to };
    let named_on = if way == Way::Ingress { Some(subject) } else { pod_at(objects, connection.to) };
    let (peers, protocols) = (items(&rule[way.peers()]), items(&rule["protocols"]));
    // Of an Accept, what makes no sense matches nothing; other rules then deny.
    let accept = action == "Accept";
    if !accept && (peers.is_empty() || !peers.iter().all(is_sane_peer)) {
        return Some("Deny");
    }
    if !peers.iter().any(|peer| is_peer(objects, peer, address)) {
        return None;
    }
    if protocols.is_empty() {
        return Some(action);
    }
    if !accept && !protocols.iter().all(is_sane_protocol) {
        return Some("Deny");
    }
    protocols.iter().any(|one| is_protocol(one, connection, named_on)).then_some(action)
}

/// Makes sense by itself, whatever it is compared with.
fn is_sane_peer(peer: &Value) -> bool {
    let sane = |selector: &Value| selects(selector, &Value::Null).is_some();
    let any: IpAddr = IpAddr::from([0; 4]);
    let kinds = ["namespaces", "pods", "nodes", "networks"];
    let [kind] = kinds.into_iter().filter(|kind| !peer[*kind].is_null()).collect::<Vec<_>>()[..]
    else {
        return false;
    };
    let peer = &peer[kind];
    match kind {
        "pods" => sane(&peer["namespaceSelector"]) && sane(&peer["podSelector"]),
        "networks" => items(peer).iter().all(|block| in_block(block, any).is_some()),
        _ => sane(peer),
    }
}

fn is_peer(objects: &Objects, peer: &Value, address: IpAddr) -> bool {
    if !is_sane_peer(peer) {
        return false;
    }
    let pod = pod_at(objects, address);
    let space = pod.and_then(|pod| space_of(objects, pod));
    let text = address.to_string();
    let on_node = |node: &&Value| {
        items(&node["status"]["addresses"]).iter().any(|one| one["address"] == *text)
    };
    if !peer["networks"].is_null() {
        items(&peer["networks"]).iter().any(|block| in_block(block, address) == Some(true))
    } else if !peer["nodes"].is_null() {
        let mut nodes = objects.nodes.iter().filter(on_node);
        nodes.any(|node| selects(&peer["nodes"], node) == Some(true))
    } else if !peer["namespaces"].is_null() {
        space.is_some_and(|space| selects(&peer["namespaces"], space) == Some(true))
    } else {
        pod.is_some_and(|pod| namespaced(objects, &peer["pods"], pod) == Some(true))
    }
}

/// Protocol, first and last port; `None` if it makes no sense.
fn range(entry: &Value) -> Option<(&'static str, u64, u64)> {
    let (key, protocol) = [("tcp", "TCP"), ("udp", "UDP"), ("sctp", "SCTP")]
        .into_iter()
        .find(|(key, _)| !entry[*key].is_null())?;
    let port = &entry[key]["destinationPort"];
    let first = port["number"].as_u64().or(port["range"]["start"].as_u64())?;
    let last = port["number"].as_u64().or(port["range"]["end"].as_u64())?;
    (1 <= first && first <= last && last <= 65535).then_some((protocol, first, last))
}

fn is_sane_protocol(entry: &Value) -> bool {
    entry["destinationNamedPort"].is_string() || range(entry).is_some()
}

fn is_protocol(entry: &Value, connection: Connection<'_>, named_on: Option<&Value>) -> bool {
    if let Some(name) = entry["destinationNamedPort"].as_str() {
        return named_on.is_some_and(|pod| has_port(pod, name, None, connection));
    }
    range(entry).is_some_and(|(protocol, first, last)| {
        protocol == connection.protocol && (first..=last).contains(&u64::from(connection.port))
    })
}

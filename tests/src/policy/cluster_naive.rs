//! ClusterNetworkPolicy, read word by word.

use std::net::IpAddr;

use serde_json::Value;

use super::naive::{
    Connection, Way, has_port, in_block, items, pod_at, selects, space_of,
};
use super::objects::Objects;

/// What is matched, or that it cannot be told.
enum Match {
    Yes,
    No,
    /// A part makes no sense, and no other part matches.
    Unclear,
}

fn any(all: impl Iterator<Item = Match>) -> Match {
    let (mut yes, mut unclear) = (false, false);
    for one in all {
        match one {
            Match::Yes => yes = true,
            Match::No => {}
            Match::Unclear => unclear = true,
        }
    }
    match (unclear, yes) {
        (true, _) => Match::Unclear,
        (false, true) => Match::Yes,
        (false, false) => Match::No,
    }
}

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
    let accept = action == "Accept";
    let address = if way == Way::Ingress { connection.from } else { connection.to };
    let named_on =
        if way == Way::Ingress { Some(subject) } else { pod_at(objects, connection.to) };
    let peers = items(&rule[way.peers()]);
    let peer = if accept {
        // Parts that make no sense match nothing; the others stand.
        let yes = |one| matches!(is_peer(objects, one, address), Match::Yes);
        if peers.iter().any(yes) { Match::Yes } else { Match::No }
    } else {
        any(peers.iter().map(|one| is_peer(objects, one, address)))
    };
    match peer {
        Match::No => return None,
        Match::Unclear => return Some("Deny"),
        Match::Yes => {}
    }
    let protocols = items(&rule["protocols"]);
    if protocols.is_empty() {
        return Some(action);
    }
    let port = if accept {
        let yes = |one| matches!(is_port(one, connection, named_on), Match::Yes);
        if protocols.iter().any(yes) { Match::Yes } else { Match::No }
    } else {
        any(protocols.iter().map(|one| is_port(one, connection, named_on)))
    };
    match port {
        Match::Yes => Some(action),
        Match::No => None,
        Match::Unclear => Some("Deny"),
    }
}

fn of(answer: Option<bool>) -> Match {
    match answer {
        Some(true) => Match::Yes,
        Some(false) => Match::No,
        None => Match::Unclear,
    }
}

fn is_peer(objects: &Objects, peer: &Value, address: IpAddr) -> Match {
    let pod = pod_at(objects, address);
    if let Some(networks) = peer["networks"].as_array() {
        return any(networks.iter().map(|block| of(in_block(block, address))));
    }
    if !peer["nodes"].is_null() {
        let text = address.to_string();
        return any(objects.nodes.iter().map(|node| {
            let has = items(&node["status"]["addresses"]).iter().any(|a| a["address"] == *text);
            of(selects(&peer["nodes"], node).map(|selected| selected && has))
        }));
    }
    if !peer["namespaces"].is_null() {
        let space = pod.and_then(|pod| space_of(objects, pod));
        return of(space.map_or(Some(false), |space| selects(&peer["namespaces"], space)));
    }
    if !peer["pods"].is_null() {
        return of(pod.map_or(Some(false), |pod| namespaced(objects, &peer["pods"], pod)));
    }
    Match::Unclear
}

fn is_port(entry: &Value, connection: Connection<'_>, named_on: Option<&Value>) -> Match {
    if let Some(name) = entry["destinationNamedPort"].as_str() {
        let has = named_on.is_some_and(|pod| has_port(pod, name, None, connection));
        return if has { Match::Yes } else { Match::No };
    }
    let mut answer = Match::Unclear;
    for (key, protocol) in [("tcp", "TCP"), ("udp", "UDP"), ("sctp", "SCTP")] {
        let port = &entry[key]["destinationPort"];
        if port.is_null() {
            continue;
        }
        let first = port["number"].as_u64().or(port["range"]["start"].as_u64());
        let last = port["number"].as_u64().or(port["range"]["end"].as_u64());
        answer = match (first, last) {
            (Some(first), Some(last)) if first >= 1 && first <= last && last <= 65535 => {
                let inside = (first..=last).contains(&u64::from(connection.port));
                if inside && protocol == connection.protocol { Match::Yes } else { Match::No }
            }
            _ => Match::Unclear,
        };
    }
    answer
}

//! The API, read word by word: no index, no merging, nothing shared with the agent.
//!
//! For each connection every policy is looked at. What a policy says that cannot be
//! understood counts as nothing where it would allow, and as everything where it
//! would deny.

use std::net::IpAddr;

use serde_json::Value;

use super::cluster_naive;
use super::objects::Objects;

/// A connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'a str,
    /// Destination port.
    pub port: u16,
}

/// Which half of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Reaching the destination.
    Ingress,
    /// Leaving the source.
    Egress,
}

impl Way {
    pub(super) fn rules(self) -> &'static str {
        if self == Self::Ingress { "ingress" } else { "egress" }
    }

    pub(super) fn peers(self) -> &'static str {
        if self == Self::Ingress { "from" } else { "to" }
    }
}

/// True if all policies together allow it.
pub fn allowed(objects: &Objects, connection: Connection<'_>) -> bool {
    half(objects, connection, Way::Egress) && half(objects, connection, Way::Ingress)
}

/// True if one half allows it.
pub fn half(objects: &Objects, connection: Connection<'_>, way: Way) -> bool {
    if connection.from == connection.to {
        return true;
    }
    let subject = if way == Way::Ingress { connection.to } else { connection.from };
    let Some(pod) = pod_at(objects, subject) else { return true };
    if let Some(answer) = cluster_naive::tier(objects, connection, way, pod, "Admin") {
        return answer;
    }
    let mut isolated = false;
    for policy in &objects.policies {
        let spec = &policy["spec"];
        if namespace(policy) != namespace(pod) || !isolates(spec, way) {
            continue;
        }
        let Some(selected) = selects(&spec["podSelector"], pod) else {
            isolated = true;
            continue;
        };
        if !selected {
            continue;
        }
        isolated = true;
        for rule in items(&spec[way.rules()]) {
            if rule_matches(objects, policy, rule, connection, way, pod) {
                return true;
            }
        }
    }
    if isolated {
        return false;
    }
    cluster_naive::tier(objects, connection, way, pod, "Baseline").unwrap_or(true)
}

fn isolates(spec: &Value, way: Way) -> bool {
    let types = items(&spec["policyTypes"]);
    if types.is_empty() {
        return way == Way::Ingress || !items(&spec["egress"]).is_empty();
    }
    if types.iter().any(|one| one != "Ingress" && one != "Egress") {
        return true;
    }
    types.iter().any(|one| one == if way == Way::Ingress { "Ingress" } else { "Egress" })
}

fn rule_matches(
    objects: &Objects,
    policy: &Value,
    rule: &Value,
    connection: Connection<'_>,
    way: Way,
    subject: &Value,
) -> bool {
    let peer = if way == Way::Ingress { connection.from } else { connection.to };
    let peers = items(&rule[way.peers()]);
    let ports = items(&rule["ports"]);
    // Names are those of the destination pod.
    let named_on = if way == Way::Ingress { Some(subject) } else { pod_at(objects, connection.to) };
    (peers.is_empty() || peers.iter().any(|one| peer_matches(objects, policy, one, peer)))
        && (ports.is_empty() || ports.iter().any(|one| port_matches(one, connection, named_on)))
}

fn peer_matches(objects: &Objects, policy: &Value, peer: &Value, address: IpAddr) -> bool {
    let block = &peer["ipBlock"];
    let (pods, spaces) = (&peer["podSelector"], &peer["namespaceSelector"]);
    if !block.is_null() {
        if !pods.is_null() || !spaces.is_null() {
            return false;
        }
        let except = items(&block["except"]);
        return in_block(&block["cidr"], address) == Some(true)
            && except.iter().all(|block| in_block(block, address) == Some(false));
    }
    if pods.is_null() && spaces.is_null() {
        return false;
    }
    let Some(pod) = pod_at(objects, address) else { return false };
    let in_space = if spaces.is_null() {
        Some(namespace(policy) == namespace(pod))
    } else {
        space_of(objects, pod).map_or(Some(false), |space| selects(spaces, space))
    };
    in_space == Some(true) && selects(pods, pod) == Some(true)
}

fn port_matches(entry: &Value, connection: Connection<'_>, named_on: Option<&Value>) -> bool {
    let protocol = entry["protocol"].as_str().unwrap_or("TCP");
    if protocol != connection.protocol {
        return false;
    }
    let end = &entry["endPort"];
    match &entry["port"] {
        Value::Null => end.is_null(),
        Value::String(name) => {
            end.is_null()
                && named_on.is_some_and(|pod| has_port(pod, name, Some(protocol), connection))
        }
        number => {
            let first = number.as_u64().unwrap_or(0);
            let last = if end.is_null() { first } else { end.as_u64().unwrap_or(0) };
            let port = u64::from(connection.port);
            first >= 1 && last <= 65535 && (first..=last).contains(&port)
        }
    }
}

/// True if one of the pod's containers has the port of this name.
pub(super) fn has_port(
    pod: &Value,
    name: &str,
    protocol: Option<&str>,
    connection: Connection<'_>,
) -> bool {
    let containers = ["containers", "initContainers"];
    containers.iter().flat_map(|list| items(&pod["spec"][*list])).any(|container| {
        items(&container["ports"]).iter().any(|port| {
            let of = port["protocol"].as_str().unwrap_or("TCP");
            port["name"] == *name
                && !name.is_empty()
                && protocol.is_none_or(|wanted| wanted == of)
                && of == connection.protocol
                && port["containerPort"].as_u64() == Some(u64::from(connection.port))
        })
    })
}

/// The pod that an address belongs to. Of several, the newest that is not going.
pub(super) fn pod_at(objects: &Objects, address: IpAddr) -> Option<&Value> {
    let text = address.to_string();
    let mut found: Option<&Value> = None;
    for pod in &objects.pods {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let finished = status["phase"] == "Succeeded" || status["phase"] == "Failed";
        let has = status["podIP"] == *text
            || items(&status["podIPs"]).iter().any(|one| one["ip"] == *text);
        if spec["hostNetwork"] == true || finished || !has {
            continue;
        }
        let rank = |pod: &Value| {
            let meta = &pod["metadata"];
            let created = meta["creationTimestamp"].as_str().unwrap_or_default().to_owned();
            (meta["deletionTimestamp"].is_null(), created)
        };
        if found.is_none_or(|other| rank(pod) > rank(other)) {
            found = Some(pod);
        }
    }
    found
}

/// The namespace object of a pod.
pub(super) fn space_of<'a>(objects: &'a Objects, pod: &Value) -> Option<&'a Value> {
    objects.namespaces.iter().find(|space| space["metadata"]["name"] == namespace(pod))
}

pub(super) fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

/// A list, empty if absent.
pub(super) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Does a label selector match an object? `None` if the selector makes no sense.
pub(super) fn selects(selector: &Value, object: &Value) -> Option<bool> {
    let labels = &object["metadata"]["labels"];
    let mut all = true;
    if let Some(wanted) = selector["matchLabels"].as_object() {
        all &= wanted.iter().all(|(key, value)| labels[key.as_str()] == *value);
    }
    for expression in items(&selector["matchExpressions"]) {
        let label = &labels[expression["key"].as_str()?];
        let values = items(&expression["values"]);
        let listed = !label.is_null() && values.contains(label);
        all &= match (expression["operator"].as_str()?, values.is_empty()) {
            ("In", false) => listed,
            ("NotIn", false) => !listed,
            ("Exists", true) => !label.is_null(),
            ("DoesNotExist", true) => label.is_null(),
            _ => return None,
        };
    }
    Some(all)
}

/// Is the address in the block? `None` if it is no block.
pub(super) fn in_block(block: &Value, address: IpAddr) -> Option<bool> {
    let (net, length) = block.as_str()?.split_once('/')?;
    let (net, length): (IpAddr, u32) = (net.parse().ok()?, length.parse().ok()?);
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32_u32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((net, width), (address, other)) = (bits(net), bits(address));
    if length > width {
        return None;
    }
    let rest = width - length;
    Some(width == other && net.checked_shr(rest) == address.checked_shr(rest))
}

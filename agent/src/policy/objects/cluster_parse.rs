//! Reading a ClusterNetworkPolicy. The API's own rule for what an implementation does
//! not understand: an Accept then matches nothing; a Deny or Pass denies everything
//! that the part could have meant.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::cluster::{ClusterPolicy, ClusterRule, Tier};
use super::json::Meta;
use super::network::{Namespaces, Peer, Port};
use super::problem::{PolicyKind, PolicyRef};
use super::reader::{Fields, Read, Reader};
use crate::policy::selector::Selector;
use crate::policy::state::{Action, Protocol};

impl<'de> Deserialize<'de> for ClusterPolicy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(from)?;
        let meta = Meta::of(&object).map_err(de::Error::custom)?;
        let id = PolicyRef {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: "".into(),
            name: meta.name::<D::Error>("ClusterNetworkPolicy")?.into(),
            uid: meta.uid.unwrap_or_default().into(),
        };
        let mut reader = Reader::new(id.clone());
        let nothing = Value::Object(serde_json::Map::new());
        let spec = object.get("spec").filter(|spec| !spec.is_null()).unwrap_or(&nothing);
        let mut policy = Self {
            id,
            tier: Tier::Admin,
            priority: 0,
            namespaces: Selector::all(),
            pods: Selector::all(),
            ingress: Vec::new(),
            egress: Vec::new(),
            problems: Vec::new(),
        };
        if let Ok(fields) = reader.object(spec, "spec") {
            read(&mut reader, &fields, &mut policy);
        }
        policy.problems = reader.finish();
        Ok(policy)
    }
}

fn read(reader: &mut Reader, fields: &Fields<'_>, policy: &mut ClusterPolicy) {
    for name in fields.names() {
        if !["tier", "priority", "subject", "ingress", "egress"].contains(&name) {
            reader.note(
                &format!("spec.{name}"),
                "this field is not known; the others are enforced",
                "remove it, or use a weft that knows it",
            );
        }
    }
    let mut only_deny = false;
    match tier(reader, fields.get("tier")) {
        Ok(tier) => policy.tier = tier,
        Err(_) => only_deny = true,
    }
    match priority(reader, fields.get("priority")) {
        Ok(priority) => policy.priority = priority,
        Err(_) => only_deny = true,
    }
    match subject(reader, fields.get("subject")) {
        Ok((namespaces, pods)) => (policy.namespaces, policy.pods) = (namespaces, pods),
        Err(_) => only_deny = true,
    }
    policy.ingress = rules(reader, fields.get("ingress"), "spec.ingress", "from");
    policy.egress = rules(reader, fields.get("egress"), "spec.egress", "to");
    if only_deny {
        reader.note(
            "spec",
            "it cannot be told where this policy applies: its Deny rules do first and for the \
             widest meaning, the others not at all",
            "correct the fields named",
        );
        policy.ingress.retain(|rule| rule.action == Action::Deny);
        policy.egress.retain(|rule| rule.action == Action::Deny);
    }
}

fn tier(reader: &mut Reader, value: Option<&Value>) -> Read<Tier> {
    match value.and_then(Value::as_str) {
        Some("Admin") => Ok(Tier::Admin),
        Some("Baseline") => Ok(Tier::Baseline),
        _ => reader.bad("spec.tier", "this is no tier", "use Admin or Baseline"),
    }
}

fn priority(reader: &mut Reader, value: Option<&Value>) -> Read<i32> {
    match value.and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok()) {
        Some(priority) if (0..=1000).contains(&priority) => Ok(priority),
        _ => reader.bad("spec.priority", "this is no priority", "write a number from 0 to 1000"),
    }
}

fn subject(reader: &mut Reader, value: Option<&Value>) -> Read<(Selector, Selector)> {
    let value = value.unwrap_or(&Value::Null);
    let fields = reader.fields(value, "spec.subject", &["namespaces", "pods"])?;
    match (fields.get("namespaces"), fields.get("pods")) {
        (Some(spaces), None) => {
            let spaces = reader.selector(Some(spaces), "spec.subject.namespaces")?;
            Ok((spaces, Selector::all()))
        }
        (None, Some(pods)) => namespaced(reader, pods, "spec.subject.pods"),
        _ => reader.bad("spec.subject", "not exactly one kind", "write `namespaces` or `pods`"),
    }
}

fn namespaced(reader: &mut Reader, value: &Value, field: &str) -> Read<(Selector, Selector)> {
    let fields = reader.fields(value, field, &["namespaceSelector", "podSelector"])?;
    let spaces =
        reader.selector(fields.get("namespaceSelector"), &format!("{field}.namespaceSelector"))?;
    let pods = reader.selector(fields.get("podSelector"), &format!("{field}.podSelector"))?;
    Ok((spaces, pods))
}

fn rules(reader: &mut Reader, value: Option<&Value>, field: &str, list: &str) -> Vec<ClusterRule> {
    let Ok(listed) = reader.list(value, field) else {
        // Rules were meant, and none can be read.
        return vec![deny_all(0)];
    };
    let read = |(index, value): (usize, &Value)| {
        rule(reader, value, &format!("{field}[{index}]"), list, index)
    };
    listed.iter().enumerate().filter_map(read).collect()
}

fn deny_all(index: usize) -> ClusterRule {
    ClusterRule { index, name: None, action: Action::Deny, peers: None, ports: None }
}

/// A rule; `None` if it can match nothing.
fn rule(
    reader: &mut Reader,
    value: &Value,
    field: &str,
    list: &str,
    index: usize,
) -> Option<ClusterRule> {
    let Ok(fields) = reader.object(value, field) else { return Some(deny_all(index)) };
    let mut understood = true;
    for name in fields.names() {
        if !["name", "action", list, "protocols"].contains(&name) {
            understood = false;
            reader.note(
                &format!("{field}.{name}"),
                "this field is not known: an Accept matches nothing, another rule denies all",
                "remove it, or use a weft that knows it",
            );
        }
    }
    let action = match fields.get("action").and_then(Value::as_str) {
        Some("Accept") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        _ => {
            reader.note(
                &format!("{field}.action"),
                "this is no action: the rule denies",
                "use Accept, Deny or Pass",
            );
            Action::Deny
        }
    };
    let name = fields.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let mut rule =
        ClusterRule { index, name: name.map(Into::into), action, peers: None, ports: None };
    let peers =
        all(reader, fields.get(list), &format!("{field}.{list}"), |reader, value, field| {
            peer(reader, value, field, list == "to")
        });
    if peers.good.is_empty() && peers.bad == 0 {
        reader.note(
            &format!("{field}.{list}"),
            "no peers: an Accept matches nothing, another rule denies all",
            "list at least one peer",
        );
    }
    let understood_peers = understood && peers.bad == 0 && !peers.good.is_empty();
    let to_nodes = peers.good.iter().flatten().any(|peer| matches!(peer, Peer::Nodes(_)));
    rule.peers = Some(peers.good.into_iter().flatten().collect());
    let protocols = fields.get("protocols");
    let ports = all(reader, protocols, &format!("{field}.protocols"), protocol);
    let mut understood_ports = ports.bad == 0 && (protocols.is_none() || !ports.good.is_empty());
    if to_nodes && ports.good.iter().any(|port| matches!(port, Port::Named(..))) {
        understood_ports = false;
        reader.note(
            &format!("{field}.protocols"),
            "nodes have no named ports",
            "write the port's number, or a rule of its own for the nodes",
        );
    }
    if protocols.is_some() {
        rule.ports = Some(ports.good);
    }
    match (understood_peers, understood_ports, action) {
        (true, true, _) => {}
        // What is left of an Accept is understood, and allows no more than was meant.
        (_, _, Action::Accept) if !understood || rule.peers.as_ref().is_none_or(Vec::is_empty) => {
            return None;
        }
        (_, _, Action::Accept) => {}
        (false, _, _) => {
            return Some(ClusterRule { name: rule.name, ..deny_all(index) });
        }
        (true, false, _) => {
            rule.action = Action::Deny;
            rule.ports = None;
        }
    }
    Some(rule)
}

/// What of a list can be understood, and how much cannot.
struct All<T> {
    good: Vec<T>,
    bad: usize,
}

fn all<T>(
    reader: &mut Reader,
    value: Option<&Value>,
    field: &str,
    read: impl Fn(&mut Reader, &Value, &str) -> Read<T>,
) -> All<T> {
    let mut all = All { good: Vec::new(), bad: 0 };
    let Ok(listed) = reader.list(value, field) else { return All { bad: 1, ..all } };
    for (i, value) in listed.iter().enumerate() {
        match read(reader, value, &format!("{field}[{i}]")) {
            Ok(good) => all.good.push(good),
            Err(_) => all.bad += 1,
        }
    }
    all
}

fn peer(reader: &mut Reader, value: &Value, field: &str, egress: bool) -> Read<Vec<Peer>> {
    let known: &[&str] = if egress {
        &["namespaces", "pods", "nodes", "networks", "domainNames"]
    } else {
        &["namespaces", "pods"]
    };
    let fields = reader.fields(value, field, known)?;
    let names = fields.names();
    let [name] = names[..] else {
        return reader.bad(
            field,
            "not exactly one kind of peer",
            "write one of namespaces, pods, nodes and networks",
        );
    };
    let value = fields.get(name).unwrap_or(&Value::Null);
    let field = format!("{field}.{name}");
    match name {
        "namespaces" => {
            let spaces = reader.selector(Some(value), &field)?;
            Ok(vec![Peer::Pods(Namespaces::Matching(spaces), Selector::all())])
        }
        "pods" => {
            let (spaces, pods) = namespaced(reader, value, &field)?;
            Ok(vec![Peer::Pods(Namespaces::Matching(spaces), pods)])
        }
        "nodes" => Ok(vec![Peer::Nodes(reader.selector(Some(value), &field)?)]),
        "networks" => {
            let listed = reader.list(Some(value), &field)?;
            let mut peers = Vec::with_capacity(listed.len());
            for (i, net) in listed.iter().enumerate() {
                let net = reader.block(net, &format!("{field}[{i}]"))?;
                peers.push(Peer::Block(net, Vec::new()));
            }
            Ok(peers)
        }
        _ => reader.bad(
            &field,
            "domain names are not supported: an Accept matches nothing by them",
            "write networks instead",
        ),
    }
}

fn protocol(reader: &mut Reader, value: &Value, field: &str) -> Read<Port> {
    let fields = reader.fields(value, field, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    let names = fields.names();
    let [name] = names[..] else {
        return reader.bad(
            field,
            "not exactly one protocol",
            "write one of tcp, udp, sctp and destinationNamedPort",
        );
    };
    let value = fields.get(name).unwrap_or(&Value::Null);
    let field = format!("{field}.{name}");
    let protocol = match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let port = reader.text(value, &field)?;
            return reader.port_name(None, port, &field);
        }
    };
    let fields = reader.fields(value, &field, &["destinationPort"])?;
    let Some(port) = fields.get("destinationPort") else {
        return reader.bad(&field, "nothing to match", "write destinationPort");
    };
    let field = format!("{field}.destinationPort");
    let fields = reader.fields(port, &field, &["number", "range"])?;
    match (fields.get("number"), fields.get("range")) {
        (Some(number), None) => {
            let port = reader.port_number(number, &format!("{field}.number"))?;
            Ok(Port::Range(protocol, port, port))
        }
        (None, Some(range)) => {
            let field = format!("{field}.range");
            let ends = reader.fields(range, &field, &["start", "end"])?;
            let mut end = |name: &str| {
                let value = ends.get(name).unwrap_or(&Value::Null);
                reader.port_number(value, &format!("{field}.{name}"))
            };
            let (first, last) = (end("start")?, end("end")?);
            if last < first {
                return reader.bad(&field, "end is before start", "write the lower port first");
            }
            Ok(Port::Range(protocol, first, last))
        }
        _ => reader.bad(&field, "not exactly one of number and range", "write one of them"),
    }
}

//! Reading a NetworkPolicy: what cannot be understood allows nothing.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::json::Meta;
use super::network::{Namespaces, NetworkPolicy, Peer, Port, Rule};
use super::problem::{PolicyKind, PolicyRef};
use super::reader::{Read, Reader};
use crate::policy::selector::Selector;

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(from)?;
        let meta = Meta::of(&object).map_err(de::Error::custom)?;
        let id = PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: meta.namespace().into(),
            name: meta.name::<D::Error>("NetworkPolicy")?.into(),
            uid: meta.uid.unwrap_or_default().into(),
        };
        let mut reader = Reader::new(id.clone());
        let nothing = Value::Object(serde_json::Map::new());
        let spec = object.get("spec").filter(|spec| !spec.is_null()).unwrap_or(&nothing);
        let (subject, ingress, egress) = read(&mut reader, spec);
        Ok(Self { id, subject, ingress, egress, problems: reader.finish() })
    }
}

type Parts = (Selector, Option<Vec<Rule>>, Option<Vec<Rule>>);

fn read(reader: &mut Reader, spec: &Value) -> Parts {
    // Isolates everything in the namespace: what the policy meant to isolate is in there.
    let closed = || (Selector::all(), Some(Vec::new()), Some(Vec::new()));
    let Ok(fields) = reader.object(spec, "spec") else { return closed() };
    for name in fields.names() {
        if !["podSelector", "ingress", "egress", "policyTypes"].contains(&name) {
            reader.note(
                &format!("spec.{name}"),
                "this field is not known; the others are enforced",
                "remove it, or use a weft that knows it",
            );
        }
    }
    let has_egress = fields.get("egress").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    let (in_on, out_on) = types(reader, fields.get("policyTypes"), has_egress);
    let Ok(subject) = reader.selector(fields.get("podSelector"), "spec.podSelector") else {
        reader.note(
            "spec.podSelector",
            "it cannot be told which pods are meant: all of the namespace are isolated by this policy",
            "correct the selector",
        );
        return (Selector::all(), in_on.then(Vec::new), out_on.then(Vec::new));
    };
    let mut section = |on: bool, name: &str, list: &str| {
        on.then(|| rules(reader, fields.get(name), &format!("spec.{name}"), list))
    };
    let ingress = section(in_on, "ingress", "from");
    let egress = section(out_on, "egress", "to");
    (subject, ingress, egress)
}

/// Directions in which the subjects are isolated.
fn types(reader: &mut Reader, value: Option<&Value>, has_egress: bool) -> (bool, bool) {
    let Ok(listed) = reader.list(value, "spec.policyTypes") else { return (true, true) };
    let (mut ingress, mut egress, mut unknown) = (false, false, false);
    for (i, one) in listed.iter().enumerate() {
        match one.as_str() {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            _ => {
                unknown = true;
                reader.note(
                    &format!("spec.policyTypes[{i}]"),
                    format!("{one} is no policy type; both directions are isolated"),
                    "use Ingress or Egress",
                );
            }
        }
    }
    match (listed.is_empty(), unknown) {
        (_, true) => (true, true),
        (true, _) => (true, has_egress),
        _ => (ingress, egress),
    }
}

fn rules(reader: &mut Reader, value: Option<&Value>, field: &str, list: &str) -> Vec<Rule> {
    let Ok(listed) = reader.list(value, field) else { return Vec::new() };
    let mut rules = Vec::with_capacity(listed.len());
    for (index, value) in listed.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if let Ok((peers, ports)) = rule(reader, value, &field, list) {
            rules.push(Rule { index, peers, ports });
        }
    }
    rules
}

type PeersAndPorts = (Option<Vec<Peer>>, Option<Vec<Port>>);

fn rule(reader: &mut Reader, value: &Value, field: &str, list: &str) -> Read<PeersAndPorts> {
    let fields = reader.fields(value, field, &[list, "ports"])?;
    let peers = each(reader, fields.get(list), &format!("{field}.{list}"), peer)?;
    let ports = each(reader, fields.get("ports"), &format!("{field}.ports"), port)?;
    Ok((peers, ports))
}

/// What of a list can be understood; `None` if it is absent or empty, which means all.
fn each<T>(
    reader: &mut Reader,
    value: Option<&Value>,
    field: &str,
    read: impl Fn(&mut Reader, &Value, &str) -> Read<T>,
) -> Read<Option<Vec<T>>> {
    let listed = reader.list(value, field)?;
    if listed.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(listed.len());
    for (i, value) in listed.iter().enumerate() {
        out.extend(read(reader, value, &format!("{field}[{i}]")));
    }
    Ok(Some(out))
}

fn peer(reader: &mut Reader, value: &Value, field: &str) -> Read<Peer> {
    let fields = reader.fields(value, field, &["podSelector", "namespaceSelector", "ipBlock"])?;
    let (pods, spaces) = (fields.get("podSelector"), fields.get("namespaceSelector"));
    match (fields.get("ipBlock"), pods, spaces) {
        (Some(block), None, None) => ip_block(reader, block, &format!("{field}.ipBlock")),
        (Some(_), ..) => reader.bad(
            field,
            "ipBlock together with a selector: the peer matches nothing",
            "write two peers",
        ),
        (None, None, None) => reader.bad(
            field,
            "the peer is empty: it matches nothing",
            "write podSelector, namespaceSelector or ipBlock; `{}` as a selector means all",
        ),
        (None, ..) => {
            let pods = reader.selector(pods, &format!("{field}.podSelector"))?;
            let Some(spaces) = spaces else { return Ok(Peer::Pods(Namespaces::Own, pods)) };
            let spaces = reader.selector(Some(spaces), &format!("{field}.namespaceSelector"))?;
            Ok(Peer::Pods(Namespaces::Matching(spaces), pods))
        }
    }
}

fn ip_block(reader: &mut Reader, value: &Value, field: &str) -> Read<Peer> {
    let fields = reader.fields(value, field, &["cidr", "except"])?;
    let cidr = fields.get("cidr").unwrap_or(&Value::Null);
    let block = reader.block(cidr, &format!("{field}.cidr"))?;
    let mut except = Vec::new();
    for (i, value) in
        reader.list(fields.get("except"), &format!("{field}.except"))?.iter().enumerate()
    {
        let field = format!("{field}.except[{i}]");
        let net = reader.block(value, &field)?;
        if !block.contains(&net) {
            reader.note(
                &field,
                format!("{net} is not inside {block}; what they share is excepted"),
                "except only parts of cidr",
            );
        }
        except.push(net);
    }
    Ok(Peer::Block(block, except))
}

fn port(reader: &mut Reader, value: &Value, field: &str) -> Read<Port> {
    let fields = reader.fields(value, field, &["protocol", "port", "endPort"])?;
    let protocol = reader.protocol(fields.get("protocol"), &format!("{field}.protocol"))?;
    let end = fields.get("endPort");
    match fields.get("port") {
        None if end.is_some() => reader.bad(
            &format!("{field}.endPort"),
            "endPort without port: it matches nothing",
            "write the first port as `port`",
        ),
        None => Ok(Port::Range(protocol, 0, u16::MAX)),
        Some(Value::String(_)) if end.is_some() => reader.bad(
            &format!("{field}.endPort"),
            "endPort with a named port: it matches nothing",
            "write numbers, or leave endPort out",
        ),
        Some(Value::String(name)) => {
            reader.port_name(Some(protocol), name, &format!("{field}.port"))
        }
        Some(number) => {
            let first = reader.port_number(number, &format!("{field}.port"))?;
            let Some(end) = end else { return Ok(Port::Range(protocol, first, first)) };
            let last = reader.port_number(end, &format!("{field}.endPort"))?;
            if last < first {
                return reader.bad(
                    &format!("{field}.endPort"),
                    format!("{last} is less than port {first}: it matches nothing"),
                    "write the higher one as endPort",
                );
            }
            Ok(Port::Range(protocol, first, last))
        }
    }
}

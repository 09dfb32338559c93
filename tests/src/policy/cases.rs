//! Every field of a NetworkPolicy, and every pair of fields, in one fixed world.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::objects::{Objects, Plan, pod};

/// A policy and a name that tells what it tries.
#[derive(Debug, Clone)]
pub struct Case {
    /// Values of the fields it tries.
    pub name: String,
    /// A NetworkPolicy in namespace `x`.
    pub policy: Value,
}

/// The world of [`cases`]: of three namespaces of three pods, pods have `app` =
/// `web`, `db`, `job`, namespaces `team` = `red`, `blue`, none. Port `web` is TCP 80 on
/// pods `a`, TCP 81 on pods `b`, UDP 80 on pods `c`.
pub(super) fn case_world(plan: &Plan) -> Objects {
    let mut objects = Objects::default();
    for (name, team) in [("x", Some("red")), ("y", Some("blue")), ("z", None)] {
        let mut labels = BTreeMap::from([("kubernetes.io/metadata.name", name)]);
        labels.extend(team.map(|team| ("team", team)));
        objects.namespaces.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        }));
    }
    for (uid, plan) in (1_u64..).zip(&plan.pods) {
        let (app, port) = match plan.name.as_str() {
            "a" => ("web", json!({ "name": "web", "containerPort": 80 })),
            "b" => ("db", json!({ "name": "web", "containerPort": 81, "protocol": "TCP" })),
            _ => ("job", json!({ "name": "web", "containerPort": 80, "protocol": "UDP" })),
        };
        let mut labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        if plan.namespace == "x" {
            labels.insert("tier".to_owned(), "front".to_owned());
        }
        let mut pod = pod(plan, &format!("uid-{uid}"), uid, &labels);
        pod["spec"]["containers"] = json!([{ "name": "main", "ports": [port] }]);
        objects.pods.push(pod);
    }
    objects
}

/// One field's values: a short name, and what is written.
type Values = Vec<(&'static str, Value)>;

fn subjects() -> Values {
    let with = |operator: &str, values: Value| {
        let mut one = json!({ "key": "app", "operator": operator });
        if !values.is_null() {
            one["values"] = values;
        }
        json!({ "matchExpressions": [one] })
    };
    vec![
        ("all", json!({})),
        ("label", json!({ "matchLabels": { "app": "web" } })),
        ("in", with("In", json!(["web", "db"]))),
        ("not-in", with("NotIn", json!(["web"]))),
        ("exists", with("Exists", Value::Null)),
        ("absent", with("DoesNotExist", Value::Null)),
        (
            "both",
            json!({
                "matchLabels": { "tier": "front" },
                "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["job"] }],
            }),
        ),
        ("nobody", json!({ "matchLabels": { "app": "nothing" } })),
    ]
}

fn types() -> Values {
    vec![
        ("ingress+egress", json!(["Ingress", "Egress"])),
        ("absent", Value::Null),
        ("empty", json!([])),
        ("ingress", json!(["Ingress"])),
        ("egress", json!(["Egress"])),
    ]
}

fn peers(plan: &Plan) -> Values {
    let mut all = vec![("everybody", Value::Null), ("empty-list", json!([]))];
    for (name, selector) in subjects() {
        all.push((name, json!([{ "podSelector": selector }])));
    }
    all.extend([
        ("any-namespace", json!([{ "namespaceSelector": {} }])),
        ("namespace", json!([{ "namespaceSelector": { "matchLabels": { "team": "red" } } }])),
        (
            "namespace-without",
            json!([{ "namespaceSelector": {
            "matchExpressions": [{ "key": "team", "operator": "DoesNotExist" }] } }]),
        ),
        (
            "namespace-and-pod",
            json!([{
            "namespaceSelector": { "matchLabels": { "team": "blue" } },
            "podSelector": { "matchLabels": { "app": "db" } } }]),
        ),
        (
            "namespace-or-pod",
            json!([
            { "namespaceSelector": { "matchLabels": { "team": "blue" } } },
            { "podSelector": { "matchLabels": { "app": "db" } } }]),
        ),
        (
            "namespace-by-name",
            json!([{ "namespaceSelector": {
            "matchLabels": { "kubernetes.io/metadata.name": "z" } } }]),
        ),
    ]);
    for (i, address) in plan.pods.iter().flat_map(|pod| &pod.addresses).enumerate().step_by(5) {
        let (wide, whole) = if address.is_ipv4() { (24, "0.0.0.0/0") } else { (120, "::/0") };
        let one = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
        let net = format!("{address}/{wide}");
        all.push(match i % 3 {
            0 => ("block", json!([{ "ipBlock": { "cidr": net } }])),
            1 => ("block-except", json!([{ "ipBlock": { "cidr": net, "except": [one] } }])),
            _ => ("all-except", json!([{ "ipBlock": { "cidr": whole, "except": [net, one] } }])),
        });
        if i == 0 {
            all.push(("one", json!([{ "ipBlock": { "cidr": one } }])));
            let many: Vec<Value> = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]
                .iter()
                .map(|half| json!({ "ipBlock": { "cidr": half } }))
                .collect();
            all.push(("halves", json!(many)));
            all.push(("whole-but-one", json!([{ "ipBlock": { "cidr": whole, "except": [one] } }])));
        }
    }
    all
}

fn ports() -> Values {
    let mut all = vec![("all", Value::Null), ("empty-list", json!([]))];
    all.extend([
        ("tcp-80", json!([{ "port": 80 }])),
        ("tcp-81", json!([{ "protocol": "TCP", "port": 81 }])),
        ("udp-80", json!([{ "protocol": "UDP", "port": 80 }])),
        ("sctp-81", json!([{ "protocol": "SCTP", "port": 81 }])),
        ("udp", json!([{ "protocol": "UDP" }])),
        ("no-protocol", json!([{}])),
        ("range", json!([{ "port": 80, "endPort": 81 }])),
        ("range-before", json!([{ "port": 1, "endPort": 80 }])),
        ("range-after", json!([{ "protocol": "UDP", "port": 81, "endPort": 65535 }])),
        ("named", json!([{ "port": "web" }])),
        ("named-udp", json!([{ "protocol": "UDP", "port": "web" }])),
        ("named-nowhere", json!([{ "port": "nothing" }])),
        ("named-and-number", json!([{ "port": "web" }, { "protocol": "SCTP", "port": 80 }])),
        ("two", json!([{ "port": 80 }, { "protocol": "UDP", "port": 81 }])),
    ]);
    all
}

/// Every value of every field, with every value of every other field, once: the rest of
/// the policy allows what the pair does not decide.
pub fn cases(plan: &Plan) -> (Objects, Vec<Case>) {
    let fields: [(&str, Values); 4] =
        [("subject", subjects()), ("types", types()), ("peers", peers(plan)), ("ports", ports())];
    let mut cases = Vec::new();
    for section in ["ingress", "egress"] {
        for one in 0..fields.len() {
            for other in one + 1..fields.len() {
                for (a, x) in &fields[one].1 {
                    for (b, y) in &fields[other].1 {
                        let mut of: BTreeMap<&str, &Value> = BTreeMap::new();
                        of.insert(fields[one].0, x);
                        of.insert(fields[other].0, y);
                        cases.push(Case {
                            name: format!(
                                "{section} {}={a} {}={b}",
                                fields[one].0, fields[other].0
                            ),
                            policy: policy(section, &of),
                        });
                    }
                }
            }
        }
    }
    (case_world(plan), cases)
}

fn policy(section: &str, of: &BTreeMap<&str, &Value>) -> Value {
    let list = if section == "ingress" { "from" } else { "to" };
    let mut rule = json!({});
    for (field, name) in [("peers", list), ("ports", "ports")] {
        if let Some(value) = of.get(field).filter(|value| !value.is_null()) {
            rule[name] = (*value).clone();
        }
    }
    let all = json!({});
    let mut spec = json!({ "podSelector": of.get("subject").unwrap_or(&&all) });
    spec[section] = json!([rule]);
    let default = json!([if section == "ingress" { "Ingress" } else { "Egress" }]);
    match of.get("types") {
        Some(Value::Null) => {}
        types => spec["policyTypes"] = (*types.unwrap_or(&&default)).clone(),
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "case", "namespace": "x" },
        "spec": spec,
    })
}

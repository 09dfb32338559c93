use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::policy::explain::{End, ExplainError, Reason};
use crate::policy::state::{Action, Element, Peers, Ports, Protocol, SetKind};
use crate::policy::verdict::Flow;

const A: &str = "10.32.0.1";
const B: &str = "10.32.0.2";

fn world(unknown: Unknown) -> World {
    World::new(Settings { unknown, ipv4: true, ipv6: false })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, labels: &Value, address: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels,
            "creationTimestamp": "2026-01-01T00:00:00Z" },
        "status": { "phase": "Running", "podIP": address },
    })
}

fn put_pod(pod: &Value) -> Change {
    Change::Pod(serde_json::from_value(pod.clone()).unwrap())
}

fn space(name: &str) -> Change {
    let labels = json!({ "kubernetes.io/metadata.name": name });
    let space = json!({ "metadata": { "name": name, "labels": labels } });
    Change::Namespace(serde_json::from_value(space).unwrap())
}

fn policy(name: &str, spec: Value) -> Change {
    let mut object = json!({ "metadata": { "name": name, "namespace": "shop" } });
    object["spec"] = spec;
    Change::Policy(serde_json::from_value(object).unwrap())
}

fn lease(name: &str, uid: Option<&str>, address: &str) -> Change {
    Change::Local(LocalPod {
        id: format!("lease-{name}-{address}").into(),
        addresses: [ip(address)].into(),
        pod: Some(PodRef::new("shop", name)),
        uid: uid.map(Into::into),
    })
}

fn tcp(world: &World, from: &str, to: &str, port: u16) -> bool {
    let flow = Flow { protocol: Some(Protocol::Tcp), port };
    world.state().verdict(ip(from), ip(to), flow).allowed()
}

fn addresses(world: &World) -> BTreeSet<IpAddr> {
    let sets = world.state().sets.values().flat_map(|(_, elements)| elements);
    sets.filter_map(members::address).collect()
}

/// Pod `web` here, and a policy by which pods with `role=client` may reach it.
fn shop() -> World {
    let mut world = world(Unknown::Deny);
    world.apply_all(vec![
        space("shop"),
        put_pod(&pod("web", &json!({ "app": "web" }), A)),
        lease("web", Some("uid-web"), A),
        policy(
            "clients",
            json!({ "podSelector": { "matchLabels": { "app": "web" } },
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "client" } } }] }] }),
        ),
    ]);
    world
}

#[test]
fn one_label_is_one_element() {
    let mut world = shop();
    world.apply(put_pod(&pod("job", &json!({}), B)));
    assert!(!tcp(&world, B, A, 80));
    let delta = world.apply(put_pod(&pod("job", &json!({ "role": "client" }), B)));
    assert!(tcp(&world, B, A, 80));
    let (id, (kind, _)) = world.state().sets.first_key_value().unwrap();
    assert_eq!(*kind, SetKind::Addresses);
    let element = BTreeSet::from([Element::Address(ip(B))]);
    assert_eq!(delta, Delta { add: [(id.clone(), element)].into(), ..Delta::default() });
    // What is known already changes nothing, nor does what no policy asks for.
    assert!(world.apply(put_pod(&pod("job", &json!({ "role": "client" }), B))).is_empty());
    let more = json!({ "role": "client", "colour": "green" });
    assert!(world.apply(put_pod(&pod("job", &more, B))).is_empty());
}

#[test]
fn a_pod_may_talk_to_itself() {
    let mut world = shop();
    world.apply(policy("nothing", json!({ "policyTypes": ["Ingress", "Egress"] })));
    assert!(tcp(&world, A, A, 80));
    assert!(!tcp(&world, A, B, 80));
}

#[test]
fn unknown_pods_are_closed_or_open_as_set() {
    let db = json!({ "podSelector": { "matchLabels": { "app": "db" } } });
    for (unknown, open) in [(Unknown::Deny, false), (Unknown::Allow, true)] {
        let mut world = world(unknown);
        world.apply(policy("db", db.clone()));
        let delta = world.apply(lease("web", Some("uid-web"), A));
        assert_eq!(delta.is_empty(), open);
        assert!(!world.is_known("lease-web-10.32.0.1"));
        assert_eq!(tcp(&world, B, A, 80), open);
        assert!(tcp(&world, A, B, 80), "no policy could isolate it for egress");
        assert_eq!(world.locals()[0].missing, Some(Missing::Pod));
        assert_eq!(world.locals()[0].ingress.isolated, !open);
        let end = |text: &str| text.parse::<End>().unwrap();
        let told = world.explain(&end(B), &end("shop/web"), Protocol::Tcp, 80).unwrap();
        assert_eq!(told.allowed, open);
        assert_eq!(told.ingress.reason, Reason::Unknown { missing: Missing::Pod });
        let set = format!("POLICY_UNKNOWN={}", if open { "allow" } else { "deny" });
        assert!(told.to_string().contains(&set), "{told}");
        world.apply(put_pod(&pod("web", &json!({}), A)));
        assert_eq!(world.locals()[0].missing, Some(Missing::Namespace));
        assert_eq!(tcp(&world, B, A, 80), open);
        world.apply(space("shop"));
        assert!(world.is_known("lease-web-10.32.0.1"));
        assert!(tcp(&world, B, A, 80), "no policy selects it");
        assert_eq!(*world.state(), PolicyState::default());
    }
}

#[test]
fn an_unknown_pod_is_free_where_no_policy_could_apply() {
    let mut world = world(Unknown::Deny);
    let delta = world.apply(lease("web", None, A));
    assert!(delta.is_empty() && tcp(&world, B, A, 80));
    world.apply(policy("out", json!({ "policyTypes": ["Egress"] })));
    assert!(tcp(&world, B, A, 80) && !tcp(&world, A, B, 80));
    world.apply(Change::PolicyGone("shop".into(), "out".into()));
    assert!(tcp(&world, A, B, 80));
    let guard = json!({ "metadata": { "name": "guard" }, "spec": { "tier": "Baseline", "priority": 1,
        "subject": { "namespaces": {} },
        "ingress": [{ "action": "Accept", "from": [{ "namespaces": {} }] }] } });
    world.apply(Change::ClusterPolicy(serde_json::from_value(guard).unwrap()));
    assert!(!tcp(&world, B, A, 80) && tcp(&world, A, B, 80));
    world.apply(Change::ClusterPolicyGone("guard".into()));
    assert_eq!(*world.state(), PolicyState::default());
}

#[test]
fn another_uid_is_another_pod() {
    let mut world = shop();
    // The same name again, with rights of its own; the object is still the old one's.
    world.apply_all(vec![
        Change::LocalGone("lease-web-10.32.0.1".into()),
        lease("web", Some("uid-new"), A),
    ]);
    assert_eq!(world.locals()[0].missing, Some(Missing::OtherUid));
    let client = pod("job", &json!({ "role": "client" }), B);
    world.apply(put_pod(&client));
    assert!(!tcp(&world, B, A, 80));
    let mut new = pod("web", &json!({ "app": "web" }), A);
    new["metadata"]["uid"] = json!("uid-new");
    world.apply(put_pod(&new));
    assert!(tcp(&world, B, A, 80));
}

#[test]
fn the_lease_decides_whose_an_address_is() {
    let mut world = shop();
    // An old object still names the address that a local pod has now.
    let stale = pod("old", &json!({ "role": "client" }), B);
    world.apply_all(vec![
        put_pod(&stale),
        put_pod(&pod("db", &json!({ "app": "db" }), "")),
        lease("db", None, B),
    ]);
    assert!(!tcp(&world, B, A, 80), "the rights of the pod before it are not its own");
    assert_eq!(world.pod_at(ip(B)), Some(PodRef::new("shop", "db")));
    // It is in the sets before its object has an address.
    world.apply(put_pod(&pod("db", &json!({ "app": "db", "role": "client" }), "")));
    assert!(tcp(&world, B, A, 80));
    world.apply_all(vec![
        put_pod(&pod("db", &json!({ "app": "db" }), "")),
        Change::LocalGone("lease-db-10.32.0.2".into()),
    ]);
    assert!(tcp(&world, B, A, 80), "the older has it back, as it is still there");
    world.apply(Change::PodGone(PodRef::new("shop", "old")));
    assert!(!tcp(&world, B, A, 80));
}

#[test]
fn of_two_claims_the_newest_that_stays_counts() {
    let mut world = shop();
    let old = pod("old", &json!({ "role": "client" }), B);
    let mut new = pod("new", &json!({}), B);
    new["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:05Z");
    world.apply_all(vec![put_pod(&new), put_pod(&old)]);
    assert!(!tcp(&world, B, A, 80));
    let mut going = new.clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
    world.apply(put_pod(&going));
    assert!(tcp(&world, B, A, 80));
    world.apply(put_pod(&new));
    let mut finished = old.clone();
    finished["status"]["phase"] = json!("Succeeded");
    world.apply_all(vec![put_pod(&finished), Change::PodGone(PodRef::new("shop", "new"))]);
    assert!(!tcp(&world, B, A, 80), "a finished pod gets nothing back");
}

#[test]
fn pods_of_the_host_network_are_nobody() {
    let mut world = shop();
    let mut host = pod("host", &json!({ "role": "client" }), B);
    host["spec"] = json!({ "hostNetwork": true });
    world.apply(put_pod(&host));
    assert!(!addresses(&world).contains(&ip(B)));
}

#[test]
fn containers_outside_of_kubernetes_are_free() {
    let mut world = shop();
    world.apply(Change::Local(LocalPod {
        id: "podman".into(),
        addresses: [ip(B)].into(),
        pod: None,
        uid: None,
    }));
    assert!(!world.state().subjects.contains_key(&ip(B)));
    assert_eq!(world.locals().len(), 1);
}

#[test]
fn chains_stay_short() {
    let mut world = shop();
    let rules: Vec<Value> = (0..1000)
        .map(|n| json!({ "podSelector": { "matchLabels": { "n": n.to_string() } } }))
        .collect();
    for n in 0..100 {
        let some = &rules[n * 10..n * 10 + 10];
        let ports = json!([{ "port": 80 }, { "port": 81 }]);
        let spec = json!({ "podSelector": {}, "ingress": [{ "from": some, "ports": ports }] });
        world.apply(policy(&format!("p{n}"), spec));
    }
    let chain = world.state().chains.values().next().unwrap();
    assert_eq!(chain.main.len(), 2, "one for all ports, one for the thousand: {chain:?}");
    world.apply(put_pod(&pod("one", &json!({ "n": "777" }), B)));
    assert!(tcp(&world, B, A, 81) && !tcp(&world, B, A, 82));
    let open =
        json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80, "endPort": 90 }] }] });
    world.apply(policy("open", open));
    let chain = world.state().chains.values().next().unwrap();
    assert_eq!(chain.main.len(), 2, "what all may do needs no rule for some: {chain:?}");
    world.apply(policy("all", json!({ "podSelector": {}, "ingress": [{}] })));
    assert_eq!(*world.state(), PolicyState::default(), "what refuses nothing needs no chain");
    assert!(world.locals()[0].ingress.isolated);
    assert_eq!(world.locals()[0].ingress.policies.len(), 103);
}

#[test]
fn ten_thousand_peers_in_one_rule() {
    let mut world = shop();
    let from: Vec<Value> = (0..10_000)
        .map(|n| json!({ "podSelector": { "matchLabels": { "n": n.to_string() } } }))
        .chain((0..=255).map(|n| json!({ "ipBlock": { "cidr": format!("192.0.{n}.0/24") } })))
        .collect();
    world
        .apply(policy("many", json!({ "ingress": [{ "from": from, "ports": [{ "port": 80 }] }] })));
    world.apply(put_pod(&pod("one", &json!({ "n": "7777" }), B)));
    assert!(tcp(&world, B, A, 80) && tcp(&world, "192.0.77.1", A, 80));
    assert!(!tcp(&world, B, A, 81) && !tcp(&world, "192.1.0.1", A, 80));
    let chain = world.state().chains.values().next().unwrap();
    assert!(chain.main.len() <= 3, "{chain:?}");
    assert!(world.state().sets.values().any(|(_, elements)| *elements
        == BTreeSet::from([Element::Range(ip("192.0.0.0"), ip("192.0.255.255"))])));
}

#[test]
fn named_ports_are_those_of_the_destination() {
    let mut world = shop();
    let with = |name: &str, port: u16, address: &str| {
        let mut pod = pod(name, &json!({ "app": name }), address);
        pod["spec"] = json!({ "containers": [{ "ports": [
            { "name": "http", "containerPort": port }] }] });
        put_pod(&pod)
    };
    world.apply_all(vec![
        with("web", 8080, A),
        with("db", 5432, B),
        policy(
            "out",
            json!({ "policyTypes": ["Egress", "Ingress"],
            "ingress": [{ "ports": [{ "port": "http" }] }],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "db" } } }],
                "ports": [{ "port": "http" }] }] }),
        ),
    ]);
    assert!(tcp(&world, B, A, 8080) && !tcp(&world, B, A, 5432));
    assert!(tcp(&world, A, B, 5432) && !tcp(&world, A, B, 8080));
    let chains = world.state().chains.values();
    let rules: Vec<_> = chains.flat_map(|chain| &chain.main).collect();
    let by_destination = rules.iter().filter(|rule| matches!(rule.ports, Ports::PerDestination(_)));
    assert_eq!(by_destination.count(), 1);
    assert!(rules.iter().any(|rule| rule.peers == Peers::Any && rule.action == Action::Accept));
    world.apply(with("db", 3306, B));
    assert!(tcp(&world, A, B, 3306) && !tcp(&world, A, B, 5432));
}

#[test]
fn problems_name_the_policy_and_the_field() {
    let mut world = shop();
    assert_eq!(world.problems(), []);
    world.apply(policy(
        "v6",
        json!({ "ingress": [
        { "from": [{ "ipBlock": { "cidr": "fd00::/8" } }, { "podSelector": {} }] }] }),
    ));
    let problems = world.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "spec.ingress[0].from");
    assert!(problems[0].what.contains("fd00::/8 is IPv6"), "{}", problems[0]);
    world.apply(Change::PolicyGone("shop".into(), "v6".into()));
    assert_eq!(world.problems(), []);
}

#[test]
fn lists_replace_what_was_known() {
    let mut world = shop();
    world.apply(put_pod(&pod("job", &json!({ "role": "client" }), B)));
    let web: Pod = serde_json::from_value(pod("web", &json!({ "app": "web" }), A)).unwrap();
    world.apply(Change::AllPods(vec![web]));
    assert!(!tcp(&world, B, A, 80));
    world.apply(Change::AllPolicies(Vec::new()));
    assert_eq!(*world.state(), PolicyState::default());
    world.apply(Change::AllNamespaces(Vec::new()));
    assert_eq!(world.locals()[0].missing, Some(Missing::Namespace));
    world.apply(Change::AllLocal(Vec::new()));
    assert_eq!(*world.state(), PolicyState::default());
    world.apply_all(vec![Change::AllPods(Vec::new()), Change::AllNodes(Vec::new())]);
    assert!(world.known.holders.is_empty() && world.known.spaces.is_empty());
}

#[test]
fn explained_in_the_words_of_the_policies() {
    let mut world = shop();
    world.apply(put_pod(&pod("job", &json!({ "role": "client" }), B)));
    let end = |text: &str| text.parse::<End>().unwrap();
    let told = world.explain(&end("shop/job"), &end("shop/web"), Protocol::Tcp, 80).unwrap();
    assert!(told.allowed);
    assert_eq!(told.egress.reason, Reason::NotSelected);
    assert!(!told.egress.here && told.ingress.here);
    let text = told.to_string();
    assert!(
        text.contains("allowed: shop/job (10.32.0.2) -> shop/web (10.32.0.1) TCP 80"),
        "{text}"
    );
    assert!(text.contains("  egress   allowed: no policy selects shop/job for egress\n"), "{text}");
    assert!(
        text.contains("  ingress  allowed by NetworkPolicy shop/clients, spec.ingress[0]\n"),
        "{text}"
    );
    let told = world.explain(&end("192.0.2.1"), &end(A), Protocol::Udp, 53).unwrap();
    assert!(!told.allowed);
    assert!(matches!(told.ingress.reason, Reason::NoRule { .. }));
    assert_eq!(told.egress.reason, Reason::NoPod);
    assert_eq!(
        told.to_string(),
        "refused: 192.0.2.1 -> shop/web (10.32.0.1) UDP 53\n  \
         egress   allowed: 192.0.2.1 is not the address of a pod, so no policy applies to it\n  \
         ingress  refused: no rule of NetworkPolicy shop/clients allows it\n"
    );
    let cluster = json!({ "metadata": { "name": "guard" }, "spec": { "tier": "Admin", "priority": 1,
        "subject": { "namespaces": {} }, "ingress": [
            { "action": "Pass", "from": [{ "pods": { "namespaceSelector": {},
                "podSelector": { "matchLabels": { "role": "client" } } } }] },
            { "name": "no strangers", "action": "Deny", "from": [{ "namespaces": {} }] }] } });
    world.apply(Change::ClusterPolicy(serde_json::from_value(cluster).unwrap()));
    let told = world.explain(&end("shop/job"), &end("shop/web"), Protocol::Tcp, 80).unwrap();
    assert_eq!((told.allowed, told.ingress.passed.len()), (true, 1));
    world.apply(put_pod(&pod("job", &json!({}), B)));
    let told = world.explain(&end("shop/job"), &end("shop/web"), Protocol::Tcp, 80).unwrap();
    let Reason::Rule { field, name, .. } = &told.ingress.reason else { panic!("{told}") };
    assert_eq!((field.as_str(), name.as_deref()), ("spec.ingress[1]", Some("no strangers")));
    assert!(!tcp(&world, B, A, 80));
    // Who is selected by a ClusterNetworkPolicy alone, and not mentioned by it.
    let told = world.explain(&end("192.0.2.1"), &end("shop/job"), Protocol::Tcp, 80).unwrap();
    assert!(matches!(told.ingress.reason, Reason::NotMentioned { .. }), "{told}");
    assert!(
        told.allowed && told.to_string().contains("no rule of ClusterNetworkPolicy guard matches")
    );
    let error = world.explain(&end("shop/nobody"), &end("shop/web"), Protocol::Tcp, 80);
    assert_eq!(error, Err(ExplainError::NoPod(PodRef::new("shop", "nobody"))));
    assert!("nonsense".parse::<End>().is_err() && "a/b/c".parse::<End>().is_err());
}

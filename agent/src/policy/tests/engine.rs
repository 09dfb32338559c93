//! The engine: objects and leases in, packets judged.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::states::ip;
use super::wires::{Node, passes};
use crate::dataplane::tests::ns::{block, eventually};
use crate::mesh::net::BoxFuture;
use crate::policy::engine::{EngineHandle, PodLookup, PolicyConfig};
use crate::policy::objects::{LocalPod, PodRef};
use crate::policy::state::Protocol;
use crate::policy::world::{Change, Settings, Unknown};

pub(super) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn namespace() -> Change {
    Change::Namespace(read(json!({"metadata": {"name": "default"}})))
}

fn pod(n: usize, labels: &Value) -> Change {
    Change::Pod(read(json!({
        "metadata": {"namespace": "default", "name": format!("p{n}"), "uid": format!("u{n}"), "labels": labels},
        "spec": {"nodeName": "node"},
        "status": {"podIPs": [{"ip": format!("10.32.{n}.2")}, {"ip": format!("fd00:{n}::2")}]},
    })))
}

/// To pods labelled `app: web` only from those labelled `role: client`, on TCP port 80.
fn policy() -> Change {
    Change::Policy(read(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"role": "client"}}}],
                "ports": [{"protocol": "TCP", "port": 80}],
            }],
        },
    })))
}

fn local(n: usize) -> LocalPod {
    LocalPod {
        id: format!("c{n}/eth0").into(),
        addresses: [ip(&format!("10.32.{n}.2")), ip(&format!("fd00:{n}::2"))].into(),
        pod: Some(PodRef::new("default", &format!("p{n}"))),
        uid: Some(format!("u{n}").into()),
    }
}

fn locals(numbers: &[usize]) -> Vec<LocalPod> {
    numbers.iter().map(|n| local(*n)).collect()
}

pub(super) fn config() -> PolicyConfig {
    let settings = Settings { unknown: Unknown::Deny, ipv4: true, ipv6: true };
    PolicyConfig { settings, drop_established: true }
}

pub(super) fn start(node: &Node, config: PolicyConfig) -> EngineHandle {
    node.ns.run(|| EngineHandle::start(config).unwrap())
}

fn cluster() -> Vec<Change> {
    let web = json!({"app": "web"});
    let client = json!({"role": "client"});
    vec![namespace(), pod(1, &web), pod(2, &client), pod(3, &json!({})), policy()]
}

fn admit(engine: &EngineHandle, n: usize) {
    let deadline = Duration::from_secs(20);
    block_timed(engine.admit(&format!("c{n}/eth0"), Instant::now() + deadline)).unwrap();
}

/// With a clock: deadlines need one.
fn block_timed<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap().block_on(future)
}

pub(super) fn settled(engine: &EngineHandle) {
    block(engine.settled()).unwrap();
}

/// Everything known, pods 1 to 3 here.
fn enforcing(node: &Node, config: PolicyConfig) -> EngineHandle {
    let engine = start(node, config);
    engine.local(locals(&[1, 2, 3]));
    engine.changes(cluster());
    engine.synced(true);
    settled(&engine);
    engine
}

#[test]
fn policies_are_enforced_and_followed() {
    let node = Node::new(3);
    let engine = enforcing(&node, config());
    node.check(2, 1, 80, true, false);
    node.check(2, 1, 81, false, false);
    node.check(3, 1, 80, false, false);
    node.check(1, 3, 90, true, true);
    // Relabelled.
    engine.changes(vec![pod(3, &json!({"role": "client"})), pod(2, &json!({}))]);
    settled(&engine);
    node.check(3, 1, 80, true, false);
    node.check(2, 1, 80, false, false);
    // Gone, and with it every restriction: no chain is left.
    engine.changes(vec![Change::PolicyGone("default".into(), "web".into())]);
    settled(&engine);
    node.check(2, 1, 81, true, true);
    assert!(!node.rules().contains("chain in4-"), "{}", node.rules());
}

#[test]
fn refused_packets_are_counted_logged_and_explained() {
    let node = Node::new(3);
    let engine = enforcing(&node, config());
    for _ in 0..3 {
        assert!(!node.tcp(3, 1, 80, false, false));
    }
    eventually("counted and logged", || {
        let report = engine.report();
        let pod = report.pods.iter().find(|p| &*p.status.name == "p1");
        let counted = pod.is_some_and(|p| p.refused_ingress.packets >= 3);
        let port = report.refused.ports.iter().any(|p| p.protocol == "tcp" && p.port == 80);
        counted && port && report.refused.ingress.packets >= 3 && report.refused.logged >= 1
    });
    let report = engine.report();
    let pod = report.pods.iter().find(|p| &*p.status.name == "p1").unwrap();
    assert!(pod.restricted_ingress && !pod.restricted_egress);
    assert!(report.refused.logged <= 2, "the same again is not told again");
    assert!(report.table.in_sync && report.enforced && report.table.subjects == 2);
    let ask = engine.explain(
        "default/p3".parse().unwrap(),
        "default/p1".parse().unwrap(),
        Protocol::Tcp,
        80,
    );
    let explanation = block(ask).unwrap().unwrap();
    assert!(!explanation.allowed && explanation.egress.allowed);
    assert!(engine.conditions().is_empty(), "{:?}", engine.conditions());
}

#[test]
fn a_flushed_table_comes_back_whole() {
    let node = Node::new(3);
    let engine = enforcing(&node, config());
    for script in [
        "flush ruleset",
        "delete chain inet weft-policy forward",
        "add rule inet weft-policy forward accept",
    ] {
        let before = engine.report().table.repairs;
        node.ns.sh(&format!("nft {script}"));
        let flushed = std::time::Instant::now();
        eventually("mended", || engine.report().table.repairs > before);
        eprintln!("mended and told {:?} after `{script}`", flushed.elapsed());
        node.check(3, 1, 80, false, false);
        node.check(2, 1, 80, true, false);
    }
}

#[test]
fn a_restart_touches_nothing() {
    let node = Node::new(3);
    let engine = enforcing(&node, config());
    let (mut client, mut server) = node.connection(3, 2, false);
    let before = node.rules();
    drop(engine);
    // No agent: as before.
    node.check(3, 1, 80, false, false);
    let engine = start(&node, config());
    engine.local(locals(&[1, 2, 3]));
    settled(&engine);
    // The API server has not answered: as before.
    node.check(3, 1, 80, false, false);
    node.check(2, 1, 80, true, false);
    engine.changes(cluster());
    engine.synced(true);
    settled(&engine);
    eventually("following", || engine.report().enforced);
    assert_eq!(engine.report().table.transactions, 0);
    let still = |text: &str| -> Vec<String> {
        text.lines().map(|l| l.split(" counter").next().unwrap_or(l).trim().to_owned()).collect()
    };
    let names = |text: &str| -> Vec<String> {
        still(text).into_iter().filter(|l| l.contains("handle") || l.starts_with("chain")).collect()
    };
    assert_eq!(names(&before), names(&node.rules()));
    assert!(passes(&mut client, &mut server, true));
}

#[test]
fn before_the_server_answers_nothing_is_loosened() {
    let node = Node::new(4);
    drop(enforcing(&node, config()));
    let engine = start(&node, config());
    engine.local(locals(&[1, 2, 3]));
    // A new pod of which nothing is known.
    engine.local(locals(&[1, 2, 3, 4]));
    admit(&engine, 4);
    node.check(4, 2, 80, false, false);
    node.check(2, 4, 80, false, false);
    node.check(3, 1, 80, false, false);
    node.check(2, 3, 80, true, true);
    // Some of what the server knows is not all of it.
    engine.changes(vec![namespace(), pod(1, &json!({"app": "web"}))]);
    settled(&engine);
    node.check(3, 1, 80, false, false);
    // Flushed meanwhile, who was restricted is closed.
    let before = engine.report().table.repairs;
    node.ns.sh("nft flush ruleset");
    eventually("closed", || engine.report().table.repairs > before);
    node.check(2, 1, 80, false, false);
    node.check(2, 3, 80, true, true);
    // A pod that goes takes its elements along.
    engine.local(locals(&[1, 2, 3]));
    settled(&engine);
    assert!(!node.rules().contains("10.32.4.2"), "{}", node.rules());
    engine.changes(cluster());
    engine.synced(true);
    settled(&engine);
    node.check(2, 1, 80, true, false);
}

/// Memory is older than the kernel: it is for pods that the kernel cannot know.
#[test]
fn memory_judges_new_pods_alone() {
    let node = Node::new(4);
    drop(enforcing(&node, config()));
    let engine = start(&node, config());
    engine.local(locals(&[1, 2, 3]));
    engine.local(locals(&[1, 2, 3, 4]));
    admit(&engine, 4);
    node.check(4, 1, 80, false, false);
    let (web, client) = (json!({"app": "web"}), json!({"role": "client"}));
    let told = |four: &Value| vec![namespace(), pod(1, &web), pod(4, four), policy()];
    let mut memory = told(&client);
    // Two was no client at that time, but three.
    memory.extend([pod(2, &json!({})), pod(3, &client)]);
    engine.remembered(memory);
    settled(&engine);
    let remembered = || {
        node.check(2, 1, 80, true, false);
        node.check(3, 1, 80, false, false);
        node.check(4, 1, 80, true, false);
        node.check(4, 1, 81, false, false);
        node.check(4, 2, 80, true, true);
    };
    remembered();
    assert!(!engine.report().enforced);
    // Another agent starts, with the same memory and what the first has made of it.
    drop(engine);
    let engine = start(&node, config());
    engine.local(locals(&[1, 2, 3, 4]));
    engine.remembered(told(&json!({})));
    settled(&engine);
    remembered();
    // Somebody knows better.
    engine.changes(vec![pod(2, &client), pod(3, &client), pod(4, &json!({}))]);
    engine.synced(true);
    settled(&engine);
    node.check(3, 1, 80, true, false);
    node.check(4, 1, 80, false, false);
}

#[test]
fn established_connections_end_unless_kept() {
    for keep in [false, true] {
        let node = Node::new(3);
        let engine = enforcing(&node, PolicyConfig { drop_established: !keep, ..config() });
        engine.changes(vec![Change::PolicyGone("default".into(), "web".into())]);
        settled(&engine);
        for v6 in [false, true] {
            let mut forbidden = node.connection(3, 1, v6);
            let mut other = node.connection(3, 2, v6);
            assert!(passes(&mut forbidden.0, &mut forbidden.1, true));
            engine.changes(vec![policy()]);
            settled(&engine);
            if keep {
                assert!(passes(&mut forbidden.0, &mut forbidden.1, true));
            } else {
                eventually("its entry dropped", || {
                    engine.report().established.dropped > u64::from(v6)
                });
                assert!(!passes(&mut forbidden.0, &mut forbidden.1, false));
                assert!(!passes(&mut forbidden.1, &mut forbidden.0, false));
            }
            assert!(passes(&mut other.0, &mut other.1, true));
            engine.changes(vec![Change::PolicyGone("default".into(), "web".into())]);
            settled(&engine);
        }
    }
}

/// Knows one pod, and counts how often it is asked.
struct OnePod {
    engine: EngineHandle,
    known: Change,
    asked: AtomicU32,
}

impl PodLookup for OnePod {
    fn lookup<'a>(&'a self, pod: &'a PodRef) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let known = matches!(&self.known, Change::Pod(known) if known.key == *pod);
            if known {
                self.engine.changes(vec![self.known.clone()]);
            }
            known
        })
    }
}

#[test]
fn a_new_pod_is_looked_up_or_closed() {
    let node = Node::new(4);
    let engine = start(&node, config());
    let lookup = std::sync::Arc::new(OnePod {
        engine: engine.clone(),
        known: pod(3, &json!({"role": "client"})),
        asked: AtomicU32::new(0),
    });
    engine.set_lookup(lookup.clone());
    engine.local(vec![]);
    engine.changes(vec![namespace(), pod(1, &json!({"app": "web"})), policy()]);
    engine.synced(true);
    engine.local(locals(&[1]));
    admit(&engine, 1);
    assert_eq!(lookup.asked.load(Ordering::Relaxed), 0, "it is known");
    engine.local(locals(&[1, 3]));
    admit(&engine, 3);
    assert_eq!(lookup.asked.load(Ordering::Relaxed), 1);
    node.check(3, 1, 80, true, false);
    node.check(1, 3, 90, true, true);
    // Nobody knows that one: closed until somebody does.
    engine.local(locals(&[1, 3, 4]));
    admit(&engine, 4);
    // The only policy is about ingress: egress is nobody's business.
    node.check(4, 3, 80, true, true);
    node.check(3, 4, 80, false, false);
    engine.changes(vec![pod(4, &json!({}))]);
    settled(&engine);
    node.check(3, 4, 80, true, true);
    // Gone: its address is anybody's.
    engine.local(locals(&[1, 3]));
    settled(&engine);
    assert!(!node.rules().contains("10.32.4.2"), "{}", node.rules());
}

#[test]
fn an_address_of_another_family_is_refused_by_name() {
    let node = Node::new(1);
    let settings = Settings { ipv6: false, ..config().settings };
    let engine = start(&node, PolicyConfig { settings, ..config() });
    engine.synced(true);
    engine.local(locals(&[1]));
    let deadline = Instant::now() + Duration::from_secs(20);
    let error = block_timed(engine.admit("c1/eth0", deadline)).unwrap_err().to_string();
    assert!(error.contains("IPv6") && error.contains("restart"), "{error}");
}

#[test]
fn switched_off_the_table_goes() {
    let node = Node::new(0);
    drop(enforcing(&node, config()));
    assert!(node.ns.run(crate::policy::engine::remove).unwrap());
    assert!(!node.ns.run(crate::policy::engine::remove).unwrap());
    assert!(!node.ns.sh("nft list ruleset").contains("weft-policy"));
}

//! The policy compiler alone: time of a full build, time of one change, memory.
//!
//! `bench compile [PODS] [POLICIES]`; figures are printed, never judged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_agent::policy::objects::{LocalPod, NetworkPolicy, Pod, PodRef};
use weft_agent::policy::state::PolicyState;
use weft_agent::policy::world::{Change, Settings, Unknown, World};
use weft_tests::stats::percentile;

const NAMESPACES: usize = 100;
/// Pods of the node whose agent is measured.
const LOCAL: usize = 110;
const CHANGES: usize = 1000;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.iter().map(|text| text.parse::<usize>());
    let pods = arguments.next().transpose()?.unwrap_or(10_000);
    let policies = arguments.next().transpose()?.unwrap_or(10_000);
    println!("memory per pod, about         {} bytes", memory_per_pod(pods)?);
    let json: Vec<Value> = (0..pods).map(|n| pod(n, 0)).collect();
    let start = Instant::now();
    let pods: Vec<Pod> = json.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    println!("decode of {} pods          {}", pods.len(), show(start.elapsed()));

    for count in [0, 1000, policies] {
        println!("\n{} pods, {count} policies, {LOCAL} pods here", pods.len());
        spread(&pods, count)?;
    }
    println!("\n{} pods, {policies} policies, all of them select one pod here", pods.len());
    piled(&pods, policies)
}

/// Of a world that takes pods one by one, as a watch brings them.
fn memory_per_pod(pods: usize) -> Result<usize> {
    let mut world = World::new(Settings { unknown: Unknown::Deny, ipv4: true, ipv6: false });
    let empty = memory()?;
    for n in 0..NAMESPACES {
        world.apply(Change::Namespace(serde_json::from_value(namespace(n, 0))?));
    }
    for n in 0..pods {
        world.apply(Change::Pod(serde_json::from_value(pod(n, 0))?));
    }
    Ok(memory()?.saturating_sub(empty) / pods.max(1))
}

fn spread(pods: &[Pod], policies: usize) -> Result<()> {
    let policies: Vec<NetworkPolicy> = (0..policies)
        .map(|n| serde_json::from_value(policy(n, n % NAMESPACES)))
        .collect::<Result<_, _>>()?;
    let mut world = build(pods, policies)?;
    describe(world.state());
    let mut far = Vec::new();
    let mut here = Vec::new();
    for n in 0..CHANGES {
        let index = (n * 7919) % pods.len();
        let changed: Pod = serde_json::from_value(pod(index, n + 1))?;
        let start = Instant::now();
        world.apply(Change::Pod(changed));
        let taken = start.elapsed();
        if index < LOCAL { here.push(taken) } else { far.push(taken) }
    }
    tell("label of a pod elsewhere", &mut far);
    for n in 0..100 {
        let index = n % LOCAL;
        let changed: Pod = serde_json::from_value(pod(index, n + 5000))?;
        let start = Instant::now();
        world.apply(Change::Pod(changed));
        here.push(start.elapsed());
    }
    tell("label of a pod here", &mut here);
    let mut taken = Vec::new();
    for n in 0..100 {
        let changed: NetworkPolicy = serde_json::from_value(policy(n + 7, n % NAMESPACES))?;
        let start = Instant::now();
        world.apply(Change::Policy(changed));
        taken.push(start.elapsed());
    }
    tell("a policy", &mut taken);
    let mut taken = Vec::new();
    for n in 0..100 {
        let changed = serde_json::from_value(namespace(n % NAMESPACES, n + 1))?;
        let start = Instant::now();
        world.apply(Change::Namespace(changed));
        taken.push(start.elapsed());
    }
    tell("labels of a namespace", &mut taken);
    Ok(())
}

fn piled(pods: &[Pod], policies: usize) -> Result<()> {
    let policies: Vec<NetworkPolicy> =
        (0..policies).map(|n| serde_json::from_value(policy(n, 0))).collect::<Result<_, _>>()?;
    let mut world = build(pods, policies)?;
    describe(world.state());
    let mut taken = Vec::new();
    for n in 0..100 {
        let mut changed: NetworkPolicy = serde_json::from_value(policy(n * 13, 0))?;
        changed.ingress = None;
        let start = Instant::now();
        world.apply(Change::Policy(changed));
        taken.push(start.elapsed());
    }
    tell("a policy", &mut taken);
    Ok(())
}

fn build(pods: &[Pod], policies: Vec<NetworkPolicy>) -> Result<World> {
    let mut changes = Vec::with_capacity(pods.len() + policies.len() + NAMESPACES + LOCAL);
    for n in 0..NAMESPACES {
        changes.push(Change::Namespace(serde_json::from_value(namespace(n, 0))?));
    }
    for (n, pod) in pods.iter().take(LOCAL).enumerate() {
        changes.push(Change::Local(LocalPod {
            id: format!("lease-{n}").into(),
            addresses: pod.addresses.clone(),
            pod: Some(PodRef { ..pod.key.clone() }),
            uid: Some(pod.uid.clone()),
        }));
    }
    changes.extend(pods.iter().cloned().map(Change::Pod));
    changes.extend(policies.into_iter().map(Change::Policy));
    let mut world = World::new(Settings { unknown: Unknown::Deny, ipv4: true, ipv6: false });
    let start = Instant::now();
    world.apply_all(changes);
    println!("full build                    {}", show(start.elapsed()));
    Ok(world)
}

fn describe(state: &PolicyState) {
    let elements: usize = state.sets.values().map(|(_, elements)| elements.len()).sum();
    let rules = state.chains.values().map(|chain| chain.admin.len() + chain.main.len());
    println!(
        "state                         {} sets of {elements} elements, {} chains of at most {} rules",
        state.sets.len(),
        state.chains.len(),
        rules.max().unwrap_or(0)
    );
}

fn tell(what: &str, taken: &mut [Duration]) {
    taken.sort_unstable();
    println!(
        "{what:<29} p50 {}, p99 {}, max {}",
        show(percentile(taken, 50)),
        show(percentile(taken, 99)),
        show(taken.last().copied().unwrap_or_default())
    );
}

fn namespace(n: usize, version: usize) -> Value {
    json!({
        "metadata": { "name": format!("space-{n}"), "labels": {
            "kubernetes.io/metadata.name": format!("space-{n}"),
            "team": format!("team-{}", (n + version) % 10),
        } },
    })
}

fn pod(n: usize, version: usize) -> Value {
    let ip = format!("10.{}.{}.{}", 32 + n / 65_536, n / 256 % 256, n % 256);
    json!({
        "metadata": {
            "name": format!("workload-{n}-5d4f8c7b9-x2v4q"), "namespace": format!("space-{}", n % NAMESPACES),
            "uid": format!("7f9c24e8-3b12-4fef-91e0-{n:012}"),
            "creationTimestamp": "2026-03-01T10:00:00Z",
            "labels": {
                "app": format!("app-{}", (n / NAMESPACES + version) % 20),
                "role": format!("role-{}", (n + version) % 5),
                "pod-template-hash": "5d4f8c7b9",
                "app.kubernetes.io/instance": format!("instance-{}", n / 10),
                "app.kubernetes.io/managed-by": "Helm",
            },
        },
        "spec": {
            "nodeName": format!("node-{}", n / LOCAL),
            "containers": [{ "name": "main", "ports": [
                { "name": "http", "containerPort": 8080 },
                { "name": "metrics", "containerPort": 9090 },
            ] }],
        },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

fn policy(n: usize, space: usize) -> Value {
    let app = |n: usize| json!({ "matchLabels": { "app": format!("app-{}", n % 20) } });
    json!({
        "metadata": { "name": format!("policy-{n}"), "namespace": format!("space-{space}") },
        "spec": {
            "podSelector": if n.is_multiple_of(7) { json!({}) } else { app(n) },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    { "podSelector": app(n + 3) },
                    { "namespaceSelector": { "matchLabels": { "team": format!("team-{}", n % 10) } },
                      "podSelector": { "matchLabels": { "role": format!("role-{}", n % 5) } } },
                ],
                "ports": [{ "port": "http" }, { "port": 9000 + n % 50 }],
            }],
            "egress": [
                { "to": [{ "ipBlock": { "cidr": format!("192.0.{}.0/24", n % 256) } }] },
                { "to": [{ "podSelector": app(n + 1) }], "ports": [{ "port": "http" }] },
            ],
        },
    })
}

fn show(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1000.0)
}

/// Resident bytes of this process.
fn memory() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<usize>()? * 1024)
}

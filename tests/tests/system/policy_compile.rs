//! The policy compiler against a naive reading of the API, without any kernel: what the
//! state of each node says of every connection, and every delta on the way there.
//!
//! `WEFT_WORLDS` worlds are compared (2,000 if not set); `WEFT_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of a test may fail it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;
use weft_agent::policy::explain::End;
use weft_agent::policy::objects::{LocalPod, PodRef};
use weft_agent::policy::state::{
    Chain, Delta, Element, Peers, PolicyState, Ports, Protocol, SetKind,
};
use weft_agent::policy::verdict::Flow;
use weft_agent::policy::world::{Change, Settings, Unknown, World};
use weft_tests::dice::Dice;
use weft_tests::policy::naive::{self, Connection};
use weft_tests::policy::{Generator, Objects, PORTS, PROTOCOLS, Plan, Step, cases, key};

/// Worlds of one history: one from nothing, the others by a step each.
const STEPS: usize = 6;

fn settings() -> Settings {
    Settings { unknown: Unknown::Deny, ipv4: true, ipv6: true }
}

fn put(object: &Value) -> Change {
    let object = object.clone();
    match object["kind"].as_str() {
        Some("Pod") => Change::Pod(serde_json::from_value(object).unwrap()),
        Some("Namespace") => Change::Namespace(serde_json::from_value(object).unwrap()),
        Some("Node") => Change::Node(serde_json::from_value(object).unwrap()),
        Some("NetworkPolicy") => Change::Policy(serde_json::from_value(object).unwrap()),
        _ => Change::ClusterPolicy(serde_json::from_value(object).unwrap()),
    }
}

fn delete(object: &Value) -> Change {
    let (kind, namespace, name) = key(object);
    match kind.as_str() {
        "Pod" => Change::PodGone(PodRef::new(&namespace, &name)),
        "Namespace" => Change::NamespaceGone(name.into()),
        "Node" => Change::NodeGone(name.into()),
        "NetworkPolicy" => Change::PolicyGone(namespace.into(), name.into()),
        _ => Change::ClusterPolicyGone(name.into()),
    }
}

/// Live pods with addresses: those that can open or take a connection.
fn live(objects: &Objects) -> Vec<(&Value, Vec<IpAddr>)> {
    let ips = |pod: &Value| {
        let list = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|one| one["ip"].as_str()?.parse().ok()).collect::<Vec<IpAddr>>()
    };
    let alive =
        |pod: &&Value| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running";
    objects.pods.iter().filter(alive).map(|pod| (pod, ips(pod))).collect()
}

/// Leases of a node. Those of `strangers` are of pods that nobody has told of yet.
fn leases(objects: &Objects, node: &str, strangers: &BTreeSet<String>) -> Vec<LocalPod> {
    let here = live(objects).into_iter().filter(|(pod, _)| pod["spec"]["nodeName"] == node);
    here.map(|(pod, ips)| {
        let (_, namespace, name) = key(pod);
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        LocalPod {
            id: format!("lease-{uid}").into(),
            addresses: ips.into(),
            pod: Some(PodRef::new(&namespace, &name)),
            uid: Some(if strangers.contains(uid) { "another" } else { uid }.into()),
        }
    })
    .collect()
}

/// Carries a delta out, and refuses what a kernel would refuse.
fn patch(state: &mut PolicyState, delta: &Delta) {
    for (id, kind) in &delta.new_sets {
        assert!(
            state.sets.insert(id.clone(), (*kind, BTreeSet::new())).is_none(),
            "{id:?} is there"
        );
    }
    for (id, elements) in &delta.add {
        assert!(!elements.is_empty());
        for element in elements {
            assert!(state.sets.get_mut(id).unwrap().1.insert(*element), "{element:?} is in {id:?}");
        }
    }
    for (id, elements) in &delta.remove {
        assert!(!elements.is_empty() && !delta.old_sets.contains(id));
        for element in elements {
            assert!(state.sets.get_mut(id).unwrap().1.remove(element), "{element:?} not in {id:?}");
        }
    }
    for (id, chain) in &delta.new_chains {
        assert!(state.chains.insert(id.clone(), chain.clone()).is_none(), "{id:?} is there");
    }
    for (address, subject) in &delta.subjects {
        let old = match subject {
            Some(subject) => state.subjects.insert(*address, subject.clone()),
            None => state.subjects.remove(address),
        };
        assert_ne!(old.as_ref(), subject.as_ref(), "no change");
    }
    for id in &delta.old_chains {
        assert!(state.chains.remove(id).is_some(), "{id:?} is not there");
    }
    for id in &delta.old_sets {
        assert!(state.sets.remove(id).is_some(), "{id:?} is not there");
    }
}

/// What every state must be like.
fn check_shape(state: &PolicyState) {
    let name_ok = |name: &str| {
        name.len() <= 24
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let mut chains = BTreeSet::new();
    for subject in state.subjects.values() {
        assert!(subject.ingress.is_some() || subject.egress.is_some());
        chains.extend(subject.ingress.iter().chain(&subject.egress).cloned());
    }
    assert!(state.chains.keys().eq(chains.iter()), "chains in use are all there, and no others");
    let mut sets = BTreeSet::new();
    for (id, Chain { admin, main, .. }) in &state.chains {
        assert!(name_ok(&id.0), "{id:?}");
        for rule in admin.iter().chain(main) {
            if let Peers::Set(id) = &rule.peers {
                assert_ne!(state.sets[id].0, SetKind::Ports);
                sets.insert(id.clone());
            }
            match &rule.ports {
                Ports::PerDestination(id) => {
                    assert_eq!(state.sets[id].0, SetKind::Ports);
                    sets.insert(id.clone());
                }
                Ports::Listed(list) => {
                    assert!(!list.is_empty());
                    let apart = |a: &(Protocol, u16, u16), b: &(Protocol, u16, u16)| {
                        a.0 < b.0 || a.2.saturating_add(1) < b.1
                    };
                    assert!(list.windows(2).all(|w| apart(&w[0], &w[1])), "{list:?}");
                }
                Ports::Any => {}
            }
        }
    }
    assert!(state.sets.keys().eq(sets.iter()), "sets in use are all there, and no others");
    for (id, (kind, elements)) in &state.sets {
        assert!(name_ok(&id.0), "{id:?}");
        for element in elements {
            assert_eq!(
                *kind,
                match element {
                    Element::Address(_) => SetKind::Addresses,
                    Element::Range(low, high) => {
                        assert!(low <= high && low.is_ipv4() == high.is_ipv4());
                        SetKind::Ranges
                    }
                    Element::Port(..) => SetKind::Ports,
                }
            );
        }
        let ranges: Vec<&Element> = elements.iter().collect();
        for pair in ranges.windows(2) {
            if let [Element::Range(_, a), Element::Range(b, _)] = pair {
                assert!(a < b, "{a} and {b} overlap");
            }
        }
    }
}

/// A world per node, as the agents of a cluster have them.
struct Cluster {
    nodes: BTreeMap<String, World>,
    strangers: BTreeSet<String>,
}

impl Cluster {
    fn new(plan: &Plan) -> Self {
        let world = || World::new(settings());
        let nodes = plan.nodes.iter().map(|node| (node.name.clone(), world())).collect();
        Self { nodes, strangers: BTreeSet::new() }
    }

    /// Takes steps, in an order in which they may arrive, and checks every delta.
    fn take(&mut self, steps: &[Step], objects: &Objects, dice: &mut Dice) {
        for (name, world) in &mut self.nodes {
            let mut changes: Vec<Change> = steps
                .iter()
                .map(|step| match step {
                    Step::Put(object) => put(object),
                    Step::Delete(object) => delete(object),
                })
                .collect();
            // Leases come and go at any time between.
            let at = dice.below(changes.len() + 1);
            changes.insert(at, Change::AllLocal(leases(objects, name, &self.strangers)));
            let mut old = world.state().clone();
            if dice.below(2) == 0 {
                let delta = world.apply_all(changes);
                patch(&mut old, &delta);
            } else {
                for change in changes {
                    let delta = world.apply(change);
                    patch(&mut old, &delta);
                    check_shape(world.state());
                }
            }
            assert_eq!(old, *world.state(), "{name}: old state and delta make the new state");
        }
    }

    /// Compares with a world that learns everything at once.
    fn check_from_scratch(&self, objects: &Objects) {
        for (name, world) in &self.nodes {
            let mut fresh = World::new(settings());
            let mut changes: Vec<Change> = objects.all().map(put).collect();
            changes.reverse();
            changes.push(Change::AllLocal(leases(objects, name, &self.strangers)));
            let delta = fresh.apply_all(changes);
            let mut state = PolicyState::default();
            patch(&mut state, &delta);
            assert_eq!(state, *fresh.state());
            assert_eq!(fresh.state(), world.state(), "{name}: the same knowledge, the same state");
            check_shape(world.state());
        }
    }

    /// Both halves, each where it is enforced.
    fn allowed(&self, connection: Connection<'_>, node_of: &BTreeMap<IpAddr, String>) -> bool {
        let flow = Flow { protocol: Protocol::parse(connection.protocol), port: connection.port };
        let half = |end: IpAddr, egress: bool| {
            let Some(world) = node_of.get(&end).and_then(|name| self.nodes.get(name)) else {
                return true;
            };
            let verdict = world.state().verdict(connection.from, connection.to, flow);
            if egress { verdict.egress.allowed() } else { verdict.ingress.allowed() }
        };
        half(connection.from, true) && half(connection.to, false)
    }

    fn check_cells(&self, objects: &Objects, plan: &Plan, dice: &mut Dice) -> usize {
        let mut node_of = BTreeMap::new();
        let mut ends = Vec::new();
        for (pod, ips) in live(objects) {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            if self.strangers.contains(uid) {
                continue;
            }
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            node_of.extend(ips.iter().map(|ip| (*ip, node.to_owned())));
            ends.extend(ips);
        }
        ends.extend(plan.nodes.iter().flat_map(|node| &node.addresses));
        ends.extend(&plan.outside);
        let explained = dice.below(7);
        let mut cells = 0;
        for &from in &ends {
            for &to in ends.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
                for protocol in PROTOCOLS {
                    for port in PORTS {
                        let cell = Connection { from, to, protocol, port };
                        let expected = naive::allowed(objects, cell);
                        assert_eq!(self.allowed(cell, &node_of), expected, "{cell:?}");
                        cells += 1;
                        if cells % 7 == explained {
                            self.check_explain(cell, expected);
                        }
                    }
                }
            }
        }
        cells
    }

    fn check_explain(&self, cell: Connection<'_>, expected: bool) {
        for world in self.nodes.values() {
            let protocol = Protocol::parse(cell.protocol).unwrap();
            let (from, to) = (End::Address(cell.from), End::Address(cell.to));
            let explanation = world.explain(&from, &to, protocol, cell.port).unwrap();
            assert_eq!(explanation.allowed, expected, "{cell:?}\n{explanation}");
        }
    }
}

fn history(seed: u64) -> usize {
    let (ipv4, ipv6) =
        [(true, false), (false, true), (true, true), (true, false)][(seed % 4) as usize];
    let plan = Plan::nine(ipv4, ipv6);
    let mut generator = Generator::new(seed, plan.clone()).odd_pods();
    if !seed.is_multiple_of(3) {
        generator = generator.cluster();
    }
    if seed.is_multiple_of(5) {
        generator = generator.nonsense();
    }
    let mut dice = Dice::seeded(seed ^ 0x5eed);
    let mut objects = generator.world();
    let mut cluster = Cluster::new(&plan);
    // Policies before pods, and pods before policies.
    let mut first: Vec<Step> = objects.all().cloned().map(Step::Put).collect();
    for i in (1..first.len()).rev() {
        first.swap(i, dice.below(i + 1));
    }
    cluster.take(&first, &objects, &mut dice);
    let mut cells = 0;
    for step in 0..STEPS {
        if step > 0 {
            let steps = generator.step(&objects);
            steps.iter().for_each(|step| objects.take(step));
            if dice.below(3) == 0 {
                let pod = &objects.pods[dice.below(objects.pods.len())];
                cluster.strangers.insert(pod["metadata"]["uid"].as_str().unwrap().to_owned());
            } else {
                cluster.strangers.clear();
            }
            cluster.take(&steps, &objects, &mut dice);
        }
        cells += cluster.check_cells(&objects, &plan, &mut dice);
        cluster.check_from_scratch(&objects);
    }
    cells
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_worlds_mean_what_the_api_says() {
    let worlds = number("WEFT_WORLDS").unwrap_or(2_000);
    let first = number("WEFT_SEED").unwrap_or_else(|| Dice::new("policy").word() >> 32);
    let histories = worlds.div_ceil(STEPS as u64);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    println!("seeds {first} to {}, {STEPS} worlds each", first + histories - 1);
    let run = |thread: u64| {
        let mut cells = 0;
        for seed in (first + thread..first + histories).step_by(threads as usize) {
            let outcome = std::panic::catch_unwind(|| history(seed));
            match outcome {
                Ok(more) => cells += more,
                Err(_) => panic!("seed {seed}: repeat with WEFT_SEED={seed} WEFT_WORLDS=1"),
            }
        }
        cells
    };
    let cells: usize = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{} worlds, {cells} cells, all as the API says", histories * STEPS as u64);
}

#[test]
fn every_field_and_every_pair_of_fields() {
    let plan = Plan::nine(true, true);
    let (mut objects, cases) = cases(&plan);
    assert!(cases.len() >= 200);
    let mut dice = Dice::seeded(1);
    let mut cluster = Cluster::new(&plan);
    let first: Vec<Step> = objects.all().cloned().map(Step::Put).collect();
    cluster.take(&first, &objects, &mut dice);
    let mut refused = 0;
    let mut expected_of_all = BTreeSet::new();
    // Each case follows from the one before by an update of the policy.
    for case in &cases {
        let step = Step::Put(case.policy.clone());
        objects.take(&step);
        cluster.take(&[step], &objects, &mut dice);
        let node_of: BTreeMap<IpAddr, String> = plan
            .pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, pod.node.clone())))
            .collect();
        let table = objects.expected();
        for cell in &table {
            let connection = Connection {
                from: cell.from_address,
                to: cell.to_address,
                protocol: cell.protocol,
                port: cell.port,
            };
            let actual = cluster.allowed(connection, &node_of);
            assert_eq!(actual, cell.allowed, "{}: {cell:?}\n{}", case.name, case.policy);
            refused += usize::from(!actual);
        }
        expected_of_all.insert(table.iter().map(|cell| cell.allowed).collect::<Vec<bool>>());
    }
    println!(
        "{} cases, {} different tables, {refused} refused cells",
        cases.len(),
        expected_of_all.len()
    );
    assert!(expected_of_all.len() >= 100, "the cases tell the fields apart");
}

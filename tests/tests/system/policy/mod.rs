//! NetworkPolicy, proved with packets: objects of an API server in, connections
//! between pods of three nodes out, every cell compared with the API read word by
//! word. `WEFT_POLICY_CASES=200` says how many cases; without, as many as fit into
//! [`BUDGET`].

mod cases;
mod faults;
mod seen;
pub(crate) mod world;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::Result;
use weft_tests::apiserver::objects;
use weft_tests::cluster::Builder;
use weft_tests::dice::Dice;
use weft_tests::policy::{NodePlan, Plan, PodPlan};
use weft_tests::policy_lab::{LabPod, PolicyLab};

/// For the cases of an ordinary run.
const BUDGET: Duration = Duration::from_secs(15);
/// Cases in which every pod has two addresses.
const BOTH: usize = 12;
/// Tries to get an address again.
const AGAIN: usize = 24;

fn addresses(lab: &PolicyLab) -> Vec<String> {
    lab.pods.values().flat_map(LabPod::addresses).map(|ip| ip.to_string()).collect()
}

/// Small, so that addresses come back soon.
fn lab() -> Result<PolicyLab> {
    lab_with(|b| b)
}

fn lab_of(ranges: &str) -> Result<PolicyLab> {
    lab_with(|b| b.range(ranges))
}

fn lab_with(change: impl FnOnce(Builder) -> Builder) -> Result<PolicyLab> {
    let small = |b: Builder| b.range("10.32.1.0/25").env("LEASE_COOLDOWN", "20ms");
    let mut lab = PolicyLab::start(|b| change(small(b)))?;
    lab.nine()?;
    Ok(lab)
}

fn meta(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn policies(lab: &PolicyLab) -> Result<Vec<(&'static str, Value)>> {
    let mut all = Vec::new();
    for kind in ["networkpolicies", "clusternetworkpolicies"] {
        all.extend(lab.api.list(kind, "")?.into_iter().map(|object| (kind, object)));
    }
    Ok(all)
}

fn remove_policy(lab: &PolicyLab, (kind, object): &(&str, Value)) -> Result {
    lab.api.delete(kind, &meta(object, "namespace"), &meta(object, "name"))
}

/// One change of what the API server holds; what it was.
fn change(lab: &mut PolicyLab, dice: &mut Dice, case: usize) -> Result<String> {
    let known = policies(lab)?;
    let ips = addresses(lab);
    match dice.below(10) {
        0..=3 => {
            for policy in &known {
                remove_policy(lab, policy)?;
            }
            let (plain, cluster) = (1 + dice.below(4), dice.below(3));
            for n in 0..plain {
                lab.api.put(&cases::network_policy(dice, &format!("p{case}-{n}"), &ips))?;
            }
            for n in 0..cluster {
                lab.api.put(&cases::cluster_policy(dice, &format!("c{case}-{n}"), &ips))?;
            }
            Ok(format!("{plain} policies and {cluster} of the cluster"))
        }
        4 => {
            lab.api.put(&cases::network_policy(dice, &format!("p{case}"), &ips))?;
            Ok("one policy more".to_owned())
        }
        5 if !known.is_empty() => {
            let policy = &known[dice.below(known.len())];
            remove_policy(lab, policy)?;
            Ok(format!("{} deleted", meta(&policy.1, "name")))
        }
        6 if !known.is_empty() => {
            let (kind, old) = &known[dice.below(known.len())];
            let name = meta(old, "name");
            let new = match *kind {
                "networkpolicies" => {
                    let mut new = cases::network_policy(dice, &name, &ips);
                    new["metadata"]["namespace"] = old["metadata"]["namespace"].clone();
                    new
                }
                _ => cases::cluster_policy(dice, &name, &ips),
            };
            lab.api.put(&new)?;
            Ok(format!("{name} updated"))
        }
        7 => {
            let space = ["x", "y", "z"][dice.below(3)];
            lab.api.edit("namespaces", "", space, |object| relabel(object, "ns", space, dice))?;
            Ok(format!("namespace {space} relabelled"))
        }
        8 => {
            let names: Vec<String> = lab.pods.keys().cloned().collect();
            let name = &names[dice.below(names.len())];
            let (space, pod) = name.split_once('/').unwrap_or_default();
            lab.api.edit("pods", space, pod, |object| relabel(object, "pod", pod, dice))?;
            Ok(format!("pod {name} relabelled"))
        }
        _ => recreate(lab, dice),
    }
}

/// Toggles the label `extra`, or lets the name's label tell another name, or the right one.
fn relabel(object: &mut Value, key: &str, name: &str, dice: &mut Dice) {
    let labels = &mut object["metadata"]["labels"];
    match dice.below(3) {
        0 => labels[key] = json!(["a", "x", "other"][dice.below(3)]),
        1 => labels[key] = json!(name),
        _ => {
            if let Some(map) = labels.as_object_mut()
                && map.remove("extra").is_none()
            {
                map.insert("extra".to_owned(), json!("yes"));
            }
        }
    }
}

/// A pod goes, and comes again with other labels: policies are there before it.
/// When its ADD answers, it may do nothing that it must not.
fn recreate(lab: &mut PolicyLab, dice: &mut Dice) -> Result<String> {
    let names: Vec<String> = lab.pods.keys().cloned().collect();
    let name = names[dice.below(names.len())].clone();
    let (space, pod) = name.split_once('/').unwrap_or_default();
    let old = lab.pods[&name].clone();
    lab.remove(space, pod, &old)?;
    lab.converge()?;
    let value = ["a", "b", "c"][dice.below(3)];
    let mut labels = vec![("pod", value)];
    if dice.below(2) == 0 {
        labels.push(("extra", "yes"));
    }
    let (new, reused) = again(lab, space, pod, &old, &labels)?;
    let new = lab.enter(space, pod, new)?;
    // Nobody has told the others its address yet; its own node knows its labels.
    lab.running(space, pod, &new)?;
    world::not_more_open(lab, &name, None, &format!("{name} just attached"))?;
    Ok(format!("{name} made again{}", if reused { " with its old address" } else { "" }))
}

/// A new pod of the name, if possible with the address of the old one.
fn again(
    lab: &PolicyLab,
    space: &str,
    pod: &str,
    old: &LabPod,
    labels: &[(&str, &str)],
) -> Result<(LabPod, bool)> {
    let uid = lab.bind(space, pod, old.node, labels)?;
    let mut others = Vec::new();
    let mut found = lab.attach(space, pod, old.node, &uid)?;
    while found.address != old.address && others.len() < AGAIN {
        others.push(found);
        found = lab.attach(space, pod, old.node, &uid)?;
    }
    for other in others {
        lab.detach(space, pod, &other)?;
    }
    let reused = found.address == old.address;
    Ok((found, reused))
}

#[test]
fn truth_table() -> Result {
    let wanted: Option<usize> =
        std::env::var("WEFT_POLICY_CASES").ok().and_then(|text| text.parse().ok());
    table(lab()?, Dice::new("truth table"), wanted)
}

/// The same where every pod has an address of each family: cells of both.
#[test]
fn truth_table_of_both_families() -> Result {
    table(lab_of("10.32.1.0/25,fd00:77::/48")?, Dice::new("both families"), Some(BOTH))
}

fn table(mut lab: PolicyLab, mut dice: Dice, wanted: Option<usize>) -> Result {
    let start = Instant::now();
    let first = world::check(&mut lab, "without policies")?;
    assert_eq!(first.cells, first.open, "without policies everything is open");
    let (mut cells, mut open, mut case, mut reused) = (0, 0, 0, 0);
    while wanted.map_or(start.elapsed() < BUDGET, |wanted| case < wanted) {
        case += 1;
        let what = change(&mut lab, &mut dice, case)?;
        reused += usize::from(what.contains("old address"));
        let tally = world::check(&mut lab, &format!("case {case}: {what}"))?;
        cells += tally.cells;
        open += tally.open;
    }
    println!(
        "truth table: {case} cases, {cells} cells, {open} open and {} refused, all as the API \
         says; {reused} addresses came back; {:.1} s",
        cells - open,
        start.elapsed().as_secs_f64()
    );
    assert!(open > 0 && open < cells, "cases that refuse nothing or everything prove nothing");
    Ok(())
}

/// The fields that users get wrong: each enforced more strictly than written, all
/// others as written, and the object has an Event.
#[test]
fn bad_policies_are_closed_and_told() -> Result {
    let mut lab = lab()?;
    lab.api.put(&objects::network_policy(
        "x",
        "odd",
        json!({
            "podSelector": { "matchLabels": { "pod": "a" } },
            "ingress": [
                { "from": [{ "ipBlock": { "cidr": "fd00::/64" } }] },
                { "ports": [{ "port": "this-is-no-port-name" }, { "port": 80 }] },
                { "from": [{ "somethingNew": {} }] },
            ],
        }),
    ))?;
    let tally = world::check(&mut lab, "a policy with odd parts")?;
    println!("{} of {} cells are open", tally.open, tally.cells);
    let policy = lab.policy(1)?;
    assert!(!policy.problems.is_empty(), "nothing is said of the odd parts");
    weft_tests::wait_until("an Event on the policy", Duration::from_secs(30), || {
        let events = lab.api.events()?;
        Ok(events.iter().any(|event| {
            event.about == ("NetworkPolicy".to_owned(), "odd".to_owned()) && event.kind == "Warning"
        }))
    })?;
    lab.api.put(&objects::network_policy(
        "x",
        "odd",
        json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] }),
    ))?;
    world::check(&mut lab, "the policy is mended")?;
    weft_tests::wait_until("the Event that it is resolved", Duration::from_secs(30), || {
        let events = lab.api.events()?;
        Ok(events.iter().any(|event| {
            event.about == ("NetworkPolicy".to_owned(), "odd".to_owned()) && event.kind == "Normal"
        }))
    })?;
    Ok(())
}

/// What a node asks of the API server: pods of others only where there is a
/// policy, and everything once.
#[test]
fn the_api_server_is_asked_little() -> Result {
    use weft_tests::apiserver::Verb;
    let mut lab = lab()?;
    lab.converge()?;
    let lists = |lab: &PolicyLab, all: bool| {
        let asked = lab.api.requests();
        let of_pods = asked.iter().filter(|r| r.verb == Verb::List && r.resource == "pods");
        of_pods.filter(|r| r.query.contains("nodeName%21%3D") == all).count()
    };
    assert_eq!((lists(&lab, false), lists(&lab, true)), (3, 0), "before the first policy");
    lab.api.put(&objects::network_policy("x", "closed", json!({ "podSelector": {} })))?;
    world::check(&mut lab, "the first policy")?;
    assert_eq!((lists(&lab, false), lists(&lab, true)), (3, 3), "with a policy");
    // Watches that end are taken up where they were.
    lab.api.cut_watches();
    lab.api.put(&objects::network_policy("y", "closed", json!({ "podSelector": {} })))?;
    world::check(&mut lab, "after the watches were cut")?;
    assert_eq!((lists(&lab, false), lists(&lab, true)), (3, 3), "after the watches were cut");
    // What is not kept any more is listed again.
    lab.api.compact();
    lab.api.cut_watches();
    lab.api.put(&objects::network_policy("z", "closed", json!({ "podSelector": {} })))?;
    world::check(&mut lab, "after versions expired")?;
    Ok(())
}

/// Where the pods of the matrix are.
fn plan(lab: &PolicyLab) -> Plan {
    let pods = lab.pods.iter().filter_map(|(name, pod)| {
        let (namespace, name) = name.split_once('/')?;
        Some(PodPlan {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: format!("n{}", pod.node),
            addresses: pod.addresses(),
        })
    });
    let nodes = lab
        .cluster
        .nodes()
        .iter()
        .map(|node| NodePlan { name: node.plan.name.clone(), addresses: vec![node.plan.address] });
    Plan {
        pods: pods.collect(),
        nodes: nodes.collect(),
        outside: vec![std::net::Ipv4Addr::new(192, 0, 2, 7).into()],
    }
}

/// Every value of every field of a NetworkPolicy with every value of every other:
/// all of them with `WEFT_POLICY_CASES=all`, else as many as fit into the time,
/// evenly spread.
#[test]
fn every_field_and_every_pair() -> Result {
    let every = std::env::var("WEFT_POLICY_CASES").is_ok_and(|text| text == "all");
    let mut dice = Dice::new("pairs of fields");
    let mut lab = lab()?;
    let (world, mut cases) = weft_tests::policy::cases(&plan(&lab));
    for space in &world.namespaces {
        let labels = space["metadata"]["labels"].clone();
        lab.api.edit("namespaces", "", &meta(space, "name"), |object| {
            object["metadata"]["labels"] = labels;
        })?;
    }
    for pod in &world.pods {
        lab.api.edit("pods", &meta(pod, "namespace"), &meta(pod, "name"), |object| {
            object["metadata"]["labels"] = pod["metadata"]["labels"].clone();
            object["spec"]["containers"] = pod["spec"]["containers"].clone();
        })?;
    }
    for at in (1..cases.len()).rev() {
        cases.swap(at, dice.below(at + 1));
    }
    let start = Instant::now();
    let (mut done, mut cells, mut open) = (0, 0, 0);
    for case in &cases {
        if !every && start.elapsed() > BUDGET {
            break;
        }
        lab.api.put(&case.policy)?;
        let tally = world::check(&mut lab, &case.name)?;
        done += 1;
        cells += tally.cells;
        open += tally.open;
    }
    println!(
        "{done} of {} pairs, {cells} cells, {open} open and {} refused, all as the API says; {:.1} s",
        cases.len(),
        cells - open,
        start.elapsed().as_secs_f64()
    );
    assert!(open > 0 && open < cells, "cases that refuse nothing or everything prove nothing");
    Ok(())
}

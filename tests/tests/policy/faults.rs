//! What breaks must not open anything.

use std::time::{Duration, Instant};

use serde_json::json;
use weft_tests::apiserver::objects;
use weft_tests::dice::Dice;
use weft_tests::policy_lab::PolicyLab;
use weft_tests::{Result, wait_until};

use crate::{cases, lab, world};

const TABLE: [&str; 3] = ["table", "inet", "weft-policy"];

/// Some pods closed, some half open.
fn some_policies(lab: &PolicyLab) -> Result {
    for (space, spec) in [
        ("x", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })),
        (
            "y",
            json!({ "podSelector": { "matchLabels": { "pod": "a" } }, "ingress": [
                { "from": [{ "namespaceSelector": { "matchLabels": { "ns": "z" } } }],
                  "ports": [{ "port": 80 }, { "port": "web" }] }] }),
        ),
        (
            "z",
            json!({ "podSelector": { "matchLabels": { "pod": "b" } }, "policyTypes": ["Egress"],
                "egress": [{ "to": [{ "podSelector": {} }] }] }),
        ),
    ] {
        lab.api.put(&objects::network_policy(space, "rules", spec))?;
    }
    Ok(())
}

#[test]
fn a_flushed_table_comes_back() -> Result {
    let mut lab = lab()?;
    some_policies(&lab)?;
    world::check(&mut lab, "before")?;
    let mut longest = Duration::ZERO;
    for how in ["delete", "flush"] {
        for node in 1..=3 {
            let before = lab.policy(node)?.table.repairs;
            let mut argv = vec!["nft", how];
            argv.extend(TABLE);
            lab.cluster.node(node).exec(&argv)?;
            let start = Instant::now();
            wait_until("the table is back", Duration::from_secs(10), || {
                let table = lab.policy(node)?.table;
                Ok(table.in_sync && table.repairs > before)
            })?;
            longest = longest.max(start.elapsed());
        }
        world::compare(&mut lab, &format!("after {how} of the table"))?;
    }
    println!("the table was back after {} ms at the latest", longest.as_millis());
    Ok(())
}

#[test]
fn policy_outlives_the_agent() -> Result {
    let mut lab = lab()?;
    some_policies(&lab)?;
    world::check(&mut lab, "before")?;
    for node in 1..=3 {
        lab.cluster.node_mut(node).kill9()?;
    }
    world::compare(&mut lab, "without agents")?;
    for node in 1..=3 {
        lab.cluster.node_mut(node).start()?;
    }
    // While they start, nothing changes either.
    let mut during = 0;
    let done = |lab: &PolicyLab| (1..=3).all(|n| lab.policy(n).is_ok_and(|p| p.enforced));
    while !done(&lab) {
        world::compare(&mut lab, "while agents start")?;
        during += 1;
    }
    lab.cluster.wait_ready()?;
    world::check(&mut lab, "after the agents' start")?;
    println!("{during} matrices while the agents started");
    Ok(())
}

#[test]
fn without_the_api_server_nothing_changes_and_strangers_are_closed() -> Result {
    let mut lab = lab()?;
    some_policies(&lab)?;
    // Selects nobody yet: but who knows what labels a stranger has?
    lab.api.put(&objects::network_policy(
        "y",
        "someday",
        json!({ "podSelector": { "matchLabels": { "who": "knows" } },
                "policyTypes": ["Ingress", "Egress"] }),
    ))?;
    world::check(&mut lab, "before")?;
    lab.api.stop()?;
    world::compare(&mut lab, "without the API server")?;
    // A pod that no node has heard of: its own node lets nothing through.
    let before = world::objects(&lab)?;
    let uid = lab.bind("y", "new", 2, &[("pod", "c")])?;
    let pod = lab.attach("y", "new", 2, &uid)?;
    let address = pod.address;
    lab.enter("y", "new", pod)?;
    let closed = world::isolated(&before, address);
    world::compare_with(&mut lab, "with a pod that nobody knows", &closed)?;
    // One of the agents starts without it.
    lab.cluster.node_mut(2).restart()?;
    world::compare_with(&mut lab, "after a start without the API server", &closed)?;
    lab.api.resume()?;
    lab.running("y", "new", address)?;
    world::check(&mut lab, "with the API server again")?;
    Ok(())
}

#[test]
fn pods_come_and_go_while_policies_change() -> Result {
    let rounds: usize =
        std::env::var("WEFT_POLICY_CHURN").ok().and_then(|t| t.parse().ok()).unwrap_or(24);
    let mut dice = Dice::new("churn");
    let mut lab = lab()?;
    // Whoever has the label may reach x/a; nobody else, and nobody at all the others of x.
    lab.api.put(&objects::network_policy(
        "x",
        "friends",
        json!({ "podSelector": {}, "ingress": [
            { "from": [{ "namespaceSelector": {},
                         "podSelector": { "matchLabels": { "friend": "yes" } } }] }] }),
    ))?;
    world::check(&mut lab, "before")?;
    let ips: Vec<String> = lab.pods.values().map(|pod| pod.address.to_string()).collect();
    let (mut seen, mut inherited) = (std::collections::BTreeSet::new(), 0);
    for round in 0..rounds {
        let node = 1 + dice.below(3);
        let friend = dice.below(2) == 0;
        let labels: &[(&str, &str)] = if friend { &[("friend", "yes")] } else { &[] };
        let name = format!("guest{round}");
        let uid = lab.bind("y", &name, node, labels)?;
        let pod = lab.attach("y", &name, node, &uid)?;
        inherited += usize::from(!seen.insert(pod.address));
        let (address, old) = (pod.address, pod.clone());
        // Always at the same place of the matrix.
        lab.enter("y", "guest", pod)?;
        let mut noise = cases::network_policy(&mut dice, "noise", &ips);
        noise["metadata"]["namespace"] = json!("z");
        lab.api.put(&noise)?;
        lab.running("y", &name, address)?;
        let what = format!("round {round}: just attached");
        world::not_more_open(&mut lab, "y/guest", Some("z"), &what)?;
        if round % 4 == 0 {
            world::check(&mut lab, &format!("round {round}: at rest"))?;
        }
        lab.remove("y", &name, &old)?;
        lab.converge()?;
    }
    lab.pods.remove("y/guest");
    world::check(&mut lab, "in the end")?;
    println!("{rounds} pods, {inherited} of them with the address of an earlier one");
    Ok(())
}

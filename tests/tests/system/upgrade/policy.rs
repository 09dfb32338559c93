//! Network policy while agents change: what is forbidden stays so, what is allowed too.

use anyhow::ensure;
use serde_json::json;
use weft_tests::apiserver::objects;
use weft_tests::policy_lab::PolicyLab;
use weft_tests::{Result, wait_until};

use crate::policy::world;
use crate::upgrade::common::Versions;

fn policies(lab: &PolicyLab) -> Result {
    for (space, spec) in [
        ("x", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })),
        (
            "y",
            json!({ "podSelector": { "matchLabels": { "pod": "a" } }, "ingress": [
                { "from": [{ "namespaceSelector": { "matchLabels": { "ns": "z" } } }],
                  "ports": [{ "port": 80 }] }] }),
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

/// The agent of a node changes; matrices are right all the while. How many there were.
fn replace(lab: &mut PolicyLab, number: usize, with: &std::path::Path) -> Result<usize> {
    let node = lab.cluster.node_mut(number);
    node.terminate()?;
    world::compare(lab, "without the agent")?;
    let node = lab.cluster.node_mut(number);
    node.use_binaries(with);
    node.start()?;
    let mut matrices = 1;
    while !lab.cluster.node(number).agent()?.readiness().is_ok_and(|now| now.ready) {
        world::compare(lab, "while it starts")?;
        matrices += 1;
    }
    lab.cluster.wait_ready()?;
    world::compare(lab, "with the other agent")?;
    Ok(matrices + 1)
}

#[test]
#[ignore = "needs programs of an earlier version: make test-upgrade"]
fn policy_is_kept_up_and_down() -> Result {
    let Versions { old, new } = Versions::find()?;
    let mut lab = PolicyLab::start(|b| b.binaries(&old).range("10.32.1.0/25"))?;
    lab.nine()?;
    policies(&lab)?;
    let tally = world::check(&mut lab, "before")?;
    ensure!(tally.open > 0 && tally.open < tally.cells, "something is forbidden: {tally:?}");

    let mut matrices = replace(&mut lab, 1, &new)?;
    world::check(&mut lab, "one is new")?;
    // Versions must not differ in what they make of a change either.
    lab.api.put(&objects::network_policy(
        "y",
        "more",
        json!({ "podSelector": { "matchLabels": { "pod": "b" } }, "policyTypes": ["Ingress"] }),
    ))?;
    world::check(&mut lab, "a policy for both versions")?;
    lab.add("y", "late", 1, &[("pod", "b")])?;
    lab.add("y", "later", 2, &[("pod", "b")])?;
    world::check(&mut lab, "pods at both versions")?;

    lab.api.stop()?;
    matrices += replace(&mut lab, 2, &new)?;
    lab.api.resume()?;
    matrices += replace(&mut lab, 3, &new)?;
    world::check(&mut lab, "all are new")?;

    // The new one remembers on disk what the old one does not know of.
    let file = lab.cluster.node(1).spec().state_dir().join("policy.json");
    wait_until(
        "a file of what is known",
        std::time::Duration::from_secs(30),
        || Ok(file.exists()),
    )?;
    matrices += replace(&mut lab, 1, &old)?;
    world::check(&mut lab, "one is old again")?;
    matrices += replace(&mut lab, 1, &new)?;
    world::check(&mut lab, "and new")?;
    println!("{matrices} matrices of {} cells while agents changed", tally.cells);
    Ok(())
}

//! What breaks must not open anything.

use std::time::{Duration, Instant};

use serde_json::json;
use weft_tests::apiserver::objects;
use weft_tests::dice::Dice;
use weft_tests::policy_lab::PolicyLab;
use weft_tests::{Result, wait_until};

use crate::policy::{addresses, cases, lab, lab_with, world};

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

/// The agent of a node goes on with what it knew: waits until it says so.
fn remembers(lab: &PolicyLab, node: usize) -> Result {
    wait_until("policy from memory", Duration::from_secs(30), || {
        let policy = lab.policy(node)?;
        Ok(policy.remembered_ms.is_some() && !policy.busy && !policy.synced)
    })?;
    Ok(())
}

/// What is known now is on the disks of the nodes: an object of this name is
/// made, and waited for.
fn wait_kept(lab: &PolicyLab) -> Result {
    lab.api.put(&objects::namespace("last-of-all", &[]))?;
    for node in 1..=3 {
        let file = lab.cluster.node(node).spec().state_dir().join("policy.json");
        wait_until("a file of what is known", Duration::from_secs(30), || {
            Ok(std::fs::read_to_string(&file)?.contains("last-of-all"))
        })?;
    }
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
    wait_kept(&lab)?;
    lab.api.stop()?;
    world::compare(&mut lab, "without the API server")?;
    // A pod that no node has heard of: its own node lets nothing through.
    let mut known = world::objects(&lab)?;
    world::close(&mut known, "nowhere", &["Ingress", "Egress"]);
    let uid = lab.bind("y", "new", 2, &[("pod", "c")])?;
    let first = lab.attach("y", "new", 2, &uid)?;
    let first = lab.enter("y", "new", first)?;
    world::stranger(&mut known, "nowhere", &first);
    world::compare_with(&mut lab, "with a pod that nobody knows", &known)?;

    // One of the agents starts without it: pods of before keep what they have.
    lab.cluster.node_mut(2).restart()?;
    world::compare_with(&mut lab, "after a start without the API server", &known)?;
    remembers(&lab, 2)?;
    world::compare_with(&mut lab, "from memory", &known)?;
    // Another stranger, one where there are no policies, and a new sandbox of a pod
    // that was known: as on the nodes whose agents go on.
    let second = lab.attach("y", "newer", 2, "u-newer")?;
    let second = lab.enter("y", "newer", second)?;
    world::stranger(&mut known, "nowhere", &second);
    let free = lab.attach("free", "any", 2, "u-free")?;
    let free = lab.enter("free", "any", free)?;
    world::stranger(&mut known, "free", &free);
    let old = lab.pods["y/a"].clone();
    assert_eq!(old.node, 2);
    lab.detach("y", "a", &old)?;
    let again = lab.attach("y", "a", 2, &old.uid)?;
    let again = lab.enter("y", "a", again)?;
    world::moved(&mut known, "y", "a", &again);
    world::compare_with(&mut lab, "with pods that come from memory", &known)?;
    let text = weft_agent::status::policy::render(Some(&lab.policy(2)?));
    assert!(text.starts_with("policy     ENFORCED FROM MEMORY"), "{text}");

    // Flushed meanwhile: what is remembered is made again.
    let before = lab.policy(2)?.table.repairs;
    lab.cluster.node(2).exec(&["nft", "delete", "table", "inet", "weft-policy"])?;
    wait_until("the table is back", Duration::from_secs(10), || {
        Ok(lab.policy(2)?.table.repairs > before)
    })?;
    world::compare_with(&mut lab, "after the table was lost", &known)?;

    // Back, and all is as it says: also what was deleted meanwhile.
    for name in ["y/newer", "free/any"] {
        let (space, pod) = name.split_once('/').unwrap_or_default();
        let stranger = lab.pods.remove(name).ok_or_else(|| anyhow::anyhow!("no {name}"))?;
        lab.detach(space, pod, &stranger)?;
    }
    lab.api.delete("networkpolicies", "x", "rules")?;
    lab.api.resume()?;
    lab.running("y", "new", &first)?;
    lab.running("y", "a", &again)?;
    world::check(&mut lab, "with the API server again")?;
    assert!((1..=3).all(|n| lab.policy(n).is_ok_and(|p| p.remembered_ms.is_none())));
    Ok(())
}

/// What cannot be used counts as absent, by name, and stops nobody.
#[test]
fn a_bad_memory_is_no_memory() -> Result {
    let mut lab = lab()?;
    some_policies(&lab)?;
    world::check(&mut lab, "before")?;
    wait_kept(&lab)?;
    lab.api.stop()?;
    let mut known = world::objects(&lab)?;
    world::close(&mut known, "nowhere", &["Ingress", "Egress"]);
    let file =
        |lab: &PolicyLab, n: usize| lab.cluster.node(n).spec().state_dir().join("policy.json");
    let mut content = std::fs::read(file(&lab, 1))?;
    content.truncate(content.len() / 2);
    std::fs::write(file(&lab, 1), &content)?;
    let foreign = std::fs::read_to_string(file(&lab, 2))?;
    let cluster = foreign.split("\"cluster\":\"").nth(1).and_then(|t| t.split('"').next());
    let cluster = cluster.ok_or_else(|| anyhow::anyhow!("no cluster in {foreign:.200}"))?;
    std::fs::write(file(&lab, 2), foreign.replace(cluster, "another"))?;
    for (node, word) in [(1, "is damaged"), (2, "is of another cluster")] {
        lab.cluster.node_mut(node).restart()?;
        lab.cluster.node(node).wait_log(&["policy.json", word], Duration::from_secs(30))?;
        // Without any policy in its namespace: but who knows that now?
        let name = format!("new{node}");
        let stranger = lab.attach("free", &name, node, "u")?;
        let stranger = lab.enter("free", &name, stranger)?;
        world::stranger(&mut known, "nowhere", &stranger);
    }
    world::compare_with(&mut lab, "without memory", &known)?;
    Ok(())
}

/// A pod that the API server does not know, under both settings, where a policy of
/// its namespace is about ingress alone.
#[test]
fn unknown_pods_are_open_or_closed_as_set() -> Result {
    for setting in ["allow", "deny"] {
        let mut lab = lab_with(|b| b.env("POLICY_UNKNOWN", setting))?;
        lab.api.put(&objects::network_policy(
            "y",
            "someday",
            json!({ "podSelector": { "matchLabels": { "who": "knows" } } }),
        ))?;
        world::check(&mut lab, "before")?;
        let stranger = lab.attach("y", "new", 2, "u-new")?;
        let stranger = lab.enter("y", "new", stranger)?;
        let mut known = world::objects(&lab)?;
        world::stranger(&mut known, "nowhere", &stranger);
        if setting == "deny" {
            world::close(&mut known, "nowhere", &["Ingress"]);
        }
        let tally = world::compare_with(&mut lab, setting, &known)?;
        assert_eq!(tally.open == tally.cells, setting == "allow", "{tally:?}");
    }
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
    let ips = addresses(&lab);
    let (mut seen, mut inherited) = (std::collections::BTreeSet::new(), 0);
    for round in 0..rounds {
        let node = 1 + dice.below(3);
        let friend = dice.below(2) == 0;
        let labels: &[(&str, &str)] = if friend { &[("friend", "yes")] } else { &[] };
        let name = format!("guest{round}");
        let uid = lab.bind("y", &name, node, labels)?;
        let pod = lab.attach("y", &name, node, &uid)?;
        inherited += usize::from(!seen.insert(pod.address));
        let old = pod.clone();
        // Always at the same place of the matrix.
        lab.enter("y", "guest", pod)?;
        let mut noise = cases::network_policy(&mut dice, "noise", &ips);
        noise["metadata"]["namespace"] = json!("z");
        lab.api.put(&noise)?;
        lab.running("y", &name, &old)?;
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

//! What people and monitors see of policy.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use weft_tests::apiserver::{ApiServer, Verb, objects};
use weft_tests::policy_lab::PolicyLab;
use weft_tests::{Result, binaries, wait_until};

use crate::policy::{lab, world};

/// The command line of the agent, on a node: exit code and output.
fn agent(lab: &PolicyLab, node: usize, arguments: &[&str]) -> Result<(i32, String)> {
    let program = binaries::agent()?;
    let node = lab.cluster.node(node);
    let output = node
        .netns()
        .run(|| {
            Command::new(program)
                .args(arguments)
                .env("RUN_DIR", node.spec().run_dir())
                .stdin(Stdio::null())
                .output()
        })?
        .context("the agent's command line")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

#[test]
fn operators_see_who_is_isolated_and_why() -> Result {
    let mut lab = lab()?;
    let closed = json!({ "podSelector": { "matchLabels": { "pod": "a" } } });
    lab.api.put(&objects::network_policy("x", "closed", closed))?;
    world::check(&mut lab, "one closed pod")?;

    // x/a is on n1. Any node can be asked.
    for node in [1, 2] {
        let (code, text) = agent(&lab, node, &["policy", "explain", "y/a", "x/a", "80"])?;
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("refused") && text.contains("NetworkPolicy x/closed"), "{text}");
    }
    let ip = lab.pods["y/a"].address.to_string();
    let (code, text) = agent(&lab, 1, &["policy", "explain", "x/a", &ip, "80/udp", "-o", "json"])?;
    let answer: Value = serde_json::from_str(&text)?;
    assert!(code == 0 && answer["allowed"] == true, "{text}");
    assert_eq!(agent(&lab, 1, &["policy", "explain", "x/nobody", "x/a", "80"])?.0, 2);

    // Counters are read every two seconds.
    wait_until("refused packets in the report", Duration::from_secs(10), || {
        Ok(lab.policy(1)?.refused_in > 0)
    })?;
    let (_, text) = agent(&lab, 1, &["status", "policy"])?;
    println!("{text}");
    let line = text.lines().find(|line| line.contains("x/a")).context("no line for x/a")?;
    assert!(line.contains("isolated: closed"), "{line}");
    let (_, text) = agent(&lab, 1, &["status"])?;
    assert!(text.contains("policy     enforced, 1 of 3 pods restricted"), "{text}");
    let metrics = lab.cluster.node(1).request("GET", "/metrics", b"")?.text();
    for start in [
        "weft_policy_enforced 1",
        "weft_policy_pods{state=\"restricted\"} 1",
        "weft_policy_refused_packets_total{direction=\"ingress\"} ",
        "weavenpc_blocked_connections_total{dport=\"80\",protocol=\"tcp\"} ",
        "weft_kubernetes_requests_total{verb=\"list\",resource=\"networkpolicies\",code=\"ok\"} ",
        "weft_kubernetes_requests_total{verb=\"watch\",resource=\"pods\",code=\"ok\"} ",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(start)), "no `{start}`:\n{metrics}");
    }
    let report: Value = lab.cluster.node(1).request("GET", "/report", b"")?.json()?;
    assert_eq!(report["Weft"]["Status"]["policy"]["enforced"], true);

    // A right is taken away: it is named, and what was in force stays.
    lab.api.deny(Verb::Watch, "networkpolicies.networking.k8s.io");
    lab.api.cut_watches();
    wait_until("the condition that names the right", Duration::from_secs(60), || {
        let conditions = lab.cluster.node(1).status()?.conditions;
        Ok(conditions.iter().any(|c| {
            c.reason == "PolicyDenied"
                && c.message.contains("NetworkPolicies")
                && c.hint.contains("networkpolicies")
        }))
    })?;
    world::compare(&mut lab, "without the right to watch policies")?;
    Ok(())
}

/// The kind is not served, and nobody minds; then its definition is installed.
#[test]
fn a_definition_that_comes_later_is_noticed() -> Result {
    let mut lab = PolicyLab::with(ApiServer::builder().without("policy.networking.k8s.io"), |b| b)?;
    lab.nine()?;
    lab.api.put(&objects::network_policy("x", "closed", json!({ "podSelector": {} })))?;
    world::check(&mut lab, "where the kind is not served")?;
    let status = lab.cluster.node(1).status()?;
    let about: Vec<_> =
        status.conditions.iter().filter(|c| c.reason.starts_with("Policy")).collect();
    assert!(about.is_empty(), "{about:?}");
    // Absence is asked about once a minute: only a full run waits for that.
    if std::env::var_os("WEFT_POLICY_CASES").is_none() {
        return Ok(());
    }
    lab.api.serve("policy.networking.k8s.io", true);
    let everything = json!({ "namespaces": {} });
    lab.api.put(&objects::cluster_network_policy(
        "nobody",
        json!({
            "tier": "Admin", "priority": 1, "subject": everything,
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }],
        }),
    ))?;
    for node in 1..=3 {
        wait_until("the kind is followed", Duration::from_secs(120), || {
            let sources = lab.policy(node)?.sources;
            Ok(sources.iter().any(|s| s.name == "ClusterNetworkPolicies" && s.objects == 1))
        })?;
    }
    let tally = world::check(&mut lab, "with a cluster policy")?;
    assert!(tally.open < tally.cells / 2);
    Ok(())
}

//! The rights of deploy/daemonset.yaml: the API server for tests grants no others in any
//! test, and here each of them is made use of.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::json;
use weft_tests::apiserver::{Verb, objects};
use weft_tests::conditions::{SOON, wait_condition, wait_no_condition};
use weft_tests::policy_lab::PolicyLab;
use weft_tests::{Cluster, Result, wait_until};

/// Nothing that was asked for was refused for want of a right.
fn refusals(api: &weft_tests::ApiServer) -> Vec<String> {
    let denied = api.requests().into_iter().filter(|logged| logged.code == 403);
    denied.map(|logged| format!("{} {}", logged.verb.word(), logged.resource)).collect()
}

/// Founding, Nodes, Events.
fn life_of_a_node() -> Result<BTreeSet<String>> {
    let cluster = Cluster::builder().kubernetes().start()?;
    let (api, node) = (cluster.api()?, cluster.node(1));
    let name = &node.plan.name;
    wait_until("the endpoints to be read", SOON, || {
        Ok(api.counts().of(Verb::Get, "endpoints").requests >= 3)
    })?;
    wait_until("voters to watch Nodes", SOON, || Ok(api.open_watches().contains_key("nodes")))?;
    // The same trouble twice: the second time, its Event is counted.
    let told = |kind: &str| -> Result<bool> {
        Ok(api.events()?.iter().any(|e| e.reason == "NodeMissing" && e.kind == kind))
    };
    api.delete("nodes", "", name)?;
    wait_condition(node, "NodeMissing")?;
    wait_until("an Event of it", SOON, || told("Warning"))?;
    api.put(&objects::node(name, node.plan.address))?;
    wait_no_condition(node, "NodeMissing")?;
    wait_until("an Event of its end", SOON, || told("Normal"))?;
    api.delete("nodes", "", name)?;
    wait_until("an Event to be counted", SOON, || {
        Ok(api.counts().of(Verb::Patch, "events.events.k8s.io").requests > 0)
    })
    .with_context(|| node.log_tail())?;
    ensure!(refusals(api).is_empty(), "refused: {:?}", refusals(api));
    Ok(api.unused_rights())
}

/// Watches of policies and what they name; a pod that the watch has not told of.
fn life_of_a_policy() -> Result<BTreeSet<String>> {
    let mut lab = PolicyLab::start(|builder| builder)?;
    lab.api.put(&objects::namespace("shop", &[("ns", "shop")]))?;
    lab.add("shop", "front", 1, &[("app", "front")])?;
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    lab.api.put(&objects::network_policy("shop", "own", spec))?;
    // About every pod there may be: whoever is not known is asked for.
    let nobody = json!([{"namespaces": {"matchLabels": {"ns": "nobody"}}}]);
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": nobody}]});
    lab.api.put(&objects::cluster_network_policy("all", spec))?;
    lab.converge()?;
    lab.attach("nowhere", "unknown", 2, "00000000-0000-0000-0000-000000000000")?;
    ensure!(refusals(&lab.api).is_empty(), "refused: {:?}", refusals(&lab.api));
    Ok(lab.api.unused_rights())
}

#[test]
fn every_right_of_the_manifest_is_made_use_of() -> Result {
    let (node, policy) = (life_of_a_node()?, life_of_a_policy()?);
    let unused: Vec<_> = node.intersection(&policy).collect();
    ensure!(unused.is_empty(), "rights that nobody needs: {unused:?}");
    ensure!(!node.is_empty(), "some are needed for policy only");
    Ok(())
}

#[test]
fn what_the_manifest_does_not_allow_is_refused() -> Result {
    let cluster = Cluster::builder().nodes(1).kubernetes().start()?;
    let api = cluster.api()?;
    api.put(&objects::config_map("kube-system", "other", &[]))?;
    let config = api.kubeconfig();
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let token = config["users"][0]["user"]["token"].as_str().context("a token")?;
    let ask = |path: &str| -> Result<String> {
        let request = format!(
            "exec 3<>/dev/tcp/{}/{}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: \
             Bearer {token}\\r\\nConnection: close\\r\\n\\r\\n' >&3; head -n 1 <&3",
            api.address().ip(),
            api.address().port()
        );
        cluster.node(1).exec(&["bash", "-c", &request])
    };
    for path in ["/api/v1/secrets", "/api/v1/namespaces/kube-system/configmaps/other"] {
        let said = ask(path)?;
        ensure!(said.contains("403"), "{path}: {said}");
    }
    let said = ask("/api/v1/namespaces/kube-system/configmaps/weft")?;
    ensure!(said.contains("200"), "{said}");
    Ok(())
}

//! What is set up wrong is named where operators look: in the pod's log, in an
//! Event of its Node, and by `agent status`.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_tests::Result;
use weft_tests::kubernetes::kubectl::text;
use weft_tests::kubernetes::weft::{self, AgentOf, Manifest, NAMESPACE};
use weft_tests::kubernetes::{KubeCluster, report::Report};

const PATIENCE: Duration = Duration::from_secs(90);
/// A label of nodes, so that two manifests share a cluster.
const LABEL: &str = "weft.test/manifest";
/// Half of it is the cluster's services.
const OVERLAPPING: &str = "10.96.0.0/12";
const OTHER: &str = "10.160.0.0/12";

#[test]
#[ignore = "needs Kubernetes: make e2e"]
fn what_is_set_up_wrong_is_named() -> Result {
    let mut report = Report::new("what is set up wrong is named");
    let cluster = report.must("a cluster without a network", || {
        let cluster = KubeCluster::start(2, &[weft::image()?])?;
        for (node, which) in [("n1", "first"), ("n2", "second")] {
            let label = format!("{LABEL}={which}");
            cluster.kubectl().run(&["label", "node", node, &label])?;
        }
        Ok((cluster, "2 nodes registered".to_owned()))
    })?;
    report.step("service range inside IPALLOC_RANGE", || {
        first(&cluster)?.env("IPALLOC_RANGE", OVERLAPPING)?.apply(cluster.kubectl())?;
        named(&cluster, "n1", "ServiceOverlap", &["10.96.0.0/12", "10.96.0.1"])
    });
    report.step("rights on Nodes missing", || {
        remove(&cluster)?;
        let mut manifest = first(&cluster)?;
        let rules = manifest.object_mut("ClusterRole", "weft")?["rules"].as_array_mut();
        rules.context("no rules")?.retain(|rule| !lists(rule, "nodes"));
        manifest.apply(cluster.kubectl())?;
        named(&cluster, "n1", "KubernetesDenied", &["nodes"])
    });
    report.step("rights given: it goes on by itself", || {
        first(&cluster)?.apply(cluster.kubectl())?;
        let took = cluster
            .kubectl()
            .wait("an agent that serves", PATIENCE, || AgentOf(cluster.node(1)).ready())?;
        Ok(format!("serves after {:.0} s", took.as_secs_f64()))
    });
    report.step("a hostPath missing", || {
        remove(&cluster)?;
        let manifest = first(&cluster)?.change(|manifest| {
            let set = manifest.daemonset_mut()?;
            for pointer in
                ["/spec/template/spec/volumes", "/spec/template/spec/containers/0/volumeMounts"]
            {
                let list = set.pointer_mut(pointer).and_then(Value::as_array_mut);
                list.context("no volumes")?.retain(|volume| volume["name"] != "cni-conf");
            }
            Ok(())
        })?;
        manifest.apply(cluster.kubectl())?;
        named(&cluster, "n1", "HostPathMissing", &["/etc/cni/net.d"])
    });
    report.step("a second manifest with another range", || {
        remove(&cluster)?;
        first(&cluster)?.apply(cluster.kubectl())?;
        cluster
            .kubectl()
            .wait("the first node's agent", PATIENCE, || AgentOf(cluster.node(1)).ready())?;
        let second = only(Manifest::load(cluster.kubectl())?, "second")?
            .env("IPALLOC_RANGE", OTHER)?
            .change(|manifest| {
                manifest.daemonset_mut()?["metadata"]["name"] = json!("weft-second");
                Ok(())
            })?;
        second.apply(cluster.kubectl())?;
        named(&cluster, "n2", "RefusedByPeer", &[OTHER, "10.32.0.0/12"])
    });
    report.finish()
}

fn lists(rule: &Value, resource: &str) -> bool {
    rule["resources"].as_array().is_some_and(|all| all.iter().any(|one| one == resource))
}

/// The manifest, on the nodes with that label.
fn only(manifest: Manifest, which: &str) -> Result<Manifest> {
    manifest.change(|manifest| {
        let set = manifest.daemonset_mut()?;
        set["spec"]["template"]["spec"]["nodeSelector"] = json!({LABEL: which});
        // Two sets must not adopt each other's pods.
        set["spec"]["selector"]["matchLabels"][LABEL] = json!(which);
        set["spec"]["template"]["metadata"]["labels"][LABEL] = json!(which);
        Ok(())
    })
}

fn first(cluster: &KubeCluster) -> Result<Manifest> {
    only(Manifest::load(cluster.kubectl())?, "first")
}

/// Removes the DaemonSet and waits for its pods' end.
fn remove(cluster: &KubeCluster) -> Result {
    let kubectl = cluster.kubectl();
    kubectl.delete(&["daemonset", "weft", "-n", NAMESPACE])?;
    kubectl.delete(&["clusterrole", "weft"])?;
    kubectl.wait("no pods of weft", PATIENCE, || {
        Ok(kubectl.items(&["pods", "-n", NAMESPACE, "-l", weft::SELECTOR])?.is_empty())
    })?;
    Ok(())
}

/// Waits until `reason` is in all three places, with all of `words`.
fn named(cluster: &KubeCluster, node: &str, reason: &str, words: &[&str]) -> Result<String> {
    let kubectl = cluster.kubectl();
    let has = |text: &str| text.contains(reason) && words.iter().all(|word| text.contains(word));
    let mut places = Vec::new();
    let waited = kubectl.wait(&format!("{reason} on {node}"), PATIENCE, || {
        places.clear();
        let field = format!("--field-selector=spec.nodeName={node}");
        let pods = kubectl.items(&["pods", "-n", NAMESPACE, "-l", weft::SELECTOR, &field])?;
        let pod = pods.first().map(|pod| text(pod, "/metadata/name").to_owned());
        let pod = pod.with_context(|| format!("no pod of weft on {node}"))?;
        let log = kubectl.run(&["logs", "-n", NAMESPACE, &pod]).unwrap_or_default();
        if log.lines().any(|line| words.iter().all(|word| line.contains(word))) {
            places.push("log");
        }
        let events = kubectl.items(&["events", "-A"])?;
        let event = events.iter().find(|event| {
            text(event, "/reason") == reason
                && text(event, "/involvedObject/name") == node
                && words.iter().all(|word| text(event, "/message").contains(word))
        });
        if event.is_some() {
            places.push("Event");
        }
        // The command's exit code says how bad it is: its text is wanted in any case.
        let status =
            kubectl.output(&["exec", "-n", NAMESPACE, &pod, "--", "/usr/bin/agent", "status"])?;
        if has(&String::from_utf8_lossy(&status.stdout)) {
            places.push("status");
        }
        ensure!(places.len() == 3, "named only in {places:?}");
        Ok(true)
    });
    let took = waited.with_context(|| agent_log(cluster))?;
    Ok(format!("{reason} in {} after {:.0} s", places.join(", "), took.as_secs_f64()))
}

fn agent_log(cluster: &KubeCluster) -> String {
    let arguments = ["logs", "-n", NAMESPACE, "-l", weft::SELECTOR, "--tail=12", "--prefix"];
    cluster.kubectl().run(&arguments).unwrap_or_else(|error| format!("{error:#}"))
}

//! What the API server holds, what follows from it by the letter, what happens.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::bail;
use serde_json::Value;
use weft_agent::policy::state::Protocol;
use weft_tests::Result;
use weft_tests::policy::Objects;
use weft_tests::policy::naive::{self, Connection, Way};
use weft_tests::policy_lab::{LabPod, PolicyLab, status};
use weft_tests::prober::Expect;

/// Most wrong cells shown.
const SHOWN: usize = 6;

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// All objects that policy depends on.
pub(crate) fn objects(lab: &PolicyLab) -> Result<Objects> {
    Ok(Objects {
        pods: lab.api.list("pods", "")?,
        namespaces: lab.api.list("namespaces", "")?,
        nodes: lab.api.list("nodes", "")?,
        policies: lab.api.list("networkpolicies", "")?,
        cluster_policies: lab.api.list("clusternetworkpolicies", "")?,
    })
}

/// What a matrix came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Cells tried.
    pub(crate) cells: usize,
    /// Those that got through, as they should.
    pub(crate) open: usize,
}

/// Every cell is as the API says, once the agents have caught up.
pub(crate) fn check(lab: &mut PolicyLab, what: &str) -> Result<Tally> {
    lab.converge()?;
    compare(lab, what)
}

/// Every cell is as the API says, now.
pub(crate) fn compare(lab: &mut PolicyLab, what: &str) -> Result<Tally> {
    let objects = objects(lab)?;
    compare_with(lab, what, &objects)
}

/// Every cell is as these objects say.
pub(crate) fn compare_with(lab: &mut PolicyLab, what: &str, objects: &Objects) -> Result<Tally> {
    let open = std::cell::Cell::new(0);
    let allowed = |from: IpAddr, to: IpAddr, protocol, port| {
        let connection = Connection { from, to, protocol: word(protocol), port };
        let allowed = naive::allowed(objects, connection);
        open.set(open.get() + usize::from(allowed));
        allowed
    };
    let expected = |from, to, protocol, port| {
        if allowed(from, to, protocol, port) { Expect::Through } else { Expect::Refused }
    };
    let (wrong, cells) = lab.compare(expected)?;
    if wrong.is_empty() {
        return Ok(Tally { cells, open: open.get() });
    }
    let mut text = format!("{what}: {} of {cells} cells are wrong", wrong.len());
    for one in wrong.iter().take(SHOWN) {
        let (protocol, port) = one.what;
        let happened = if one.reached { "gets through, must not" } else { "must get through" };
        text.push_str(&format!(
            "\n{} ({}) to {} ({}) {port}/{}: {happened}\n{}",
            one.from,
            one.ends.0,
            one.to,
            one.ends.1,
            word(protocol),
            lab.explain(one)
        ));
    }
    for policy in objects.policies.iter().chain(&objects.cluster_policies) {
        text.push_str(&format!(
            "\n{} {}",
            policy["metadata"]["namespace"].as_str().unwrap_or("-"),
            short(policy)
        ));
    }
    bail!("{text}")
}

fn short(policy: &Value) -> String {
    format!("{}: {}", policy["metadata"]["name"].as_str().unwrap_or_default(), policy["spec"])
}

/// Nothing gets through that the API forbids, although pod `new` has only just been
/// attached; what it allows need not work yet. Of a Deny rule for peers like the new
/// pod, other nodes cannot know before its address is told: its own half counts.
/// Cells with an end in namespace `moving` are left out: its policies change just now.
pub(crate) fn not_more_open(
    lab: &mut PolicyLab,
    new: &str,
    moving: Option<&str>,
    what: &str,
) -> Result {
    let objects = objects(lab)?;
    let moves: BTreeSet<IpAddr> = lab
        .pods
        .iter()
        .filter(|(name, _)| moving.is_some_and(|m| name.split('/').next() == Some(m)))
        .flat_map(|(_, pod)| pod.addresses())
        .collect();
    let new = lab.pods.get(new).map(LabPod::addresses).unwrap_or_default();
    let known = objects.cluster_policies.is_empty();
    let may = |from: IpAddr, to: IpAddr, protocol, port| {
        let connection = Connection { from, to, protocol: word(protocol), port };
        let half = |way| naive::half(&objects, connection, way);
        let egress = new.contains(&to) && !known || half(Way::Egress);
        let ingress = new.contains(&from) && !known || half(Way::Ingress);
        moves.contains(&from) || moves.contains(&to) || egress && ingress
    };
    let (wrong, _) =
        lab.compare(
            |from, to, protocol, port| {
                if may(from, to, protocol, port) { Expect::Either } else { Expect::Refused }
            },
        )?;
    if let Some(one) = wrong.first() {
        let (protocol, port) = one.what;
        bail!(
            "{what}: {} to {} {port}/{}: gets through, must not\n{}",
            one.from,
            one.to,
            word(protocol),
            lab.explain(one)
        );
    }
    Ok(())
}

/// An object for a pod that the API server does not know, in a namespace of this
/// name of which it knows as little.
pub(crate) fn stranger(objects: &mut Objects, namespace: &str, pod: &LabPod) {
    objects.pods.push(serde_json::json!({
        "metadata": { "namespace": namespace, "name": format!("stranger-{}", pod.address) },
        "spec": {}, "status": status(pod),
    }));
}

/// All pods of a namespace are isolated in these directions.
pub(crate) fn close(objects: &mut Objects, namespace: &str, directions: &[&str]) {
    objects.policies.push(serde_json::json!({
        "metadata": { "namespace": namespace, "name": "closed" },
        "spec": { "podSelector": {}, "policyTypes": directions },
    }));
}

/// A pod was made again elsewhere, and nobody told the API server.
pub(crate) fn moved(objects: &mut Objects, namespace: &str, name: &str, pod: &LabPod) {
    let same =
        |o: &&mut Value| o["metadata"]["namespace"] == namespace && o["metadata"]["name"] == name;
    if let Some(object) = objects.pods.iter_mut().find(same) {
        object["status"] = status(pod);
    }
}

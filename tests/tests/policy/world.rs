//! What the API server holds, what follows from it by the letter, what happens.

use std::net::IpAddr;

use anyhow::bail;
use serde_json::Value;
use weft_agent::policy::state::Protocol;
use weft_tests::Result;
use weft_tests::policy::Objects;
use weft_tests::policy::naive::{self, Connection, Way};
use weft_tests::policy_lab::PolicyLab;

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
    let (wrong, cells) = lab.compare(allowed)?;
    if wrong.is_empty() {
        return Ok(Tally { cells, open: open.get() });
    }
    let mut text = format!("{what}: {} of {cells} cells are wrong", wrong.len());
    for one in wrong.iter().take(SHOWN) {
        let (protocol, port) = one.what;
        let happened = if one.reached { "gets through, must not" } else { "must get through" };
        text.push_str(&format!(
            "\n{} to {} {port}/{}: {happened}\n{}",
            one.from,
            one.to,
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
    let (mut reached, _) = lab.compare(|_, _, _, _| false)?;
    let moves = |name: &str| moving.is_some_and(|m| name.split('/').next() == Some(m));
    reached.retain(|one| !moves(&one.from) && !moves(&one.to));
    let ip = |name: &str| lab.pods.get(name).map(|pod| IpAddr::from(pod.address));
    for one in &reached {
        let (Some(from), Some(to)) = (ip(&one.from), ip(&one.to)) else { continue };
        let (protocol, port) = one.what;
        let connection = Connection { from, to, protocol: word(protocol), port };
        let half = |way| naive::half(&objects, connection, way);
        let known = objects.cluster_policies.is_empty();
        let egress = one.to == new && !known || half(Way::Egress);
        let ingress = one.from == new && !known || half(Way::Ingress);
        if !(egress && ingress) {
            bail!(
                "{what}: {} to {} {port}/{}: gets through, must not\n{}",
                one.from,
                one.to,
                word(protocol),
                lab.explain(one)
            );
        }
    }
    Ok(())
}

/// These objects, and a pod with this address that may do nothing.
pub(crate) fn isolated(objects: &Objects, address: std::net::Ipv4Addr) -> Objects {
    let mut all = objects.clone();
    let ip = address.to_string();
    all.pods.push(serde_json::json!({
        "metadata": { "namespace": "nowhere", "name": "stranger", "labels": {} },
        "spec": {}, "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    }));
    all.policies.push(serde_json::json!({
        "metadata": { "namespace": "nowhere", "name": "closed" },
        "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] },
    }));
    all
}

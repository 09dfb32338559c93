//! Blocks of a family that the pod network does not have.

use super::Settings;
use crate::policy::objects::network::Peer;
use crate::policy::objects::{ClusterPolicy, NetworkPolicy, PolicyRef, Problem};

pub(super) fn of_network(policy: &NetworkPolicy, settings: Settings, out: &mut Vec<Problem>) {
    for (section, rules, list) in
        [("ingress", &policy.ingress, "from"), ("egress", &policy.egress, "to")]
    {
        for rule in rules.iter().flatten() {
            let field = || format!("spec.{section}[{}].{list}", rule.index);
            look(&policy.id, rule.peers.as_deref(), settings, field, out);
        }
    }
}

pub(super) fn of_cluster(policy: &ClusterPolicy, settings: Settings, out: &mut Vec<Problem>) {
    for (section, rules, list) in
        [("ingress", &policy.ingress, "from"), ("egress", &policy.egress, "to")]
    {
        for rule in rules {
            let field = || format!("spec.{section}[{}].{list}", rule.index);
            look(&policy.id, rule.peers.as_deref(), settings, field, out);
        }
    }
}

fn look(
    policy: &PolicyRef,
    peers: Option<&[Peer]>,
    settings: Settings,
    field: impl Fn() -> String,
    out: &mut Vec<Problem>,
) {
    let foreign = peers.into_iter().flatten().find_map(|peer| match peer {
        Peer::Block(net, _) if net.addr().is_ipv4() && !settings.ipv4 => Some((net, "IPv4")),
        Peer::Block(net, _) if net.addr().is_ipv6() && !settings.ipv6 => Some((net, "IPv6")),
        _ => None,
    });
    if let Some((net, family)) = foreign {
        out.push(Problem {
            policy: policy.clone(),
            field: field(),
            what: format!("{net} is {family}, which pods of this cluster do not have: it matches no connection"),
            hint: "remove it, or give the pod network a range of that family".to_owned(),
        });
    }
}

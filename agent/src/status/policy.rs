//! `agent status policy`, and what the other pages say of policy.

use std::fmt::Write;

use weft_proto::api::{
    PolicyDirection, PolicyPod, PolicyProblem, PolicySource, PolicyStatus, PolicyTable,
};

use super::metrics::{Page, flag};
use super::screen::columns;
use super::text::{clean, count, moment, span};
use crate::api::backend::NO_POLICY;
use crate::policy::engine::{Count, PodReport, PolicyReport};
use crate::policy::feed::FeedStatus;
use crate::policy::world::Isolation;

/// Most pods shown; `-o json` shows all.
const ROWS: usize = 200;
/// Most policies named in a row.
const NAMES: usize = 3;

/// What engine and feed say, as one value.
pub fn of(report: PolicyReport, feed: FeedStatus, busy: bool) -> PolicyStatus {
    PolicyStatus {
        synced: report.synced,
        enforced: report.enforced,
        remembered_ms: feed.remembered_ms,
        busy,
        pods: report.pods.into_iter().map(pod).collect(),
        table: report.table,
        refused_in: report.refused.ingress.packets,
        refused_out: report.refused.egress.packets,
        refused_ports: report.refused.ports,
        established_dropped: report.established.dropped,
        sources: feed
            .sources
            .into_iter()
            .map(|s| PolicySource {
                name: s.name.to_owned(),
                complete: s.complete,
                objects: s.objects,
                version: s.version,
                heard_s: s.heard_s,
                failing_s: s.failing_s,
                why: s.why,
            })
            .collect(),
        problems: report
            .problems
            .into_iter()
            .map(|p| PolicyProblem {
                policy: p.policy.to_string(),
                field: p.field,
                what: p.what,
                hint: p.hint,
            })
            .collect(),
    }
}

fn pod(report: PodReport) -> PolicyPod {
    let status = report.status;
    let direction = |isolation: Isolation, restricted, refused: Count| PolicyDirection {
        isolated: isolation.isolated,
        restricted,
        policies: isolation.policies.iter().map(ToString::to_string).collect(),
        refused: refused.packets,
    };
    PolicyPod {
        namespace: status.namespace.to_string(),
        name: status.name.to_string(),
        addresses: status.addresses,
        missing: status.missing.map(|missing| format!("{missing:?}")),
        ingress: direction(status.ingress, report.restricted_ingress, report.refused_ingress),
        egress: direction(status.egress, report.restricted_egress, report.refused_egress),
    }
}

/// One line for the screen of `agent status`.
pub(super) fn line(policy: &PolicyStatus) -> String {
    let restricted =
        policy.pods.iter().filter(|p| p.ingress.restricted || p.egress.restricted).count();
    let mut text = format!(
        "{}, {restricted} of {} restricted",
        state(policy),
        count(policy.pods.len(), "pod")
    );
    let refused = policy.refused_in + policy.refused_out;
    let _ = write!(text, ", {} refused", count(refused, "packet"));
    if !policy.problems.is_empty() {
        let _ = write!(text, ", {} not as written", count(policy.problems.len(), "rule"));
    }
    text
}

fn addresses(number: usize) -> String {
    if number == 1 {
        "1 restricted address".to_owned()
    } else {
        format!("{number} restricted addresses")
    }
}

fn state(policy: &PolicyStatus) -> &'static str {
    match policy {
        PolicyStatus { table: PolicyTable { in_sync: false, .. }, .. } => "OUT OF SYNC",
        PolicyStatus { enforced: false, remembered_ms: Some(_), .. } => "ENFORCED FROM MEMORY",
        PolicyStatus { enforced: false, .. } => "NOT SYNCED YET, new pods isolated as unknown",
        PolicyStatus { synced: false, .. } => "enforced, API server not followed",
        _ => "enforced",
    }
}

/// `agent status policy`.
pub fn render(policy: Option<&PolicyStatus>) -> String {
    let Some(policy) = policy else {
        return NO_POLICY.to_owned();
    };
    let t = &policy.table;
    let mut text = format!("policy     {}\n", line(policy));
    let _ = writeln!(
        text,
        "table      {}, {} with {}, {}, {}, {}",
        if t.in_sync { "in sync" } else { "OUT OF SYNC" },
        count(t.sets, "set"),
        count(t.elements, "element"),
        count(t.chains, "chain"),
        addresses(t.subjects),
        count(t.repairs, "repair"),
    );
    for error in &t.errors {
        let _ = writeln!(text, "           refused: {}", clean(error));
    }
    if let Some(ms) = policy.remembered_ms {
        let _ = writeln!(
            text,
            "memory     as of {}: new pods are judged by it, older ones keep what they have",
            moment(ms)
        );
    }
    let _ = writeln!(text, "API server {}", if policy.synced { "synced" } else { "NOT SYNCED" });
    for source in &policy.sources {
        let heard = match (source.failing_s, source.heard_s) {
            (Some(s), _) => format!("FAILS since {}", span(s)),
            (None, Some(s)) => format!("heard {} ago", span(s)),
            (None, None) => "not heard yet".to_owned(),
        };
        let listed = if source.complete { "" } else { ", first list not complete" };
        let why = source.why.as_ref().map(|why| format!(": {}", clean(why))).unwrap_or_default();
        let _ =
            writeln!(text, "           {} {}, {heard}{listed}{why}", source.objects, source.name);
    }
    let _ = writeln!(
        text,
        "refused    {} to pods of this node, {} from them",
        count(policy.refused_in, "packet"),
        policy.refused_out
    );
    for problem in &policy.problems {
        let _ = writeln!(
            text,
            "  ! {}: {}: {}\n    do: {}",
            clean(&problem.policy),
            clean(&problem.field),
            clean(&problem.what),
            clean(&problem.hint)
        );
    }
    text.push_str(&table(&policy.pods));
    text
}

fn table(pods: &[PolicyPod]) -> String {
    if pods.is_empty() {
        return String::new();
    }
    let mut sorted: Vec<&PolicyPod> = pods.iter().collect();
    // What is refused or not known first: on a large node the rest is cut.
    let quiet = |p: &PolicyPod| p.missing.is_none() && p.ingress.refused + p.egress.refused == 0;
    sorted.sort_by_key(|p| (quiet(p), p.namespace.clone(), p.name.clone()));
    let head = ["POD", "ADDRESS", "TO IT", "FROM IT", "REFUSED TO", "FROM"];
    let mut rows = vec![head.map(str::to_owned)];
    for pod in sorted.iter().take(ROWS) {
        rows.push([
            clean(&format!("{}/{}", pod.namespace, pod.name)),
            pod.addresses.first().map_or_else(|| "-".to_owned(), ToString::to_string),
            direction(pod, &pod.ingress),
            direction(pod, &pod.egress),
            pod.ingress.refused.to_string(),
            pod.egress.refused.to_string(),
        ]);
    }
    let mut text = columns(&rows);
    if sorted.len() > ROWS {
        let _ = writeln!(text, "  … {} more, see -o json", sorted.len() - ROWS);
    }
    text
}

/// `open`, `closed but for p1, p2`, `asked p1`, `unknown: closed`.
fn direction(pod: &PolicyPod, direction: &PolicyDirection) -> String {
    if pod.missing.is_some() {
        let word = if direction.isolated { "closed" } else { "open" };
        return format!("{word}: pod not known yet");
    }
    if direction.policies.is_empty() && !direction.isolated {
        return "open".to_owned();
    }
    let own = format!("NetworkPolicy {}/", pod.namespace);
    let short = |name: &String| {
        let name = name.strip_prefix(&own).unwrap_or(name);
        clean(&name.replacen("ClusterNetworkPolicy ", "cluster:", 1))
    };
    let mut names: Vec<String> = direction.policies.iter().take(NAMES).map(short).collect();
    if direction.policies.len() > NAMES {
        names.push(format!("{} more", direction.policies.len() - NAMES));
    }
    let names = names.join(", ");
    if direction.isolated { format!("isolated: {names}") } else { format!("judged: {names}") }
}

/// `weft_policy_*`, and Weave's name for refused packets.
pub(super) fn metrics(page: &mut Page, policy: &PolicyStatus) {
    page.gauge("weft_policy_synced", "1 if all that matters is known.", flag(policy.synced));
    page.gauge(
        "weft_policy_enforced",
        "1 if the kernel has had the whole policy since the agent started.",
        flag(policy.enforced),
    );
    page.gauge(
        "weft_policy_remembered",
        "1 if new pods are judged by what was known before the agent started.",
        flag(policy.remembered_ms.is_some()),
    );
    page.head("weft_policy_pods", "gauge", "Pods of this node, by what restricts them.");
    let (mut open, mut restricted, mut unknown) = (0_u32, 0_u32, 0_u32);
    for pod in &policy.pods {
        match pod {
            PolicyPod { missing: Some(_), .. } => unknown += 1,
            p if p.ingress.restricted || p.egress.restricted => restricted += 1,
            _ => open += 1,
        }
    }
    for (state, n) in [("open", open), ("restricted", restricted), ("unknown", unknown)] {
        page.sample("weft_policy_pods", &[("state", state)], f64::from(n));
    }
    page.head("weft_policy_objects", "gauge", "Objects known from the API server, by kind.");
    for source in &policy.sources {
        page.sample("weft_policy_objects", &[("kind", &source.name)], source.objects as f64);
    }
    let failing = policy.sources.iter().filter(|s| s.failing_s.is_some()).count();
    page.gauge("weft_policy_sources_failing", "Kinds that cannot be followed.", failing as f64);
    page.gauge(
        "weft_policy_problems",
        "Parts of policies that are not enforced as written.",
        policy.problems.len() as f64,
    );
    let t = &policy.table;
    page.gauge("weft_policy_table_in_sync", "1 if the kernel holds all.", flag(t.in_sync));
    page.head("weft_policy_table_objects", "gauge", "What the kernel holds, by kind.");
    for (kind, n) in
        [("set", t.sets), ("element", t.elements), ("chain", t.chains), ("address", t.subjects)]
    {
        page.sample("weft_policy_table_objects", &[("kind", kind)], n as f64);
    }
    page.counter("weft_policy_transactions_total", "Changes of the table.", t.transactions);
    page.counter("weft_policy_repairs_total", "Repairs of the table.", t.repairs);
    page.gauge(
        "weft_policy_last_transaction_seconds",
        "Time of the last change of the table.",
        t.last_us as f64 / 1e6,
    );
    page.head(
        "weft_policy_refused_packets_total",
        "counter",
        "Packets refused, by direction as the pod of this node sees it.",
    );
    for (direction, n) in [("ingress", policy.refused_in), ("egress", policy.refused_out)] {
        page.sample("weft_policy_refused_packets_total", &[("direction", direction)], n as f64);
    }
    page.counter(
        "weft_policy_established_dropped_total",
        "Established connections ended by a change of policy.",
        policy.established_dropped,
    );
    page.head(
        "weavenpc_blocked_connections_total",
        "counter",
        "Connection attempts blocked by policy controller.",
    );
    for p in &policy.refused_ports {
        let port = p.port.to_string();
        let labels = [("dport", port.as_str()), ("protocol", p.protocol.as_str())];
        page.sample("weavenpc_blocked_connections_total", &labels, p.packets as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn the_screen_says_it_all_in_a_few_lines() {
        let policy = sample::policy();
        let text = render(Some(&policy));
        assert_eq!(
            text,
            "\
policy     enforced, 2 of 3 pods restricted, 13 packets refused, 1 rule not as written
table      in sync, 4 sets with 21 elements, 2 chains, 2 restricted addresses, 0 repairs
API server synced
           3 pods of this node, heard 2s ago
           2 NetworkPolicies, FAILS since 1m5s: connection refused
refused    12 packets to pods of this node, 1 from them
  ! NetworkPolicy shop/db: spec.ingress[0].ports[0].port: no such port; it matches nothing
    do: write a number or the name of a container port
  POD         ADDRESS    TO IT                             FROM IT                    REFUSED TO  FROM
  new/pod     10.32.0.9  closed: pod not known yet         closed: pod not known yet  0           0
  shop/db     10.32.0.5  isolated: db, cluster:guard rail  open                       12          1
  shop/front  10.32.0.6  open                              open                       0           0
"
        );
        let away = PolicyStatus {
            enforced: false,
            synced: false,
            remembered_ms: Some(1_771_934_103_000),
            ..sample::policy()
        };
        let text = render(Some(&away));
        assert!(text.starts_with("policy     ENFORCED FROM MEMORY, 2 of 3"), "{text}");
        assert!(text.contains("\nmemory     as of 2026-02-24 11:55:03 UTC: new pods"), "{text}");
        assert!(render(None).contains("EXPECT_NPC"));
        assert!(!text.contains('\u{1b}'));
    }
}

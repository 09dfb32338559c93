//! Prometheus text: `weft_*`, Weave's names as aliases, and the process.

use std::fmt::Write;

use weft_proto::api::{Health, Status};

use super::weave::percent;
use crate::api::{BUCKETS, HistogramSnapshot, StatsSnapshot};

/// Counter of the mesh that Weave called terminations.
const TERMINATED: &str = "connections_lost";

/// What Linux says of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// User and system time, seconds.
    pub cpu_s: f64,
    /// Resident memory, bytes.
    pub resident: u64,
    /// Virtual memory, bytes.
    pub virt: u64,
    /// Open file descriptors.
    pub fds: u64,
    /// Most of them.
    pub max_fds: u64,
    /// Start, Unix seconds.
    pub start_s: f64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// Reads `/proc/self`; `None` where that fails.
    pub fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot =
            boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let fds = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let max_fds = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Self::parse(&stat, boot, fds, max_fds)
    }

    fn parse(stat: &str, boot: f64, fds: u64, max_fds: u64) -> Option<Self> {
        // The name in parentheses may hold anything; fields count from after it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // USER_HZ and the page size are fixed in the ABI of every Linux we build for.
        let (hz, page) = (100.0, 4096);
        Some(Self {
            cpu_s: (field(14)? + field(15)?) as f64 / hz,
            threads: field(20)?,
            start_s: boot + field(22)? as f64 / hz,
            virt: field(23)?,
            resident: field(24)? * page,
            fds: fds.saturating_sub(1),
            max_fds,
        })
    }
}

/// Connections that ended, since start.
pub(super) fn terminations(status: &Status) -> u64 {
    status.mesh.counters.get(TERMINATED).copied().unwrap_or(0)
}

/// All metrics.
pub fn render(status: &Status, api: &StatsSnapshot, process: Option<&Process>) -> String {
    let mut page = Page::default();
    node(&mut page, status);
    mesh(&mut page, status);
    addresses(&mut page, status);
    dataplane(&mut page, status);
    overlay(&mut page, status);
    if let Some(policy) = &status.policy {
        super::policy::metrics(&mut page, policy);
    }
    kubernetes(&mut page, status);
    endpoint(&mut page, api);
    aliases(&mut page, status);
    if let Some(process) = process {
        of_process(&mut page, process);
    }
    page.0
}

#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let labels: Vec<_> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
            let _ = write!(self.0, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, &[], value);
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.one(name, "gauge", help, value);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.one(name, "counter", help, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, values: &HistogramSnapshot) {
        self.head(name, "histogram", help);
        let total = values.cumulative.last().copied().unwrap_or(0);
        for (bound, count) in BUCKETS.iter().zip(&values.cumulative) {
            self.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], *count as f64);
        }
        self.sample(&format!("{name}_bucket"), &[("le", "+Inf")], total as f64);
        self.sample(&format!("{name}_sum"), &[], values.sum);
        self.sample(&format!("{name}_count"), &[], total as f64);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub(super) fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

fn kubernetes(page: &mut Page, status: &Status) {
    let Some(found) = &status.kubernetes else { return };
    page.gauge("weft_kubernetes_up", "1 if the API server answers.", flag(found.reachable));
    if let Some(ago) = found.last_answer_s {
        let help = "Time since the API server's last answer.";
        page.gauge("weft_kubernetes_last_answer_seconds", help, ago as f64);
    }
    let name = "weft_kubernetes_requests_total";
    page.head(name, "counter", "Requests to the API server, by answer (-: none).");
    for r in &found.requests {
        let labels = [("verb", r.verb.as_str()), ("resource", &r.resource), ("code", &r.code)];
        page.sample(name, &labels, r.count as f64);
    }
}

fn node(page: &mut Page, status: &Status) {
    page.head("weft_info", "gauge", "This node; always 1.");
    let node = &status.node;
    let labels = [
        ("node", node.name.as_str()),
        ("id", &node.id),
        ("cluster", &node.cluster),
        ("version", &node.version),
    ];
    page.sample("weft_info", &labels, 1.0);
    let health = match status.health {
        Health::Ok => 0.0,
        Health::Degraded => 1.0,
        Health::Broken => 2.0,
    };
    page.gauge("weft_health", "0 ok, 1 degraded, 2 broken.", health);
    page.gauge("weft_uptime_seconds", "Time since the agent started.", node.uptime_s as f64);
    page.head("weft_condition", "gauge", "Conditions that hold now, by reason; always 1.");
    let mut reasons: Vec<&str> = status.conditions.iter().map(|c| c.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        page.sample("weft_condition", &[("reason", reason)], 1.0);
    }
}

fn mesh(page: &mut Page, status: &Status) {
    let mesh = &status.mesh;
    page.gauge("weft_mesh_keyed", "1 if a cluster key is set.", flag(mesh.keyed));
    page.head("weft_mesh_members", "gauge", "Other nodes, by state.");
    for state in ["alive", "suspect", "dead"] {
        let count = mesh.members.iter().filter(|m| m.state == state).count();
        page.sample("weft_mesh_members", &[("state", state)], count as f64);
    }
    page.head("weft_mesh_connections", "gauge", "Connections to peers, by state.");
    for state in ["established", "connecting", "retrying", "failed"] {
        let count = mesh.connections.iter().filter(|c| c.state == state).count();
        page.sample("weft_mesh_connections", &[("state", state)], count as f64);
    }
    page.head("weft_mesh_rtt_seconds", "gauge", "Round-trip time of the control plane, by peer.");
    let mut seen = std::collections::BTreeSet::new();
    for c in mesh.connections.iter().filter(|c| c.state == "established") {
        if let (Some(id), Some(us)) = (&c.node, c.rtt_us)
            && seen.insert(id)
        {
            let labels = [("peer", c.name.as_deref().unwrap_or_default()), ("id", id)];
            page.sample("weft_mesh_rtt_seconds", &labels, us as f64 / 1e6);
        }
    }
    page.head("weft_mesh_events_total", "counter", "What happened in the mesh, by kind.");
    for (kind, count) in &mesh.counters {
        page.sample("weft_mesh_events_total", &[("kind", kind)], *count as f64);
    }
    let c = &status.consensus;
    page.gauge("weft_consensus_quorum", "1 if new blocks can be had.", flag(c.quorum));
    page.gauge("weft_consensus_term", "Term of the ledger's leader.", c.term as f64);
    page.gauge(
        "weft_consensus_applied_index",
        "Last change of the ledger seen here.",
        c.applied as f64,
    );
    page.gauge("weft_consensus_voters", "Voters.", c.voters.len() as f64);
    let alive = c.voters.iter().filter(|v| v.alive).count();
    page.gauge("weft_consensus_voters_alive", "Voters that can be reached.", alive as f64);
    page.gauge("weft_consensus_leader", "1 on the leader.", flag(c.role == "leader"));
}

fn addresses(page: &mut Page, status: &Status) {
    let i = &status.ipam;
    page.head("weft_ipam_range_info", "gauge", "The pod network; always 1.");
    for range in &i.ranges {
        page.sample("weft_ipam_range_info", &[("range", &range.to_string())], 1.0);
    }
    page.gauge("weft_ipam_leases", "Addresses leased on this node.", i.leases as f64);
    page.gauge("weft_ipam_owned_addresses", "Addresses in this node's blocks.", i.owned as f64);
    page.gauge("weft_ipam_blocks", "Blocks of this node.", i.blocks.len() as f64);
    page.gauge("weft_ipam_usable_addresses", "Usable addresses of the ranges.", i.usable as f64);
    page.gauge("weft_ipam_unowned_addresses", "Addresses owned by no node.", i.unowned as f64);
    page.gauge(
        "weft_ipam_quarantined_addresses",
        "Addresses resting after an eviction.",
        i.quarantined as f64,
    );
    page.gauge(
        "weft_ipam_waiting_requests",
        "Requests waiting for an address.",
        i.waiting.len() as f64,
    );
}

fn dataplane(page: &mut Page, status: &Status) {
    let d = &status.dataplane;
    page.gauge("weft_dataplane_in_sync", "1 if the kernel holds all it should.", flag(d.in_sync));
    page.gauge("weft_dataplane_mtu_bytes", "MTU of pod interfaces.", f64::from(d.mtu));
    page.gauge("weft_dataplane_routes", "Routes to other nodes' blocks.", d.routes as f64);
    page.gauge("weft_dataplane_pods", "Pods wired on this node.", d.pods as f64);
    page.gauge("weft_dataplane_errors", "Changes the kernel refuses now.", d.errors.len() as f64);
    page.counter(
        "weft_dataplane_repairs_total",
        "Changes made to the kernel after the first pass.",
        d.repairs,
    );
}

fn overlay(page: &mut Page, status: &Status) {
    let o = &status.overlay;
    page.head(
        "weft_overlay_probe_total",
        "counter",
        "Probes through the overlay, by what became of them.",
    );
    for (result, count) in &o.counters {
        page.sample("weft_overlay_probe_total", &[("result", result)], *count as f64);
    }
    page.head("weft_overlay_probe_peers", "gauge", "Peers by what their probes say.");
    let states = [("ok", o.peers_ok), ("lost", o.peers_lost), ("large_lost", o.peers_large_lost)];
    for (state, count) in states {
        page.sample("weft_overlay_probe_peers", &[("state", state)], count as f64);
    }
    page.head("weft_overlay_probe_ok", "gauge", "1 if probes of a peer come back, by peer.");
    for m in &status.mesh.members {
        if let Some(ok) = m.overlay_ok {
            page.sample("weft_overlay_probe_ok", &[("peer", &m.name), ("id", &m.id)], flag(ok));
        }
    }
    page.head(
        "weft_overlay_probe_rtt_seconds",
        "gauge",
        "Round-trip time through the overlay, by peer.",
    );
    for m in &status.mesh.members {
        if let Some(us) = m.overlay_rtt_us {
            let labels = [("peer", m.name.as_str()), ("id", m.id.as_str())];
            page.sample("weft_overlay_probe_rtt_seconds", &labels, us as f64 / 1e6);
        }
    }
}

fn endpoint(page: &mut Page, api: &StatsSnapshot) {
    page.head("weft_api_requests_total", "counter", "Answered HTTP requests.");
    for ((route, method, code), count) in &api.requests {
        let labels = [("route", *route), ("method", *method), ("code", &code.to_string())];
        page.sample("weft_api_requests_total", &labels, *count as f64);
    }
    page.head("weft_api_refused_total", "counter", "HTTP requests and connections turned away.");
    for (reason, count) in &api.refused {
        page.sample("weft_api_refused_total", &[("reason", reason)], *count as f64);
    }
    page.gauge("weft_api_connections", "Open HTTP connections.", api.connections as f64);
    page.histogram("weft_cni_add_seconds", "Time of the agent's part of CNI ADD.", &api.add);
    page.histogram("weft_cni_del_seconds", "Time of the agent's part of CNI DEL.", &api.del);
}

/// Weave's names, so that its dashboards and alerts go on working.
fn aliases(page: &mut Page, status: &Status) {
    let (mesh, i) = (&status.mesh, &status.ipam);
    page.head("weave_connections", "gauge", "Number of peer-to-peer connections.");
    for state in ["connecting", "established", "failed", "pending", "retrying"] {
        let count = mesh.connections.iter().filter(|c| c.state == state).count();
        let labels = [("state", state), ("type", "fastdp"), ("encryption", "")];
        page.sample("weave_connections", &labels, count as f64);
    }
    page.counter(
        "weave_connection_terminations_total",
        "Number of peer-to-peer connections terminated.",
        terminations(status),
    );
    page.head("weave_ips", "gauge", "Number of IP addresses.");
    page.sample("weave_ips", &[("state", "local-used")], i.leases as f64);
    page.gauge("weave_max_ips", "Size of IP address space used by allocator.", i.usable as f64);
    let lost = i.owners.iter().filter(|o| !o.alive && o.id != status.node.id);
    let (count, sum) = lost.fold((0_u64, 0), |(n, sum), o| (n + 1, sum + o.addresses));
    page.gauge(
        "weave_ipam_unreachable_count",
        "Number of owners that cannot be reached.",
        count as f64,
    );
    page.gauge(
        "weave_ipam_unreachable_percentage",
        "Percentage of addresses owned by unreachable peers.",
        percent(sum, i.usable),
    );
    page.gauge(
        "weave_ipam_pending_allocates",
        "Number of pending allocates.",
        i.waiting.len() as f64,
    );
    page.gauge("weave_ipam_pending_claims", "Number of pending claims.", 0.0);
}

fn of_process(page: &mut Page, p: &Process) {
    page.one("process_cpu_seconds_total", "counter", "User and system time.", p.cpu_s);
    page.gauge("process_resident_memory_bytes", "Resident memory.", p.resident as f64);
    page.gauge("process_virtual_memory_bytes", "Virtual memory.", p.virt as f64);
    page.gauge("process_open_fds", "Open file descriptors.", p.fds as f64);
    page.gauge("process_max_fds", "Most open file descriptors.", p.max_fds as f64);
    page.gauge("process_start_time_seconds", "Start, in Unix time.", p.start_s);
    page.gauge("process_threads", "Threads.", p.threads as f64);
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn stat_of_an_odd_name_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 0 10 0 0 0 150 50 0 0 20 0 4 0 1000 8192 3 0";
        let process = Process::parse(stat, 100.0, 9, 1024).unwrap();
        assert_eq!(process.resident, 3 * 4096);
        assert_eq!((process.virt, process.threads, process.fds), (8192, 4, 8));
        assert!((process.cpu_s - 2.0).abs() < 1e-9 && (process.start_s - 110.0).abs() < 1e-9);
        assert!(Process::read().is_some_and(|p| p.resident > 0 && p.fds > 0));
        assert_eq!(Process::parse("garbage", 0.0, 0, 0), None);
    }
}

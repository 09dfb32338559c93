//! Weave's status pages, in its layout: people and scripts read them.

use std::fmt::Write;

use weft_proto::api::Status;

use super::text::{clean, list, millis, peer};

/// In the order in which Weave counts connections.
const STATES: [&str; 5] = ["established", "pending", "retrying", "failed", "connecting"];

fn own(status: &Status) -> String {
    peer(&status.node.id, &status.node.name)
}

fn established(status: &Status) -> usize {
    status.mesh.connections.iter().filter(|c| c.state == "established").count()
}

/// `GET /status`.
pub fn overview(status: &Status) -> String {
    let mesh = &status.mesh;
    let mut counts = Vec::new();
    for state in STATES {
        let count = mesh.connections.iter().filter(|c| c.state == state).count();
        if count > 0 {
            counts.push(format!("{count} {state}"));
        }
    }
    let connections = match counts.as_slice() {
        [] => mesh.connections.len().to_string(),
        counts => format!("{} ({})", mesh.connections.len(), counts.join(", ")),
    };
    let peers = format!(
        "{} (with {} established connections)",
        mesh.members.len() + 1,
        established(status)
    );
    let version = format!("{} (version check update disabled)", status.node.version);
    let name = own(status);
    let targets = mesh.targets.len().to_string();
    let ranges = list(&status.ipam.ranges);
    let subnet = status.ipam.ranges.first().map_or_else(|| "none".to_owned(), ToString::to_string);
    let encryption = if mesh.keyed { "control plane only" } else { "disabled" };
    let state = clean(&status.ipam.state);
    let blocks: [&[(&str, &str)]; 3] = [
        &[("Version", &version)],
        &[
            ("Service", "router"),
            ("Protocol", "weft 1"),
            ("Name", &name),
            ("Encryption", encryption),
            ("PeerDiscovery", "enabled"),
            ("Targets", &targets),
            ("Connections", &connections),
            ("Peers", &peers),
            ("TrustedSubnets", "none"),
        ],
        &[("Service", "ipam"), ("Status", &state), ("Range", &ranges), ("DefaultSubnet", &subnet)],
    ];
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        for (label, value) in *block {
            let _ = writeln!(text, "{label:>15}: {value}");
        }
    }
    text
}

/// `GET /status/targets`.
pub fn targets(status: &Status) -> String {
    status.mesh.targets.iter().map(|target| format!("{}\n", clean(target))).collect()
}

fn direction(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

/// `GET /status/connections`.
pub fn connections(status: &Status) -> String {
    let mut text = String::new();
    for c in &status.mesh.connections {
        let who = match (&c.node, &c.name) {
            (None, None) => String::new(),
            (id, name) => {
                peer(id.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default())
            }
        };
        let info = if c.state == "established" {
            let rtt = c.rtt_us.map(|us| format!(" rtt={}", millis(us))).unwrap_or_default();
            format!("encrypted   quic {who} encrypted=true{rtt}")
        } else if who.is_empty() {
            clean(&c.info)
        } else {
            format!("{who} {}", clean(&c.info))
        };
        let line = format!(
            "{} {:<21} {:<11} {info}",
            direction(c.outbound),
            c.address.to_string(),
            clean(&c.state)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `GET /status/peers`: this node with its connections, then the members by
/// name. Other nodes' connections are not known here: telling them all to all
/// is what does not scale.
pub fn peers(status: &Status) -> String {
    let mut text = format!("{}\n", own(status));
    for c in &status.mesh.connections {
        let state = if c.state == "established" { "established" } else { "pending" };
        let who =
            peer(c.node.as_deref().unwrap_or_default(), c.name.as_deref().unwrap_or_default());
        let _ = writeln!(
            text,
            "   {} {:<21} {who:<37} {state}",
            direction(c.outbound),
            c.address.to_string()
        );
    }
    for member in &status.mesh.members {
        let _ = writeln!(text, "{}", peer(&member.id, &member.name));
    }
    text
}

/// `GET /status/ipam`: empty before anybody owns anything.
pub fn ipam(status: &Status) -> String {
    let ipam = &status.ipam;
    let mut owners: Vec<_> = ipam.owners.iter().collect();
    owners.sort_by(|a, b| {
        let own = |id: &str| id != status.node.id;
        (own(&a.id), &a.name, &a.id).cmp(&(own(&b.id), &b.name, &b.id))
    });
    let mut text = String::new();
    for owner in owners {
        let own = owner.id == status.node.id;
        let note = match (own, owner.alive) {
            (true, _) => format!(" ({} active)", ipam.leases),
            (false, true) => String::new(),
            (false, false) => " - unreachable!".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:<37} {:>8} IPs ({:04.1}% of total){note}",
            peer(&owner.id, &owner.name),
            owner.addresses,
            percent(owner.addresses, ipam.usable),
        );
    }
    text
}

/// Part of a whole, in percent; of nothing, none.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

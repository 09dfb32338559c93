//! The screen of `agent status`: is it healthy, and if not, what to do.

use std::fmt::Write;

use weft_proto::api::{
    ConsensusStatus, DataplaneStatus, Health, IpamStatus, KubernetesStatus, MemberStatus, Status,
};

use super::text::{clean, count, list, millis, span};

/// Most members and connections shown; `-o json` shows all.
const ROWS: usize = 30;

/// Paints for a terminal, or leaves plain.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn health(self, health: Health, text: &str) -> String {
        let code = match health {
            Health::Ok => "32",
            Health::Degraded => "33",
            Health::Broken => "31",
        };
        self.wrap(code, text)
    }

    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Ok => "OK",
        Health::Degraded => "DEGRADED",
        Health::Broken => "BROKEN",
    }
}

/// The whole screen.
pub fn render(status: &Status, colour: bool) -> String {
    let paint = Paint(colour);
    let node = &status.node;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}  node {}, up {}, weft {}",
        paint.health(status.health, &paint.bold(word(status.health))),
        clean(&node.name),
        span(node.uptime_s),
        clean(&node.version)
    );
    for condition in &status.conditions {
        let _ = writeln!(
            text,
            "  {} {}: {}",
            paint.health(condition.health, "!"),
            clean(&condition.reason),
            clean(&condition.message)
        );
        if !condition.hint.is_empty() {
            let _ = writeln!(text, "    do: {}", clean(&condition.hint));
        }
    }
    let cluster = if node.cluster.is_empty() { "not founded yet" } else { &node.cluster };
    let _ = writeln!(
        text,
        "\n{} {}, cluster {}\n           underlay {}, overlay {}",
        paint.bold("node      "),
        clean(&node.id),
        clean(cluster),
        list(&node.underlay),
        list(&node.overlay)
    );
    let _ = writeln!(text, "{} {}", paint.bold("consensus "), consensus(&status.consensus));
    let _ = writeln!(text, "{} {}", paint.bold("addresses "), ipam(&status.ipam));
    let _ = writeln!(text, "{} {}", paint.bold("data plane"), dataplane(&status.dataplane));
    if let Some(policy) = &status.policy {
        let _ = writeln!(text, "{} {}", paint.bold("policy    "), super::policy::line(policy));
    }
    if let Some(found) = &status.kubernetes {
        let _ = writeln!(text, "{} {}", paint.bold("kubernetes"), kubernetes(found));
    }
    let keyed = if status.mesh.keyed { "" } else { ", no cluster key: anybody can join" };
    let alive = status.mesh.members.iter().filter(|m| m.state == "alive").count();
    let _ = writeln!(
        text,
        "{} {alive} of {} alive{keyed}",
        paint.bold("peers     "),
        status.mesh.members.len()
    );
    text.push_str(&table(status));
    text
}

fn consensus(c: &ConsensusStatus) -> String {
    let mut text = format!("{}, ", clean(&c.role));
    text.push_str(if c.quorum { "quorum" } else { "NO QUORUM" });
    let alive = c.voters.iter().filter(|v| v.alive).count();
    let _ = write!(text, " ({alive} of {} reachable)", count(c.voters.len(), "voter"));
    let leader = c.leader.as_deref().unwrap_or("unknown");
    let _ = write!(text, ", leader {}, term {}, applied {}", clean(leader), c.term, c.applied);
    if let Some(waiting) = &c.waiting {
        let _ = write!(text, "\n           waiting: {}", clean(waiting));
    }
    text
}

fn ipam(i: &IpamStatus) -> String {
    let mut text = format!(
        "{}, range {}\n           here {} of {} leased in {} ({})",
        clean(&i.state),
        list(&i.ranges),
        i.leases,
        i.owned,
        count(i.blocks.len(), "block"),
        shortened(&i.blocks, 4),
    );
    let _ = write!(
        text,
        "\n           cluster: {} usable, {} owned by nobody, {} resting",
        many(i.usable),
        many(i.unowned),
        many(i.quarantined)
    );
    if !i.waiting.is_empty() {
        let _ = write!(text, "\n           waiting: {}", clean(&i.waiting.join("; ")));
    }
    text
}

/// IPv6 ranges have more addresses than a number of 64 bits can say.
fn many(number: u64) -> String {
    if number == u64::MAX { "over 2^64".to_owned() } else { number.to_string() }
}

fn shortened<T: std::fmt::Display>(items: &[T], most: usize) -> String {
    match items.len().saturating_sub(most) {
        0 => list(items),
        more => format!("{} and {more} more", list(&items[..most])),
    }
}

fn dataplane(d: &DataplaneStatus) -> String {
    let mut text = format!(
        "{}, {}, {}, MTU {} ({}), {}",
        if d.in_sync { "in sync" } else { "OUT OF SYNC" },
        count(d.routes, "route"),
        count(d.pods, "pod"),
        d.mtu,
        clean(&d.mtu_source),
        count(d.repairs, "repair"),
    );
    if let Some(last) = &d.last_repair {
        let _ = write!(text, "\n           last repair: {}", clean(last));
    }
    for error in &d.errors {
        let _ = write!(text, "\n           refused: {}", clean(error));
    }
    text
}

fn kubernetes(k: &KubernetesStatus) -> String {
    let via = k.via.as_ref().map(|via| format!(" through its endpoint {}", clean(via)));
    let mut text = format!(
        "{}{}, {} for {}",
        clean(&k.server),
        via.unwrap_or_default(),
        if k.reachable { "answers" } else { "AWAY" },
        span(k.since_s)
    );
    if let Some(founder) = &k.founder {
        let _ = write!(text, ", cluster founded by {}", clean(founder));
    }
    if let Some(error) = &k.last_error {
        let _ = write!(text, "\n           last error: {}", clean(error));
    }
    text
}

/// Round-trip time through the overlay, or that something dies there.
fn overlay(m: &MemberStatus) -> String {
    match (m.overlay_ok, m.overlay_rtt_us) {
        (Some(false), _) => "FAILS".to_owned(),
        (_, Some(us)) => millis(us),
        (_, None) => "-".to_owned(),
    }
}

fn table(status: &Status) -> String {
    let mut members: Vec<&MemberStatus> = status.mesh.members.iter().collect();
    if members.is_empty() {
        return String::new();
    }
    // Trouble first: on a large cluster the rest is cut.
    let well = |m: &MemberStatus| m.state == "alive" && m.overlay_ok != Some(false);
    members.sort_by_key(|m| (well(m), m.name.clone()));
    let head = ["NAME", "STATE", "ADDRESS", "RTT", "OVERLAY", "BLOCKS", "LEASES", "VERSION"];
    let mut rows = vec![head.map(str::to_owned)];
    for m in members.iter().take(ROWS) {
        let rtt = status
            .mesh
            .connections
            .iter()
            .filter(|c| c.state == "established" && c.node.as_deref() == Some(&m.id))
            .find_map(|c| c.rtt_us);
        rows.push([
            clean(&m.name),
            clean(&m.state),
            shortened(&m.underlay, 1),
            rtt.map_or_else(|| "-".to_owned(), millis),
            overlay(m),
            m.blocks.to_string(),
            m.leases.to_string(),
            clean(&m.version),
        ]);
    }
    let mut text = columns(&rows);
    if members.len() > ROWS {
        let _ = writeln!(text, "  … {} more alive, see -o json", members.len() - ROWS);
    }
    text
}

/// Left-aligned columns, two spaces apart, no trailing blanks.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "  {cell:<width$}");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

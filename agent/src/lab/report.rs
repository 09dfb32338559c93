//! What a lab shows, as text: pure.

use std::fmt::Write;
use std::time::Duration;

use weft_proto::api::Status;

use super::topology::Topology;

/// More pods than this are shown per pair of nodes.
const WIDE: usize = 16;

/// One line of the table of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Cells, in the order of [`NODE_HEADER`].
    pub cells: Vec<String>,
}

/// Titles of the table of nodes.
pub const NODE_HEADER: [&str; 7] =
    ["NODE", "ADDRESS", "ROLE", "BLOCKS", "LEASES", "PEERS", "MEMORY"];

impl NodeRow {
    /// From what the agent says of itself.
    pub fn new(name: &str, address: &str, status: Option<&Status>, rss_kib: Option<u64>) -> Self {
        let mut cells = vec![name.to_owned(), address.to_owned()];
        match status {
            Some(status) => {
                let alive = status.mesh.members.iter().filter(|m| m.state == "alive").count();
                let blocks: Vec<_> = status.ipam.blocks.iter().map(ToString::to_string).collect();
                cells.push(status.consensus.role.clone());
                cells.push(shorten(&blocks));
                cells.push(status.ipam.leases.to_string());
                cells.push(alive.to_string());
            }
            None => cells.extend(["no answer", "-", "-", "-"].map(str::to_owned)),
        }
        cells.push(rss_kib.map_or_else(
            || "-".to_owned(),
            |kib| format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024),
        ));
        Self { cells }
    }
}

fn shorten(blocks: &[String]) -> String {
    match blocks {
        [] => "-".to_owned(),
        [a] => a.clone(),
        [a, b] => format!("{a} {b}"),
        [a, b, rest @ ..] => format!("{a} {b} +{}", rest.len()),
    }
}

/// The table of nodes.
pub fn nodes(rows: &[NodeRow]) -> String {
    let mut lines = vec![NODE_HEADER.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| row.cells.clone()));
    table(&lines, 0)
}

/// Round-trip times from every pod to every other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matrix {
    /// Names of the pods.
    pub pods: Vec<String>,
    /// Node of each pod.
    pub nodes: Vec<String>,
    /// Row: from; column: to; `None`: no answer. The diagonal says nothing.
    pub rtt: Vec<Vec<Option<Duration>>>,
}

impl Matrix {
    fn pairs(&self) -> impl Iterator<Item = (usize, usize, Option<Duration>)> {
        self.rtt.iter().enumerate().flat_map(|(from, row)| {
            row.iter()
                .enumerate()
                .filter(move |(to, _)| *to != from)
                .map(move |(to, rtt)| (from, to, *rtt))
        })
    }

    /// Pairs, ordered.
    pub fn total(&self) -> usize {
        self.pairs().count()
    }

    /// Pairs with an answer.
    pub fn reachable(&self) -> usize {
        self.pairs().filter(|(_, _, rtt)| rtt.is_some()).count()
    }

    /// Pairs without.
    pub fn lost(&self) -> Vec<String> {
        self.pairs()
            .filter(|(_, _, rtt)| rtt.is_none())
            .map(|(from, to, _)| format!("{} -> {}", self.pods[from], self.pods[to]))
            .collect()
    }

    /// The table: per pod, or per node if there are many pods.
    pub fn render(&self) -> String {
        if self.pods.len() > WIDE { self.per_node() } else { self.per_pod() }
    }

    fn per_pod(&self) -> String {
        let mut lines = vec![vec!["RTT".to_owned()]];
        lines[0].extend(self.pods.iter().cloned());
        for (from, row) in self.rtt.iter().enumerate() {
            let mut line = vec![self.pods[from].clone()];
            line.extend(row.iter().enumerate().map(|(to, rtt)| match rtt {
                _ if to == from => "-".to_owned(),
                Some(rtt) => microseconds(*rtt),
                None => "LOST".to_owned(),
            }));
            lines.push(line);
        }
        table(&lines, 1)
    }

    /// Worst round-trip time per pair of nodes, or how many pairs are lost.
    fn per_node(&self) -> String {
        let mut names = self.nodes.clone();
        names.dedup();
        let mut lines = vec![vec!["WORST RTT".to_owned()]];
        lines[0].extend(names.iter().cloned());
        for from in &names {
            let mut line = vec![from.clone()];
            for to in &names {
                let cell: Vec<_> = self
                    .pairs()
                    .filter(|(a, b, _)| self.nodes[*a] == *from && self.nodes[*b] == *to)
                    .map(|(_, _, rtt)| rtt)
                    .collect();
                let lost = cell.iter().filter(|rtt| rtt.is_none()).count();
                line.push(match cell.iter().flatten().max() {
                    _ if lost > 0 => format!("{lost}/{} LOST", cell.len()),
                    Some(worst) => microseconds(*worst),
                    None => "-".to_owned(),
                });
            }
            lines.push(line);
        }
        table(&lines, 1)
    }
}

fn microseconds(rtt: Duration) -> String {
    let us = rtt.as_micros();
    if us < 10_000 { format!("{us} us") } else { format!("{} ms", us / 1000) }
}

/// Aligned columns; those from `right` on are aligned to the right if that is not 0.
fn table(lines: &[Vec<String>], right: usize) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for line in lines {
        let mut text = String::from("  ");
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Writing to a String cannot fail.
            let _ = if right > 0 && column >= right {
                write!(text, "{cell:>width$}  ")
            } else {
                write!(text, "{cell:<width$}  ")
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// What to try in a running lab, ready to be copied.
pub fn hints(
    lab: &Topology,
    agent: &str,
    pids: &[i32],
    addresses: &[std::net::IpAddr],
    keep: bool,
) -> String {
    let node = lab.nodes.get(1).or(lab.nodes.first());
    let Some(node) = node else { return String::new() };
    let mut rows =
        vec![("status of a node", format!("ip netns exec {} {agent} status", node.netns))];
    let pods: Vec<_> = lab.pods().map(|(_, pod)| pod).collect();
    if let (Some(first), Some(address)) = (pods.first(), addresses.last()) {
        rows.push((
            "ping from pod to pod",
            format!("ip netns exec {} ping {address}", first.netns),
        ));
    }
    let pid = pids.get(node.number - 1).copied().unwrap_or_default();
    let again = if keep { "" } else { ", the lab starts it again" };
    rows.push((
        "kill an agent (the ping goes on)",
        format!("kill -9 {pid}    # {}{again}", node.name),
    ));
    rows.push(("flush all rules", format!("ip netns exec {} nft flush ruleset", node.netns)));
    rows.push(("delete the tunnel", format!("ip -n {} link del weft-vx", node.netns)));
    rows.push((
        "see what was repaired",
        format!("ip netns exec {} {agent} status -o json | grep repair", node.netns),
    ));
    rows.push((
        "cut a node off",
        format!("ip -n {} link set {} down    # and up", lab.underlay, node.port),
    ));
    if keep {
        rows.push(("remove the lab", format!("{agent} lab --down --name {}", lab.name)));
    }
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    let lines: Vec<_> = rows.iter().map(|(what, how)| format!("  {what:<width$}  {how}")).collect();
    format!("Try, from another terminal (as root):\n{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(nodes: usize, pods: usize) -> Matrix {
        let all = nodes * pods;
        Matrix {
            pods: (0..all).map(|i| format!("n{}p{}", i / pods + 1, i % pods + 1)).collect(),
            nodes: (0..all).map(|i| format!("n{}", i / pods + 1)).collect(),
            rtt: vec![vec![Some(Duration::from_micros(71)); all]; all],
        }
    }

    #[test]
    fn pairs_are_counted_without_the_diagonal() {
        let mut m = matrix(3, 2);
        m.rtt[2][2] = None;
        assert_eq!((m.reachable(), m.total()), (30, 30));
        m.rtt[0][5] = None;
        assert_eq!((m.reachable(), m.lost()), (29, vec!["n1p1 -> n3p2".to_owned()]));
    }

    #[test]
    fn small_labs_show_every_pod() {
        let mut m = matrix(2, 1);
        m.rtt[1][0] = None;
        assert_eq!(m.render(), "  RTT   n1p1   n2p1\n  n1p1     -  71 us\n  n2p1  LOST      -\n");
    }

    #[test]
    fn large_labs_show_pairs_of_nodes() {
        let mut m = matrix(10, 4);
        m.rtt[0][4] = None;
        m.rtt[0][9] = Some(Duration::from_millis(31));
        let text = m.render();
        assert_eq!(text.lines().count(), 11);
        assert!(text.contains("1/16 LOST") && text.contains("31 ms"), "{text}");
    }

    #[test]
    fn a_silent_node_still_has_its_line() {
        let text = nodes(&[NodeRow::new("n1", "172.31.117.11", None, Some(10_752))]);
        assert!(text.contains("no answer") && text.contains("10.5 MiB"), "{text}");
    }

    #[test]
    fn hints_name_what_exists() {
        let lab = Topology::new("x", "172.31.117.0/24".parse().unwrap(), 3, 1).unwrap();
        let text = hints(&lab, "/a/agent", &[7, 8, 9], &["10.32.0.9".parse().unwrap()], true);
        for part in ["exec weftlab-x-n2 /a/agent status", "kill -9 8", "ping 10.32.0.9", "--name x"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

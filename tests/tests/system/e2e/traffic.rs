//! Traffic between nodes that must not notice anything.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use weft_tests::Result;
use weft_tests::kubernetes::KubeCluster;
use weft_tests::kubernetes::pods::PodNetns;
use weft_tests::pinger::Pinger;
use weft_tests::stream::Steady;

use crate::e2e::workloads;

/// Sequence numbers last for more than five minutes.
const PERIOD: Duration = Duration::from_millis(5);

/// An echo every five milliseconds and a TCP stream, from a pod on each node to
/// one on the next, and from a pod on the first to another beside it.
#[derive(Debug)]
pub(crate) struct Traffic {
    flows: Vec<(String, Pinger, Steady)>,
    // Names of the namespaces in use.
    _pods: Vec<PodNetns>,
}

impl Traffic {
    /// Starts it, without the nodes named in `without`.
    pub(crate) fn start(cluster: &KubeCluster, without: &[&str]) -> Result<Self> {
        let pods = workloads::attach(cluster)?;
        let nodes: Vec<_> =
            cluster.nodes().iter().filter(|node| !without.contains(&node.name())).collect();
        let on = |node: &str, app: &str| {
            let found = pods.iter().find(|p| p.pod.node == node && p.pod.name.starts_with(app));
            found.with_context(|| format!("no pod {app} on {node}"))
        };
        let first = nodes.first().context("no node")?.name();
        let mut pairs = vec![(on(first, "web-")?, on(first, "peer-")?)];
        for (at, node) in nodes.iter().enumerate() {
            let next = nodes[(at + 1) % nodes.len()];
            pairs.push((on(node.name(), "web-")?, on(next.name(), "peer-")?));
        }
        let mut flows = Vec::new();
        for (from, to) in pairs {
            let name = format!("{}→{}", from.pod.node, to.pod.node);
            let ping = Pinger::start_in(from, to.pod.address, PERIOD)?;
            let stream = Steady::start_in(from, to, SocketAddr::new(to.pod.address, 0))?;
            flows.push((name, ping, stream));
        }
        Ok(Self { flows, _pods: pods })
    }

    /// Stops it; fails if a packet was lost or a stream broke.
    pub(crate) fn stop(self) -> Result<String> {
        let (mut sent, mut echoed) = (0, 0);
        let mut lost = Vec::new();
        let flows = self.flows.len();
        for (name, ping, stream) in self.flows {
            let tally = ping.stop()?;
            sent += tally.sent;
            if !tally.lost.is_empty() {
                let (first, last) = (tally.lost.first(), tally.lost.last());
                lost.push(format!(
                    "{name}: {} of {} lost, between {first:?} and {last:?}",
                    tally.lost.len(),
                    tally.sent
                ));
            }
            match stream.stop() {
                Ok(count) => echoed += count,
                Err(error) => lost.push(format!("{name}: {error:#}")),
            }
        }
        ensure!(lost.is_empty(), "{}", lost.join("; "));
        Ok(format!("{sent} echoes on {flows} paths, 0 lost; {echoed} words over TCP"))
    }
}

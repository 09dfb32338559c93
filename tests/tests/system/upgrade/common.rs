//! A cluster of nodes of two versions, with pods and traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use weft_agent::lab::pods::{Call, IFNAME, Shim};
use weft_proto::attachment::AttachmentKey;
use weft_tests::datagrams::Datagrams;
use weft_tests::pinger::{Pinger, Tally};
use weft_tests::stream::Steady;
use weft_tests::{Cluster, Node, Pod, Result, audit, binaries, wait_until};

/// Between two packets of a flow.
const PERIOD: Duration = Duration::from_millis(5);

/// Where the programs are.
pub(crate) struct Versions {
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
}

impl Versions {
    pub(crate) fn find() -> Result<Self> {
        Ok(Self { old: binaries::previous()?, new: binaries::directory()? })
    }
}

/// Cluster and pods, those of node 1 first.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) pods: Vec<Vec<Pod>>,
}

impl World {
    /// A pod on every node.
    pub(crate) fn of(cluster: Cluster) -> Result<Self> {
        let mut world = Self { cluster, pods: Vec::new() };
        for _ in 0..world.cluster.nodes().len() {
            world.joined()?;
        }
        Ok(world)
    }

    /// Nodes so far: the first ones of the cluster.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.cluster.nodes()[..self.pods.len()]
    }

    /// The next node takes part; it gets a pod.
    pub(crate) fn joined(&mut self) -> Result {
        self.pods.push(Vec::new());
        self.add(self.pods.len())
    }

    /// One more pod on a node, which can be reached from a pod of every node.
    pub(crate) fn add(&mut self, number: usize) -> Result {
        let pod = self.cluster.node(number).add_pod()?;
        self.pods[number - 1].push(pod.clone());
        self.cluster.assert_unique(&self.pods.concat())?;
        for from in self.pods.iter().filter_map(|pods| pods.first()) {
            if from.address() != pod.address() {
                from.wait_ping(pod.address(), Duration::from_secs(10))?;
            }
        }
        Ok(())
    }

    /// A pod less.
    pub(crate) fn remove(&mut self, number: usize) -> Result {
        let mut pod = self.pods[number - 1].pop().context("a pod to remove")?;
        pod.shim = self.cluster.node(number).shim();
        pod.detach().map(drop)
    }

    /// SIGTERM, then the agent of this directory with the files of the one before. What the
    /// node holds is the same afterwards.
    pub(crate) fn replace(&mut self, number: usize, with: &Path) -> Result<Duration> {
        let before = Held::of(self.cluster.node(number))?;
        let node = self.cluster.node_mut(number);
        node.terminate()?;
        node.use_binaries(with);
        let took = node.restart()?;
        Held::of(self.cluster.node(number))?.has_all_of(&before)?;
        Ok(took)
    }

    /// All agents agree, every pod has what belongs to it, and nobody complains.
    pub(crate) fn judge(&mut self, when: &str) -> Result {
        self.cluster.wait_ready()?;
        self.cluster.wait_one_ledger().with_context(|| when.to_owned())?;
        self.cluster.assert_unique(&self.pods.concat())?;
        for (node, pods) in self.nodes().iter().zip(&self.pods) {
            audit::wait_exactly(node, &pods.iter().collect::<Vec<_>>())
                .with_context(|| when.to_owned())?;
            for pod in pods {
                check(&node.shim(), pod).with_context(|| when.to_owned())?;
            }
            quiet(node).with_context(|| when.to_owned())?;
        }
        let expected = self.pods.len() - 1;
        wait_until("everybody alive for everybody", Duration::from_secs(30), || {
            for node in self.nodes() {
                let members = node.status()?.mesh.members;
                let alive = members.iter().filter(|m| m.state == "alive").count();
                ensure!(alive == expected, "{} sees {members:?}", node.plan.name);
            }
            Ok(true)
        })
        .with_context(|| when.to_owned())
        .map(drop)
    }

    /// Who leads.
    pub(crate) fn leader(&self) -> Result<usize> {
        let mut found = None;
        wait_until("one leader", Duration::from_secs(30), || {
            let mut leaders = Vec::new();
            for (at, node) in self.nodes().iter().enumerate() {
                if node.status()?.consensus.role == "leader" {
                    leaders.push(at + 1);
                }
            }
            if let [one] = leaders[..] {
                found = Some(one);
                return Ok(true);
            }
            bail!("leaders: {leaders:?}")
        })?;
        found.context("a leader")
    }
}

/// CHECK of a pod by this plugin.
pub(crate) fn check(shim: &Shim, pod: &Pod) -> Result {
    let mut conf = shim.conf("1.0.0");
    conf["prevResult"] = pod.result.json.clone();
    let answer = shim.call(&Call {
        verb: "CHECK",
        container_id: &pod.plan.container_id,
        ifname: IFNAME,
        netns: Some(pod.netns().path()),
        args: "",
        conf,
    })?;
    answer.ok(&format!("CHECK of {}", pod.plan.name)).map(drop)
}

/// No agent of the node ever panicked or got a message it could not read.
fn quiet(node: &Node) -> Result {
    let log = node.log();
    if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
        bail!("{} panicked: {line}", node.plan.name);
    }
    let counters = node.status()?.mesh.counters;
    let bad: Vec<_> =
        counters.iter().filter(|(name, count)| name.starts_with("frame_") && **count > 0).collect();
    ensure!(bad.is_empty(), "{} could not read messages: {bad:?}", node.plan.name);
    Ok(())
}

/// What must outlive a change of version: leases by key, blocks, identity, cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) leases: BTreeMap<AttachmentKey, Vec<IpAddr>>,
    blocks: BTreeSet<ipnet::IpNet>,
    node: String,
    cluster: String,
}

impl Held {
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let leases: Vec<weft_proto::api::LeaseInfo> =
            node.request("GET", "/v1/attachments", b"")?.json()?;
        let status = node.status()?;
        Ok(Self {
            leases: leases.into_iter().map(|lease| (lease.key, lease.addresses)).collect(),
            blocks: status.ipam.blocks.into_iter().collect(),
            node: status.node.id,
            cluster: status.node.cluster,
        })
    }
}

impl Held {
    /// The same leases, and all blocks of `before`: one that was asked for may have come.
    pub(crate) fn has_all_of(&self, before: &Self) -> Result {
        let same = (&self.leases, &self.node, &self.cluster)
            == (&before.leases, &before.node, &before.cluster);
        ensure!(same && self.blocks.is_superset(&before.blocks), "{before:?} became {self:?}");
        Ok(())
    }
}

/// Echo requests from every pod to every other, UDP there and back between neighbours, and
/// a TCP stream.
pub(crate) struct Traffic {
    pings: Vec<Pinger>,
    flows: Vec<Datagrams>,
    stream: Steady,
}

impl Traffic {
    pub(crate) fn start(pods: &[Pod]) -> Result<Self> {
        let pairs = || {
            pods.iter()
                .flat_map(|from| pods.iter().map(move |to| (from, to)))
                .filter(|(from, to)| from.address() != to.address())
        };
        let ring = pods.iter().zip(pods.iter().cycle().skip(1));
        Ok(Self {
            pings: pairs()
                .map(|(from, to)| Pinger::start(from, to.address(), PERIOD))
                .collect::<Result<_>>()?,
            flows: ring
                .map(|(from, to)| Datagrams::start(from, to, PERIOD))
                .collect::<Result<_>>()?,
            stream: Steady::start(&pods[0], &pods[pods.len() - 1])?,
        })
    }

    /// Nothing was lost; how much was sent.
    pub(crate) fn stop(self) -> Result<String> {
        let tallies = |all: Vec<Result<Tally>>| -> Result<(usize, usize)> {
            let all = all.into_iter().collect::<Result<Vec<_>>>()?;
            let sent = all.iter().map(|tally| tally.sent).sum();
            Ok((sent, all.iter().map(|tally| tally.lost.len()).sum()))
        };
        let flows = self.pings.len() + self.flows.len();
        let words = self.stream.stop()?;
        let (pings, pings_lost) = tallies(self.pings.into_iter().map(Pinger::stop).collect())?;
        let (udp, udp_lost) = tallies(self.flows.into_iter().map(Datagrams::stop).collect())?;
        let text = format!(
            "{flows} flows: {pings} echo requests, {pings_lost} lost; {udp} UDP datagrams there \
             and back, {udp_lost} lost; {words} words echoed by TCP"
        );
        ensure!(pings > 0 && udp > 0 && words > 0, "no traffic: {text}");
        ensure!(pings_lost + udp_lost == 0, "{text}");
        Ok(text)
    }
}

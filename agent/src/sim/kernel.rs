//! The data plane of a node: the real plan against a kernel that is a value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_ipam::ledger::Ledger;
use weft_proto::id::NodeId;
use weft_proto::names::VXLAN;

use super::agent::Agent;
use super::world::World;
use crate::app::intent;
use crate::app::peers::PeerBook;
use crate::dataplane::desired::{NodeFacts, desired, desired_pods};
use crate::dataplane::model::{Observed, Target, Via};
use crate::dataplane::plan::plan;
use crate::host;
use crate::mesh::net::PeerNet;

/// As `app::loops` has them.
const GATHER: Duration = Duration::from_millis(250);
const WRITE: Duration = Duration::from_secs(5);
const SETTLING: Duration = Duration::from_secs(20);
const SETTLE_AT_MOST: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Kernel {
    world: Arc<World>,
    number: usize,
    agent: Arc<Agent>,
    book: PeerBook,
}

impl Kernel {
    pub(crate) async fn new(world: &Arc<World>, number: usize, agent: &Arc<Agent>) -> Self {
        let path = agent.process.machine.state_dir().join("peers.json");
        let book = PeerBook::open(&path);
        Self { world: Arc::clone(world), number, agent: Arc::clone(agent), book }
    }

    /// As `app::loops::follow`.
    pub(crate) async fn follow(mut self) {
        let agent = Arc::clone(&self.agent);
        let mut ledgers = agent.consensus.subscribe();
        let mut views = agent.mesh.watch();
        let mut leases = agent.ipam.watch();
        let (mut look_at, mut write_at) = (Instant::now(), Instant::now());
        let mut unwritten = false;
        let mut ranges = Vec::new();
        loop {
            let ledger = ledgers.borrow_and_update().clone();
            leases.borrow_and_update();
            if ledger.cluster().is_some() {
                agent.ipam.follow(&ledger);
                if ranges != ledger.ranges() {
                    ranges = ledger.ranges().to_vec();
                    agent.mesh.set_ranges(ranges.clone());
                }
                if Instant::now() >= look_at {
                    look_at = Instant::now() + GATHER;
                    self.welcome_back();
                    let view = views.borrow_and_update().clone();
                    unwritten |= self.book.learn(&view, agent.me);
                    let member = |node| ledger.member(node).is_some();
                    self.book.keep(|node| member(node) || view.members.contains_key(&node));
                }
                self.publish(&ledger);
                if unwritten && Instant::now() >= write_at {
                    write_at = Instant::now() + WRITE;
                    let book = self.book.clone();
                    unwritten = !matches!(host::blocking(move || book.store()).await, Ok(Ok(())));
                }
            }
            tokio::select! {
                changed = ledgers.changed() => if changed.is_err() { return },
                changed = async {
                    tokio::time::sleep_until(look_at).await;
                    views.changed().await
                } => if changed.is_err() { return },
                changed = leases.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SETTLING) => {}
            }
        }
    }

    fn welcome_back(&self) {
        let ledger = self.agent.consensus.ledger();
        for (node, _) in ledger.members().filter(|(node, _)| self.agent.mesh.is_removed(*node)) {
            self.agent.mesh.unremove(node);
        }
    }

    fn publish(&self, ledger: &Ledger) {
        let (agent, book) = (&self.agent, &self.book);
        let (peers, unknown) = intent::peers(ledger, book, agent.me, false);
        let settling = !unknown.is_empty() && agent.started.elapsed() < SETTLE_AT_MOST;
        let own = agent.own_addresses();
        let intent = agent
            .ipam
            .with_leases(|leases| intent::intent(ledger, peers, own, leases.values(), settling));
        let facts = facts(agent);
        let (wanted, pods) = (desired(&intent, &facts), desired_pods(&intent, true));
        let mut node = self.world.node(self.number);
        let plan = plan(&wanted, &pods, &node.kernel, intent.settling);
        for op in &plan.ops {
            node.kernel.apply(op);
        }
    }
}

fn facts(agent: &Agent) -> NodeFacts {
    NodeFacts {
        name: format!("n{}", agent.mesh.machine()),
        id: agent.me,
        device: Some("eth0".to_owned()),
        underlay: vec![ipnet::IpNet::new(agent.mesh.ip(), 8).unwrap()],
        mtu: 1450,
        vxlan_port: 6784,
        direct_routing: false,
        hairpin: true,
        rp_filter_all: 1,
        accepts_ra: false,
    }
}

/// Compares a kernel with the ledger: every block of another leads to where
/// its owner is, and nothing else leads anywhere. The difference, if any.
pub(crate) fn difference(
    kernel: &Observed,
    ledger: &Ledger,
    agent: &Agent,
    places: &BTreeMap<NodeId, IpAddr>,
) -> Option<String> {
    let mut found: BTreeMap<_, _> = kernel
        .routes
        .iter()
        .filter_map(|((net, _), route)| match &route.to {
            Target::Nexthop(id) => Some((*net, kernel.nexthops.get(id).map(|n| n.via.clone()))),
            Target::Blackhole | Target::Unknown => None,
        })
        .collect();
    for block in ledger.blocks().filter(|b| b.owner != agent.me) {
        let Some(&ip) = places.get(&block.owner) else {
            return Some(format!("{} belongs to {}, who is nowhere", block.prefix, block.owner));
        };
        match found.remove(&block.prefix) {
            Some(Some(Via::Tunnel { dst })) if dst == ip => {}
            other => return Some(format!("{} leads to {other:?}, not to {ip}", block.prefix)),
        }
    }
    if let Some((net, _)) = found.first_key_value() {
        return Some(format!("a route for {net}, which no other node owns"));
    }
    let own: Vec<_> = agent.own_addresses();
    let bridge = kernel.addrs.keys().filter(|(dev, _)| dev != VXLAN);
    let bridge: Vec<_> = bridge.map(|(_, net)| net.addr()).collect();
    (own != bridge).then(|| format!("own addresses {own:?}, on the bridge {bridge:?}"))
}

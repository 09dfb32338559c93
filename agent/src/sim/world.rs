//! All machines of a run, and what the world does to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;
use rand::Rng;
use tokio::time::Instant;
use weft_proto::attachment::AttachmentKey;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Failure;

use super::agent::Agent;
use super::check::Checker;
use super::host::{self, Process, mix};
use super::machine::Machine;
use super::network::Network;
use super::pods::Pod;
use super::schedule::Schedule;
use super::trace::Trace;
use crate::consensus::Founding;
use crate::dataplane::model::Observed;

/// An agent that could not start, or whose store failed, is started again after.
const AGAIN: Duration = Duration::from_secs(2);
/// As `app::renew` has it.
const LIFE: Duration = Duration::from_secs(5);

/// A machine and what runs on it.
pub(crate) struct Node {
    pub(crate) machine: Arc<Machine>,
    pub(crate) ip: IpAddr,
    /// Identities it has had; the last one counts.
    pub(crate) identities: Vec<NodeId>,
    pub(crate) process: Option<Arc<Process>>,
    /// The agent, once it is up.
    pub(crate) agent: Option<Arc<Agent>>,
    /// When to try to start it.
    pub(crate) start_at: Option<Instant>,
    /// The operator keeps it off until the cluster is recovered.
    pub(crate) held: bool,
    /// It was refused for its range, and the operator has given it the cluster's.
    pub(crate) corrected: bool,
    pub(crate) pods: BTreeMap<AttachmentKey, Pod>,
    pub(crate) pods_made: u64,
    /// Addresses given back in this life of the agent, and when.
    pub(crate) freed: BTreeMap<IpAddr, Instant>,
    /// The clock has jumped in this life of the agent.
    pub(crate) clock_jumped: bool,
    pub(crate) kernel: Observed,
}

/// What an agent is configured with.
pub(crate) struct Facts {
    pub(crate) me: NodeId,
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) targets: Vec<usize>,
    pub(crate) founding: Founding,
}

/// See the module.
pub(crate) struct World {
    pub(crate) schedule: Schedule,
    pub(crate) network: Arc<Network>,
    pub(crate) checker: Arc<Checker>,
    pub(crate) trace: Arc<Trace>,
    /// The machine that was recovered from last.
    pub(crate) recovered_on: Mutex<Option<usize>>,
    nodes: Vec<Mutex<Node>>,
}

/// Where a machine is at first.
fn home(number: usize) -> IpAddr {
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    Ipv4Addr::new(192, 0, high, low).into()
}

fn identity(seed: u64, number: usize, generation: usize) -> NodeId {
    let mut state = seed ^ ((number as u64) << 32) ^ generation as u64;
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(&mut state).to_be_bytes());
    id[8..].copy_from_slice(&mix(&mut state).to_be_bytes());
    NodeId(id)
}

impl World {
    pub(crate) fn new(schedule: Schedule, trace: Arc<Trace>) -> Arc<Self> {
        let nodes = (1..=schedule.nodes)
            .map(|number| {
                Mutex::new(Node {
                    machine: Machine::new(number),
                    ip: home(number),
                    identities: vec![identity(schedule.seed, number, 0)],
                    process: None,
                    agent: None,
                    start_at: None,
                    held: false,
                    corrected: false,
                    pods: BTreeMap::new(),
                    pods_made: 0,
                    freed: BTreeMap::new(),
                    clock_jumped: false,
                    kernel: Observed::default(),
                })
            })
            .collect();
        let checker = Checker::new(Arc::clone(&trace));
        let network = Network::new(Arc::clone(&trace), Arc::clone(&checker));
        (1..=schedule.nodes).for_each(|number| network.name(number, home(number)));
        let recovered_on = Mutex::default();
        Arc::new(Self { schedule, network, checker, trace, recovered_on, nodes })
    }

    /// Numbers of all machines.
    pub(crate) fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.nodes.len()
    }

    /// A machine by its number, from 1.
    pub(crate) fn node(&self, number: usize) -> MutexGuard<'_, Node> {
        self.nodes[number - 1].lock().unwrap()
    }

    /// Its agent, if it is up.
    pub(crate) fn agent(&self, number: usize) -> Option<Arc<Agent>> {
        self.node(number).agent.clone()
    }

    /// All agents that are up.
    pub(crate) fn agents(&self) -> Vec<Arc<Agent>> {
        self.numbers().filter_map(|number| self.agent(number)).collect()
    }

    /// The pods of a machine that have an interface, with their addresses.
    pub(crate) fn wired(&self, number: usize) -> Vec<(AttachmentKey, IpAddr)> {
        let node = self.node(number);
        node.pods.iter().filter_map(|(key, pod)| Some((key.clone(), pod.address()?))).collect()
    }

    /// The range of the cluster at its founding.
    pub(crate) fn range(&self) -> IpNet {
        IpNet::new(Ipv4Addr::new(10, 32, 0, 0).into(), self.schedule.prefix).unwrap()
    }

    /// What the agent of a machine is configured with.
    pub(crate) fn facts(&self, number: usize) -> Facts {
        let node = self.node(number);
        let members = || self.numbers().map(|n| home(n).to_string()).collect();
        let founding = match (self.schedule.listed, number) {
            (true, _) => {
                Founding::Seats { members: members(), mine: Some(home(number).to_string()) }
            }
            // Founding was its task once.
            (false, 1) if node.identities.len() == 1 => Founding::Single,
            (false, _) => Founding::Observer,
        };
        // Who comes as a newcomer is given the range the cluster has by then.
        let newest = self.checker.newest();
        let ranges = match node.identities.len() {
            1 if !node.corrected => vec![self.range()],
            _ if newest.cluster().is_none() => vec![self.range()],
            _ => newest.ranges().to_vec(),
        };
        Facts {
            me: *node.identities.last().unwrap(),
            name: format!("n{number}"),
            ip: node.ip,
            ranges,
            targets: self.numbers().filter(|n| *n != number).take(5).collect(),
            founding,
        }
    }

    /// The machine whose identity this is, or was.
    pub(crate) fn machine_of(&self, node: NodeId) -> Option<usize> {
        self.numbers().find(|number| self.node(*number).identities.contains(&node))
    }

    /// Starts the agent of a machine, unless it runs.
    pub(crate) fn start(self: &Arc<Self>, number: usize) {
        let process = {
            let mut node = self.node(number);
            if node.process.is_some() || node.held {
                return;
            }
            node.start_at = None;
            node.freed.clear();
            node.clock_jumped = false;
            let process = Process::new(Arc::clone(&node.machine));
            node.process = Some(Arc::clone(&process));
            process
        };
        self.trace.say(|| format!("n{number} starts"));
        let world = Arc::clone(self);
        let own = Arc::clone(&process);
        process.spawn(async move {
            match Agent::start(&world, number, &own).await {
                Ok(agent) => {
                    let mut node = world.node(number);
                    // The machine may have moved meanwhile.
                    if agent.mesh.ip() != node.ip {
                        agent.mesh.move_to(node.ip);
                    }
                    node.agent = Some(agent);
                }
                Err(why) => world.refused(number, &why),
            }
        });
    }

    /// An agent has exited at its start.
    fn refused(&self, number: usize, why: &str) {
        self.trace.say(|| format!("n{number} does not start: {why}"));
        let mut node = self.node(number);
        let disk = &node.machine.disk;
        if !disk.is_full() && !disk.burnt() {
            self.checker.fail(format!("n{number} cannot start: {why}"));
        }
        node.start_at = Some(Instant::now() + AGAIN);
    }

    /// The agent of a machine dies where it stands.
    pub(crate) async fn kill(&self, number: usize) {
        let (process, agent, disk) = {
            let mut node = self.node(number);
            node.start_at = None;
            (node.process.take(), node.agent.take(), Arc::clone(&node.machine.disk))
        };
        disk.detach();
        self.network.detach(self.node(number).ip);
        if let Some(process) = process {
            process.kill().await;
        }
        drop(agent);
    }

    /// The power of a machine fails.
    pub(crate) async fn power_loss(&self, number: usize) {
        self.kill(number).await;
        let mut node = self.node(number);
        node.machine.disk.power_loss();
        node.pods.clear();
        node.kernel = Observed::default();
    }

    /// The state directory of a machine is lost, and its identity with it.
    pub(crate) async fn wipe(&self, number: usize) {
        self.kill(number).await;
        let mut node = self.node(number);
        node.machine.disk.wipe(&node.machine.state_dir());
        let next = identity(self.schedule.seed, number, node.identities.len());
        node.identities.push(next);
    }

    /// The machine gets another address, at once or at its next start.
    pub(crate) fn relocate(&self, number: usize) {
        let ip = {
            let mut node = self.node(number);
            let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
            node.ip = Ipv4Addr::new(198, host::rng().random(), high, low).into();
            node.ip
        };
        self.network.name(number, ip);
        if let Some(agent) = self.agent(number) {
            agent.mesh.move_to(ip);
        }
    }

    /// Agents that have to be started anew.
    pub(crate) async fn tend(self: &Arc<Self>) {
        for number in self.numbers() {
            let (due, agent, full) = {
                let node = self.node(number);
                let due = node.start_at.is_some_and(|at| at <= Instant::now());
                (due, node.agent.clone(), node.machine.disk.is_full())
            };
            let mut refused = false;
            let failed = agent.is_some_and(|agent| {
                // Removed twice: an operator has to say that it may come back.
                let asks =
                    || agent.consensus.status().waiting.is_some_and(|w| w.contains("restart"));
                // Refused for its range: the operator gives it the cluster's.
                let range = || agent.mesh.refused().is_some_and(|f| f.code == Failure::RANGE);
                let stuck = agent.consensus.ledger().cluster().is_none() && range();
                refused = stuck;
                agent.started.elapsed() >= LIFE
                    && (stuck || agent.consensus.failed().is_some() || asks())
            });
            if due || (failed && !full) {
                self.node(number).corrected |= failed && refused;
                self.trace.say(|| format!("n{number} starts anew"));
                self.kill(number).await;
                self.start(number);
            }
        }
    }
}

//! A lab's life: up, judged, watched, down.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::agents::{Agent, AgentSpec};
use super::args::Args;
use super::cleanup::Entry;
use super::netns::{self, Netns};
use super::pods::Shim;
use super::report::{self, Matrix, NodeRow};
use super::topology::{NodePlan, PodPlan, Topology};
use super::{interrupted, probe};
use crate::status::count;

/// How long agents may take to found their cluster.
const READY: Duration = Duration::from_secs(30);
/// How long a pod's ADD is tried again when the agent says so.
const ATTACH: Duration = Duration::from_secs(20);
/// How long after the last ADD the first echo may take.
const REACH: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(25);

pub(super) struct Lab {
    args: Args,
    plan: Topology,
    agent: PathBuf,
    shim: PathBuf,
    start: Instant,
    agents: Vec<Agent>,
    pods: Vec<Pod>,
    entry: Option<Entry>,
}

struct Pod {
    plan: PodPlan,
    node: String,
    address: IpAddr,
}

impl Lab {
    /// Checks everything that can be checked before the first change.
    pub(super) fn prepare(args: Args) -> Result<Self> {
        let (agent, shim) = args.binaries()?;
        let plan = Topology::new(&args.lab_name(), args.base, args.nodes, args.pods)?;
        let entry = Some(Entry::register(&plan.name, args.keep)?);
        let start = Instant::now();
        let (agents, pods) = (Vec::new(), Vec::new());
        Ok(Self { args, plan, agent, shim, start, agents, pods, entry })
    }

    fn say(&self, text: &str) {
        out!("[{:5.2}s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// From nothing to attached pods.
    pub(super) fn up(&mut self) -> Result<()> {
        self.lay_out()?;
        self.start_agents()?;
        self.wait_ready()?;
        self.attach()
    }

    fn lay_out(&self) -> Result<()> {
        self.say(&format!(
            "lab {}: {}, {}, pod network {}",
            self.plan.name,
            count(self.plan.nodes.len(), "node"),
            count(self.plan.pods().count(), "pod"),
            self.args.range
        ));
        netns::build(&self.plan)?;
        self.say(&format!("underlay {} is up", self.plan.base));
        stop_if_interrupted()
    }

    fn start_agents(&mut self) -> Result<()> {
        let directory = self.entry.as_ref().map(|e| e.directory.clone()).unwrap_or_default();
        let logs = self.args.log_dir.clone().unwrap_or_else(|| directory.join("logs"));
        let password = format!("{:032x}", rand::random::<u128>());
        for node in &self.plan.nodes {
            let spec = AgentSpec {
                exe: self.agent.clone(),
                netns: Netns::named(&node.netns),
                name: node.name.clone(),
                address: node.address,
                peers: self.plan.peers(),
                range: self.args.range.clone(),
                directory: directory.join(&node.name),
                log: logs.join(format!("{}.log", node.name)),
                env: vec![("PASSWORD".to_owned(), password.clone())],
                die_with_parent: !self.args.keep,
            };
            self.agents.push(spec.start()?);
        }
        self.say(&format!("{} started", count(self.agents.len(), "agent")));
        stop_if_interrupted()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY;
        let mut told = Instant::now();
        loop {
            stop_if_interrupted()?;
            let mut waiting = Vec::new();
            for agent in &mut self.agents {
                if let Some(status) = agent.ended() {
                    bail!("agent {} ended before it was ready: {status}", agent.spec.name);
                }
                match agent.readiness() {
                    Ok(readiness) if readiness.ready => {}
                    Ok(readiness) => {
                        waiting.push(format!(
                            "{}: {}",
                            agent.spec.name,
                            readiness.reasons.join("; ")
                        ));
                    }
                    Err(error) => waiting.push(format!("{}: {error}", agent.spec.name)),
                }
            }
            if waiting.is_empty() {
                self.say("all nodes are ready");
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready after {READY:?}:\n  {}", waiting.join("\n  "));
            }
            if told.elapsed() > Duration::from_secs(3) {
                self.say(&format!("still waiting for {}", waiting.join(", ")));
                told = Instant::now();
            }
            sleep(POLL);
        }
    }

    fn attach(&mut self) -> Result<()> {
        let attached: Vec<Result<Vec<(Pod, Duration)>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .plan
                .nodes
                .iter()
                .zip(&self.agents)
                .map(|(node, agent)| {
                    let shim = Shim {
                        exe: self.shim.clone(),
                        netns: agent.spec.netns.clone(),
                        run_dir: agent.spec.run_dir(),
                        agent: agent.spec.http(),
                    };
                    scope.spawn(move || attach_all(&shim, node))
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker.join().unwrap_or_else(|_| bail!("attaching the pods of a node panicked"))
                })
                .collect()
        });
        let mut slowest = Duration::ZERO;
        for node in attached {
            for (pod, took) in node? {
                slowest = slowest.max(took);
                self.pods.push(pod);
            }
        }
        self.say(&format!(
            "{} attached, slowest ADD {:.1} ms",
            count(self.pods.len(), "pod"),
            slowest.as_secs_f64() * 1000.0
        ));
        stop_if_interrupted()
    }

    /// Shows the lab; true if every pod reaches every other.
    pub(super) fn judge(&mut self) -> Result<bool> {
        let matrix = self.measure()?;
        stop_if_interrupted()?;
        self.say(&format!("{}/{} pairs reachable", matrix.reachable(), matrix.total()));
        out!("\n{}", report::nodes(&self.rows()));
        if matrix.total() > 0 {
            out!("{}", matrix.render());
        }
        let lost = matrix.lost();
        if !lost.is_empty() {
            const SHOWN: usize = 10;
            let first: Vec<_> = lost.iter().take(SHOWN).map(String::as_str).collect();
            let more = lost.len() - first.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            out!("not reachable: {}{more}", first.join(", "));
            out!(
                "look at: `ip route` and `ip -s link show weft-vx` in both nodes, `agent status`\n{}",
                self.post_mortem()
            );
        }
        Ok(lost.is_empty())
    }

    fn measure(&self) -> Result<Matrix> {
        let deadline = Instant::now() + REACH;
        let row = |from: &Pod| -> Result<Vec<Option<Duration>>> {
            let netns = Netns::named(&from.plan.netns);
            self.pods
                .iter()
                .map(|to| match to.address == from.address {
                    true => Ok(None),
                    false => probe::round_trip(&netns, to.address, deadline, &interrupted),
                })
                .collect()
        };
        let rows: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                self.pods.iter().map(|from| scope.spawn(move || row(from))).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| bail!("a probe panicked")))
                .collect()
        });
        Ok(Matrix {
            pods: self.pods.iter().map(|pod| pod.plan.name.clone()).collect(),
            nodes: self.pods.iter().map(|pod| pod.node.clone()).collect(),
            rtt: rows.into_iter().collect::<Result<_>>()?,
        })
    }

    fn rows(&self) -> Vec<NodeRow> {
        self.agents
            .iter()
            .map(|agent| {
                let status = agent.status().ok();
                let address = agent.spec.address.to_string();
                NodeRow::new(&agent.spec.name, &address, status.as_ref(), agent.rss_kib())
            })
            .collect()
    }

    /// The end of every log: what a failure leaves to look at.
    pub(super) fn post_mortem(&self) -> String {
        let mut text: Vec<_> = self.agents.iter().map(Agent::log_tail).collect();
        if self.args.log_dir.is_none() && !text.is_empty() {
            text.push("whole logs: run again with --log-dir DIR".to_owned());
        }
        text.join("\n")
    }

    /// Stays until interrupted?
    pub(super) fn stays(&self) -> bool {
        !self.args.check && !self.args.keep
    }

    /// Survives this process?
    pub(super) fn keeps(&self) -> bool {
        self.args.keep
    }

    fn hints(&self) {
        let pids: Vec<_> = self.agents.iter().map(Agent::pid).collect();
        let addresses: Vec<_> = self.pods.iter().map(|pod| pod.address).collect();
        let agent = self.agent.display().to_string();
        out!("{}", report::hints(&self.plan, &agent, &pids, &addresses, self.args.keep));
    }

    /// Like a DaemonSet: starts again what dies, until interrupted.
    pub(super) fn stay(&mut self) {
        self.hints();
        out!("Ctrl-C takes the lab down.");
        while !interrupted() {
            for at in 0..self.agents.len() {
                let agent = &mut self.agents[at];
                let Some(status) = agent.ended() else { continue };
                let name = agent.spec.name.clone();
                sleep(Duration::from_secs(1));
                let news = match agent.restart() {
                    Ok(()) => {
                        format!("agent {name} ended ({status}): started again as {}", agent.pid())
                    }
                    Err(error) => format!("agent {name} ended ({status}): {error:#}"),
                };
                self.say(&news);
            }
            sleep(Duration::from_millis(100));
        }
        out!("\ntaking the lab down");
    }

    /// Goes, and leaves the lab where it is.
    pub(super) fn leave(&mut self) {
        self.hints();
        self.entry = None;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        for error in entry.remove() {
            err!("{error}");
        }
    }
}

fn stop_if_interrupted() -> Result<()> {
    if interrupted() { bail!("interrupted") } else { Ok(()) }
}

fn attach_all(shim: &Shim, node: &NodePlan) -> Result<Vec<(Pod, Duration)>> {
    node.pods
        .iter()
        .map(|plan| {
            let (address, took) = attach_patiently(shim, plan)
                .with_context(|| format!("pod {} on node {}", plan.name, node.name))?;
            Ok((Pod { plan: plan.clone(), node: node.name.clone(), address }, took))
        })
        .collect()
}

/// ADD as a kubelet does it: again, while the plugin says "try again later".
fn attach_patiently(shim: &Shim, plan: &PodPlan) -> Result<(IpAddr, Duration)> {
    const TRY_AGAIN: u64 = 11;
    let deadline = Instant::now() + ATTACH;
    loop {
        stop_if_interrupted()?;
        let answer = shim.pod("ADD", plan)?;
        if answer.code() != Some(TRY_AGAIN) || Instant::now() > deadline {
            let took = answer.took;
            let answer = answer.ok("ADD")?;
            let first = answer.addresses().first().map(ipnet::IpNet::addr);
            return Ok((first.with_context(|| format!("no address in {}", answer.json))?, took));
        }
        sleep(Duration::from_millis(200));
    }
}

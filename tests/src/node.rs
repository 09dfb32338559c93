//! One node of a cluster, and what can be done to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use weft_agent::lab::agents::{Agent, AgentSpec};
use weft_agent::lab::http;
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::Shim;
use weft_agent::lab::topology::{NodePlan, PodPlan};
use weft_proto::api::Status;

use crate::pod::Pod;
use crate::wait_until;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Names and address.
    pub plan: NodePlan,
    lab: String,
    underlay: Netns,
    shim: PathBuf,
    spec: AgentSpec,
    agent: Option<Agent>,
    pods: Arc<AtomicUsize>,
}

impl Node {
    pub(crate) fn new(
        plan: NodePlan,
        lab: String,
        underlay: Netns,
        shim: PathBuf,
        spec: AgentSpec,
    ) -> Self {
        Self { plan, lab, underlay, shim, spec, agent: None, pods: Arc::default() }
    }

    /// The node without its agent: pods can be attached while somebody else
    /// holds the node and kills the agent.
    pub fn view(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            lab: self.lab.clone(),
            underlay: self.underlay.clone(),
            shim: self.shim.clone(),
            spec: self.spec.clone(),
            agent: None,
            pods: Arc::clone(&self.pods),
        }
    }

    /// Its namespace.
    pub fn netns(&self) -> Netns {
        Netns::named(&self.plan.netns)
    }

    /// How its agent is started; changes count from the next start.
    pub fn spec_mut(&mut self) -> &mut AgentSpec {
        &mut self.spec
    }

    /// How its agent is started.
    pub fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    /// The next start is of the agent in this directory, and pods from now on are
    /// attached by the plugin there.
    pub fn use_binaries(&mut self, directory: &Path) {
        self.spec.exe = directory.join("agent");
        self.use_shim(directory);
    }

    /// Pods from now on are attached by the plugin in this directory.
    pub fn use_shim(&mut self, directory: &Path) {
        self.shim = directory.join("weft");
    }

    /// The agent, if one was started.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().with_context(|| format!("node {} has no agent", self.plan.name))
    }

    /// Starts the agent. It dies with the calling thread: call it from the test's own.
    pub fn start(&mut self) -> Result<()> {
        self.kill9()?;
        self.agent = Some(self.spec.clone().start()?);
        Ok(())
    }

    /// Has an agent that has not ended.
    pub fn is_running(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.ended().is_none())
    }

    /// `kill -9` of the agent.
    pub fn kill9(&mut self) -> Result<()> {
        self.agent.as_mut().map_or(Ok(()), Agent::kill9)
    }

    /// `kill -9`, start, wait until ready.
    pub fn restart(&mut self) -> Result<Duration> {
        self.start()?;
        self.wait_ready(crate::cluster::READY)
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> Result<()> {
        match &mut self.agent {
            Some(agent) => agent.terminate(Duration::from_secs(10)).map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the agent has ended by itself; its exit code.
    pub fn wait_exit(&mut self, patience: Duration) -> Result<Option<i32>> {
        let name = self.plan.name.clone();
        let Some(agent) = &mut self.agent else { bail!("node {name} has no agent") };
        let mut status = None;
        let waited = wait_until(&format!("the end of agent {name}"), patience, || {
            status = agent.ended();
            Ok(status.is_some())
        });
        waited.with_context(|| agent.log_tail())?;
        Ok(status.and_then(|status| status.code()))
    }

    /// SIGSTOP: alive for the kernel, dead for its peers.
    pub fn freeze(&self) -> Result<()> {
        self.agent()?.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.agent()?.signal(Signal::SIGCONT)
    }

    /// Takes the node off the underlay.
    pub fn cut(&self) -> Result<()> {
        self.underlay.ip(&format!("link set {} down\n", self.plan.port))
    }

    /// Puts it back.
    pub fn heal(&self) -> Result<()> {
        self.underlay.ip(&format!("link set {} up\n", self.plan.port))
    }

    /// Runs a command in its namespace.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        self.netns().exec(argv)
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Status> {
        self.agent()?.status()
    }

    /// Any request to the agent, with its token.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<http::Response> {
        self.agent()?.request(method, path, body)
    }

    /// Waits until ADD can be served.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<Duration> {
        let name = self.plan.name.clone();
        let Some(agent) = &mut self.agent else { bail!("node {name} has no agent") };
        let mut ended = None;
        let waited = wait_until(&format!("readiness of {name}"), patience, || {
            ended = agent.ended();
            if ended.is_some() {
                return Ok(true);
            }
            let readiness = agent.readiness()?;
            if !readiness.ready {
                bail!("{}", readiness.reasons.join("; "));
            }
            Ok(true)
        });
        match (waited, ended) {
            (Ok(took), None) => Ok(took),
            (Ok(_), Some(status)) => bail!("agent {name} ended: {status}\n{}", agent.log_tail()),
            (Err(error), _) => Err(error.context(agent.log_tail())),
        }
    }

    /// Waits for a line of the log that contains all of `parts`.
    pub fn wait_log(&self, parts: &[&str], patience: Duration) -> Result<String> {
        let mut found = None;
        wait_until(&format!("{parts:?} in the log of {}", self.plan.name), patience, || {
            let log = self.log();
            found = log.lines().find(|l| parts.iter().all(|p| l.contains(p))).map(str::to_owned);
            Ok(found.is_some())
        })
        .with_context(|| self.log_tail())?;
        found.context("no such line")
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    /// Its last lines.
    pub fn log_tail(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, Agent::log_tail)
    }

    /// The shim, as this node's runtime would call it.
    pub fn shim(&self) -> Shim {
        Shim {
            exe: self.shim.clone(),
            netns: self.netns(),
            run_dir: self.spec.run_dir(),
            agent: self.spec.http(),
        }
    }

    /// A sandbox: a namespace that is not attached yet.
    pub fn sandbox(&self) -> Result<PodPlan> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let plan = PodPlan::new(&self.lab, &self.plan.name, &number.to_string());
        Netns::named(&plan.netns).create()?;
        Ok(plan)
    }

    /// A sandbox, attached by the real shim.
    pub fn add_pod(&self) -> Result<Pod> {
        Pod::attach(self.shim(), self.sandbox()?)
    }

    /// Host ends of pods' veths.
    pub fn veths(&self) -> Result<Vec<String>> {
        let links = self.exec(&["ip", "-o", "link", "show", "type", "veth"])?;
        Ok(links
            .lines()
            .filter_map(|line| line.split(": ").nth(1)?.split('@').next())
            .filter(|name| weft_proto::names::is_host_ifname(name))
            .map(str::to_owned)
            .collect())
    }

    /// Waits until exactly `leases` leases and `veths` pod interfaces are left.
    pub fn wait_clean(&self, leases: usize, veths: usize) -> Result<Duration> {
        wait_until(
            &format!("{leases} leases and {veths} veths on {}", self.plan.name),
            Duration::from_secs(10),
            || {
                let (l, v) = (self.status()?.ipam.leases, self.veths()?);
                if l != leases || v.len() != veths {
                    bail!("there are {l} leases and {v:?}");
                }
                Ok(true)
            },
        )
    }
}

//! The container runtime of a machine: pods start, pods end, and what failed
//! is cleaned up.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use weft_proto::attachment::AttachmentKey;
use weft_proto::names::ADD_PATIENCE;

use super::agent::{Agent, pod_facts};
use super::host;
use super::world::World;
use crate::ipam_service::IpamService;

/// Where a pod is in its life.
#[derive(Debug, Clone)]
pub(crate) enum Pod {
    /// ADD is under way, in this process.
    Starting(std::sync::Weak<host::Process>),
    /// It has its address.
    Live(IpAddr),
    /// DEL has to succeed.
    Ending,
}

impl Pod {
    /// Its address, while it may use it.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Live(address) => Some(*address),
            Self::Starting(_) | Self::Ending => None,
        }
    }
}

impl World {
    /// Starts a pod, if there is an agent to ask.
    pub(crate) fn add_pod(self: &Arc<Self>, number: usize) -> Option<AttachmentKey> {
        let (key, agent) = {
            let mut node = self.node(number);
            let agent = node.agent.clone()?;
            node.pods_made += 1;
            let container_id = format!("m{number}p{}", node.pods_made);
            let key = AttachmentKey { container_id, ifname: "eth0".to_owned() };
            node.pods.insert(key.clone(), Pod::Starting(Arc::downgrade(&agent.process)));
            (key, agent)
        };
        let (world, asked) = (Arc::clone(self), key.clone());
        Arc::clone(&agent.process).spawn(async move {
            let answer = attach(&world, &agent, &asked).await;
            let mut node = world.node(number);
            world.trace.say(|| format!("n{number} ADD {asked}: {answer:?}"));
            let pod = match answer {
                Ok(address) => {
                    world.trace.count("ADD answered");
                    Pod::Live(address)
                }
                Err(_) => {
                    world.trace.count("ADD refused");
                    Pod::Ending
                }
            };
            if let Some(place) = node.pods.get_mut(&asked) {
                *place = pod;
            }
        });
        Some(key)
    }

    /// Ends the pods that have run longest.
    pub(crate) fn end_pods(&self, number: usize, count: u64) {
        let mut node = self.node(number);
        let mut live: Vec<_> = node
            .pods
            .iter()
            .filter(|(_, p)| p.address().is_some())
            .map(|(k, _)| k.clone())
            .collect();
        live.sort_by_key(|key| (key.container_id.len(), key.clone()));
        for key in live.into_iter().take(count as usize) {
            node.pods.insert(key, Pod::Ending);
        }
    }

    /// DELs that are due; ADDs that nobody will answer any more.
    pub(crate) fn tend_pods(self: &Arc<Self>) {
        for number in self.numbers() {
            let (agent, ending) = {
                let mut node = self.node(number);
                for pod in node.pods.values_mut() {
                    if let Pod::Starting(process) = pod
                        && !process.upgrade().is_some_and(|p| p.is_live())
                    {
                        *pod = Pod::Ending;
                    }
                }
                let ending = node.pods.iter().filter(|(_, pod)| matches!(pod, Pod::Ending));
                let ending: Vec<_> = ending.map(|(key, _)| key.clone()).collect();
                (node.agent.clone(), ending)
            };
            let Some(agent) = agent.filter(|_| !ending.is_empty()) else { continue };
            let world = Arc::clone(self);
            Arc::clone(&agent.process).spawn(async move {
                for key in ending {
                    let Ok(_busy) = IpamService::begin(&agent.ipam, &key) else { continue };
                    if let Ok(freed) = agent.ipam.release(&key) {
                        world.trace.count("DEL answered");
                        let mut node = world.node(number);
                        node.pods.remove(&key);
                        node.freed.extend(freed.into_iter().map(|ip| (ip, Instant::now())));
                    }
                }
            });
        }
    }

    /// Pods whose ADD has no answer yet.
    pub(crate) fn waiting_pods(&self) -> usize {
        let waits = |pod: &&Pod| pod.address().is_none();
        self.numbers().map(|n| self.node(n).pods.values().filter(waits).count()).sum()
    }
}

/// As `app::backend` does it: lease, data plane, answer.
async fn attach(world: &World, agent: &Arc<Agent>, key: &AttachmentKey) -> Result<IpAddr, String> {
    let _busy = IpamService::begin(&agent.ipam, key).map_err(|e| e.to_string())?;
    let facts = pod_facts(key);
    let got = agent.ipam.allocate(key, false, None, &facts, ADD_PATIENCE).await;
    let (address, existed) = got.map_err(|e| e.to_string())?;
    if !existed {
        // The ledger that the lease table goes by, which may be one task behind.
        let ledger = agent.consensus.ledger();
        if agent.ipam.followed() == ledger.head().index {
            world.checker.leased(agent.me, address, &ledger);
        }
        rested(world, agent, address);
    }
    agent.ipam.update_facts(key, &facts).map_err(|e| e.to_string())?;
    let pause = Duration::from_millis(host::rng().random_range(1..10));
    tokio::time::sleep(pause).await;
    Ok(address)
}

/// An address given back a moment ago comes again only if no other is ready.
fn rested(world: &World, agent: &Agent, address: IpAddr) {
    let number = agent.mesh.machine();
    let cooldown = Duration::from_millis(world.schedule.cooldown_ms);
    let mut node = world.node(number);
    let Some(freed) = node.freed.remove(&address) else { return };
    let (rested, ready) = (freed.elapsed(), agent.ipam.ready());
    // The table counts whole milliseconds.
    if !node.clock_jumped && rested + Duration::from_millis(2) < cooldown && ready > 0 {
        world.checker.fail(format!(
            "n{number} leases {address} again after {rested:?}, although {ready} others are ready"
        ));
    }
}

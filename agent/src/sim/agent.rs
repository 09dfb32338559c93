//! One life of an agent: the real parts, wired as `app::start` wires them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_ipam::ledger::Ledger;
use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Op, Outcome};
use weft_proto::names;

use super::check::Checker;
use super::fs;
use super::host::Process;
use super::kernel::Kernel;
use super::machine::Machine;
use super::world::World;
use crate::app::LedgerRegistry;
use crate::app::session::session;
use crate::app::sweep::reclaim;
use crate::app::telling::tell;
use crate::consensus::{self, Consensus, ConsensusConfig, ConsensusHandle};
use crate::ipam_service::donate::Donations;
use crate::ipam_service::intents::Promises;
use crate::ipam_service::journal::Journal;
use crate::ipam_service::{IpamService, LeaseFacts, Registry, Supplier, http_key};
use crate::mesh::net::{BoxFuture, PeerNet, Service};
use crate::mesh::simulated::{SimMesh, SimMeshConfig};

/// As `app::start` has it.
const VOTER_DEAD_AFTER: Duration = Duration::from_secs(60);
/// As `app::sweep` has it.
const GRACE: Duration = Duration::from_secs(120);
/// Patience for the node's own address.
const OWN: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Agent {
    pub(crate) me: NodeId,
    pub(crate) process: Arc<Process>,
    pub(crate) mesh: Arc<SimMesh>,
    pub(crate) consensus: ConsensusHandle,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) ipam: Arc<IpamService>,
    pub(crate) donations: Arc<Donations>,
    pub(crate) started: Instant,
}

/// The ledger through consensus; every answer is checked.
struct Watched {
    inner: LedgerRegistry,
    me: NodeId,
    life: u64,
    checker: Arc<Checker>,
    machine: Arc<Machine>,
}

impl Registry for Watched {
    fn ledger(&self) -> Arc<Ledger> {
        self.inner.ledger()
    }

    fn propose(
        &self,
        request: RequestId,
        op: Op,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(u64, Outcome), String>> {
        Box::pin(async move {
            self.checker.asked(self.life, request, &op);
            if matches!(op, Op::Transfer { .. }) {
                self.checker.count("handing over");
                self.machine.has_given();
            }
            let answer = self.inner.propose(request, op, patience).await;
            if let Ok((at, outcome)) = &answer {
                self.checker.answered(self.me, request, *at, outcome, &self.inner.ledger());
            }
            answer
        })
    }

    fn next_request(&self) -> RequestId {
        self.inner.next_request()
    }
}

/// Key of the node's own address.
fn own_key() -> weft_proto::attachment::AttachmentKey {
    http_key(names::EXPOSE_ID)
}

impl Agent {
    /// Starts within `process`; an error is one the agent would exit with.
    pub(crate) async fn start(
        world: &Arc<World>,
        number: usize,
        process: &Arc<Process>,
    ) -> Result<Arc<Self>, String> {
        let facts = world.facts(number);
        let machine = Arc::clone(&process.machine);
        let (state_dir, run_dir) = (machine.state_dir(), machine.run_dir());
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let session = session(&state_dir).map_err(|e| format!("{e:#}"))?;
        let known = fs::exists(&state_dir.join("consensus.redb")).unwrap_or(false);
        let mesh = SimMesh::start(
            SimMeshConfig {
                me: facts.me,
                name: facts.name.clone(),
                session,
                ranges: if known { Vec::new() } else { facts.ranges.clone() },
                ip: facts.ip,
                targets: facts.targets,
            },
            process,
            &world.network,
        );
        let net: Arc<dyn PeerNet> = Arc::new(Arc::clone(&mesh));
        let config = ConsensusConfig {
            state_dir: state_dir.clone(),
            me: facts.me,
            name: facts.name,
            ranges: facts.ranges.clone(),
            session,
            founding: facts.founding,
            quarantine: Duration::from_millis(world.schedule.quarantine_ms),
            voter_dead_after: VOTER_DEAD_AFTER,
        };
        let started = Consensus::start(config, Arc::clone(&net)).await;
        let (consensus, service) = started.map_err(|e| text(&e))?;
        world.checker.loaded(facts.me, &consensus.ledger());
        if let Some((founding, seat, vote)) = consensus.stored_vote().await {
            world.checker.vote_loaded((founding, seat, facts.me), vote);
        }
        process.spawn(show(Arc::clone(world), facts.me, consensus.clone()));
        mesh.register(consensus::KINDS, &service);
        wire_heads(&mesh, &consensus);
        let ledger = consensus.ledger();
        let founded = ledger.cluster().is_some();
        mesh.set_ranges(if founded { ledger.ranges().to_vec() } else { facts.ranges });

        let opened = Journal::open(&run_dir.join(names::LEASES_FILE));
        let (journal, found) = opened.map_err(|e| text(&e))?;
        let cooldown = Duration::from_millis(world.schedule.cooldown_ms);
        let ipam = IpamService::new(facts.me, cooldown, journal, &found);
        let registry: Arc<dyn Registry> = Arc::new(Watched {
            inner: LedgerRegistry(consensus.clone()),
            me: facts.me,
            life: machine.disk.life(),
            checker: Arc::clone(&world.checker),
            machine: Arc::clone(&machine),
        });
        let promises = Promises::open(&state_dir.join("promises.json")).map_err(|e| text(&e))?;
        let donations = Donations::new(Arc::clone(&ipam), Arc::clone(&registry), promises);
        if !found.intact {
            for (key, address) in world.wired(number) {
                if ipam.lease(&key).is_none() {
                    // An address that somebody else has stays with that one.
                    let _ = ipam.adopt(&key, &[address], &pod_facts(&key));
                }
            }
            ipam.rebuilt().map_err(|e| text(&e))?;
        }
        let donor: Arc<dyn Service> = donations.clone();
        mesh.register(Donations::KINDS, &donor);

        let agent = Arc::new(Self {
            me: facts.me,
            process: Arc::clone(process),
            mesh,
            consensus,
            registry,
            ipam,
            donations,
            started: Instant::now(),
        });
        let supplier =
            Supplier::new(Arc::clone(&agent.ipam), Arc::clone(&agent.registry), Arc::clone(&net));
        process.spawn(supplier.run());
        process.spawn(Arc::clone(&agent.donations).run());
        let kernel = Kernel::new(world, number, &agent).await;
        process.spawn(kernel.follow());
        process.spawn(tell(Arc::clone(&agent.ipam), agent.consensus.clone(), net, || 1450));
        process.spawn(hold(Arc::clone(&agent)));
        process.spawn(sweep(Arc::clone(world), number, Arc::clone(&agent)));
        Ok(agent)
    }

    /// Addresses of this node itself.
    pub(crate) fn own_addresses(&self) -> Vec<IpAddr> {
        self.ipam.addresses(&own_key())
    }
}

/// What a lease of a pod says beside its address.
pub(crate) fn pod_facts(key: &weft_proto::attachment::AttachmentKey) -> LeaseFacts {
    LeaseFacts {
        host_ifname: names::host_ifname(&key.container_id, &key.ifname),
        ..LeaseFacts::default()
    }
}

/// Shows every ledger this node publishes to the checker.
async fn show(world: Arc<World>, me: NodeId, consensus: ConsensusHandle) {
    let mut ledgers = consensus.subscribe();
    loop {
        let ledger = ledgers.borrow_and_update().clone();
        world.trace.note(&[4, u64::from(me.0[0]), ledger.head().index]);
        world.checker.shown(me, &ledger);
        if ledgers.changed().await.is_err() {
            return;
        }
    }
}

fn wire_heads(mesh: &Arc<SimMesh>, consensus: &ConsensusHandle) {
    let from_mesh = consensus.clone();
    mesh.on_head(Box::new(move |node, head| from_mesh.on_head(node, head)));
    let to_mesh = Arc::downgrade(mesh);
    consensus.on_head_changed(move |head| {
        if let Some(mesh) = to_mesh.upgrade() {
            mesh.set_ledger_head(head);
            mesh.set_cluster(head.cluster);
        }
    });
}

/// As `app::own_address::hold`.
async fn hold(agent: Arc<Agent>) {
    let mut ledgers = agent.consensus.subscribe();
    loop {
        let ledger = ledgers.borrow_and_update().clone();
        if ledger.member(agent.me).is_some() && hold_one(&agent, &ledger).await.is_err() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        tokio::select! {
            changed = ledgers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
    }
}

async fn hold_one(agent: &Agent, ledger: &Ledger) -> Result<(), String> {
    let key = own_key();
    for address in agent.own_addresses() {
        match ledger.owner_of(address).map(|b| b.owner) {
            Some(node) if node == agent.me => return Ok(()),
            Some(_) => {}
            None => {
                let op = Op::Claim { node: agent.me, address };
                let request = agent.registry.next_request();
                let (_, outcome) = agent.registry.propose(request, op, OWN).await?;
                agent.ipam.follow(&agent.registry.ledger());
                if matches!(outcome, Outcome::Granted(_)) {
                    return Ok(());
                }
            }
        }
        agent.ipam.release_one(&key, address).map_err(|e| e.to_string())?;
    }
    let facts = LeaseFacts::default();
    let got = agent.ipam.allocate(&key, false, None, &facts, OWN).await;
    got.map(drop).map_err(|e| e.to_string())
}

/// As `app::sweep::run`.
async fn sweep(world: Arc<World>, number: usize, agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let wired: Vec<_> = world.wired(number).into_iter().map(|(key, _)| key).collect();
        for key in agent.ipam.unattended(GRACE).iter().filter(|key| !wired.contains(key)) {
            // A full disk: tried again.
            let _ = agent.ipam.release_unattended(key, GRACE);
        }
        reclaim(agent.me, &agent.ipam, agent.registry.as_ref()).await;
    }
}

//! Start, in an order in which every failure names itself: directories and
//! identity, overlaps, data plane, sockets, mesh, consensus, leases, HTTP.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use weft_proto::names;

use super::kubernetes::{self, Boot};
use super::session::session;
use super::{
    App, LedgerRegistry, Routes, copied, form, founding, loops, own_address, owner, policy,
    policy_feed, probing, renew, sweep, underlay,
};
use crate::api;
use crate::config::Config;
use crate::consensus::{self, Consensus, ConsensusConfig, ConsensusHandle};
use crate::dataplane::{self, Dataplane, DataplaneConfig};
use crate::files;
use crate::ipam_service::donate::Donations;
use crate::ipam_service::intents::Promises;
use crate::ipam_service::journal::Journal;
use crate::ipam_service::{IpamService, Registry, Supplier, now_ms};
use crate::kube::Kube;
use crate::mesh::net::{PeerNet, Service};
use crate::mesh::{Identity, Mesh, MeshConfig, MeshHandle};

/// Dead voters are replaced after this.
const VOTER_DEAD_AFTER: Duration = Duration::from_secs(60);

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    tracing::info!(
        "weft {} starting: node={} ipalloc-range={}",
        env!("CARGO_PKG_VERSION"),
        config.node_name,
        config.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    );
    // One worker: two would mostly wake each other, and what takes long has
    // threads of its own (consensus log, data plane).
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(8)
        .thread_name("weft")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match result? {
        End::Asked => Ok(()),
        End::Renewal => Err(renew::again()).context("the agent cannot start itself again"),
    }
}

/// Why the agent stopped.
enum End {
    Asked,
    Renewal,
}

fn make_dir(path: &Path, variable: &str) -> Result<()> {
    files::private_dir(path).with_context(|| {
        format!("cannot create {} ({variable}); is it mounted and writable?", path.display())
    })
}

/// The node's key. It shares its fate with the consensus log: a node whose log
/// is gone must not sit in its old seat, so it gets a new key.
fn identity(state_dir: &Path) -> Result<Identity> {
    let key = state_dir.join("identity.key");
    let log = state_dir.join("consensus.redb");
    if key.exists() && !log.exists() {
        let aside = state_dir.join(format!("identity.key.lost-{}", now_ms()));
        fs::rename(&key, &aside).with_context(|| format!("cannot set {} aside", key.display()))?;
        tracing::warn!(
            "{} is missing but a node key is there: this node starts anew under a new identity; \
             the old key is kept as {}",
            log.display(),
            aside.display()
        );
    }
    Ok(Identity::load_or_create(&key)?)
}

fn check_overlaps(config: &Config) -> Result<()> {
    let overlaps = dataplane::overlaps(&config.ranges)?;
    if overlaps.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = overlaps.iter().map(|(net, what)| format!("{net} ({what})")).collect();
    bail!(
        "IPALLOC_RANGE {} overlaps {} on this host; choose a range that is free on every node",
        config.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        found.join(", ")
    );
}

async fn listen(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({what}); is another agent running?"))
}

async fn serve(config: Config) -> Result<End> {
    let mut stop = Signals::new()?;
    make_dir(&config.state_dir, "STATE_DIR")?;
    make_dir(&config.run_dir, "RUN_DIR")?;
    form::admit(&config.state_dir)?;
    owner::admit(&config.state_dir, &config.node_name)?;
    let identity = identity(&config.state_dir)?;
    let me = identity.node();
    let kube = Kube::find(&config)?;
    let conflict = check_overlaps(&config).err();
    let conflict = match conflict {
        // Nobody else would hear of it.
        Some(error) if kube.is_none() => return Err(error),
        other => other,
    };

    let http = listen(config.http_addr, "HTTP_ADDR").await?.into_std()?;
    let token = api::Token::load_or_create(&config.run_dir)?;
    let boot = match kube {
        None => Boot::plain(&config),
        Some(kube) => {
            let known = kubernetes::boot(&config, me, kube, conflict, &http, &token, stop.wait());
            match known.await? {
                Some(boot) => boot,
                None => return Ok(End::Asked),
            }
        }
    };
    let http = TcpListener::from_std(http)?;
    let dataplane = Dataplane::start(DataplaneConfig {
        node_id: me,
        node_name: config.node_name.clone(),
        underlay: boot.node_ip,
        mtu: config.mtu,
        vxlan_port: config.vxlan_port,
        direct_routing: config.direct_routing,
        hairpin: config.hairpin,
        masquerade: true,
        forward_accept: config.forward_accept,
    })?;
    let underlay = dataplane.underlay();
    let policy = policy::start(&config, boot.wired.is_some())?;
    let feed = policy_feed::feed(policy.as_ref(), boot.wired.as_ref());

    let session = session(&config.state_dir)?;
    // A node with an earlier life may find its ledger to know other ranges than
    // its configuration; until it is read, nobody is judged by either.
    let known = config.state_dir.join("consensus.redb").exists();
    let mesh = Mesh::start(MeshConfig {
        bind: SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.mesh_port)),
        identity,
        name: config.node_name.clone(),
        ranges: if known { Vec::new() } else { config.ranges.clone() },
        session,
        keys: boot.keys,
        targets: boot.targets,
        conn_limit: config.conn_limit,
        underlay: underlay.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        mtu: dataplane.mtu(),
        rest: config.quarantine,
        copied: copied::recall(&config.state_dir),
    })?;
    let net: Arc<dyn PeerNet> = Arc::new(mesh.clone());

    if boot.claim.is_some_and(|claim| !claim.is_fresh()) {
        // Something took long: another node may have taken over the founding.
        mesh.shutdown().await;
        return Ok(End::Renewal);
    }
    let (consensus, service) = Consensus::start(
        ConsensusConfig {
            state_dir: config.state_dir.clone(),
            me,
            name: config.node_name.clone(),
            ranges: config.ranges.clone(),
            session,
            founding: boot.founding.unwrap_or_else(|| {
                founding::founding(
                    &config.ipalloc_init,
                    &config.peers,
                    &underlay,
                    &config.node_name,
                    config.mesh_port,
                )
            }),
            quarantine: config.quarantine,
            voter_dead_after: VOTER_DEAD_AFTER,
        },
        Arc::clone(&net),
    )
    .await?;
    mesh.register(consensus::KINDS, &service);
    wire_heads(&mesh, &consensus);
    // After the cluster, which decides whether ranges matter.
    let ledger = consensus.ledger();
    let founded = ledger.cluster().is_some();
    mesh.set_ranges(if founded { ledger.ranges().to_vec() } else { config.ranges.clone() });

    let (journal, found) = Journal::open(&config.run_dir.join(names::LEASES_FILE))?;
    if found.damaged > 0 {
        tracing::error!(
            lines = found.damaged,
            "lease store damaged; leases are rebuilt from the kernel"
        );
    }
    let ipam = IpamService::new(me, config.lease_cooldown, journal, &found);
    let registry: Arc<dyn Registry> = Arc::new(LedgerRegistry(consensus.clone()));
    let promises = Promises::open(&config.state_dir.join("promises.json"))?;
    let donations = Donations::new(Arc::clone(&ipam), Arc::clone(&registry), promises);

    let app = Arc::new(App {
        me,
        started: Instant::now(),
        mesh: mesh.clone(),
        consensus: consensus.clone(),
        dataplane,
        policy,
        ipam: Arc::clone(&ipam),
        registry: Arc::clone(&registry),
        underlay,
        routes: Mutex::new(Routes::default()),
        conditions: Mutex::default(),
        feed,
        probing: Mutex::default(),
        kubernetes: boot.wired,
        renewal: tokio::sync::watch::Sender::new(None),
        recovered: AtomicBool::new(false),
        config,
    });
    app.ipam.set_gate(app.first_gate());
    sweep::recover(&app, &found).await?;
    // Before the first ADD, so that it can be told from the pods of an earlier life.
    app.publish_policy();
    // Not before every lease is known: what is given away must be free.
    let donor: Arc<dyn Service> = donations.clone();
    mesh.register(Donations::KINDS, &donor);

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(Supplier::new(ipam, registry, net).run());
    tasks.spawn(donations.run());
    tasks.spawn(loops::follow(Arc::clone(&app)));
    tasks.spawn(loops::tell(Arc::clone(&app)));
    tasks.spawn(copied::watch(Arc::clone(&app)));
    tasks.spawn(own_address::hold(Arc::clone(&app)));
    tasks.spawn(underlay::watch(Arc::clone(&app)));
    tasks.spawn(sweep::run(Arc::clone(&app)));
    tasks.spawn(probing::run(Arc::clone(&app)));
    tasks.spawn(loops::install(Arc::clone(&app)));
    tasks.spawn(kubernetes::rounds(Arc::clone(&app)));
    tasks.spawn(kubernetes::departures(Arc::clone(&app)));
    tasks.spawn(kubernetes::tell(Arc::clone(&app)));
    tasks.spawn(policy_feed::run(Arc::clone(&app)));
    tasks.spawn(policy_feed::keep(Arc::clone(&app)));
    tasks.spawn(policy_feed::tell(Arc::clone(&app)));

    let metrics = match app.config.metrics_addr {
        Some(address) => Some(listen(address, "METRICS_ADDR").await?),
        None => None,
    };
    let status = match app.config.status_addr {
        Some(address) => Some(listen(address, "STATUS_ADDR").await?),
        None => None,
    };
    loops::serve_http(&mut tasks, &app, http, status, metrics, token);
    tracing::info!(node = %me, http = %app.config.http_addr, "agent is up");

    let ended = tokio::select! {
        () = stop.wait() => Ok(End::Asked),
        () = renew::needed(&app) => Ok(End::Renewal),
        // They run for ever. Without one of them the node would only look alive.
        Some(ended) = tasks.join_next() => Err(ended),
    };
    tracing::info!("stopping; the data plane stays as it is");
    tasks.abort_all();
    app.keep_policy();
    // Order: consensus first, so that it can still talk while it goes.
    let _ = tokio::time::timeout(Duration::from_secs(2), consensus.shutdown()).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), mesh.shutdown()).await;
    match ended {
        Ok(end) => Ok(end),
        Err(Ok(())) => bail!("a task of the agent ended; the log above says which"),
        Err(Err(e)) => bail!("a task of the agent failed: {e}; please report this"),
    }
}

fn wire_heads(mesh: &MeshHandle, consensus: &ConsensusHandle) {
    let from_mesh = consensus.clone();
    mesh.on_head(Box::new(move |node, head| from_mesh.on_head(node, head)));
    let to_mesh = mesh.clone();
    consensus.on_head_changed(move |head| {
        to_mesh.set_ledger_head(head);
        to_mesh.set_cluster(head.cluster);
    });
}

/// SIGTERM and SIGINT.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            int: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Own underlay address of a family.
pub(super) fn underlay_is_v6(underlay: &[IpAddr]) -> bool {
    underlay.first().is_some_and(IpAddr::is_ipv6)
}

//! Mesh: identity, QUIC transport, membership, node records.
//!
//! [`Mesh::start`] binds the socket and starts the tasks; the [`MeshHandle`] it
//! returns is what the rest of the agent holds, mostly as [`net::PeerNet`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use weft_proto::wire::v1::{LedgerHead, NodeRecord};

mod auth;
mod backoff;
mod clones;
mod conn;
mod density;
mod dialer;
mod digest;
mod due;
mod endpoint;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod handshake;
pub mod identity;
pub mod net;
mod pool;
mod reconcile;
mod records;
#[doc(hidden)]
pub mod scale;
#[cfg(test)]
pub(crate) mod simulated;
mod state;
mod stream;
mod swim;
mod swim_codec;
mod swim_far;
mod swim_task;
mod sync;
mod targets;
#[cfg(test)]
mod tests;
mod tls;

pub use clones::Copied;
pub use handle::MeshHandle;
pub use identity::{Identity, IdentityError};
pub use state::{HeadCallback, Refusal};

/// Everything the mesh needs to know at start.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// UDP address; an unspecified one means both families. Port 0 is allowed.
    pub bind: SocketAddr,
    /// The node's key.
    pub identity: Identity,
    /// Node name.
    pub name: String,
    /// `IPALLOC_RANGE`; peers with another one are refused.
    pub ranges: Vec<IpNet>,
    /// This life of the agent: Unix milliseconds at start.
    pub session: u64,
    /// Cluster keys: the first signs, all verify. None: everybody is let in.
    pub keys: Vec<String>,
    /// `KUBE_PEERS`: host or host:port.
    pub targets: Vec<String>,
    /// `CONN_LIMIT`; 0 is none.
    pub conn_limit: usize,
    /// Own underlay addresses, best first. None: learned from a peer.
    pub underlay: Vec<IpAddr>,
    /// Software version.
    pub software: String,
    /// Overlay MTU, for the node record.
    pub mtu: u32,
    /// For so long may the pods of a node be well that is not heard of any more.
    pub rest: Duration,
    /// What an earlier life was told of another machine with this identity.
    pub copied: Option<Copied>,
}

/// Why the mesh does not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The socket cannot be had.
    #[error("cannot bind UDP {address} for the mesh: {source}; is another agent running?")]
    Bind {
        /// Address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A target is malformed.
    #[error("{0}")]
    Target(String),
    /// The node name cannot be used.
    #[error("node name `{0}` is empty, longer than 253 bytes or not printable; set NODE_NAME")]
    Name(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Starts the mesh.
pub struct Mesh;

impl Mesh {
    /// Binds and starts. Must be called within a Tokio runtime.
    pub fn start(config: MeshConfig) -> Result<MeshHandle, MeshError> {
        let name = &config.name;
        if name.is_empty() || name.len() > 253 || name.contains(char::is_control) {
            return Err(MeshError::Name(auth::printable(name, 300)));
        }
        for target in &config.targets {
            targets::parse(target).map_err(MeshError::Target)?;
        }
        let bind = |source| MeshError::Bind { address: config.bind, source };
        let quic = tls::configs(&config.identity).map_err(|e| MeshError::Tls(e.to_string()))?;
        let socket = endpoint::udp(config.bind).map_err(bind)?;
        let local = socket.local_addr().map_err(bind)?;
        let endpoint = quinn::Endpoint::new(
            quic.endpoint,
            Some(quic.server),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(bind)?;

        let me = config.identity.node();
        let mut underlay = config.underlay;
        if underlay.is_empty() && !local.ip().is_unspecified() {
            underlay.push(local.ip().to_canonical());
        }
        underlay.truncate(8);
        let own = NodeRecord {
            underlay: underlay.clone(),
            mesh_port: local.port(),
            software: config.software.chars().filter(|c| !c.is_control()).take(32).collect(),
            mtu: config.mtu,
            ..NodeRecord::new(me, &config.name, config.session)
        };
        let software = own.software.clone();
        let keys = auth::ClusterKeys::new(&config.keys);
        if !keys.keyed() {
            tracing::warn!(
                "open mesh: no PASSWORD is set, every host that reaches UDP port {} may join",
                local.port()
            );
        }
        let mut targets = targets::Targets::default();
        config.targets.iter().for_each(|t| targets.add(t));
        let (swim, swim_inputs) = mpsc::channel(1024);
        let mut told = clones::Told::default();
        if let Some(Copied { by, message }) = config.copied.clone() {
            told.refused(by, message, Instant::now());
        }
        let state = Arc::new(state::State {
            runtime: tokio::runtime::Handle::current(),
            me,
            name: config.name,
            session: config.session,
            software,
            conn_limit: config.conn_limit,
            endpoint,
            client: quic.client,
            keys: RwLock::new(keys),
            ranges: RwLock::new(config.ranges),
            cluster: Mutex::new(None),
            pool: Mutex::default(),
            next_conn: AtomicU64::new(1),
            pool_changed: watch::channel(0).0,
            records: Mutex::new(records::Records::new(own)),
            liveness: Mutex::default(),
            dead_since: Mutex::default(),
            viewed: Mutex::default(),
            alive: AtomicUsize::new(1),
            exchanging: Arc::new(Semaphore::new(2)),
            view: watch::channel(Arc::default()).0,
            services: RwLock::new(BTreeMap::new()),
            targets: Mutex::new(targets),
            targets_changed: Notify::new(),
            dials: Mutex::default(),
            swim,
            fresh: Mutex::default(),
            fresh_wake: Notify::new(),
            doubted: Mutex::default(),
            head: Mutex::new(LedgerHead::default()),
            on_head: RwLock::new(None),
            counters: Mutex::default(),
            refusals: Mutex::default(),
            rest: Mutex::new(config.rest),
            holds: Mutex::default(),
            told: Mutex::new(told),
            copied: watch::Sender::new(config.copied),
            let_in: AtomicBool::new(false),
            log_gate: Mutex::default(),
            dialling: Mutex::new(BTreeSet::new()),
            learn_address: AtomicBool::new(underlay.is_empty()),
            strangers: Arc::new(Semaphore::new(64)),
            notifying: Arc::new(Semaphore::new(512)),
        });
        state.refresh_view();
        let tasks = vec![
            tokio::spawn(handshake::accept_loop(Arc::clone(&state))),
            tokio::spawn(swim_task::run(Arc::clone(&state), swim_inputs)),
            tokio::spawn(sync::rumor_loop(Arc::clone(&state))),
            tokio::spawn(sync::anti_entropy_loop(Arc::clone(&state))),
            tokio::spawn(dialer::targets_loop(Arc::clone(&state))),
            tokio::spawn(dialer::maintain_loop(Arc::clone(&state))),
        ];
        tracing::info!(node = %me, name = %state.name, address = %local, "mesh started");
        Ok(MeshHandle::new(state, tasks, local))
    }
}

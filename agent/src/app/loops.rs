//! The daemon's standing work: following the ledger and the mesh, telling the
//! others, serving HTTP, installing the CNI files.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_ipam::ledger::Ledger;
use weft_proto::api::{Condition, Health};
use weft_proto::cni::{ConflistOptions, conflist};

use super::peers::PeerBook;
use super::start::underlay_is_v6;
use super::{App, cni, intent};
use crate::api;
use crate::api::backend::Backend;
use crate::mesh::net::PeerNet;

/// News of members are gathered this long: in a large cluster some record
/// changes all the time, and few changes matter here.
const GATHER: Duration = Duration::from_millis(250);
/// The book of peers is written at most this often.
const WRITE: Duration = Duration::from_secs(5);
/// The end of settling must be seen without another event: everything is handed over
/// anew this often after a start.
const SETTLING: Duration = Duration::from_secs(20);

/// Ledger or members changed: lease table, book of peers, routes, intent.
pub(super) async fn follow(app: Arc<App>) {
    let mut ledgers = app.consensus.subscribe();
    let mut views = app.mesh.watch();
    let mut leases = app.ipam.watch();
    let mut book = PeerBook::open(&app.config.state_dir.join("peers.json"));
    let (mut look_at, mut write_at) = (Instant::now(), Instant::now());
    let mut settle_at = Some(Instant::now() + SETTLING);
    let (mut unwritten, mut stale) = (false, true);
    let mut known: Option<Arc<Ledger>> = None;
    let mut ranges = Vec::new();
    loop {
        let ledger = ledgers.borrow_and_update().clone();
        leases.borrow_and_update();
        if settle_at.is_some_and(|at| Instant::now() >= at) {
            let settling = app.started.elapsed() < super::SETTLE_AT_MOST;
            settle_at = settling.then(|| Instant::now() + SETTLING);
            stale = true;
        }
        if ledger.cluster().is_some() {
            if known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &ledger)) {
                app.ipam.follow(&ledger);
                // After `grow` the cluster's ranges are what peers must agree on;
                // what this node was configured with is checked when it joins.
                if ranges != ledger.ranges() {
                    ranges = ledger.ranges().to_vec();
                    app.mesh.set_ranges(ranges.clone());
                }
                app.mesh.set_rest(Duration::from_millis(ledger.quarantine_ms()));
                known = Some(Arc::clone(&ledger));
                look_at = Instant::now();
                stale = true;
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + GATHER;
                welcome_back(&app);
                let view = views.borrow_and_update().clone();
                let news = book.learn(&view, app.me);
                book.keep(|node| ledger.member(node).is_some() || view.members.contains_key(&node));
                unwritten |= news;
                stale |= news;
            }
            if stale {
                stale = false;
                let (peers, unknown) =
                    intent::peers(&ledger, &book, app.me, underlay_is_v6(&app.underlay));
                {
                    let mut routes = app.routes.lock().unwrap_or_else(PoisonError::into_inner);
                    routes.ledger = Some(Arc::clone(&ledger));
                    routes.peers = Arc::new(peers);
                    routes.unknown = unknown;
                }
                app.publish();
            } else {
                app.publish_leases();
            }
            // The disk comes last: an ADD counts on the rules being published
            // as soon as there are addresses to lease.
            if unwritten && Instant::now() >= write_at {
                write_at = Instant::now() + WRITE;
                unwritten = !store(&app, &book).await;
            }
        }
        tokio::select! {
            changed = ledgers.changed() => if changed.is_err() { return },
            changed = next_view(&mut views, look_at) => if !changed { return },
            changed = leases.changed() => if changed.is_err() { return },
            () = until(settle_at), if settle_at.is_some() => {}
            () = tokio::time::sleep_until(write_at.into()), if unwritten => {}
        }
    }
}

/// A node that was removed here and has joined again is heard again. `evict`
/// marks a node as removed only once this replica has the eviction, so a
/// ledger read after seeing the mark knows the node only if it came back.
fn welcome_back(app: &App) {
    let members: Vec<_> = app.consensus.ledger().members().map(|(node, _)| node).collect();
    for node in members.into_iter().filter(|node| app.mesh.is_removed(*node)) {
        if let Some(member) = app.consensus.ledger().member(node) {
            tracing::info!(%node, name = %member.name, "removed node has joined again");
            app.mesh.unremove(node);
        }
    }
}

/// The view has changed and may be looked at; false at the end.
async fn next_view<T>(views: &mut watch::Receiver<T>, not_before: Instant) -> bool {
    tokio::time::sleep_until(not_before.into()).await;
    views.changed().await.is_ok()
}

/// Waits for that time, if there is one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes the book of peers; its disk may be slow.
async fn store(app: &App, book: &PeerBook) -> bool {
    let book = book.clone();
    let stored = match tokio::task::spawn_blocking(move || book.store()).await {
        Ok(stored) => stored.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    app.condition(
        "StateDirUnwritable",
        stored.as_ref().err().map(|e| Condition {
            health: Health::Degraded,
            reason: "StateDirUnwritable".into(),
            message: format!("{}: {e}", app.config.state_dir.display()),
            hint: "free space on, or fix the rights of, STATE_DIR".into(),
        }),
    );
    stored.is_ok()
}

/// See [`super::telling`].
pub(super) async fn tell(app: Arc<App>) {
    let net: Arc<dyn PeerNet> = Arc::new(app.mesh.clone());
    let mtu = || app.dataplane.mtu();
    super::telling::tell(Arc::clone(&app.ipam), app.consensus.clone(), net, mtu).await;
}

/// Plugin at once, configuration once ADD can be served.
pub(super) async fn install(app: Arc<App>) {
    let failed = |e: &cni::InstallError| {
        app.condition(
            "CniInstall",
            Some(Condition {
                health: Health::Broken,
                reason: "CniInstall".into(),
                message: e.to_string(),
                hint: "mount the host's CNI directories, or set CNI_CONF_DIR and CNI_BIN_DIR"
                    .into(),
            }),
        );
    };
    let options = ConflistOptions {
        agent_addr: app.config.http_addr.to_string(),
        run_dir: app.config.run_dir.display().to_string(),
        hairpin: (!app.config.hairpin).then_some(false),
        disable_gc: false,
    };
    let text = conflist(&options);
    loop {
        if app.readiness().ready {
            match cni::install_plugin(&app.config)
                .and_then(|()| cni::install_conflist(&app.config, &text))
            {
                Ok(()) => {
                    app.condition("CniInstall", None);
                    // Somebody may delete them; look again at leisure.
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
                Err(e) => failed(&e),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The HTTP endpoints.
pub(super) fn serve_http(
    tasks: &mut JoinSet<()>,
    app: &Arc<App>,
    http: TcpListener,
    status: Option<TcpListener>,
    metrics: Option<TcpListener>,
    token: api::Token,
) {
    let backend: Arc<dyn Backend> = Arc::clone(app) as Arc<dyn Backend>;
    let limits = api::Limits::default();
    let stats = Arc::new(api::ApiStats::default());
    let options = api::ApiOptions {
        token,
        callers: app.config.api_callers,
        limits,
        stats: Arc::clone(&stats),
    };
    let socket = api::socket(&app.config.run_dir)
        .inspect_err(|e| tracing::warn!("{e}; the plugin goes by {}", app.config.http_addr));
    let forever = std::future::pending();
    tasks.spawn(api::serve(http, socket.ok(), Arc::clone(&backend), options, forever));
    if let Some(listener) = status {
        let (backend, stats) = (Arc::clone(&backend), Arc::clone(&stats));
        tasks.spawn(api::serve_status(listener, backend, limits, stats, std::future::pending()));
    }
    if let Some(listener) = metrics {
        tasks.spawn(api::serve_metrics(listener, backend, limits, stats, std::future::pending()));
    }
}

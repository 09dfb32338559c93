//! First stream of a connection: both sides prove the cluster key, tell their
//! facts, and say plainly why not.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use quinn::VarInt;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::wire::v1::{Echo, Failure, Hello, HelloAck};

use super::auth::{Facts, LABEL, Role, judge, printable};
use super::conn;
use super::dialer::reach;
use super::net::{BoxFuture, Liveness};
use super::pool::{Admit, Conn};
use super::state::{State, canonical, lock, read};
use super::stream::{StreamError, read_frame_within, write_frame};
use super::tls::peer_node;

/// Deadline of every handshake.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Longest frame of a handshake: greetings and refusals are short, and who
/// sends one is still a stranger.
const FIRST_FRAME: usize = 64 << 10;
/// How long a peer may take to prove that its older connection lives.
const PROBE: Duration = Duration::from_secs(1);
/// How long it may take to find out whether a node is where it is known to be.
const ASK: Duration = Duration::from_secs(2);
/// Two connections to one peer: the loser may finish what is under way.
const DRAIN: Duration = Duration::from_secs(3);

/// Why a connection did not come about.
#[derive(Debug, Clone)]
pub(super) enum Rejected {
    /// Network, TLS, or a peer that speaks nonsense.
    Broken(String),
    /// Either side said no.
    Refused(Failure),
    /// We talked to ourselves.
    Own,
}

impl Rejected {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Broken(why) => why.clone(),
            Self::Refused(failure) => failure.message.clone(),
            Self::Own => "the address is this node's own".to_owned(),
        }
    }
}

fn exporter(quic: &quinn::Connection) -> Result<[u8; 32], Rejected> {
    let mut out = [0; 32];
    quic.export_keying_material(&mut out, LABEL, b"")
        .map_err(|_| Rejected::Broken("TLS gives no exporter".to_owned()))?;
    Ok(out)
}

fn hello(
    state: &State,
    which: usize,
    role: Role,
    exporter: &[u8; 32],
    observed: SocketAddr,
) -> Hello {
    let keys = state.keys.read().unwrap_or_else(PoisonError::into_inner);
    Hello {
        node: state.me,
        name: state.name.clone(),
        cluster: *lock(&state.cluster),
        ranges: read(&state.ranges),
        session: state.session,
        software: state.software.clone(),
        observed: canonical(observed),
        proof: keys.prove(which, role, exporter, state.me),
    }
}

/// Proof first; nothing else is looked at before. Returns which key it was.
fn prove(
    state: &State,
    role: Role,
    exporter: &[u8; 32],
    key: NodeId,
    peer: &Hello,
) -> Result<usize, Failure> {
    let proved = state.keys.read().unwrap_or_else(PoisonError::into_inner).verify(
        role,
        exporter,
        key,
        &peer.proof,
    );
    let Some(which) = proved.filter(|_| peer.node == key) else {
        return Err(Failure {
            code: Failure::WRONG_KEY,
            message: "the cluster key differs: set the same PASSWORD (or Secret) on both nodes"
                .to_owned(),
        });
    };
    Ok(which)
}

/// The facts of a peer that has proved the key.
fn facts(state: &State, peer: &Hello) -> Result<(), Failure> {
    if peer.name.is_empty() || peer.name.len() > 253 || peer.ranges.len() > 16 {
        return Err(Failure {
            code: Failure::BAD_REQUEST,
            message: "hello with an impossible name or too many ranges".to_owned(),
        });
    }
    let ranges = read(&state.ranges);
    judge(
        &Facts {
            node: state.me,
            name: &state.name,
            session: state.session,
            cluster: *lock(&state.cluster),
            ranges: &ranges,
            namesake: state.namesake(&peer.name, peer.node),
        },
        peer,
    )
}

fn close(quic: &quinn::Connection, failure: &Failure) {
    let reason: String = failure.message.chars().take(200).collect();
    quic.close(VarInt::from_u32(u32::from(failure.code)), reason.as_bytes());
}

/// Two lives of one node at two places: if the known one answers, the other is a copy, and
/// stays one for a while after the known one has gone silent.
async fn check_clone(state: &Arc<State>, peer: &Hello, from: SocketAddr) -> Result<(), Failure> {
    let refuse = |message| Err(Failure { code: Failure::CLONE, message });
    let known = lock(&state.pool).get(peer.node);
    let old = match known {
        Some(old) if old.session == peer.session => return Ok(()),
        Some(old) => Some(old),
        None => elsewhere(state, peer, from).await,
    };
    if let Some(old) = old {
        let answers = match Frame::new(&Echo(Vec::new())) {
            Ok(echo) => conn::request(&old, &echo, PROBE).await.is_ok(),
            Err(_) => false,
        };
        if answers {
            lock(&state.holds).refused(peer.node, from, old.remote, Instant::now());
            return refuse(format!(
                "another machine answers as this node ({}) at {}: a state directory was copied; \
                 stop one of the two, or empty its STATE_DIR and give it its own NODE_NAME",
                peer.node.short(),
                old.remote
            ));
        }
        old.quic.close(VarInt::from_u32(0), b"replaced by a newer life");
    }
    let rest = *lock(&state.rest);
    match lock(&state.holds).held(peer.node, from, Instant::now(), rest) {
        None => Ok(()),
        Some(held) => refuse(format!(
            "another machine was this node ({}) at {} until {}s ago: a state directory was copied; \
             if that one stays away, this one is let in after {}s",
            peer.node.short(),
            held.holder,
            held.silent.as_secs(),
            held.left.as_secs() + 1
        )),
    }
}

/// Who is no neighbour may still be alive: asked where it is known to be, if that is not
/// where the newcomer is.
async fn elsewhere(state: &Arc<State>, peer: &Hello, from: SocketAddr) -> Option<Arc<Conn>> {
    {
        let records = lock(&state.records);
        let known = records.get(peer.node)?;
        if known.incarnation == peer.session || known.underlay.contains(&from.ip()) {
            return None;
        }
    }
    if state.liveness_of(peer.node) == Liveness::Dead {
        return None;
    }
    let found = tokio::time::timeout(ASK, reach(state, peer.node)).await.ok()?.ok()?;
    Some(found).filter(|conn| conn.session != peer.session)
}

/// The other machine with this node's identity is here. The one that started later gives
/// way; if both did at once, both do.
fn met_copy(state: &State, other: &Hello, address: SocketAddr) {
    state.count("copies_met");
    if state.session >= other.session {
        state.told_copied(
            state.me,
            format!(
                "`{}` at {address}, which started earlier: we have the same identity {}; stop one \
                 of the two, or empty its STATE_DIR and give it its own NODE_NAME",
                printable(&other.name, 253),
                state.me.short()
            ),
        );
    }
}

/// A refusal alone could be anybody's. Who refuses a copy shows on a stream of its own that
/// it knows the cluster key: builds that do not expect that never look there.
async fn tell_proof(quic: &quinn::Connection, ack: &HelloAck) {
    let Ok(frame) = Frame::new(ack) else { return };
    let Ok(mut stream) = quic.open_uni().await else { return };
    if write_frame(&mut stream, &frame).await.is_ok() {
        let _ = stream.stopped().await;
    }
}

/// The other end of [`tell_proof`].
async fn hear_proof(
    state: &State,
    quic: &quinn::Connection,
    exporter: &[u8; 32],
    key: NodeId,
) -> Option<Hello> {
    let heard = async {
        let mut stream = quic.accept_uni().await.ok()?;
        read_frame_within(&mut stream, FIRST_FRAME).await.ok()
    };
    let frame = tokio::time::timeout(PROBE, heard).await.ok()??;
    let HelloAck(peer) = frame.decode().ok()?;
    prove(state, Role::Server, exporter, key, &peer).ok()?;
    Some(peer)
}

/// Puts an authenticated connection to use.
fn admit(state: &Arc<State>, conn: &Arc<Conn>) -> Result<(), Failure> {
    let admitted = lock(&state.pool).admit(state.me, conn, state.conn_limit);
    match admitted {
        Admit::Busy => {
            return Err(Failure {
                code: Failure::BUSY,
                message: format!(
                    "`{}` has reached its CONN_LIMIT of {}; raise it, or leave the connection to other nodes",
                    state.name, state.conn_limit
                ),
            });
        }
        Admit::Duplicate => retire(Arc::clone(conn), "duplicate"),
        Admit::In { replaced, evicted } => {
            if let Some(old) = replaced {
                retire(old, "duplicate");
            }
            if let Some(idle) = evicted {
                state.count("connections_evicted");
                idle.quic.close(VarInt::from_u32(u32::from(Failure::BUSY)), b"idle");
            }
        }
    }
    conn::started(state, conn);
    Ok(())
}

fn retire(conn: Arc<Conn>, why: &'static str) {
    tokio::spawn(async move {
        tokio::time::sleep(DRAIN).await;
        conn.quic.close(VarInt::from_u32(0), why.as_bytes());
    });
}

fn make_conn(state: &State, quic: quinn::Connection, peer: &Hello, outbound: bool) -> Arc<Conn> {
    let id = state.next_conn.fetch_add(1, Ordering::Relaxed);
    let remote = canonical(quic.remote_address());
    Arc::new(Conn::new(id, peer.node, peer.name.clone(), peer.session, remote, outbound, quic))
}

/// Dials an address. Ends with a connection in the pool, to whoever is there.
/// Boxed, for whom it finds there may make it dial elsewhere.
pub(super) fn dial(
    state: &Arc<State>,
    address: SocketAddr,
) -> BoxFuture<'_, Result<NodeId, Rejected>> {
    Box::pin(call(state, address))
}

async fn call(state: &Arc<State>, address: SocketAddr) -> Result<NodeId, Rejected> {
    let connecting = state
        .endpoint
        .connect_with(state.client.clone(), address, "weft")
        .map_err(|e| Rejected::Broken(e.to_string()))?;
    match tokio::time::timeout(DEADLINE, async {
        let quic = connecting.await.map_err(|e| Rejected::Broken(e.to_string()))?;
        let result = greet(state, &quic, address).await;
        match &result {
            Err(Rejected::Refused(failure)) => close(&quic, failure),
            Err(_) => quic.close(VarInt::from_u32(0), b""),
            Ok(_) => {}
        }
        result
    })
    .await
    {
        Ok(result) => result,
        Err(_) => Err(Rejected::Broken(format!("no answer in {} s", DEADLINE.as_secs()))),
    }
}

/// While a handshake from here is under way, its exporter is on a list; the
/// accepting half of this agent takes it off if the call comes back to us.
struct OwnCall<'a>(&'a State, [u8; 32]);

impl<'a> OwnCall<'a> {
    fn new(state: &'a State, exporter: [u8; 32]) -> Self {
        lock(&state.dialling).insert(exporter);
        Self(state, exporter)
    }

    fn seen(&self) -> bool {
        !lock(&self.0.dialling).contains(&self.1)
    }
}

impl Drop for OwnCall<'_> {
    fn drop(&mut self) {
        lock(&self.0.dialling).remove(&self.1);
    }
}

async fn greet(
    state: &Arc<State>,
    quic: &quinn::Connection,
    address: SocketAddr,
) -> Result<NodeId, Rejected> {
    let broken = |e: StreamError| Rejected::Broken(e.to_string());
    let key = peer_node(quic).ok_or_else(|| Rejected::Broken("peer without a key".to_owned()))?;
    let exporter = exporter(quic)?;
    let own = OwnCall::new(state, exporter);
    let answer = async {
        let (mut send, mut receive) =
            quic.open_bi().await.map_err(|e| Rejected::Broken(e.to_string()))?;
        let hello = Frame::new(&hello(state, 0, Role::Client, &exporter, address))
            .map_err(|e| Rejected::Broken(e.to_string()))?;
        write_frame(&mut send, &hello).await.map_err(broken)?;
        read_frame_within(&mut receive, FIRST_FRAME).await.map_err(broken)
    }
    .await;
    if own.seen() {
        return Err(Rejected::Own);
    }
    let answer = answer?;
    let refuse = |by_us: bool, mut failure: Failure| {
        failure.message = printable(&failure.message, 600);
        state.refusal(canonical(address), by_us, &failure);
        Rejected::Refused(failure)
    };
    if answer.is::<Failure>() {
        let failure: Failure = answer.decode().map_err(|e| Rejected::Broken(e.to_string()))?;
        if failure.code == Failure::CLONE
            && let Some(peer) = hear_proof(state, quic, &exporter, key).await
        {
            if peer.node == state.me {
                met_copy(state, &peer, canonical(address));
            } else {
                let name = printable(&peer.name, 253);
                let said = printable(&failure.message, 600);
                state.told_copied(peer.node, format!("`{name}` at {address}: {said}"));
            }
        }
        return Err(refuse(false, failure));
    }
    let HelloAck(peer) = answer.decode().map_err(|e| {
        state.count("frame_bad");
        Rejected::Broken(e.to_string())
    })?;
    prove(state, Role::Server, &exporter, key, &peer).map_err(|f| refuse(true, f))?;
    facts(state, &peer).map_err(|f| refuse(true, f))?;
    state.let_in.store(true, Ordering::Relaxed);
    check_clone(state, &peer, canonical(address)).await.map_err(|f| refuse(true, f))?;
    let conn = make_conn(state, quic.clone(), &peer, true);
    admit(state, &conn).map_err(|f| refuse(true, f))?;
    state.observed(peer.observed);
    Ok(peer.node)
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept_loop(state: Arc<State>) {
    while let Some(incoming) = state.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&state.strangers).try_acquire_owned() else {
            state.count("handshake_overflow");
            incoming.refuse();
            continue;
        };
        // Under pressure, who connects must first show that it is where it says.
        if state.strangers.available_permits() < 32
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            state.count("handshake_retry");
            if incoming.retry().is_err() {
                state.count("handshake_overflow");
            }
            continue;
        }
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let address = canonical(incoming.remote_address());
            match tokio::time::timeout(DEADLINE, accept(&state, incoming, address)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    if let Some(missed) = state.may_log("handshake") {
                        tracing::info!(%address, missed, "handshake failed: {why}");
                    }
                }
                Err(_) => state.count("handshake_timeout"),
            }
            drop(permit);
        });
    }
}

/// Closes a connection whose handshake is abandoned, for whatever reason.
struct CloseOnDrop(Option<quinn::Connection>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(quic) = self.0.take() {
            quic.close(VarInt::from_u32(0), b"handshake");
        }
    }
}

async fn accept(
    state: &Arc<State>,
    incoming: quinn::Incoming,
    address: SocketAddr,
) -> Result<(), String> {
    let tls = |e: quinn::ConnectionError| {
        state.count("handshake_tls");
        e.to_string()
    };
    let quic = incoming.accept().map_err(tls)?.await.map_err(tls)?;
    let mut guard = CloseOnDrop(Some(quic.clone()));
    let key = peer_node(&quic).ok_or("peer without a key")?;
    let exporter = exporter(&quic).map_err(|e| e.text())?;
    let (mut send, mut receive) = quic.accept_bi().await.map_err(|e| e.to_string())?;
    let frame =
        read_frame_within(&mut receive, FIRST_FRAME).await.map_err(|e| bad_frame(state, &e))?;
    let peer: Hello = frame.decode().map_err(|e| bad_frame(state, &e.into()))?;
    let proved = prove(state, Role::Client, &exporter, key, &peer);
    let ack = |which| HelloAck(hello(state, which, Role::Server, &exporter, address));
    let judged = proved.clone().and_then(|which| facts(state, &peer).map(|()| which));
    let verdict = match judged {
        Err(f) if f.code == Failure::CLONE && lock(&state.dialling).remove(&exporter) => {
            // Our own call: the dialling side sees its exporter gone.
            return Ok(());
        }
        Err(failure) => {
            if failure.code == Failure::CLONE {
                met_copy(state, &peer, address);
            }
            Err(failure)
        }
        Ok(which) => check_clone(state, &peer, address).await.map(|()| which),
    };
    let verdict = verdict.and_then(|which| {
        let conn = make_conn(state, quic.clone(), &peer, false);
        admit(state, &conn).map(|()| which)
    });
    match verdict {
        Ok(which) => {
            let ack = Frame::new(&ack(which)).map_err(|e| e.to_string())?;
            write_frame(&mut send, &ack).await.map_err(|e| e.to_string())?;
            guard.0 = None;
        }
        Err(failure) => {
            state.refusal(address, true, &failure);
            let answer = Frame::new(&failure).map_err(|e| e.to_string())?;
            write_frame(&mut send, &answer).await.map_err(|e| e.to_string())?;
            // Until the peer has it (or the deadline of all this).
            let _ = tokio::time::timeout(Duration::from_secs(2), async {
                if failure.code == Failure::CLONE
                    && let Ok(which) = proved
                {
                    tell_proof(&quic, &ack(which)).await;
                }
                send.stopped().await
            })
            .await;
            close(&quic, &failure);
        }
    }
    Ok(())
}

/// Counts what a stranger sent instead of a hello.
fn bad_frame(state: &State, error: &StreamError) -> String {
    conn::count_bad(state, error);
    error.to_string()
}

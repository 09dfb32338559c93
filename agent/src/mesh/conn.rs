//! An authenticated connection at work: requests, notifications, services.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::VarInt;
use weft_proto::frame::{Frame, FrameError};
use weft_proto::wire::v1::{
    Echo, Failure, LedgerHead, Rumor, Swim, SyncDigest, SyncPart, SyncSummary,
};

use super::auth::printable;
use super::pool::Conn;
use super::state::{State, lock, read};
use super::stream::{StreamError, read_frame, write_frame};
use super::swim::Input;
use super::sync;
use super::tls::PEER_WINDOW;

/// How long one frame may take to arrive once its stream is open.
const FRAME_TIME: Duration = Duration::from_secs(30);
/// How long a service may take; the caller's patience is usually shorter.
const SERVICE_TIME: Duration = Duration::from_secs(120);
/// How long a notification may take to leave.
const NOTIFY_TIME: Duration = Duration::from_secs(5);

/// Why a request on a connection failed.
pub(super) enum RequestError {
    /// Nothing left this node.
    NotSent(String),
    /// It may have been done.
    Lost,
    /// No answer in time.
    Timeout,
    /// The answer is no frame.
    Frame(FrameError),
}

/// Counts as "in use" while it lives.
struct Busy<'a>(&'a Conn);

impl<'a> Busy<'a> {
    fn new(conn: &'a Conn) -> Self {
        conn.busy.fetch_add(1, Ordering::Relaxed);
        Self(conn)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request, one answer.
pub(super) async fn request(
    conn: &Conn,
    frame: &Frame,
    patience: Duration,
) -> Result<Frame, RequestError> {
    let _busy = Busy::new(conn);
    let work = async {
        let (mut send, mut receive) =
            conn.quic.open_bi().await.map_err(|e| RequestError::NotSent(e.to_string()))?;
        write_frame(&mut send, frame).await.map_err(|_| RequestError::Lost)?;
        read_frame(&mut receive).await.map_err(|e| match e {
            StreamError::Frame(e) => RequestError::Frame(e),
            StreamError::Lost(_) => RequestError::Lost,
        })
    };
    tokio::time::timeout(patience, work).await.unwrap_or(Err(RequestError::Timeout))
}

/// Sends without waiting for anything; small frames as datagrams.
pub(super) async fn notify(state: &State, conn: &Conn, frame: &Frame) {
    conn.touch();
    let bytes = frame.to_bytes();
    if conn.quic.max_datagram_size().is_some_and(|most| bytes.len() <= most)
        && conn.quic.send_datagram(Bytes::from(bytes)).is_ok()
    {
        return;
    }
    let work = async {
        let mut send = conn.quic.open_uni().await.map_err(|_| ())?;
        write_frame(&mut send, frame).await.map_err(|_| ())
    };
    if !matches!(tokio::time::timeout(NOTIFY_TIME, work).await, Ok(Ok(()))) {
        state.count("notify_failed");
    }
}

/// Counts a bad frame by what is wrong with it.
pub(super) fn count_bad(state: &State, error: &StreamError) {
    match error {
        StreamError::Frame(FrameError::TooLong { .. }) => state.count("frame_too_long"),
        StreamError::Frame(FrameError::Magic(_)) => state.count("frame_garbage"),
        StreamError::Frame(_) => state.count("frame_bad"),
        StreamError::Lost(_) => {}
    }
}

/// A peer that sends what is no frame is not listened to any longer.
fn punish(state: &State, conn: &Conn, error: &StreamError) {
    count_bad(state, error);
    if let StreamError::Frame(why) = error {
        if let Some(missed) = state.may_log("bad frame") {
            tracing::warn!(peer = %conn.name, address = %conn.remote, missed, "connection closed: {why}");
        }
        conn.quic.close(VarInt::from_u32(u32::from(Failure::BAD_REQUEST)), b"bad frame");
    }
}

/// A connection is in use from now on.
pub(super) fn started(state: &Arc<State>, conn: &Arc<Conn>) {
    state.count("connections_established");
    // What was wrong between us no longer is.
    lock(&state.refusals).retain(|r| r.address != conn.remote);
    if let Some(dial) = lock(&state.dials).get_mut(&conn.node) {
        (dial.failures, dial.not_before) = (0, None);
    }
    tracing::info!(
        peer = %conn.name, node = %conn.node.short(), address = %conn.remote,
        outbound = conn.outbound, "connection established"
    );
    conn.quic.set_receive_window(VarInt::from_u32(PEER_WINDOW));
    lock(&state.records).connected(conn.node);
    lock(&state.holds).admitted(conn.node, conn.remote, Instant::now());
    // Swim is told before its first packet can come in on the connection.
    tell_swim(state, Input::Connected(conn.node, conn.session));
    tokio::spawn(serve(Arc::clone(state), Arc::clone(conn)));
    if conn.outbound {
        let (state, conn) = (Arc::clone(state), Arc::clone(conn));
        tokio::spawn(async move { sync::exchange(&state, &conn).await });
    }
    state.pool_changed.send_modify(|n| *n += 1);
    state.refresh_view();
}

pub(super) fn tell_swim(state: &State, input: Input) {
    if state.swim.try_send(input).is_err() {
        state.count("swim_dropped");
    }
}

async fn serve(state: Arc<State>, conn: Arc<Conn>) {
    loop {
        tokio::select! {
            stream = conn.quic.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let (state, conn) = (Arc::clone(&state), Arc::clone(&conn));
                    tokio::spawn(async move { answer(&state, &conn, send, receive).await });
                }
                Err(_) => break,
            },
            stream = conn.quic.accept_uni() => match stream {
                Ok(mut receive) => {
                    let (state, conn) = (Arc::clone(&state), Arc::clone(&conn));
                    tokio::spawn(async move {
                        match tokio::time::timeout(FRAME_TIME, read_frame(&mut receive)).await {
                            Ok(Ok(frame)) => take(&state, &conn, frame).await,
                            Ok(Err(e)) => punish(&state, &conn, &e),
                            Err(_) => state.count("frame_slow"),
                        }
                    });
                }
                Err(_) => break,
            },
            datagram = conn.quic.read_datagram() => match datagram {
                Ok(bytes) => match Frame::from_bytes(&bytes) {
                    // Membership is the bulk of it and needs no task of its own.
                    Ok(frame) if frame.is::<Swim>() => take(&state, &conn, frame).await,
                    Ok(frame) => {
                        if let Ok(permit) = Arc::clone(&state.notifying).try_acquire_owned() {
                            let (state, conn) = (Arc::clone(&state), Arc::clone(&conn));
                            tokio::spawn(async move {
                                take(&state, &conn, frame).await;
                                drop(permit);
                            });
                        } else {
                            state.count("notify_dropped");
                        }
                    }
                    Err(e) => punish(&state, &conn, &e.into()),
                },
                Err(_) => break,
            },
        }
    }
    ended(&state, &conn);
}

fn ended(state: &State, conn: &Conn) {
    let reason = conn.quic.close_reason();
    if let Some(quinn::ConnectionError::ApplicationClosed(close)) = &reason {
        // The side that dialled may object to our facts once it has them.
        let code = u16::try_from(close.error_code.into_inner()).unwrap_or(0);
        if matches!(
            code,
            Failure::WRONG_KEY | Failure::RANGE | Failure::NAME | Failure::CLUSTER | Failure::CLONE
        ) {
            let message = printable(&String::from_utf8_lossy(&close.reason), 600);
            if code == Failure::CLONE {
                state.told_copied(
                    conn.node,
                    format!("`{}` at {}: {message}", conn.name, conn.remote),
                );
            }
            state.refusal(conn.remote, false, &Failure { code, message });
        }
    }
    let current = lock(&state.pool).remove(conn);
    if !current && lock(&state.pool).get(conn.node).is_some() {
        return;
    }
    state.count("connections_lost");
    lock(&state.holds).lost(conn.node, Instant::now());
    let why = reason.as_ref().map(ToString::to_string).unwrap_or_default();
    tracing::info!(peer = %conn.name, address = %conn.remote, "connection ended: {why}");
    let on_purpose = matches!(
        reason,
        Some(quinn::ConnectionError::LocallyClosed | quinn::ConnectionError::ApplicationClosed(_))
    );
    let input = if on_purpose { Input::Closed(conn.node) } else { Input::Lost(conn.node) };
    tell_swim(state, input);
    state.pool_changed.send_modify(|n| *n += 1);
    state.refresh_view();
}

/// One request of the peer.
async fn answer(
    state: &Arc<State>,
    conn: &Arc<Conn>,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    let _busy = Busy::new(conn);
    let frame = match tokio::time::timeout(FRAME_TIME, read_frame(&mut receive)).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(e)) => return punish(state, conn, &e),
        Err(_) => return state.count("frame_slow"),
    };
    let reply = {
        let work = handle(state, conn, frame);
        tokio::select! {
            reply = tokio::time::timeout(SERVICE_TIME, work) => reply.unwrap_or_else(|_| {
                Err(Failure { code: Failure::INTERNAL, message: format!("not done within {} s", SERVICE_TIME.as_secs()) })
            }),
            // Nobody waits any more.
            _ = send.stopped() => return state.count("request_abandoned"),
        }
    };
    let reply = match reply {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Frame::new(&weft_proto::wire::v1::Ack),
        Err(failure) => Frame::new(&Failure {
            message: failure.message.chars().take(1000).collect(),
            ..failure
        }),
    };
    let Ok(reply) = reply else { return state.count("reply_too_long") };
    if write_frame(&mut send, &reply).await.is_err() {
        state.count("reply_lost");
    }
}

/// One notification of the peer; unknown kinds are skipped.
async fn take(state: &Arc<State>, conn: &Arc<Conn>, frame: Frame) {
    conn.touch();
    match handle(state, conn, frame).await {
        Err(failure) if failure.code == Failure::UNKNOWN_KIND => state.count("frame_unknown_kind"),
        Err(failure) if failure.code == Failure::BAD_REQUEST => state.count("frame_bad"),
        _ => {}
    }
}

fn bad(error: &FrameError) -> Failure {
    Failure { code: Failure::BAD_REQUEST, message: error.to_string() }
}

/// The mesh's own kinds, then the registered services.
async fn handle(
    state: &Arc<State>,
    conn: &Arc<Conn>,
    frame: Frame,
) -> Result<Option<Frame>, Failure> {
    let service = read(&state.services).get(&frame.kind).cloned();
    if frame.is::<Swim>() {
        let Swim(packet) = frame.decode().map_err(|e| bad(&e))?;
        tell_swim(state, Input::Packet(conn.node, packet));
        return Ok(None);
    }
    if frame.is::<SyncDigest>() {
        let digest = frame.decode().map_err(|e| bad(&e))?;
        let reply = sync::answer(state, conn, &digest);
        return Frame::new(&reply).map(Some).map_err(|e| bad(&e));
    }
    if frame.is::<SyncSummary>() {
        let asked = frame.decode().map_err(|e| bad(&e))?;
        return Frame::new(&sync::leaves(state, conn, &asked)).map(Some).map_err(|e| bad(&e));
    }
    if frame.is::<SyncPart>() {
        let part = frame.decode().map_err(|e| bad(&e))?;
        let reply = sync::part(state, conn, part)?;
        return Frame::new(&reply).map(Some).map_err(|e| bad(&e));
    }
    if frame.is::<Rumor>() {
        let rumor: Rumor = frame.decode().map_err(|e| bad(&e))?;
        sync::take_records(state, conn.node, rumor.records);
        return Ok(None);
    }
    if let Some(service) = service {
        return service.handle(conn.node, frame).await;
    }
    if frame.is::<LedgerHead>() {
        let head = frame.decode().map_err(|e| bad(&e))?;
        state.tell_head(conn.node, head);
        return Ok(None);
    }
    if frame.is::<Echo>() {
        return Ok(Some(frame));
    }
    Err(Failure {
        code: Failure::UNKNOWN_KIND,
        message: format!(
            "frame kind {} version {} is not known to this build ({}); upgrade this node",
            frame.kind, frame.version, state.software
        ),
    })
}

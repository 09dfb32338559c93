//! Probes through the overlay: the sockets, the clock, and what to say of it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use weft_proto::api::{Condition, Health, MemberStatus, OverlayStatus};
use weft_proto::id::NodeId;
use weft_proto::names::{PROBE_PORT, VXLAN_PORT};

use super::App;
use crate::mesh::net::{Liveness, MeshView, PeerNet};
use crate::probe::{
    Echo, Fault, Packet, Peer, ProbeSocket, Prober, SMALLEST, Verdict, udp_payload,
};

const TICK: Duration = Duration::from_secs(1);
/// Packets read in one tick: who floods the port takes no more time than that.
const PACKETS: u32 = 4096;
/// Of these, packets that may wait in a socket when a tick begins.
const WAITING: u32 = 256;
/// Only the beginning of a packet is looked at; padding is dropped by the kernel.
const BUFFER: usize = SMALLEST + 4;
/// Peers named in a condition; the rest is a number.
const NAMED: usize = 5;

/// What probing knows and counts.
#[derive(Debug, Default)]
pub(super) struct Probing {
    prober: Prober,
    answers_given: u64,
    refused: u64,
    unsent: u64,
}

fn peers(view: &MeshView, me: NodeId, own: &[IpAddr], mtu: u32) -> BTreeMap<NodeId, Peer> {
    let spoken = |ip: &&IpAddr| own.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    view.members
        .iter()
        .filter(|(node, m)| **node != me && m.liveness != Liveness::Dead)
        .filter_map(|(node, m)| {
            let address = *m.record.overlay.iter().find(spoken)?;
            let theirs = if m.record.mtu == 0 { mtu } else { m.record.mtu };
            let sure = m.liveness == Liveness::Alive;
            let life = m.record.incarnation;
            Some((*node, Peer { address, mtu: mtu.min(theirs), life, sure }))
        })
        .collect()
}

async fn receive(
    socket: Option<&ProbeSocket>,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.receive(buffer).await,
        None => std::future::pending().await,
    }
}

/// Opens, keeps or closes the socket of a family. A failure is tried again at
/// the next tick: the bridge may not have the address yet.
fn renew(slot: &mut Option<ProbeSocket>, address: Option<IpAddr>) {
    if slot.as_ref().map(ProbeSocket::address) != address {
        *slot = address.and_then(|address| match ProbeSocket::bind(address) {
            Ok(socket) => Some(socket),
            Err(e) => {
                tracing::debug!(%address, "probes of the overlay cannot start yet: {e}");
                None
            }
        });
    }
}

/// Probes and answers for ever.
pub(super) async fn run(app: Arc<App>) {
    let mut views = app.mesh.watch();
    let mut echo = Echo::default();
    let (mut v4, mut v6) = (None, None);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut buffer4, mut buffer6) = ([0; BUFFER], [0; BUFFER]);
    let mut known = (Vec::new(), 0);
    let mut told = BTreeMap::new();
    let mut left = PACKETS;
    loop {
        tokio::select! {
            got = receive(v4.as_ref(), &mut buffer4), if left > 0 => {
                left -= 1;
                hear(&app, &mut echo, &mut v4, &buffer4, got);
            }
            got = receive(v6.as_ref(), &mut buffer6), if left > 0 => {
                left -= 1;
                hear(&app, &mut echo, &mut v6, &buffer6, got);
            }
            _ = ticks.tick() => {
                // What waits in a socket must not be counted as lost, if this task was late.
                for (slot, buffer) in [(&mut v4, &mut buffer4), (&mut v6, &mut buffer6)] {
                    for _ in 0..WAITING {
                        let Some(socket) = slot.as_ref() else { break };
                        let got = socket.try_receive(buffer);
                        if got.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                            break;
                        }
                        hear(&app, &mut echo, slot, buffer, got);
                    }
                }
                left = PACKETS;
                let own = app.own_addresses();
                renew(&mut v4, own.iter().copied().find(IpAddr::is_ipv4));
                renew(&mut v6, own.iter().copied().find(IpAddr::is_ipv6));
                let bound: Vec<IpAddr> =
                    [&v4, &v6].into_iter().flatten().map(ProbeSocket::address).collect();
                let now = (bound, app.dataplane.mtu());
                let mut probing = app.probing.lock().unwrap_or_else(PoisonError::into_inner);
                let elapsed = app.started.elapsed();
                if views.has_changed().unwrap_or(false) || now != known {
                    let view = views.borrow_and_update().clone();
                    probing.prober.set_peers(elapsed, peers(&view, app.me, &now.0, now.1));
                    known = now;
                }
                for ask in probing.prober.tick(elapsed, rand::random) {
                    let socket = if ask.address.is_ipv4() { &v4 } else { &v6 };
                    let length = ask.large.map_or(SMALLEST, |mtu| udp_payload(ask.address, mtu));
                    let bytes = Packet::Ask(ask.nonce).encode(length);
                    let to = SocketAddr::new(ask.address, PROBE_PORT);
                    // Not sent is not answered: the judge sees it as a loss.
                    if socket.as_ref().is_none_or(|s| s.send(&bytes, to).is_err()) {
                        probing.unsent += 1;
                    }
                }
                drop(probing);
                app.tell_of_paths(&mut told);
            }
        }
    }
}

fn hear(
    app: &App,
    echo: &mut Echo,
    slot: &mut Option<ProbeSocket>,
    buffer: &[u8],
    got: io::Result<(usize, SocketAddr)>,
) {
    let (length, from) = match got {
        Ok(got) => got,
        Err(e) => {
            tracing::debug!("the socket of probes broke: {e}; opened again at the next tick");
            *slot = None;
            return;
        }
    };
    let Some(socket) = slot.as_ref() else { return };
    let now = app.started.elapsed();
    let packet = buffer.get(..length.min(buffer.len())).and_then(Packet::decode);
    let mut probing = app.probing.lock().unwrap_or_else(PoisonError::into_inner);
    match packet {
        Some(Packet::Ask(nonce)) if echo.allows(now, from, app.consensus.ledger().ranges()) => {
            match socket.send(&Packet::Answer(nonce).encode(SMALLEST), from) {
                Ok(()) => probing.answers_given += 1,
                Err(_) => probing.unsent += 1,
            }
        }
        Some(Packet::Answer(nonce)) if from.port() == PROBE_PORT => {
            probing.prober.answer(now, from.ip(), nonce);
        }
        _ => probing.refused += 1,
    }
}

/// One condition for all peers with one kind of fault.
fn fault_condition(fault: Fault, peers: &[(String, Duration)], mtu: u32) -> Option<Condition> {
    let longest = peers.iter().map(|(_, age)| age.as_secs()).max()?;
    let mut names: Vec<String> = peers
        .iter()
        .take(NAMED)
        .map(|(name, age)| format!("{name} (for {}s)", age.as_secs()))
        .collect();
    if let Some(more) = peers.len().checked_sub(NAMED).filter(|more| *more > 0) {
        names.push(format!("{more} more (for up to {longest}s)"));
    }
    let names = names.join(", ");
    let (message, hint) = match fault {
        Fault::All => (
            format!("no probe comes back through the overlay from {names}; the mesh is up"),
            format!(
                "check that UDP {VXLAN_PORT} (VXLAN_PORT) is open between the nodes in both directions, \
                 and UDP {PROBE_PORT} on the interface weft-vx"
            ),
        ),
        Fault::Large => (
            format!(
                "large packets ({mtu} bytes, the overlay's MTU) die on the way to {names}; small ones pass"
            ),
            "check the MTU of every device between the nodes, or set MTU lower on all nodes"
                .to_owned(),
        ),
    };
    Some(Condition { health: Health::Degraded, reason: "DataPath".to_owned(), message, hint })
}

impl App {
    /// Broken paths: to whom, what dies, for how long.
    fn faults(&self) -> Vec<(NodeId, Fault, Duration)> {
        let probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.started.elapsed();
        let fault = |(node, verdict): (NodeId, Verdict)| {
            let (fault, since) = verdict.fault?;
            Some((node, fault, now.saturating_sub(since)))
        };
        probing.prober.verdicts().filter_map(fault).collect()
    }

    /// Logs changes of the set of broken paths.
    fn tell_of_paths(&self, told: &mut BTreeMap<NodeId, Fault>) {
        let now: BTreeMap<NodeId, Fault> =
            self.faults().into_iter().map(|(node, fault, _)| (node, fault)).collect();
        if *told == now {
            return;
        }
        let view = self.mesh.view();
        for (node, fault) in now.iter().filter(|(node, fault)| told.get(node) != Some(fault)) {
            let what = if *fault == Fault::All { "packets" } else { "large packets" };
            tracing::warn!(
                peer = %view.name_of(*node),
                "{what} through the overlay do not come back; `agent status` says what to check"
            );
        }
        for node in told.keys().filter(|node| !now.contains_key(node)) {
            tracing::info!(peer = %view.name_of(*node), "its path through the overlay is not broken any more");
        }
        *told = now;
    }

    /// `DataPath`, for every kind of fault.
    pub(super) fn path_conditions(&self, view: &MeshView) -> Vec<Condition> {
        let faults = self.faults();
        let of = |wanted: Fault| {
            let mut peers: Vec<(String, Duration)> = faults
                .iter()
                .filter(|(node, fault, _)| *fault == wanted && view.is_alive(*node))
                .map(|(node, _, age)| (view.name_of(*node), *age))
                .collect();
            peers.sort();
            fault_condition(wanted, &peers, self.dataplane.mtu())
        };
        [Fault::All, Fault::Large].into_iter().filter_map(of).collect()
    }

    /// Puts what probes found into the status of members.
    pub(super) fn overlay_status(&self, members: &mut [MemberStatus]) -> OverlayStatus {
        let probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members.iter_mut().filter(|m| m.state != "dead") {
            let Ok(node) = member.id.parse() else { continue };
            let verdict = probing.prober.verdict(node).unwrap_or_default();
            let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
            member.overlay_ok = verdict.ok;
            member.overlay_rtt_us = verdict.rtt.map(micros);
        }
        let mut status = OverlayStatus::default();
        for (_, verdict) in probing.prober.verdicts() {
            match verdict.fault {
                Some((Fault::All, _)) => status.peers_lost += 1,
                Some((Fault::Large, _)) => status.peers_large_lost += 1,
                None if verdict.ok == Some(true) => status.peers_ok += 1,
                None => {}
            }
        }
        let counters = probing.prober.counters();
        status.counters = [
            ("sent", counters.sent),
            ("answered", counters.answered),
            ("lost", counters.lost),
            ("strange", counters.strange),
            ("answers_given", probing.answers_given),
            ("refused", probing.refused),
            ("unsent", probing.unsent),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into();
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_the_peers_and_what_to_check() {
        assert_eq!(fault_condition(Fault::All, &[], 1450), None);
        let peers: Vec<_> =
            (1..=7).map(|n| (format!("n{n}"), Duration::from_secs(n * 10))).collect();
        let all = fault_condition(Fault::All, &peers, 1450).unwrap();
        assert_eq!((all.health, all.reason.as_str()), (Health::Degraded, "DataPath"));
        assert!(all.message.contains("n1 (for 10s), n2 (for 20s)"), "{}", all.message);
        assert!(all.message.contains("2 more (for up to 70s)"), "{}", all.message);
        assert!(all.hint.contains("UDP 6784"));
        let large = fault_condition(Fault::Large, &peers[..1], 1450).unwrap();
        assert!(large.message.contains("1450") && large.hint.contains("MTU"));
    }
}

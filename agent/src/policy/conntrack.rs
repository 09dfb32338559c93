//! Established connections: entries of the kernel's connection table, and their end.
//!
//! A thread of its own: a table may hold a million entries, and no rule waits
//! for its reading.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::dataplane::netlink::codec::{F_ACK, Writer, attr, ip};
use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::dataplane::nft::batch::header;
use crate::policy::state::Protocol;
use crate::policy::verdict::Flow;

const SUBSYS: u16 = 1 << 8;
const GET: u16 = SUBSYS | 1;
const DELETE: u16 = SUBSYS | 2;
const RTM_GETADDR: u16 = 22;
/// Entries per question: in between the policy thread does its other work.
const PIECE: usize = 1000;
/// Entries to end in one look; another look finds the others.
const MOST: usize = 100_000;
/// Times that a look is tried.
const TRIES: u32 = 5;
/// Looks take at most a fifth of the time.
const PAUSE: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A connection as it was opened, after destination NAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) flow: Flow,
    /// `CTA_TUPLE_ORIG`, `CTA_ZONE`, `CTA_ID`, as they came.
    name: Vec<(u16, Vec<u8>)>,
}

/// What to look for.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// Addresses whose rules changed: what is forbidden now ends.
    pub(crate) changed: BTreeSet<IpAddr>,
    /// Addresses that are no pod's any more: all their connections end.
    pub(crate) gone: BTreeSet<IpAddr>,
}

impl Job {
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }

    fn take(&mut self, later: Self) {
        self.changed.extend(later.changed);
        self.gone.extend(later.gone);
    }
}

/// What came of a look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) looked_at: u64,
    pub(crate) dropped: u64,
    pub(crate) failed: u64,
}

/// Asked of whoever knows the policy: which of these are forbidden.
pub(crate) type Judge = Box<dyn Fn(Vec<Entry>) -> Vec<Entry> + Send>;

/// Starts the thread in the network namespace of the caller. It ends when the
/// sender is dropped.
pub(crate) fn start(
    judge: Judge,
    told: impl Fn(Outcome) + Send + 'static,
) -> std::io::Result<Sender<Job>> {
    let (jobs, work) = channel();
    std::thread::Builder::new()
        .name("policy-ct".to_owned())
        .spawn(move || run(&work, &judge, &told))?;
    Ok(jobs)
}

fn run(work: &Receiver<Job>, judge: &Judge, told: &impl Fn(Outcome)) {
    let mut left = None;
    while let Some(mut job) = left.take().or_else(|| work.recv().ok().map(|job| (job, TRIES))) {
        while let Ok(more) = work.try_recv() {
            job.0.take(more);
        }
        let began = Instant::now();
        match end(&job.0, judge) {
            Ok((outcome, whole)) => {
                if outcome.dropped > 0 {
                    tracing::info!(count = outcome.dropped, "connections ended: now forbidden");
                }
                told(outcome);
                left = (!whole).then_some(job);
            }
            Err(error) => {
                tracing::warn!(%error, "established connections not looked at");
                told(Outcome { failed: 1, ..Outcome::default() });
                left = (job.1 > 1).then_some((job.0, job.1 - 1));
            }
        }
        // What comes meanwhile waits in the channel.
        std::thread::sleep((began.elapsed() * PAUSE).min(PAUSE_MAX));
    }
}

/// True with what came of it if the whole table was seen.
fn end(job: &Job, judge: &Judge) -> Result<(Outcome, bool), Refused> {
    let mut route = Requests::open(NETLINK_ROUTE)?;
    let mut netfilter = Requests::open(NETLINK_NETFILTER)?;
    let own = own_addresses(&mut route)?;
    let mut outcome = Outcome::default();
    let mut doomed = Vec::new();
    for v6 in [false, true] {
        let of_family = |ip: &IpAddr| ip.is_ipv6() == v6;
        if job.changed.iter().chain(&job.gone).any(of_family) {
            look(&mut netfilter, v6, job, &own, judge, &mut doomed, &mut outcome)?;
        }
    }
    let whole = doomed.len() < MOST;
    for piece in doomed.chunks(256) {
        let mut batch = Writer::default();
        for entry in piece {
            let seq = netfilter.next_seq();
            batch.message(DELETE, F_ACK, seq, |w| {
                header(w, if entry.from.is_ipv6() { 10 } else { 2 }, 0);
                for (kind, value) in &entry.name {
                    w.attr(*kind, value);
                }
            });
        }
        let refused = netfilter.send(&batch)?;
        // Gone by itself meanwhile: as good.
        let failed = refused.iter().filter(|e| e.errno != nix::libc::ENOENT).count();
        outcome.failed += failed as u64;
        outcome.dropped += (piece.len() - refused.len().min(piece.len())) as u64;
    }
    Ok((outcome, whole || outcome.dropped == 0))
}

/// Finds the entries of a family that are to end.
fn look(
    netfilter: &mut Requests,
    v6: bool,
    job: &Job,
    own: &BTreeSet<IpAddr>,
    judge: &Judge,
    doomed: &mut Vec<Entry>,
    outcome: &mut Outcome,
) -> Result<(), Refused> {
    let mut unsure = Vec::new();
    let ask = |w: &mut Writer| header(w, if v6 { 10 } else { 2 }, 0);
    netfilter.dump(GET, ask, |_, payload| {
        outcome.looked_at += 1;
        let Some(entry) = payload.get(4..).and_then(parse) else { return };
        let either = |set: &BTreeSet<IpAddr>| set.contains(&entry.from) || set.contains(&entry.to);
        if doomed.len() >= MOST {
            return;
        }
        if either(&job.gone) {
            doomed.push(entry);
        } else if either(&job.changed) && !either(own) {
            // The node's own connections are not forwarded: no policy judges them.
            unsure.push(entry);
        }
        if unsure.len() >= PIECE {
            doomed.extend(judge(std::mem::take(&mut unsure)));
        }
    })?;
    if !unsure.is_empty() {
        doomed.extend(judge(unsure));
    }
    Ok(())
}

/// The host's own addresses.
fn own_addresses(route: &mut Requests) -> Result<BTreeSet<IpAddr>, Refused> {
    let mut out = BTreeSet::new();
    route.dump(
        RTM_GETADDR,
        |w| w.raw(&[0; 8]),
        |_, payload| {
            let Some(body) = payload.get(8..) else { return };
            out.extend(attr(body, 2).or_else(|| attr(body, 1)).and_then(ip));
        },
    )?;
    Ok(out)
}

/// An entry from a message's attributes; `None` for what is not understood.
pub(crate) fn parse(body: &[u8]) -> Option<Entry> {
    const NESTED: u16 = 0x8000;
    let (orig, reply) = (attr(body, 1)?, attr(body, 2)?);
    let mut name = vec![(1 | NESTED, orig.to_vec())];
    for kind in [18, 12] {
        name.extend(attr(body, kind).map(|value| (kind, value.to_vec())));
    }
    let from = source(orig)?;
    // Answers come from where it really went.
    let to = source(reply)?;
    let proto = attr(reply, 2)?;
    let number = *attr(proto, 1)?.first()?;
    let protocol = match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    };
    let port = attr(proto, 2).and_then(|b| Some(u16::from_be_bytes(b.get(..2)?.try_into().ok()?)));
    Some(Entry { from, to, flow: Flow { protocol, port: port.unwrap_or(0) }, name })
}

fn source(tuple: &[u8]) -> Option<IpAddr> {
    let addresses = attr(tuple, 1)?;
    attr(addresses, 1).or_else(|| attr(addresses, 3)).and_then(ip)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(w: &mut Writer, kind: u16, from: [u8; 4], to: [u8; 4], ports: (u16, u16)) {
        w.nest(kind, |w| {
            w.nest(1, |w| {
                w.attr(1, &from);
                w.attr(2, &to);
            });
            w.nest(2, |w| {
                w.attr_u8(1, 6);
                w.attr(2, &ports.0.to_be_bytes());
                w.attr(3, &ports.1.to_be_bytes());
            });
        });
    }

    #[test]
    fn judged_is_where_it_really_went() {
        // Through a host port: asked for 8080 of the node, went to 80 of the pod.
        let mut w = Writer::default();
        tuple(&mut w, 1, [192, 0, 2, 9], [192, 0, 2, 1], (4000, 8080));
        tuple(&mut w, 2, [10, 32, 0, 2], [192, 0, 2, 9], (80, 4000));
        w.attr_be32(12, 7);
        let entry = parse(w.bytes()).unwrap();
        assert_eq!(entry.from, IpAddr::from([192, 0, 2, 9]));
        assert_eq!(entry.to, IpAddr::from([10, 32, 0, 2]));
        assert_eq!(entry.flow, Flow { protocol: Some(Protocol::Tcp), port: 80 });
        assert_eq!(entry.name.len(), 2);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}

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
/// Entries of a look at most; the next look finds the others.
const MOST: usize = 200_000;
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
    while let Ok(mut job) = work.recv() {
        while let Ok(more) = work.try_recv() {
            job.take(more);
        }
        let began = Instant::now();
        match end(&job, judge) {
            Ok(outcome) => {
                if outcome.dropped > 0 {
                    tracing::info!(count = outcome.dropped, "connections ended: now forbidden");
                }
                told(outcome);
            }
            Err(error) => {
                tracing::warn!(%error, "established connections not looked at");
                told(Outcome { failed: 1, ..Outcome::default() });
            }
        }
        // What comes meanwhile waits in the channel.
        std::thread::sleep((began.elapsed() * PAUSE).min(PAUSE_MAX));
    }
}

fn end(job: &Job, judge: &Judge) -> Result<Outcome, Refused> {
    let mut route = Requests::open(NETLINK_ROUTE)?;
    let mut netfilter = Requests::open(NETLINK_NETFILTER)?;
    let own = own_addresses(&mut route)?;
    let mut outcome = Outcome::default();
    let (mut doomed, mut unsure) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        let of_family = |ip: &IpAddr| ip.is_ipv6() == v6;
        if !job.changed.iter().chain(&job.gone).any(of_family) {
            continue;
        }
        netfilter.dump(
            GET,
            |w| header(w, if v6 { 10 } else { 2 }, 0),
            |_, payload| {
                outcome.looked_at += 1;
                let Some(entry) = payload.get(4..).and_then(parse) else { return };
                let either =
                    |set: &BTreeSet<IpAddr>| set.contains(&entry.from) || set.contains(&entry.to);
                if doomed.len() + unsure.len() >= MOST {
                    return;
                }
                if either(&job.gone) {
                    doomed.push(entry);
                } else if either(&job.changed)
                    && !own.contains(&entry.from)
                    && !own.contains(&entry.to)
                {
                    // The node's own connections are not forwarded: no policy judges them.
                    unsure.push(entry);
                }
            },
        )?;
    }
    while !unsure.is_empty() {
        let rest = unsure.split_off(PIECE.min(unsure.len()));
        doomed.extend(judge(std::mem::replace(&mut unsure, rest)));
    }
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
    Ok(outcome)
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

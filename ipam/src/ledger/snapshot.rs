//! The ledger as bytes. The struct is frozen: a change is a new version beside it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_proto::frame::{Frame, FrameError, MAX_PAYLOAD, Message};
use weft_proto::id::{ClusterId, NodeId};
use weft_proto::ledger::{Block, Outcome, Refusal};

use super::execute::{MAX_FORMER, check_name, check_ranges};
use super::requests::{Requests, WINDOW, Window};
use super::space::{Holder, Space, range_of};
use super::{Ledger, MAX_MEMBERS, MAX_PREFIXES, MemberInfo};
use crate::net::{Span, is_aligned};

/// Bytes that do not hold a ledger; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not a frame, or not of this kind or version.
    #[error("ledger snapshot unreadable: {0}")]
    Frame(#[from] FrameError),
    /// Readable, but not the state of any ledger.
    #[error("ledger snapshot invalid: {0}")]
    Invalid(String),
}

/// A whole ledger, version 1. Sorted throughout, so equal ledgers have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotV1 {
    /// Entries applied.
    pub index: u64,
    /// Latest time seen.
    pub clock_ms: u64,
    /// Cluster, once founded.
    pub cluster: Option<ClusterId>,
    /// Rest of freed blocks.
    pub quarantine_ms: u64,
    /// Present ranges.
    pub ranges: Vec<IpNet>,
    /// Earlier sets of ranges, oldest first.
    pub former_ranges: Vec<Vec<IpNet>>,
    /// (node, name, position of its join).
    pub members: Vec<(NodeId, String, u64)>,
    /// (prefix, owner as index into `members`, epoch).
    pub owned: Vec<(IpNet, u32, u64)>,
    /// (prefix, former owner, until).
    pub resting: Vec<(IpNet, NodeId, u64)>,
    /// Requests answered.
    pub windows: Vec<WindowV1>,
}

/// Answers given to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowV1 {
    /// Who asked.
    pub node: NodeId,
    /// In which life.
    pub session: u64,
    /// Requests up to here are answered or too old.
    pub floor: u64,
    /// Position of the last one.
    pub used: u64,
    /// (number, answer).
    pub done: Vec<(u64, AnswerV1)>,
}

/// An [`Outcome`], the owner of the blocks named once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerV1 {
    /// As in [`Outcome`].
    Done,
    /// As in [`Outcome`].
    Joined(ClusterId),
    /// Blocks of the asking node itself.
    Own(Vec<(IpNet, u64)>),
    /// Blocks of another node.
    Other(NodeId, Vec<(IpNet, u64)>),
    /// As in [`Outcome`].
    Refused(Refusal),
}

impl Message for SnapshotV1 {
    const KIND: u16 = 34;
    const VERSION: u8 = 1;
    // Leaves room for the message that carries it.
    const LIMIT: usize = MAX_PAYLOAD - 4096;
    const NAME: &'static str = "ledger snapshot";
}

impl AnswerV1 {
    fn of(asker: NodeId, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Joined { cluster } => Self::Joined(*cluster),
            Outcome::Refused(refusal) => Self::Refused(refusal.clone()),
            Outcome::Granted(blocks) => {
                // All blocks of one answer have the same owner.
                let parts = blocks.iter().map(|block| (block.prefix, block.epoch)).collect();
                match blocks.first().map(|block| block.owner) {
                    Some(owner) if owner != asker => Self::Other(owner, parts),
                    _ => Self::Own(parts),
                }
            }
        }
    }

    fn outcome(self, asker: NodeId) -> Outcome {
        let granted = |owner: NodeId, parts: Vec<(IpNet, u64)>| {
            let block = |(prefix, epoch)| Block { prefix, owner, epoch };
            Outcome::Granted(parts.into_iter().map(block).collect())
        };
        match self {
            Self::Done => Outcome::Done,
            Self::Joined(cluster) => Outcome::Joined { cluster },
            Self::Refused(refusal) => Outcome::Refused(refusal),
            Self::Own(parts) => granted(asker, parts),
            Self::Other(owner, parts) => granted(owner, parts),
        }
    }
}

pub(super) fn encode(ledger: &Ledger) -> Vec<u8> {
    let mut snapshot = to_v1(ledger);
    let frame = Frame::new(&snapshot).or_else(|_| {
        // Everything but the stored answers is bounded far below the limit.
        // Without them a very late retry is refused as stale, never done twice.
        for window in &mut snapshot.windows {
            let newest = window.done.drain(..).map(|(seq, _)| seq).next_back();
            window.floor = window.floor.max(newest.unwrap_or(0));
        }
        Frame::new(&snapshot)
    });
    frame.map(|frame| frame.to_bytes()).unwrap_or_default()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Ledger, SnapshotError> {
    let snapshot: SnapshotV1 = Frame::from_bytes(bytes)?.decode()?;
    from_v1(snapshot).map_err(SnapshotError::Invalid)
}

fn to_v1(ledger: &Ledger) -> SnapshotV1 {
    let place: BTreeMap<_, _> = ledger.members.keys().zip(0u32..).collect();
    let owned = ledger.blocks().filter_map(|block| {
        place.get(&block.owner).map(|place| (block.prefix, *place, block.epoch))
    });
    SnapshotV1 {
        index: ledger.index,
        clock_ms: ledger.clock_ms,
        cluster: ledger.cluster,
        quarantine_ms: ledger.quarantine_ms,
        ranges: ledger.ranges.clone(),
        former_ranges: ledger.former_ranges.clone(),
        members: ledger
            .members
            .iter()
            .map(|(node, info)| (*node, info.name.clone(), info.joined_at))
            .collect(),
        owned: owned.collect(),
        resting: ledger.quarantine().map(|r| (r.prefix, r.former, r.until_ms)).collect(),
        windows: ledger
            .requests
            .windows
            .iter()
            .map(|(node, window)| WindowV1 {
                node: *node,
                session: window.session,
                floor: window.floor,
                used: window.used,
                done: window
                    .done
                    .iter()
                    .map(|(seq, outcome)| (*seq, AnswerV1::of(*node, outcome)))
                    .collect(),
            })
            .collect(),
    }
}

fn from_v1(snapshot: SnapshotV1) -> Result<Ledger, String> {
    let mut ledger = Ledger {
        index: snapshot.index,
        clock_ms: snapshot.clock_ms,
        cluster: snapshot.cluster,
        quarantine_ms: snapshot.quarantine_ms,
        ranges: snapshot.ranges,
        former_ranges: snapshot.former_ranges,
        ..Ledger::default()
    };
    if ledger.cluster.is_some() {
        check_ranges(&ledger.ranges)?;
    } else if !ledger.ranges.is_empty()
        || !ledger.former_ranges.is_empty()
        || !snapshot.members.is_empty()
        || ledger.quarantine_ms != 0
    {
        return Err("ranges or members, but no cluster".into());
    }
    if ledger.former_ranges.len() > MAX_FORMER {
        return Err("too many earlier ranges".into());
    }
    ledger.former_ranges.iter().try_for_each(|ranges| check_ranges(ranges))?;
    members(&mut ledger, snapshot.members)?;
    ledger.space = space(&ledger, snapshot.owned, snapshot.resting)?;
    ledger.requests = requests(snapshot.windows, ledger.index)?;
    Ok(ledger)
}

fn members(ledger: &mut Ledger, members: Vec<(NodeId, String, u64)>) -> Result<(), String> {
    if members.len() > MAX_MEMBERS {
        return Err(format!("{} members", members.len()));
    }
    for (node, name, joined_at) in members {
        check_name(&name)?;
        past(joined_at, ledger.index)?;
        if ledger.members.last_key_value().is_some_and(|(last, _)| *last >= node) {
            return Err(format!("member {node} out of order"));
        }
        if ledger.by_name.insert(name.clone(), node).is_some() {
            return Err(format!("two members of the name {name}"));
        }
        ledger.members.insert(node, MemberInfo { name, joined_at });
    }
    Ok(())
}

fn space(
    ledger: &Ledger,
    owned: Vec<(IpNet, u32, u64)>,
    resting: Vec<(IpNet, NodeId, u64)>,
) -> Result<Space, String> {
    let mut space = Space::default();
    let count = owned.len().saturating_add(resting.len());
    if count > MAX_PREFIXES {
        return Err(format!("{count} prefixes"));
    }
    let nodes: Vec<_> = ledger.members.keys().copied().collect();
    let mut last = None;
    for (prefix, place, epoch) in owned {
        let owner = *nodes.get(place as usize).ok_or_else(|| format!("{prefix} has no owner"))?;
        past(epoch, ledger.index)?;
        let span = fit(ledger, &mut space, &mut last, &prefix)?;
        space.insert(span, Holder::Owned { owner, epoch });
    }
    let mut last = None;
    for (prefix, former, until_ms) in resting {
        if until_ms <= ledger.clock_ms {
            return Err(format!("{prefix} has rested long enough"));
        }
        let span = fit(ledger, &mut space, &mut last, &prefix)?;
        space.insert(span, Holder::Resting { former, until_ms });
    }
    Ok(space)
}

/// Checks that a prefix is aligned, in order, in a range, and still free.
fn fit(
    ledger: &Ledger,
    space: &mut Space,
    last: &mut Option<Span>,
    prefix: &IpNet,
) -> Result<Span, String> {
    let span = Span::of(prefix);
    let in_range =
        range_of(&ledger.ranges, span.v6, span.start).is_some_and(|range| range.contains(span));
    if !is_aligned(prefix) || !in_range {
        return Err(format!("{prefix} is no part of a range"));
    }
    if last.is_some_and(|last| last >= span) {
        return Err(format!("{prefix} out of order"));
    }
    if !space.is_free(span) {
        return Err(format!("{prefix} is held twice"));
    }
    *last = Some(span);
    Ok(span)
}

fn requests(windows: Vec<WindowV1>, index: u64) -> Result<Requests, String> {
    let mut requests = Requests::default();
    for WindowV1 { node, session, floor, used, done } in windows {
        past(used, index)?;
        if requests.windows.last_key_value().is_some_and(|(last, _)| *last >= node) {
            return Err(format!("requests of node {node} out of order"));
        }
        let mut window = Window { session, floor, used, done: Vec::with_capacity(done.len()) };
        let mut last = floor;
        for (seq, answer) in done {
            if seq <= last || seq - floor > WINDOW {
                return Err(format!("request {seq} of node {node} out of order"));
            }
            last = seq;
            window.done.push((seq, answer.outcome(node)));
        }
        requests.windows.insert(node, window);
    }
    Ok(requests)
}

fn past(position: u64, index: u64) -> Result<(), String> {
    if (1..=index).contains(&position) {
        Ok(())
    } else {
        Err(format!("position {position} in a ledger at {index}"))
    }
}

//! What was already answered, so that a retry is never a second request.

use std::collections::BTreeMap;

use weft_proto::id::{NodeId, RequestId};
use weft_proto::ledger::{Outcome, Refusal};

/// A request this far behind the newest one of its node is too old to answer.
pub(super) const WINDOW: u64 = 64;
/// Prefixes kept in the stored answers of one node; the oldest answers go first.
const MAX_PREFIXES: usize = 512;
/// Nodes that are not members are remembered up to this many.
pub(super) const MAX_STRANGERS: usize = 4096;

/// The answers given to one node in its newest session.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Window {
    pub(super) session: u64,
    /// Every request up to this number is answered or too old.
    pub(super) floor: u64,
    /// Position of the last command recorded here.
    pub(super) used: u64,
    /// Sorted. Most nodes have two or three, and a map takes room for eleven: 900 bytes
    /// of each of thousands of nodes, in every copy of the ledger.
    pub(super) done: Vec<(u64, Outcome)>,
}

impl Window {
    /// Forgets the answers, not that the requests were made.
    pub(super) fn shed(&mut self) {
        if let Some((newest, _)) = self.done.last() {
            self.floor = self.floor.max(*newest);
        }
        self.done = Vec::new();
    }

    fn record(&mut self, seq: u64, outcome: Outcome) {
        match self.done.binary_search_by_key(&seq, |(seq, _)| *seq) {
            Ok(at) => self.done[at].1 = outcome,
            Err(at) => self.done.insert(at, (seq, outcome)),
        }
        let newest = self.done.last().map_or(seq, |(newest, _)| *newest);
        self.floor = self.floor.max(newest.saturating_sub(WINDOW));
        self.done.retain(|(seq, _)| *seq > self.floor);
        let mut kept: usize = self.done.iter().map(|(_, outcome)| weight(outcome)).sum();
        while kept > MAX_PREFIXES && self.done.len() > 1 {
            let (oldest, outcome) = self.done.remove(0);
            kept -= weight(&outcome);
            self.floor = self.floor.max(oldest);
        }
    }
}

/// Prefixes in an answer: what makes it long.
fn weight(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Granted(blocks) => blocks.len(),
        Outcome::Refused(Refusal::RangeDiffers { cluster, given }) => cluster.len() + given.len(),
        Outcome::Refused(Refusal::Exhausted { ranges } | Refusal::OutOfRange { ranges, .. }) => {
            ranges.len()
        }
        Outcome::Done | Outcome::Joined { .. } | Outcome::Refused(_) => 0,
    }
}

/// The windows of all nodes that ever asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Requests {
    pub(super) windows: BTreeMap<NodeId, Window>,
}

impl Requests {
    /// The answer to a request that needs no execution: its stored answer, or
    /// a refusal if it is too old or no request at all.
    pub(super) fn recall(&self, request: &RequestId) -> Option<Outcome> {
        if request.seq == 0 {
            return Some(Outcome::Refused(Refusal::Bad("requests are numbered from 1".into())));
        }
        let window = self.windows.get(&request.node)?;
        if request.session > window.session {
            return None;
        }
        let stale = Outcome::Refused(Refusal::Stale(*request));
        if request.session < window.session || request.seq <= window.floor {
            return Some(stale);
        }
        let at = window.done.binary_search_by_key(&request.seq, |(seq, _)| *seq).ok()?;
        window.done.get(at).map(|(_, outcome)| outcome.clone())
    }

    /// Stores the answer of an executed request.
    pub(super) fn record(&mut self, request: &RequestId, outcome: Outcome, position: u64) {
        let window = self.windows.entry(request.node).or_default();
        if request.session > window.session {
            *window = Window { session: request.session, ..Window::default() };
        }
        window.used = position;
        window.record(request.seq, outcome);
    }

    /// An evicted node's old requests must not bring it back.
    pub(super) fn evicted(&mut self, node: NodeId) {
        if let Some(window) = self.windows.get_mut(&node) {
            window.shed();
        }
    }

    /// Bounds the memory of nodes that are no longer, or never were, members.
    pub(super) fn trim(&mut self, is_member: impl Fn(&NodeId) -> bool, members: usize) {
        if self.windows.len() <= members + MAX_STRANGERS {
            return;
        }
        let oldest = self
            .windows
            .iter()
            .filter(|(node, _)| !is_member(node))
            .min_by_key(|(node, window)| (window.used, **node))
            .map(|(node, _)| *node);
        if let Some(node) = oldest {
            self.windows.remove(&node);
        }
    }
}

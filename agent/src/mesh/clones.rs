//! Two machines with one key: a copied state directory that runs beside its original.
//!
//! Neither can prove that it is the original, so the others decide: each lets in one of the
//! two, the one it knows as long as that one answers. Who was refused stays out for a while
//! after the other has gone silent too, for its pods may be well although its agent is not.
//! Who is refused by as many as let it in gives out no more addresses. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_proto::id::NodeId;

/// Most identities of which a second machine is remembered.
const MAX_NODES: usize = 1000;
/// Most addresses remembered of one identity.
const MAX_MACHINES: usize = 16;

/// What this node remembers of machines that came with the identity of another.
#[derive(Debug, Default)]
pub(super) struct Holds(BTreeMap<NodeId, Hold>);

#[derive(Debug)]
struct Hold {
    /// Where the one that was let in is, and when it last was.
    holder: SocketAddr,
    heard: Instant,
    refused: Vec<SocketAddr>,
}

/// Why a machine is kept out although nobody answers in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) holder: SocketAddr,
    pub(super) silent: Duration,
    pub(super) left: Duration,
}

impl Holds {
    /// `from` came as `node`, while `holder` answered as such.
    pub(super) fn refused(
        &mut self,
        node: NodeId,
        from: SocketAddr,
        holder: SocketAddr,
        now: Instant,
    ) {
        if self.0.len() >= MAX_NODES && !self.0.contains_key(&node) {
            let oldest = self.0.iter().min_by_key(|(_, hold)| hold.heard).map(|(node, _)| *node);
            oldest.map(|node| self.0.remove(&node));
        }
        let hold = self.0.entry(node).or_insert(Hold { holder, heard: now, refused: Vec::new() });
        (hold.holder, hold.heard) = (holder, now);
        hold.refused.retain(|known| *known != holder && *known != from);
        if from != holder {
            if hold.refused.len() >= MAX_MACHINES {
                hold.refused.remove(0);
            }
            hold.refused.push(from);
        }
    }

    /// The connection of the one that was let in ended at `now`.
    pub(super) fn lost(&mut self, node: NodeId, now: Instant) {
        if let Some(hold) = self.0.get_mut(&node) {
            hold.heard = hold.heard.max(now);
        }
    }

    /// This machine is let in.
    pub(super) fn admitted(&mut self, node: NodeId, from: SocketAddr, now: Instant) {
        let Some(hold) = self.0.get_mut(&node) else { return };
        hold.refused.retain(|known| *known != from);
        (hold.holder, hold.heard) = (from, now);
        if hold.refused.is_empty() {
            self.0.remove(&node);
        }
    }

    /// Whether `from` must wait before it may be `node`, given that nobody answers as such.
    /// The one that was let in need not, nor who has never been refused.
    pub(super) fn held(
        &self,
        node: NodeId,
        from: SocketAddr,
        now: Instant,
        rest: Duration,
    ) -> Option<Held> {
        let hold = self.0.get(&node).filter(|hold| hold.refused.contains(&from))?;
        let silent = now.saturating_duration_since(hold.heard);
        let left = rest.checked_sub(silent).filter(|left| !left.is_zero())?;
        Some(Held { holder: hold.holder, silent, left })
    }
}

/// Another machine runs as this node, and it is this one that others keep out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Who said so; this node's own id if the other machine did.
    pub by: NodeId,
    /// What was said, by whom, and where the other machine is.
    pub message: String,
}

/// What others, having proved the cluster key, have said about this node.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<NodeId, Word>);

#[derive(Debug)]
struct Word {
    message: String,
    at: Instant,
}

impl Told {
    /// `by` has refused this node because another answers in its place.
    pub(super) fn refused(&mut self, by: NodeId, message: String, now: Instant) {
        if self.0.len() < MAX_NODES || self.0.contains_key(&by) {
            self.0.insert(by, Word { message, at: now });
        }
    }

    /// Whether this node has to give way. `vouching` are those that have let it in, and
    /// since when.
    ///
    /// Those who refuse must be outnumbered, so that of two machines at most one goes on,
    /// and a single peer that knows the wrong one does not stop the right one. A word that
    /// was not repeated for `rest` stands against nobody, but it stands until somebody lets
    /// this node in: that the others cannot be asked any more is no sign that they were
    /// wrong. What the other machine itself said counts only where nobody else has said
    /// anything for this one, and ends by its silence.
    pub(super) fn verdict(
        &mut self,
        me: NodeId,
        vouching: &[(NodeId, Instant)],
        now: Instant,
        rest: Duration,
    ) -> Option<Copied> {
        let fresh = |word: &Word| now.saturating_duration_since(word.at) < rest;
        self.0.retain(|by, word| *by != me || fresh(word));
        for (node, since) in vouching {
            if self.0.get(node).is_some_and(|word| word.at < *since) {
                self.0.remove(node);
            }
        }
        let vouching = vouching.iter().filter(|(node, _)| !self.0.contains_key(node)).count();
        let counts = |by: &NodeId, word: &Word| fresh(word) && (*by != me || vouching == 0);
        let against = self.0.iter().filter(|(by, word)| counts(by, word)).count();
        if vouching > against {
            return None;
        }
        // The same one every time, as long as it repeats itself.
        let mut words = self.0.iter();
        let (by, word) = words.clone().find(|(_, word)| fresh(word)).or_else(|| words.next())?;
        Some(Copied { by: *by, message: word.message.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const X: NodeId = NodeId([9; 16]);
    const REST: Duration = Duration::from_secs(600);

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn machine(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 6783))
    }

    #[test]
    fn a_copy_waits_and_the_one_known_before_need_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut holds = Holds::default();
        assert_eq!(holds.held(X, machine(2), start, REST), None, "nobody was refused");
        holds.refused(X, machine(2), machine(1), start);
        holds.lost(X, after(10));
        let held = holds.held(X, machine(2), after(30), REST).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!((held.holder, held.silent, held.left), (machine(1), seconds(20), seconds(580)));
        // A new life of the original, at its place or at a new one.
        assert_eq!(holds.held(X, machine(1), after(30), REST), None);
        assert_eq!(holds.held(X, machine(3), after(30), REST), None);
        assert_eq!(holds.held(X, machine(2), after(610), REST), None, "silent for long enough");
        // The copy is in, and now it is the other that has to wait.
        holds.admitted(X, machine(2), after(610));
        holds.refused(X, machine(1), machine(2), after(620));
        assert_eq!(holds.held(X, machine(2), after(621), REST), None);
        assert!(holds.held(X, machine(1), after(621), REST).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut holds = Holds::default();
        for n in 0..=u8::MAX {
            holds.refused(X, machine(n), SocketAddr::from(([198, 51, 100, 1], 1)), start);
        }
        assert_eq!(holds.0[&X].refused.len(), MAX_MACHINES);
        for n in 0..2000_u16 {
            let [a, b] = n.to_be_bytes();
            let other = NodeId([a, b, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
            holds.refused(other, machine(1), machine(2), start);
        }
        assert_eq!(holds.0.len(), MAX_NODES);
    }

    #[test]
    fn who_is_kept_out_by_as_many_as_let_it_in_gives_way() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let says = |told: &mut Told, by: u8| told.refused(node(by), format!("by {by}"), start);
        let verdict = |told: &mut Told, vouching: &[u8], at: Instant| {
            let vouching: Vec<_> = vouching.iter().map(|n| (node(*n), later)).collect();
            told.verdict(X, &vouching, at, REST).map(|copied| copied.by)
        };
        let mut told = Told::default();
        assert_eq!(verdict(&mut told, &[], later), None, "alone, and nobody has said anything");
        says(&mut told, 1);
        assert_eq!(verdict(&mut told, &[], later), Some(node(1)));
        assert_eq!(verdict(&mut told, &[2], later), Some(node(1)), "one against one: in doubt no");
        assert_eq!(verdict(&mut told, &[2, 3], later), None, "a single one is outnumbered");
        // The one that refused lets it in.
        assert_eq!(verdict(&mut told, &[1], later), None);
        says(&mut told, 1);
        let much_later = start + REST;
        assert_eq!(verdict(&mut told, &[], much_later), Some(node(1)), "silence says nothing");
        assert_eq!(verdict(&mut told, &[2], much_later), None, "but another does");
        // What the other machine said of itself ends with it.
        let mut told = Told::default();
        told.refused(X, "I am you".into(), start);
        assert_eq!(verdict(&mut told, &[], later), Some(X));
        assert_eq!(verdict(&mut told, &[1], later), None, "it is no judge of its own case");
        assert_eq!(verdict(&mut told, &[], much_later), None);
    }

    proptest! {
        /// However the others are divided: if each lets in one of two at most, and refuses
        /// the other, at most one of the two goes on.
        #[test]
        fn of_two_machines_at_most_one_goes_on(lets_in in prop::collection::vec(0..3_u8, 1..12)) {
            let start = Instant::now();
            let later = start + Duration::from_secs(1);
            let goes_on = |machine: u8| {
                let (mut told, mut vouching) = (Told::default(), Vec::new());
                for (peer, choice) in (1..).zip(&lets_in) {
                    if *choice == machine {
                        vouching.push((node(peer), later));
                    } else {
                        told.refused(node(peer), String::new(), start);
                    }
                }
                told.verdict(X, &vouching, later, REST).is_none()
            };
            prop_assert!(!(goes_on(0) && goes_on(1)));
        }
    }
}

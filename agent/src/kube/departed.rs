//! Which members' Nodes are gone: pure.
//!
//! A member is evicted when it had a Node, the complete list of Nodes has been
//! without it for [`GRACE`], some living member's Node is in that list (one that
//! lacks them all is of another cluster, or wrong), and the member is not alive in
//! the mesh. One that is alive stays, and is named; so is this node itself. Members
//! that never had a Node are others' business.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_proto::id::NodeId;

/// How long a Node must be gone.
pub const GRACE: Duration = Duration::from_secs(20);

/// The Nodes, as the watch knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The list was read to its end and is being followed.
    pub complete: bool,
    /// Names.
    pub names: BTreeSet<String>,
}

/// A member of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name.
    pub name: String,
    /// Alive in the mesh.
    pub alive: bool,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Gone: to be evicted, after one more question for its Node.
    pub evict: Vec<NodeId>,
    /// Alive without a Node, by name.
    pub alive: Vec<String>,
}

/// Memory between two looks.
#[derive(Debug, Default)]
pub struct Departed {
    /// Members that had a Node.
    had_node: BTreeSet<NodeId>,
    absent: BTreeMap<NodeId, Instant>,
}

impl Departed {
    /// With what an earlier life saw.
    pub fn new(had_node: BTreeSet<NodeId>) -> Self {
        Self { had_node, absent: BTreeMap::new() }
    }

    /// Members that had a Node.
    pub fn had_node(&self) -> &BTreeSet<NodeId> {
        &self.had_node
    }

    /// Looks at Nodes and members.
    pub fn look(
        &mut self,
        nodes: &Nodes,
        own: &str,
        members: &BTreeMap<NodeId, Member>,
        now: Instant,
    ) -> Verdict {
        let alive = |member: &Member| member.alive || member.name == own;
        let known = |member: &Member| alive(member) && nodes.names.contains(&member.name);
        if !nodes.complete || !members.values().any(known) {
            // Absence means nothing; it must last from when it means something.
            self.absent.clear();
            return Verdict::default();
        }
        self.had_node.retain(|node| members.contains_key(node));
        self.absent.retain(|node, _| members.contains_key(node));
        let mut verdict = Verdict::default();
        for (node, member) in members {
            if nodes.names.contains(&member.name) {
                self.had_node.insert(*node);
                self.absent.remove(node);
                continue;
            }
            if !self.had_node.contains(node) {
                continue;
            }
            let since = *self.absent.entry(*node).or_insert(now);
            if now.saturating_duration_since(since) < GRACE {
                continue;
            }
            if alive(member) {
                verdict.alive.push(member.name.clone());
            } else {
                verdict.evict.push(*node);
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(names: &[&str]) -> Nodes {
        Nodes { complete: true, names: names.iter().map(|n| (*n).to_owned()).collect() }
    }

    fn members(list: &[(u8, &str, bool)]) -> BTreeMap<NodeId, Member> {
        list.iter()
            .map(|(id, name, alive)| {
                (NodeId([*id; 16]), Member { name: (*name).to_owned(), alive: *alive })
            })
            .collect()
    }

    #[test]
    fn only_after_grace_and_only_the_dead() {
        let start = Instant::now();
        let mut departed = Departed::default();
        let all = members(&[(1, "n1", true), (2, "n2", false), (3, "n3", true), (4, "s", false)]);
        let look = |d: &mut Departed, names: &[&str], at: Duration| {
            d.look(&nodes(names), "n1", &all, start + at)
        };
        assert_eq!(look(&mut departed, &["n1", "n2", "n3"], Duration::ZERO), Verdict::default());
        assert_eq!(look(&mut departed, &["n1"], Duration::from_secs(1)), Verdict::default());
        let late = GRACE + Duration::from_secs(1);
        let verdict = look(&mut departed, &["n1"], late);
        assert_eq!(verdict, Verdict { evict: vec![NodeId([2; 16])], alive: vec!["n3".into()] });
        // Came back: the time starts anew.
        look(&mut departed, &["n1", "n2", "n3"], late);
        assert_eq!(look(&mut departed, &["n1"], late * 2), Verdict::default());
        assert_eq!(departed.had_node().len(), 3);
    }

    #[test]
    fn what_an_earlier_life_saw_counts() {
        let start = Instant::now();
        let all = members(&[(1, "n1", true), (2, "n2", false)]);
        let mut departed = Departed::new(BTreeSet::from([NodeId([2; 16])]));
        assert_eq!(departed.look(&nodes(&["n1"]), "n1", &all, start), Verdict::default());
        assert_eq!(departed.look(&nodes(&["n1"]), "n1", &all, start + GRACE).evict.len(), 1);
    }

    #[derive(Debug, Clone)]
    struct Look {
        complete: bool,
        present: [bool; 4],
        alive: [bool; 4],
        pause: u64,
    }

    fn look() -> impl Strategy<Value = Look> {
        (prop::bool::weighted(0.9), any::<[bool; 4]>(), any::<[bool; 4]>(), 0u64..30)
            .prop_map(|(complete, present, alive, pause)| Look { complete, present, alive, pause })
    }

    proptest! {
        /// Against the naive reading of the rule, over the whole history.
        #[test]
        fn nobody_is_evicted_but_by_the_rule(looks in prop::collection::vec(look(), 1..40)) {
            let start = Instant::now();
            let mut now = start;
            let mut departed = Departed::default();
            let mut history: Vec<(Instant, Look)> = Vec::new();
            for look in looks {
                now += Duration::from_secs(look.pause);
                let seen = Nodes {
                    complete: look.complete,
                    names: (0..4).filter(|n| look.present[*n]).map(|n| format!("n{n}")).collect(),
                };
                let all = (0..4u8).map(|n| {
                    let alive = look.alive[usize::from(n)];
                    (NodeId([n; 16]), Member { name: format!("n{n}"), alive })
                }).collect();
                history.push((now, look.clone()));
                let verdict = departed.look(&seen, "n0", &all, now);
                for n in 0..4usize {
                    let id = NodeId([u8::try_from(n).unwrap(); 16]);
                    let lives = |l: &Look, n: usize| n == 0 || l.alive[n];
                    let sound = |l: &Look| l.complete && (0..4).any(|n| lives(l, n) && l.present[n]);
                    let had = history.iter().any(|(_, l)| sound(l) && l.present[n]);
                    let gone = history.iter().rev()
                        .take_while(|(_, l)| sound(l) && !l.present[n])
                        .last().map(|(since, _)| now - *since);
                    let due = had && gone.is_some_and(|gone| gone >= GRACE);
                    let living = lives(&look, n);
                    prop_assert_eq!(verdict.evict.contains(&id), due && !living);
                    prop_assert_eq!(verdict.alive.contains(&format!("n{n}")), due && living);
                }
            }
        }
    }
}

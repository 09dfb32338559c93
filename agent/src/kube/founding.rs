//! Who founds the cluster: pure.
//!
//! One ConfigMap says it. Whoever creates it claims the founding; every change
//! is a compare-and-swap on what was read. The founder makes its ledger only
//! while its claim is fresh, and marks the record as *founded* before anybody
//! can learn where it is. Until the mark is set another node may take over: at
//! once if it has the founder's name (its disk was lost), or after nobody has
//! renewed the claim for [`CLAIM`]. Once the mark is set nobody founds again.
//!
//! A claim is fresh for [`FRESH`], much less than [`CLAIM`]: as long as a node's
//! clock runs no ten times slower than another's, nobody founds on a claim that
//! was taken over. A founder that was stopped in between finds out when it sets
//! its mark: the first mark counts, and the other one, alone in its cluster,
//! gives its ledger up.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_proto::id::{ClusterId, NodeId};

/// A claim that nobody has renewed for so long may be taken over.
pub const CLAIM: Duration = Duration::from_secs(60);
/// A founder must have renewed its claim within this before it founds.
pub const FRESH: Duration = Duration::from_secs(6);

/// What the ConfigMap says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Name of the founder.
    pub founder: String,
    /// Its identity: it lives and dies with its disk.
    pub founder_id: Option<NodeId>,
    /// The ledger exists.
    pub founded: bool,
    /// Which cluster.
    pub cluster: Option<ClusterId>,
    /// Where voters are: `HOST` or `HOST:PORT`.
    pub contacts: Vec<String>,
    /// Version of the agent that made it.
    pub created_by: String,
    /// Counts renewals: every write must change something.
    pub turn: u64,
}

/// The node that decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Name.
    pub name: String,
    /// Identity.
    pub id: NodeId,
    /// The cluster of its ledger, or one known to exist.
    pub cluster: Option<ClusterId>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the record; if somebody was faster, read again.
    Create(Record),
    /// Replace what was read; if somebody was faster, read again.
    Replace(Record),
    /// Make the ledger now.
    Found,
    /// Somebody else founds, or has founded.
    Follow,
    /// The record names another cluster than this node's ledger.
    Differs(ClusterId),
}

/// Decides. `unheard` is how long the record has not changed by this node's
/// clock, `fresh` whether this node wrote its claim within [`FRESH`].
pub fn decide(seen: Option<&Record>, me: &Me, unheard: Duration, fresh: bool) -> Step {
    let Some(record) = seen else { return Step::Create(claim(me, 0)) };
    if record.founded {
        return match (record.cluster, me.cluster) {
            (Some(theirs), Some(mine)) if theirs != mine => Step::Differs(theirs),
            _ => Step::Follow,
        };
    }
    if me.cluster.is_some() {
        // There is a cluster: the claim is the founder's own that was not
        // finished, or one that must not be.
        return Step::Replace(Record {
            founded: true,
            cluster: me.cluster,
            turn: record.turn.saturating_add(1),
            ..record.clone()
        });
    }
    let mine = record.founder_id == Some(me.id);
    if mine && fresh {
        return Step::Found;
    }
    if mine || record.founder == me.name || unheard >= CLAIM {
        return Step::Replace(claim(me, record.turn.saturating_add(1)));
    }
    Step::Follow
}

fn claim(me: &Me, turn: u64) -> Record {
    Record {
        founder: me.name.clone(),
        founder_id: Some(me.id),
        founded: me.cluster.is_some(),
        cluster: me.cluster,
        contacts: Vec::new(),
        created_by: concat!("weft ", env!("CARGO_PKG_VERSION")).to_owned(),
        turn,
    }
}

impl Record {
    /// From the ConfigMap's data. What is malformed counts as not said.
    pub fn read(data: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| data.get(key).map(|text| text.trim()).unwrap_or_default();
        Self {
            founder: text("founder").to_owned(),
            founder_id: text("founder-id").parse().ok(),
            founded: text("founded") == "true",
            cluster: text("cluster").parse().ok(),
            contacts: super::contacts::parse(text("contacts")),
            created_by: text("created-by").to_owned(),
            turn: text("turn").parse().unwrap_or(0),
        }
    }

    /// The ConfigMap's data.
    pub fn data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::from([
            ("founder".to_owned(), self.founder.clone()),
            ("founded".to_owned(), self.founded.to_string()),
            ("created-by".to_owned(), self.created_by.clone()),
            ("turn".to_owned(), self.turn.to_string()),
        ]);
        let id = self.founder_id.map(|id| id.to_string());
        data.extend(id.map(|id| ("founder-id".to_owned(), id)));
        data.extend(self.cluster.map(|id| ("cluster".to_owned(), id.to_string())));
        if !self.contacts.is_empty() {
            data.insert("contacts".to_owned(), self.contacts.join(" "));
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn me(n: u8) -> Me {
        Me { name: format!("n{n}"), id: NodeId([n; 16]), cluster: None }
    }

    const LONG: Duration = CLAIM;
    const SHORT: Duration = Duration::ZERO;

    #[test]
    fn one_creates_the_others_follow() {
        let Step::Create(record) = decide(None, &me(1), SHORT, false) else { panic!() };
        assert_eq!((record.founder.as_str(), record.founded), ("n1", false));
        assert_eq!(decide(Some(&record), &me(1), SHORT, true), Step::Found);
        assert_eq!(decide(Some(&record), &me(2), SHORT, false), Step::Follow);
        assert_eq!(decide(Some(&record), &me(2), SHORT, true), Step::Follow);
    }

    #[test]
    fn a_stale_claim_is_renewed_before_founding() {
        let Step::Create(record) = decide(None, &me(1), SHORT, false) else { panic!() };
        let Step::Replace(again) = decide(Some(&record), &me(1), SHORT, false) else { panic!() };
        assert_eq!((again.founder_id, again.turn), (record.founder_id, 1));
    }

    #[test]
    fn a_lost_founder_is_replaced() {
        let Step::Create(record) = decide(None, &me(1), SHORT, false) else { panic!() };
        let heir = Me { id: NodeId([9; 16]), ..me(1) };
        for (who, unheard) in [(heir, SHORT), (me(2), LONG)] {
            let Step::Replace(taken) = decide(Some(&record), &who, unheard, false) else {
                panic!()
            };
            assert_eq!((taken.founder, taken.founder_id), (who.name, Some(who.id)));
            assert!(!taken.founded);
        }
    }

    #[test]
    fn founded_is_for_ever() {
        let cluster = Some(ClusterId([7; 16]));
        let record = Record { founder: "n1".into(), founded: true, cluster, ..Record::default() };
        for who in [me(1), me(2), Me { cluster, ..me(3) }] {
            assert_eq!(decide(Some(&record), &who, LONG, true), Step::Follow);
        }
        let other = Me { cluster: Some(ClusterId([8; 16])), ..me(2) };
        assert_eq!(decide(Some(&record), &other, LONG, true), Step::Differs(ClusterId([7; 16])));
    }

    #[test]
    fn a_member_restores_a_deleted_record_and_ends_a_false_claim() {
        let member = Me { cluster: Some(ClusterId([7; 16])), ..me(2) };
        let Step::Create(record) = decide(None, &member, SHORT, false) else { panic!() };
        assert!(record.founded && record.cluster == member.cluster);
        let Step::Create(claim) = decide(None, &me(1), SHORT, false) else { panic!() };
        let Step::Replace(marked) = decide(Some(&claim), &member, SHORT, false) else { panic!() };
        assert!(marked.founded && marked.cluster == member.cluster);
    }

    proptest! {
        #[test]
        fn data_comes_back(
            founder in "[a-z0-9.-]{1,20}", id: Option<[u8; 16]>, founded: bool,
            cluster: Option<[u8; 16]>, turn: u64, hosts in prop::collection::vec("[a-z][a-z0-9]{0,8}", 0..5),
        ) {
            let record = Record {
                founder, founder_id: id.map(NodeId), founded, cluster: cluster.map(ClusterId),
                contacts: hosts, created_by: "weft 1".into(), turn,
            };
            prop_assert_eq!(Record::read(&record.data()), record);
        }

        #[test]
        fn anything_can_be_read(data: BTreeMap<String, String>) {
            let _read = Record::read(&data);
        }
    }
}

#[cfg(test)]
#[path = "founding_world.rs"]
mod world;

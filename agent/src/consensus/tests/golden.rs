//! The log on disk and the engine's messages, byte for byte. Their types are partly the
//! library's: an update of it must not change them.

use std::collections::{BTreeMap, BTreeSet};

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{CommittedLeaderId, EntryPayload, Membership};
use serde::{Serialize, de::DeserializeOwned};
use weft_proto::id::{ClusterId, FoundingId, NodeId, RaftId, RequestId};
use weft_proto::ledger::{Command, Op, Outcome};

use crate::consensus::types::{
    Applied, Entry, LogId, Proposal, Seat, SnapshotMeta, StoredMembership, TypeConfig, Vote,
    decode, encode,
};

const FILE: &str = include_str!("golden.txt");
const WHAT_TO_DO: &str = "the log of every voter and its messages to voters of the version before \
    have these bytes. Do not change the line: keep reading and writing them, or, for a form of \
    its own, see ARCHITECTURE.md, Versions";

const NODE: NodeId = NodeId([0x11; 16]);
const SEAT: RaftId = RaftId([0x55; 16]);
const OTHER: RaftId = RaftId([0x77; 16]);

type Answer<T> = Result<T, openraft::error::RaftError<RaftId>>;

fn line<T: Serialize + DeserializeOwned>(name: &str, value: &T) -> String {
    let bytes = encode(value).unwrap();
    let again = encode(&decode::<T>(&bytes).unwrap()).unwrap();
    assert_eq!(bytes, again, "{name} reads back");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {hex}")
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3, SEAT), index)
}

fn command() -> Command {
    let request = RequestId { node: NODE, session: 1_700_000_000_000, seq: 7 };
    Command { request, at_ms: 1_700_000_000_001, op: Op::Evict { node: NodeId([0x22; 16]) } }
}

fn membership() -> Membership<RaftId, Seat> {
    let seat = |label: &str, node| Seat { label: label.to_owned(), node };
    let nodes =
        BTreeMap::from([(SEAT, seat("192.0.2.1:6783", None)), (OTHER, seat("n2", Some(NODE)))]);
    Membership::new(vec![BTreeSet::from([SEAT]), BTreeSet::from([SEAT, OTHER])], nodes)
}

fn entries() -> Vec<Entry> {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Proposal(command())),
        EntryPayload::Membership(membership()),
    ];
    (9..).zip(payloads).map(|(at, payload)| Entry { log_id: id(at), payload }).collect()
}

fn all() -> Vec<String> {
    let meta = SnapshotMeta {
        last_log_id: Some(id(9)),
        last_membership: StoredMembership::new(Some(id(8)), membership()),
        snapshot_id: "3-10".to_owned(),
    };
    let mut lines = vec![
        line("owner", &NODE),
        line("raft-id", &SEAT),
        line("founding", &FoundingId([0x44; 16])),
        line("vote", &Vote::new_committed(3, SEAT)),
        line("vote-open", &Vote::new(4, OTHER)),
        line("committed", &Some(id(9))),
        line("purged", &id(300)),
        line("snapshot-meta", &meta),
        line("tail-none", &None::<Command>),
        line("tail", &Some(command())),
        line("applied", &Applied(Some(Outcome::Joined { cluster: ClusterId([0x33; 16]) }))),
    ];
    for (at, entry) in entries().iter().enumerate() {
        lines.push(line(&format!("entry-{at}"), entry));
    }
    let vote = Vote::new_committed(3, SEAT);
    lines.push(line(
        "append",
        &AppendEntriesRequest::<TypeConfig> {
            vote,
            prev_log_id: Some(id(8)),
            entries: entries(),
            leader_commit: Some(id(7)),
        },
    ));
    for (name, answer) in [
        ("appended", AppendEntriesResponse::Success),
        ("appended-part", AppendEntriesResponse::PartialSuccess(Some(id(10)))),
        ("append-conflict", AppendEntriesResponse::Conflict),
        ("append-higher", AppendEntriesResponse::HigherVote(Vote::new(5, OTHER))),
    ] {
        lines.push(line::<Answer<AppendEntriesResponse<RaftId>>>(name, &Ok(answer)));
    }
    lines.push(line(
        "ask-vote",
        &VoteRequest { vote: Vote::new(4, OTHER), last_log_id: Some(id(9)) },
    ));
    let given = VoteResponse { vote, vote_granted: true, last_log_id: Some(id(9)) };
    lines.push(line::<Answer<VoteResponse<RaftId>>>("voted", &Ok(given)));
    lines.push(line(
        "install",
        &InstallSnapshotRequest::<TypeConfig> {
            vote,
            meta,
            offset: 70_000,
            data: vec![9, 8],
            done: true,
        },
    ));
    lines.push(line::<Answer<InstallSnapshotResponse<RaftId>>>(
        "installed",
        &Ok(InstallSnapshotResponse { vote }),
    ));
    lines
}

#[test]
fn the_log_and_its_messages_are_frozen() {
    let kept: Vec<_> = FILE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let all = all();
    for (now, then) in all.iter().zip(&kept) {
        assert_eq!(now, then, "{WHAT_TO_DO}\nall lines of now:\n{}", all.join("\n"));
    }
    assert_eq!(all.len(), kept.len(), "a line for each\n{}", all.join("\n"));
}

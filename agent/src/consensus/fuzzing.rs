//! Doors for `tests/fuzz`: consensus messages of other nodes, and rows of the log
//! on disk. What decodes, encodes to what decodes to the same.

use openraft::EntryPayload;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use weft_proto::id::{NodeId, RaftId, RequestId};
use weft_proto::ledger::{Command, Op};

use super::types::{
    Entry, LogId, Proposal, Seat, SnapshotMeta, StoredMembership, TypeConfig, Vote, decode, encode,
    position,
};

/// Bytes are the same value again after they were written: values are compared
/// by their bytes, for openraft's types have no equality.
fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = decode(bytes).ok()?;
    let first = encode(&value).ok();
    let second = first.as_ref().and_then(|b| decode::<T>(b).ok()).and_then(|v| encode(&v).ok());
    assert!(first.is_some() && first == second, "a decoded value encodes, and to the same");
    Some(value)
}

/// The body of a consensus message, first byte: which.
pub fn message(bytes: &[u8]) {
    type Answer<T, E = openraft::error::Infallible> = Result<T, RaftError<RaftId, E>>;
    let Some((which, body)) = bytes.split_first() else { return };
    match which % 6 {
        0 => {
            if let Some(append) = again::<AppendEntriesRequest<TypeConfig>>(body) {
                assert!(append.entries.len() <= body.len(), "entries take room");
            }
        }
        1 => drop(again::<VoteRequest<RaftId>>(body)),
        2 => drop(again::<InstallSnapshotRequest<TypeConfig>>(body)),
        3 => drop(again::<Answer<AppendEntriesResponse<RaftId>>>(body)),
        4 => drop(again::<Answer<VoteResponse<RaftId>>>(body)),
        _ => drop(again::<Answer<InstallSnapshotResponse<RaftId>, InstallSnapshotError>>(body)),
    }
}

/// A row of the store, first byte: of which table.
pub fn row(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    match which % 6 {
        0 => {
            if let Some(entry) = again::<Entry>(body) {
                let at = entry.log_id;
                assert!(at.index == u64::MAX || position(Some(&at)) > at.index);
            }
        }
        1 => drop(again::<Vote>(body)),
        2 => drop(again::<Option<LogId>>(body)),
        3 => drop(again::<StoredMembership>(body)),
        4 => drop(again::<SnapshotMeta>(body)),
        _ => drop(again::<Option<Command>>(body)),
    }
}

/// Inputs to start from.
pub fn samples() -> Vec<Vec<u8>> {
    let seat = RaftId([5; 16]);
    let id = LogId::new(openraft::CommittedLeaderId::new(3, seat), 9);
    let command = Command {
        request: RequestId { node: NodeId([1; 16]), session: 2, seq: 3 },
        at_ms: 4,
        op: Op::Acquire { node: NodeId([1; 16]), ipv6: false, count: 1 },
    };
    let nodes = std::collections::BTreeMap::from([(
        seat,
        Seat { label: "n1".to_owned(), node: Some(NodeId([1; 16])) },
    )]);
    let voters = vec![std::collections::BTreeSet::from([seat])];
    let membership = openraft::Membership::new(voters, nodes);
    let entries = [
        EntryPayload::Blank,
        EntryPayload::Normal(Proposal(command.clone())),
        EntryPayload::Membership(membership.clone()),
    ]
    .map(|payload| Entry { log_id: id, payload });
    let vote = Vote::new_committed(3, seat);
    let stored = StoredMembership::new(Some(id), membership);
    let meta = SnapshotMeta {
        last_log_id: Some(id),
        last_membership: stored.clone(),
        snapshot_id: "3-10".to_owned(),
    };
    let append = AppendEntriesRequest::<TypeConfig> {
        vote,
        prev_log_id: Some(id),
        entries: entries.to_vec(),
        leader_commit: Some(id),
    };
    let install = InstallSnapshotRequest::<TypeConfig> {
        vote,
        meta: meta.clone(),
        offset: 0,
        data: vec![1, 2, 3],
        done: true,
    };
    let answer: Result<_, RaftError<RaftId>> = Ok(AppendEntriesResponse::<RaftId>::Success);
    let mut out = Vec::new();
    let mut add = |which: u8, bytes: Result<Vec<u8>, bincode::Error>| {
        out.push([vec![which], bytes.unwrap_or_default()].concat());
    };
    add(0, encode(&append));
    add(1, encode(&VoteRequest::new(vote, Some(id))));
    add(2, encode(&install));
    add(3, encode(&answer));
    for entry in &entries {
        add(0, encode(entry));
    }
    add(1, encode(&vote));
    add(2, encode(&Some(id)));
    add(3, encode(&stored));
    add(4, encode(&meta));
    add(5, encode(&Some(command)));
    out
}

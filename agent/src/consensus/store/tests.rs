//! The file survives reopening and refuses damage by name.

use weft_proto::id::{ClusterId, RequestId};
use weft_proto::ledger::Op;

use super::*;
use crate::consensus::replica::Replica;
use crate::consensus::tests::TempDir;
use crate::consensus::types::Vote;

const ME: NodeId = NodeId([7; 16]);

fn command(seq: u64, op: Op) -> Option<Command> {
    Some(Command { request: RequestId { node: ME, session: 1, seq }, at_ms: seq, op })
}

fn found() -> Option<Command> {
    command(
        1,
        Op::Found {
            cluster: ClusterId([9; 16]),
            ranges: vec!["10.32.0.0/16".parse().unwrap()],
            quarantine_ms: 1,
        },
    )
}

#[test]
fn meta_survives_a_reopen() {
    let dir = TempDir::new();
    let seated = Seated { raft_id: RaftId([1; 16]), founding: FoundingId([2; 16]) };
    {
        let db = Db::open(&dir.0, ME).unwrap();
        assert_eq!(db.seated().unwrap(), None);
        db.take_seat(seated).unwrap();
        db.bind(&[(RaftId([3; 16]), NodeId([4; 16]))]).unwrap();
        db.put_meta(VOTE, &Vote::new(5, RaftId([1; 16])), Durability::Immediate).unwrap();
    }
    let db = Db::open(&dir.0, ME).unwrap();
    assert_eq!(db.seated().unwrap(), Some(seated));
    assert_eq!(db.bindings().unwrap(), vec![(RaftId([3; 16]), NodeId([4; 16]))]);
    assert_eq!(db.get_meta::<Vote>(VOTE).unwrap(), Some(Vote::new(5, RaftId([1; 16]))));
    assert!(matches!(Db::open(&dir.0, ME), Err(StoreError::InUse(_))));
    drop(db);
    assert!(matches!(Db::open(&dir.0, NodeId([8; 16])), Err(StoreError::OtherNode { .. })));
}

#[tokio::test]
async fn the_replica_survives_a_reopen_and_serves_its_tail() {
    use weft_proto::wire::v1::LedgerPull;

    let dir = TempDir::new();
    let cluster = Some(ClusterId([9; 16]));
    let head = {
        let replica = Replica::load(Db::open(&dir.0, ME).unwrap()).await.unwrap();
        replica.take_entries(cluster, 1, vec![None, found(), None]).await.unwrap();
        // Enough for two snapshots on disk and a cut tail.
        for at in 0..5 {
            replica.take_entries(cluster, 4 + at * 1000, vec![None; 1000]).await.unwrap();
        }
        // What is known is skipped, a gap and another cluster are refused.
        replica.take_entries(cluster, 1, vec![None, found()]).await.unwrap();
        assert!(replica.take_entries(cluster, 9000, vec![None]).await.is_err());
        assert!(replica.take_entries(Some(ClusterId([8; 16])), 5004, vec![None]).await.is_err());
        assert_eq!(replica.refused(), 2);
        replica.head()
    };
    assert_eq!(head.index, 5003);
    let replica = Replica::load(Db::open(&dir.0, ME).unwrap()).await.unwrap();
    assert_eq!(replica.head(), head);
    let mut near = head;
    near.index -= 10;
    let crate::consensus::replica::Pulled::Delta(delta) =
        replica.serve(LedgerPull { after: near }).await
    else {
        panic!()
    };
    assert_eq!((delta.first, delta.entries.len()), (4994, 10));
    assert!(matches!(
        replica.serve(LedgerPull { after: LedgerHead::default() }).await,
        crate::consensus::replica::Pulled::Snapshot(_)
    ));
}

#[test]
fn damage_is_named_and_left_alone() {
    let dir = TempDir::new();
    drop(Db::open(&dir.0, ME).unwrap());
    let path = dir.0.join(FILE);
    let good = std::fs::read(&path).unwrap();
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"not a database".to_vec(),
        vec![0xff; good.len()],
        good[..100].to_vec(),
        good[..good.len() / 2].to_vec(),
        good[..4096].to_vec(),
    ];
    for bytes in cases {
        std::fs::write(&path, &bytes).unwrap();
        match Db::open(&dir.0, ME) {
            Err(e @ StoreError::Damaged { .. }) => {
                assert!(e.to_string().contains("nothing was changed"), "{e}");
            }
            Err(e) => panic!("{} bytes: {e}", bytes.len()),
            Ok(_) => panic!("{} bytes were accepted", bytes.len()),
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the file was changed");
    }
}

#[test]
fn flipped_bits_never_panic() {
    let dir = TempDir::new();
    let path = dir.0.join(FILE);
    {
        let db = Db::open(&dir.0, ME).unwrap();
        db.save_tail(1, &[None, found()], 0, None).unwrap();
    }
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 150) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        match Db::open(&dir.0, ME).and_then(|db| db.load_replica()) {
            Ok(saved) => assert_eq!(saved.tail, [(1, None), (2, found())]),
            Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => {
                assert_eq!(std::fs::read(&path).unwrap(), bytes, "byte {at}: the file was changed");
            }
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
}

/// A file as `kill -9` leaves it: open, and with several commits in it. Whatever byte is
/// spoilt, the store is what it was or refuses by name; never an earlier state of itself.
#[test]
fn a_spoilt_byte_never_brings_back_the_past() {
    let (dir, spoilt) = (TempDir::new(), TempDir::new());
    let vote = Vote::new(9, RaftId([1; 16]));
    let good = {
        let db = Db::open(&dir.0, ME).unwrap();
        for round in 1..=4 {
            db.save_tail(round, &[found()], 0, None).unwrap();
            db.put_meta(VOTE, &Vote::new(round, RaftId([1; 16])), Durability::Immediate).unwrap();
        }
        db.put_meta(VOTE, &vote, Durability::Immediate).unwrap();
        std::fs::read(dir.0.join(FILE)).unwrap()
    };
    let path = spoilt.0.join(FILE);
    let (mut past, mut refused, mut same) = (Vec::new(), 0, 0);
    // All of the header, and some of the rest; most of a young file is empty space.
    let used: Vec<usize> = (512..good.len()).filter(|at| good[*at] != 0).collect();
    let some = used.iter().step_by(used.len().div_ceil(150)).copied();
    // Byte 9 says which of two commits is the last one; nothing in the file could contradict it.
    for at in (0..320).filter(|at| *at != 9).chain(some) {
        let mut bytes = good.clone();
        bytes[at] ^= if at % 2 == 0 { 0x01 } else { 0x80 };
        std::fs::write(&path, &bytes).unwrap();
        let read = Db::open(&spoilt.0, ME)
            .and_then(|db| Ok((db.load_replica()?.tail.len(), db.get_meta::<Vote>(VOTE)?)));
        match read {
            Ok(found) if found == (4, Some(vote)) => same += 1,
            Ok(found) => past.push((at, found)),
            Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => refused += 1,
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
    println!("{same} unharmed, {refused} refused");
    assert!(past.is_empty(), "{} of them: {:?}", past.len(), &past[..past.len().min(9)]);
}

#[tokio::test]
async fn the_log_appends_truncates_purges_and_survives() {
    use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
    use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader};

    use crate::consensus::types::{Entry, LogId, Proposal};

    let id = |term, index| LogId::new(CommittedLeaderId::new(term, RaftId([1; 16])), index);
    let entry = |term, index| Entry {
        log_id: id(term, index),
        payload: found().map_or(EntryPayload::Blank, |c| EntryPayload::Normal(Proposal(c))),
    };
    let dir = TempDir::new();
    {
        let mut log = LogStore::new(Db::open(&dir.0, ME).unwrap());
        log.blocking_append((0..10).map(|i| entry(1, i))).await.unwrap();
        log.truncate(id(1, 7)).await.unwrap();
        log.blocking_append([entry(2, 7)]).await.unwrap();
        log.purge(id(1, 2)).await.unwrap();
        log.save_vote(&Vote::new(2, RaftId([1; 16]))).await.unwrap();
        log.save_committed(Some(id(1, 5))).await.unwrap();
        // The commit above is not durable by itself; this one takes it along.
        log.save_vote(&Vote::new(3, RaftId([1; 16]))).await.unwrap();
    }
    let mut log = LogStore::new(Db::open(&dir.0, ME).unwrap());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(1, 2)));
    assert_eq!(state.last_log_id, Some(id(2, 7)));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, RaftId([1; 16]))));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(1, 5)));
    let entries = log.try_get_log_entries(0..100).await.unwrap();
    assert_eq!(entries.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    assert!(
        matches!(&entries[4].payload, EntryPayload::Normal(p) if Some(&p.0) == found().as_ref())
    );
}

#[tokio::test]
async fn the_machine_is_rebuilt_from_its_snapshot_and_never_leads_the_replica_back() {
    use openraft::storage::RaftStateMachine;
    use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder};

    use crate::consensus::types::{Entry, LogId, Proposal};

    let entry = |index| Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, RaftId([1; 16])), index),
        payload: match found() {
            Some(c) if index == 1 => EntryPayload::Normal(Proposal(c)),
            _ => EntryPayload::Blank,
        },
    };
    let dir = TempDir::new();
    let head = {
        let db = Db::open(&dir.0, ME).unwrap();
        let replica = Arc::new(Replica::load(db.clone()).await.unwrap());
        let mut machine = Machine::load(db, replica.clone()).await.unwrap();
        machine.apply((0..3).map(entry)).await.unwrap();
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        machine.apply((3..6).map(entry)).await.unwrap();
        replica.head()
    };
    assert_eq!(head.index, 6);
    let db = Db::open(&dir.0, ME).unwrap();
    let replica = Arc::new(Replica::load(db.clone()).await.unwrap());
    let mut machine = Machine::load(db, replica.clone()).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0.map(|id| id.index), Some(2));
    assert_eq!(replica.head(), head);
    machine.apply((3..6).map(entry)).await.unwrap();
    assert_eq!(replica.head(), head);
    machine.apply([entry(6)]).await.unwrap();
    assert_eq!(replica.head().index, 7);
    // A snapshot carries a second machine to the same state.
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let other = TempDir::new();
    let db = Db::open(&other.0, NodeId([8; 16])).unwrap();
    let far = Arc::new(Replica::load(db.clone()).await.unwrap());
    let mut second = Machine::load(db, far.clone()).await.unwrap();
    second.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(*far.ledger(), *replica.ledger());
}

//! Handing addresses over: a crash at every step, two settlers, a bad disk.

use super::*;
use crate::ipam_service::intents::Promise;
use ipnet::IpNet;
use weft_proto::wire::v1::{Donate, DonateReply};

const RANGE: &str = "10.32.0.0/24";

/// Node 1 owns everything.
fn rich() -> (Arc<Shared>, Scratch) {
    let (shared, dir) = (Shared::founded(RANGE, 2), Scratch::new());
    let request = RequestId { node: node(201), session: 1, seq: 1 };
    shared.apply(request, Op::Acquire { node: node(1), ipv6: false, count: 64 });
    (shared, dir)
}

async fn ask(node: &Node) -> Result<DonateReply, String> {
    let frame = Frame::new(&Donate { ipv6: false, address: None }).unwrap();
    let answer = node.donations.handle(super::node(2), frame).await.map_err(|e| e.message)?;
    Ok(answer.unwrap().decode().unwrap())
}

async fn fill(node: &Node, tag: &str) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for at in 0..node.service.stand().free4 {
        all.push(node.add(&format!("{tag}{at}")).await.unwrap());
    }
    all
}

fn usable(shared: &Shared) -> usize {
    RANGE.parse::<IpNet>().unwrap().hosts().count() - shared.lock().ledger.unowned(false) as usize
}

/// Withheld and promised by a life that ends with the transfer in `fate`.
async fn crash(fate: Option<Fate>) -> (Arc<Shared>, Scratch, IpNet) {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    let prefix = match fate {
        Some(fate) => {
            shared.set(fate);
            assert!(ask(&first).await.is_err());
            first.donations.open()[0]
        }
        None => {
            // The end comes between the disk and the proposal.
            let prefix = first.service.lock().table.donation(false, None).unwrap();
            let path = dir.0.join("promises1.json");
            Promises::open(&path).unwrap().add(Promise { prefix, to: node(2) }).unwrap();
            prefix
        }
    };
    drop(first);
    shared.set(Fate::NoQuorum);
    (shared, dir, prefix)
}

/// The next life, first without and then with a quorum: nothing is shared, and
/// nothing is lost.
async fn next_life(shared: &Arc<Shared>, dir: &Scratch, prefix: IpNet) {
    let again = Node::start(shared, 1, &dir.0);
    let taken = fill(&again, "a").await;
    assert!(taken.iter().all(|a| !prefix.contains(a)), "{prefix} was promised");
    again.donations.settle_open().await;
    assert_eq!(again.donations.open(), [prefix]);
    assert_eq!(again.service.stand().free4, 0);

    shared.set(Fate::Works);
    again.donations.settle_open().await;
    assert!(again.donations.open().is_empty());
    let other = Node::start(shared, 2, &dir.0);
    fill(&other, "b").await;
    fill(&again, "c").await;
    assert_eq!(check_unique([&again, &other]).len(), usable(shared));
}

#[tokio::test]
async fn crash_before_the_promise_is_written() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    let prefix = first.service.lock().table.donation(false, None).unwrap();
    first.service.lock().table.withhold(prefix).unwrap();
    drop(first);
    let again = Node::start(&shared, 1, &dir.0);
    fill(&again, "a").await;
    assert_eq!(check_unique([&again]).len(), usable(&shared));
}

#[tokio::test]
async fn crash_before_the_proposal() {
    let (shared, dir, prefix) = crash(None).await;
    next_life(&shared, &dir, prefix).await;
}

#[tokio::test]
async fn crash_with_the_proposal_lost() {
    let (shared, dir, prefix) = crash(Some(Fate::NoQuorum)).await;
    next_life(&shared, &dir, prefix).await;
}

#[tokio::test]
async fn crash_after_the_commit() {
    let (shared, dir, prefix) = crash(Some(Fate::AnswerLost)).await;
    assert_eq!(shared.lock().ledger.owner_of(prefix.addr()).unwrap().owner, node(2));
    next_life(&shared, &dir, prefix).await;
}

#[tokio::test]
async fn a_refused_promise_is_free_again_and_wakes_who_waits() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    shared.set(Fate::NoQuorum);
    assert!(ask(&first).await.is_err());
    fill(&first, "a").await;
    // The one it was promised to is removed meanwhile.
    shared.apply(first.seat.next_request(), Op::Evict { node: node(2) });
    let service = Arc::clone(&first.service);
    let waits = tokio::spawn(async move {
        let key = key("waits");
        service.allocate(&key, false, None, &facts(&key), LONG).await
    });
    until("it waits", || !first.service.stand().waiting.is_empty()).await;
    shared.set(Fate::Works);
    first.donations.settle_open().await;
    waits.await.unwrap().unwrap();
    fill(&first, "b").await;
    assert_eq!(check_unique([&first]).len(), usable(&shared));
}

#[tokio::test]
async fn a_promise_is_settled_once() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    shared.set(Fate::NoQuorum);
    assert!(ask(&first).await.is_err());
    shared.set(Fate::Works);
    let sent = shared.lock().log.len();
    tokio::join!(
        first.donations.settle_open(),
        first.donations.settle_open(),
        first.donations.settle_open()
    );
    assert_eq!(shared.lock().log.len(), sent + 1, "one settler, one proposal");
    assert!(first.donations.open().is_empty());
}

#[tokio::test]
async fn an_asker_who_hangs_up_leaves_nothing_withheld() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    for steps in 0..6 {
        let mut asking = Box::pin(ask(&first));
        for _ in 0..steps {
            tokio::select! {
                biased;
                _ = &mut asking => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(asking);
    }
    until("all settled", || {
        first.service.lock().table.withheld().count() == first.donations.open().len()
    })
    .await;
    until("writes are over", || {
        let turns_left = first.donations.open();
        turns_left.is_empty() || first.service.lock().table.withheld().count() == turns_left.len()
    })
    .await;
    first.donations.settle_open().await;
    until("nothing withheld", || first.service.lock().table.withheld().count() == 0).await;
    let other = Node::start(&shared, 2, &dir.0);
    first.service.follow(&first.seat.ledger());
    fill(&first, "a").await;
    fill(&other, "b").await;
    assert_eq!(check_unique([&first, &other]).len(), usable(&shared));
}

#[tokio::test]
async fn a_promise_that_cannot_be_written_is_not_made() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    // A directory where the temporary file should go.
    let block = dir.0.join(".promises1.json.weft-new");
    std::fs::create_dir(&block).unwrap();
    let free = first.service.stand().free4;
    assert!(ask(&first).await.unwrap_err().contains("promises1.json"));
    assert_eq!(shared.lock().ledger.blocks_of(node(2)).count(), 0);
    // Until it is certainly not on disk it stays withheld; then it is free.
    assert!(first.service.stand().free4 < free);
    std::fs::remove_dir(&block).unwrap();
    first.donations.settle_open().await;
    assert_eq!(first.service.stand().free4, free);
    assert!(matches!(ask(&first).await, Ok(DonateReply::Given { .. })));
}

#[tokio::test]
async fn a_promise_with_a_lease_in_it_is_not_kept() {
    let (shared, dir) = rich();
    let first = Node::start(&shared, 1, &dir.0);
    let used = first.add("pod").await.unwrap();
    let prefix = IpNet::from(used);
    drop(first);
    let path = dir.0.join("promises1.json");
    Promises::open(&path).unwrap().add(Promise { prefix, to: node(2) }).unwrap();
    let again = Node::start(&shared, 1, &dir.0);
    again.donations.settle_open().await;
    check_unique([&again]);
}

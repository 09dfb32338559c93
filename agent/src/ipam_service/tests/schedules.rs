//! Random work under random losses of answers: no address is ever shared, and
//! when the log works again none is lost.

use super::*;
use proptest::prelude::*;

const RANGE: &str = "10.32.1.0/28";

#[derive(Debug, Clone)]
enum Step {
    Add(usize),
    Del(usize),
    /// What happens to the next commands.
    Fates(Vec<Fate>),
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![Just(Fate::AnswerLost), Just(Fate::NoQuorum), Just(Fate::Works)];
    prop_oneof![
        6 => (0..3usize).prop_map(Step::Add),
        3 => (0..64usize).prop_map(Step::Del),
        3 => proptest::collection::vec(fate, 1..4).prop_map(Step::Fates),
        1 => (0..3usize).prop_map(Step::Restart),
    ]
}

async fn play(steps: Vec<Step>) {
    let (shared, mut nodes, dir) = cluster(RANGE, 3);
    let mut pods: Vec<(usize, String)> = Vec::new();
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            Step::Add(on) => {
                let id = format!("p{at}");
                if nodes[on].add_within(&id, Duration::from_millis(40)).await.is_ok() {
                    pods.push((on, id));
                }
            }
            Step::Del(which) if !pods.is_empty() => {
                let (on, id) = pods.swap_remove(which % pods.len());
                nodes[on].service.release(&key(&id)).unwrap();
            }
            Step::Del(_) => {}
            Step::Fates(fates) => shared.lock().script = fates,
            Step::Restart(on) => {
                let number = u8::try_from(on + 1).unwrap();
                let old = nodes.remove(on);
                // The task holds the parts until it is really gone.
                let (supplier, service) =
                    (old.supplier.get().unwrap().abort_handle(), Arc::downgrade(&old.service));
                supplier.abort();
                drop(old);
                until("the old life ends", || service.strong_count() == 0).await;
                nodes.insert(on, Node::run(&shared, number, &dir.0));
            }
        }
        check_unique(&nodes);
    }
    shared.lock().script.clear();
    for node in &nodes {
        node.donations.settle_open().await;
        node.service.follow(&node.seat.ledger());
    }
    check_unique(&nodes);
    // Everything that is left can be had from one node.
    let held = check_unique(&nodes).len();
    for at in held..14 {
        nodes[0].add(&format!("rest{at}")).await.unwrap();
    }
    assert_eq!(check_unique(&nodes).len(), 14);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn never_shared_never_lost(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}

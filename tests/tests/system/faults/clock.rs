//! A clock that was set back while the agent was away. The clock of a machine cannot be
//! changed for one process; what an earlier life with another clock has left can be written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Result};

use crate::faults::common::{SMALL, audit_all, until_new_block, wait_all_alive, wait_reachable};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[test]
fn a_clock_set_back_across_a_restart() -> Result {
    let mut cluster = Cluster::builder().range(SMALL).start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;
    // The last life of node 1 had a clock ten years ahead.
    let session = cluster.node(1).spec().state_dir().join("session");
    let future = (SystemTime::now().duration_since(UNIX_EPOCH)? + 10 * YEAR).as_millis();
    cluster.node_mut(1).kill9()?;
    std::fs::write(&session, future.to_string())?;
    cluster.node_mut(1).restart()?;
    let text = std::fs::read_to_string(&session)?;
    let now: u128 = text.split_whitespace().next().unwrap_or_default().parse()?;
    ensure!(now > future, "a life is numbered higher than every earlier one: {now}");
    pods.extend(until_new_block(cluster.node(1))?);
    wait_all_alive(&cluster)?;

    // And now even that number is lost: only the clock is left, ten years earlier.
    cluster.node_mut(1).kill9()?;
    std::fs::remove_file(&session)?;
    let ready = cluster.node_mut(1).restart()?;
    let alive = wait_all_alive(&cluster)?;
    pods.extend(until_new_block(cluster.node(1))?);
    pods.push(cluster.node(2).add_pod()?);
    cluster.wait_one_ledger()?;
    audit_all(&cluster, &pods)?;
    wait_reachable(&cluster, &pods)?;
    told(
        "clock set back ten years across a restart, then the life counter lost as well",
        "requests of the new life count, new blocks are owned, no address twice",
        &format!("ready after {}, alive for all {} later", took(ready), took(alive)),
    );
    Ok(())
}

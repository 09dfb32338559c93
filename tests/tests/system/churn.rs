//! Many attachments come and go, and nothing is left of them.

use anyhow::{anyhow, ensure};
use weft_tests::{Cluster, Pod, Result};

#[test]
fn nothing_leaks_from_sequential_and_concurrent_attachments() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let node = cluster.node(1);
    let before = node.status()?.ipam.leases;
    for _ in 0..40 {
        node.add_pod()?.detach()?;
    }
    node.wait_clean(before, 0)?;

    for _ in 0..2 {
        let pods = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..32).map(|_| scope.spawn(|| node.add_pod())).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
                .collect::<Result<Vec<Pod>>>()
        })?;
        cluster.assert_unique(&pods)?;
        std::thread::scope(|scope| {
            let workers: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.detach())).collect();
            workers
                .into_iter()
                .try_for_each(|w| w.join().map_err(|_| anyhow!("a worker panicked"))?.map(drop))
        })?;
        node.wait_clean(before, 0)?;
    }
    Ok(())
}

#[test]
fn del_needs_neither_agent_nor_namespace() -> Result {
    let mut cluster = Cluster::builder().nodes(1).start()?;
    let before = cluster.node(1).status()?.ipam.leases;
    let pods = cluster.add_pods(3)?;

    // Twice, and for something that never was.
    pods[0].detach()?;
    ensure!(pods[0].shim.pod("DEL", &pods[0].plan)?.exit == Some(0), "DEL again succeeds");
    // The namespace went first, as after a crash of the runtime.
    pods[1].netns().delete()?;
    ensure!(pods[1].shim.pod("DEL", &pods[1].plan)?.exit == Some(0), "DEL without namespace");
    // The agent is not there: DEL succeeds, and the agent hears of it later.
    cluster.node_mut(1).kill9()?;
    pods[2].detach()?;
    cluster.node_mut(1).restart()?;
    cluster.node(1).wait_clean(before, 0).map(drop)
}

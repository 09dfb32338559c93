//! Many pods, again and again: nothing stays.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use weft_tests::Result;
use weft_tests::kubernetes::KubeCluster;
use weft_tests::kubernetes::pods;
use weft_tests::kubernetes::weft;

const PODS: usize = 60;
const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(240);

/// Scales a Deployment.
pub(crate) fn scale(cluster: &KubeCluster, name: &str, replicas: usize) -> Result {
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl().run(&["scale", "deployment", name, &replicas]).map(drop)
}

/// 0 → 60 → 0, five times, counted each time.
pub(crate) fn rounds(cluster: &KubeCluster) -> Result<String> {
    let before = weft::wait_counted(cluster, PATIENCE)?;
    let mut used = BTreeSet::new();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        scale(cluster, "many", PODS)?;
        let found = pods::wait_running(cluster, "app=many", PODS, PATIENCE)?;
        let up = start.elapsed();
        let addresses: BTreeSet<_> = found.iter().map(|pod| pod.address).collect();
        ensure!(addresses.len() == PODS, "{PODS} pods have {} addresses", addresses.len());
        let counted = weft::wait_counted(cluster, PATIENCE)?;
        ensure!(counted == before + PODS, "{counted} pods, not {before} and {PODS}");
        used.extend(addresses);

        let start = Instant::now();
        scale(cluster, "many", 0)?;
        pods::wait_gone(cluster, "app=many", PATIENCE)?;
        let after = weft::wait_counted(cluster, PATIENCE)?;
        ensure!(after == before, "{after} are left, not {before}");
        times.push(format!("{:.0}/{:.0} s", up.as_secs_f64(), start.elapsed().as_secs_f64()));
    }
    Ok(format!(
        "up/down {}; {} addresses used; each time {before} leases, veths, sandboxes left",
        times.join(", "),
        used.len()
    ))
}

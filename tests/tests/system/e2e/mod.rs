//! weft in a real Kubernetes, installed by its manifest. Run by `make e2e`.
//!
//! A cluster costs a minute, so the tests share one and run one after the
//! other; each is a row of the table at the end. `WEFT_E2E_ONLY=word,word` runs
//! only the rows whose names contain one of the words.

mod churn;
mod disruptions;
mod membership;
mod reach;
mod refusals;
mod traffic;
mod workloads;

use std::time::Duration;

use anyhow::ensure;
use weft_tests::Result;
use weft_tests::kubernetes::report::Report;
use weft_tests::kubernetes::weft::{self, Manifest, NAMESPACE};
use weft_tests::kubernetes::{KubeCluster, pods};

/// What the manifest promises, printed beside what was measured.
const PROMISED: u64 = 30;
/// How long a removed node's addresses rest here, instead of ten minutes.
const QUARANTINE: Duration = Duration::from_secs(20);
/// More environment for the agents: `NAME=VALUE;NAME=VALUE`.
const MORE_ENV: &str = "WEFT_E2E_ENV";
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
#[ignore = "needs Kubernetes: make e2e"]
fn the_manifest_on_three_nodes() -> Result {
    let mut report = Report::new("weft on Kubernetes, three nodes");
    let mut cluster = report.must("a cluster without a network", || {
        let cluster = KubeCluster::start(3, &[weft::image()?])?;
        cluster.kubectl().apply(&[workloads::dns()])?;
        let ready = cluster.ready()?;
        ensure!(ready.is_empty(), "no node is ready without a network: {ready:?}");
        Ok((cluster, "3 nodes registered, none Ready".to_owned()))
    })?;
    println!("try it: {}", cluster.kubectl().command_line());
    report.must("apply the manifest", || install(&cluster))?;
    report.must("pods and services", || {
        workloads::apply(&cluster)?;
        let pods = workloads::wait(&cluster)?;
        let counted = weft::wait_counted(&cluster, PATIENCE)?;
        Ok(((), format!("{} pods; {counted} leases, veths, sandboxes", pods.len())))
    })?;
    report.step("reachability", || reach::all(&cluster));
    report.step("large transfers", || reach::large(&cluster));
    report.step("rolling restart under traffic", || disruptions::rolling_restart(&cluster));
    report.step("0 → 60 → 0 pods, five times", || churn::rounds(&cluster));
    report.step("API server away", || disruptions::without_api(&mut cluster));
    report.step("reboot of a node", || disruptions::reboot(&mut cluster));
    report.step("Node deleted, dead, returns", || membership::dies_and_returns(&mut cluster));
    report.step("Node deleted, alive, returns", || membership::deleted_alive(&mut cluster));
    report.step("a fourth node joins", || membership::joins(&mut cluster));
    report.finish()
}

/// From `kubectl apply` to pods that were there before.
fn install(cluster: &KubeCluster) -> Result<((), String)> {
    let kubectl = cluster.kubectl();
    let mut manifest =
        Manifest::load(kubectl)?.env("QUARANTINE", &format!("{}s", QUARANTINE.as_secs()))?;
    for pair in std::env::var(MORE_ENV).unwrap_or_default().split(';') {
        if let Some((name, value)) = pair.split_once('=') {
            manifest = manifest.env(name, value)?;
        }
    }
    manifest.apply(kubectl)?;
    let ready = cluster.wait_ready(PATIENCE);
    let ready = ready.map_err(|error| error.context(agents_say(cluster)))?;
    let start = std::time::Instant::now();
    pods::wait_running(cluster, "app=dns", 2, PATIENCE)?;
    let all = ready + start.elapsed();
    weft::wait_ready(cluster, PATIENCE)?;
    let verdict = if all.as_secs() < PROMISED { "promised" } else { "MORE than promised" };
    Ok((
        (),
        format!(
            "all Ready after {:.1} s, waiting pods Running after {:.1} s ({verdict}: {PROMISED} s)",
            ready.as_secs_f64(),
            all.as_secs_f64()
        ),
    ))
}

/// The last lines of all agents' logs.
fn agents_say(cluster: &KubeCluster) -> String {
    let arguments = ["logs", "-n", NAMESPACE, "-l", weft::SELECTOR, "--tail=10", "--prefix"];
    cluster.kubectl().run(&arguments).unwrap_or_else(|error| format!("{error:#}"))
}

//! What happens to clusters: updates, an API server that is away, power cuts.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weft_agent::lab::probe;
use weft_proto::api::PolicyStatus;
use weft_tests::kubernetes::kubectl::{text, write_json};
use weft_tests::kubernetes::pods::{self, PodNetns};
use weft_tests::kubernetes::weft::{self, AgentOf, NAMESPACE};
use weft_tests::kubernetes::{KubeCluster, KubeNode, cluster};
use weft_tests::{Result, wait_until};

use crate::e2e::traffic::Traffic;
use crate::e2e::{churn, reach, workloads};

/// How long an update of all nodes, or a boot, may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(120);
const NEW_PODS: usize = 6;

/// The DaemonSet's pods are replaced one after the other, under traffic, while
/// other pods come and go.
pub(crate) fn rolling_restart(cluster: &KubeCluster) -> Result<String> {
    let kubectl = cluster.kubectl();
    let traffic = Traffic::start(cluster, &[])?;
    let start = Instant::now();
    kubectl.run(&["rollout", "restart", "daemonset/weft", "-n", NAMESPACE])?;
    let mut started = 0;
    while !rolled_out(cluster)? {
        ensure!(start.elapsed() < PATIENCE, "the update takes longer than {PATIENCE:?}");
        churn::scale(cluster, "many", NEW_PODS)?;
        started += pods::wait_running(cluster, "app=many", NEW_PODS, PATIENCE)?.len();
        churn::scale(cluster, "many", 0)?;
        pods::wait_gone(cluster, "app=many", PATIENCE)?;
    }
    let took = start.elapsed();
    weft::wait_ready(cluster, PATIENCE)?;
    let measured = traffic.stop()?;
    ensure!(started > 0, "no pod was started meanwhile");
    weft::wait_counted(cluster, PATIENCE)?;
    Ok(format!("{:.0} s; {measured}; {started} pods started meanwhile", took.as_secs_f64()))
}

fn rolled_out(cluster: &KubeCluster) -> Result<bool> {
    let set = cluster.kubectl().get(&["daemonset", "weft", "-n", NAMESPACE])?;
    let number = |pointer: &str| set.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let nodes = cluster.nodes().len() as u64;
    Ok(number("/status/observedGeneration") == number("/metadata/generation")
        && number("/status/updatedNumberScheduled") == nodes
        && number("/status/numberAvailable") == nodes)
}

/// The API server is away for two minutes. One agent is killed meanwhile. New
/// pods start, from files, as the kubelets' own: on the node of the killed agent,
/// and on one whose agent goes on. Both are reached at once: the killed agent's
/// successor knows the policies from the disk.
pub(crate) fn without_api(cluster: &mut KubeCluster) -> Result<String> {
    let traffic = Traffic::start(cluster, &[])?;
    let pods = workloads::wait(cluster)?;
    let far = pods.iter().find(|pod| pod.node == "n3").context("no pod on n3")?;
    let far = PodNetns::attach(cluster, far)?;
    let start = Instant::now();
    cluster.kill_api();
    // Whatever comes of it, the steps after this one need the server.
    let meanwhile = during_outage(cluster, &far);
    wait_until("two minutes", OUTAGE, || Ok(start.elapsed() >= OUTAGE))?;
    cluster.restart_api()?;
    let away = start.elapsed();
    let (back, [reached, restarted]) = meanwhile?;
    for number in [1, 2] {
        fs::remove_file(static_pod(cluster.node(number)))?;
    }
    let measured = traffic.stop()?;
    cluster.wait_ready(PATIENCE)?;
    weft::wait_ready(cluster, PATIENCE)?;
    weft::wait_counted(cluster, PATIENCE)?;
    Ok(format!(
        "{:.0} s away; {measured}; killed agent serves after {:.1} s; new pod reached after {:.1} s, \
         that of the killed agent after {:.1} s",
        away.as_secs_f64(),
        back.as_secs_f64(),
        reached.as_secs_f64(),
        restarted.as_secs_f64()
    ))
}

fn static_pod(node: &KubeNode) -> PathBuf {
    node.file("etc/kubernetes/manifests/static.json")
}

/// How long the killed agent was away; and when each new pod was reached.
fn during_outage(cluster: &KubeCluster, far: &PodNetns) -> Result<(Duration, [Duration; 2])> {
    let agent = AgentOf(cluster.node(2));
    let policy = || -> Result<PolicyStatus> { agent.request("GET", "/v1/policy", b"")?.json() };
    let known = policy()?;
    ensure!(known.enforced && known.remembered_ms.is_none(), "{known:?}");
    let old = agent.process()?;
    kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL)?;
    let back = wait_until("another agent that can serve", OUTAGE, || {
        ensure!(agent.process()? != old, "the killed agent is still there");
        agent.ready()
    })?;
    let mut object = pods::pod("static", pods::spec(&pods::server()), None);
    object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    let start = Instant::now();
    for number in [1, 2] {
        write_json(&static_pod(cluster.node(number)), &object)?;
    }
    let mut reached = [Duration::ZERO; 2];
    for (number, reached) in [1, 2].into_iter().zip(&mut reached) {
        reaches(far, lease_of_static(cluster.node(number))?, Duration::from_secs(30))?;
        *reached = start.elapsed();
    }
    // The server is still away: what the new agent knows, it remembers.
    let known = policy()?;
    ensure!(known.remembered_ms.is_some() && !known.synced, "{known:?}");
    Ok((back, reached))
}

fn lease_of_static(node: &KubeNode) -> Result<IpAddr> {
    let mut address = None;
    wait_until(&format!("a lease of the static pod on {}", node.name()), PATIENCE, || {
        let lease = AgentOf(node).leases()?.into_iter().find(|lease| {
            lease.pod.as_deref().is_some_and(|pod| pod.starts_with("default/static"))
        });
        address = lease.and_then(|lease| lease.addresses.first().copied());
        Ok(address.is_some())
    })?;
    address.context("no address")
}

fn reaches(from: &PodNetns, to: IpAddr, patience: Duration) -> Result {
    let trip = probe::round_trip(from, to, Instant::now() + patience, &|| false)?;
    ensure!(trip.is_some(), "{to} cannot be reached from {}", from.pod.node);
    Ok(())
}

/// Power cut of one node; the others do not notice.
pub(crate) fn reboot(cluster: &mut KubeCluster) -> Result<String> {
    let traffic = Traffic::start(cluster, &["n3"])?;
    let old = boot_id(cluster, "n3")?;
    let stale = AgentOf(cluster.node(3)).leases()?;
    let start = Instant::now();
    let node = cluster.node_mut(3);
    node.reboot()?;
    node.wait_booted()?;
    let node = cluster.node(3);
    let agent = AgentOf(node);
    // No lease may be there before an agent can serve, and none of the old ones after.
    let mut early = None;
    wait_until("the agent of n3", PATIENCE, || {
        let ready = agent.ready();
        if ready.is_err() && agent.veths()? > 0 && agent.ready().is_err() {
            early = Some("a pod was attached before the agent could serve");
        }
        ready
    })?;
    if let Some(early) = early {
        bail!("{early}");
    }
    let served = start.elapsed();
    cluster
        .kubectl()
        .wait("the new boot in the API", PATIENCE, || Ok(boot_id(cluster, "n3")? != old))?;
    cluster.wait_ready(PATIENCE)?;
    let ready = start.elapsed();
    weft::wait_counted(cluster, PATIENCE)?;
    settled(cluster)?;
    let again: Vec<_> = agent
        .leases()?
        .into_iter()
        .filter(|lease| stale.iter().any(|old| old.key == lease.key))
        .collect();
    ensure!(again.is_empty(), "leases from before the boot: {again:?}");
    let all = start.elapsed();
    let measured = traffic.stop()?;
    let reached = reach::all(cluster)?;
    Ok(format!(
        "serves after {:.1} s, Ready {:.1} s, all pods {:.1} s; others: {measured}; reached: {reached}",
        served.as_secs_f64(),
        ready.as_secs_f64(),
        all.as_secs_f64()
    ))
}

/// Every pod's address in the API is that of its lease.
pub(crate) fn settled(cluster: &KubeCluster) -> Result {
    cluster.kubectl().wait("pods with the addresses of their leases", PATIENCE, || {
        let pods = cluster.kubectl().items(&["pods", "-n", "default"])?;
        for node in cluster.nodes() {
            let leases = AgentOf(node).leases()?;
            for pod in pods.iter().filter(|pod| {
                text(pod, "/spec/nodeName") == node.name()
                    && pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true))
            }) {
                let name = format!("default/{}", text(pod, "/metadata/name"));
                let address = text(pod, "/status/podIP");
                let lease = leases.iter().find(|lease| {
                    lease.pod.as_deref() == Some(&name)
                        && lease.addresses.iter().any(|ip| ip.to_string() == address)
                });
                ensure!(lease.is_some(), "{name} has {address}, but no such lease");
                ensure!(cluster::condition(pod, "Ready") == "True", "{name} is not ready");
            }
        }
        Ok(true)
    })?;
    Ok(())
}

fn boot_id(cluster: &KubeCluster, node: &str) -> Result<String> {
    let node = cluster.kubectl().get(&["node", node])?;
    Ok(text(&node, "/status/nodeInfo/bootID").to_owned())
}

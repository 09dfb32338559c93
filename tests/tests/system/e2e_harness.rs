//! A real API server, and a real cluster with the reference plugins: if these
//! fail, no test of weft in Kubernetes can tell anything. Run by `make e2e`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use weft_tests::kubernetes::pods::{self, HTTP, PodNetns};
use weft_tests::kubernetes::report::Report;
use weft_tests::kubernetes::{ApiServer, KubeCluster, reference};
use weft_tests::{Result, kubernetes};

#[test]
#[ignore = "needs Kubernetes: make e2e"]
fn an_api_server_keeps_objects_and_knows_rights() -> Result {
    let mut api = ApiServer::start()?;
    let admin = api.kubectl()?;
    admin.apply(&[json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "nobody", "namespace": "kube-system"},
    })])?;
    let token = admin.service_account_token("kube-system", "nobody")?;
    let nobody = api.kubectl_as("nobody", &token)?;
    let refused = nobody.run(&["get", "nodes"]).unwrap_err().to_string();
    ensure!(refused.contains("system:serviceaccount:kube-system:nobody"), "{refused}");

    admin.apply(&[json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
    })])?;
    api.kill();
    ensure!(admin.run(&["get", "nodes"]).is_err(), "a killed API server does not answer");
    let took = api.restart()?;
    let nodes = admin.items(&["nodes"])?;
    ensure!(nodes.len() == 1, "it still knows its node: {nodes:?}");
    println!("API server at {}: up again after {took:?}", api.url());
    Ok(())
}

#[test]
#[ignore = "needs Kubernetes: make e2e"]
fn a_cluster_works_with_the_reference_plugins() -> Result {
    let mut report = Report::new("three nodes with the reference plugins");
    let mut cluster = report.must("start a control plane and 3 nodes", || {
        let cluster = KubeCluster::start(3, &[])?;
        let ready = cluster.ready()?;
        ensure!(ready.is_empty(), "without a pod network no node is ready: {ready:?}");
        Ok((cluster, "registered, not ready".to_owned()))
    })?;
    report.must("install plugins", || {
        reference::install(&cluster)?;
        let took = cluster.wait_ready(Duration::from_secs(60))?;
        Ok(((), format!("all ready after {:.1} s", took.as_secs_f64())))
    })?;
    report.must("pods", || {
        let spec = pods::spec(&pods::server());
        cluster.kubectl().apply(&[
            pods::workload("DaemonSet", "web", None, &spec),
            pods::service("web", "web", &json!({})),
        ])?;
        let pods = pods::wait_running(&cluster, "app=web", 3, Duration::from_secs(60))?;
        Ok(((), format!("{} run", pods.len())))
    })?;
    report.step("reach", || {
        let pods = pods::running(cluster.kubectl(), "app=web")?;
        let mut reached = 0;
        for from in &pods {
            let inside = PodNetns::attach(&cluster, from)?;
            for to in &pods {
                let name = pods::http(&inside, SocketAddr::new(to.address, HTTP), "/hostname")?;
                ensure!(name == to.name, "{} answered as {name}", to.name);
                reached += 1;
            }
        }
        let web = cluster.kubectl().get(&["service", "web"])?;
        let address = kubernetes::kubectl::text(&web, "/spec/clusterIP").parse()?;
        for node in cluster.nodes() {
            pods::http(node.netns(), SocketAddr::new(address, 80), "/hostname")?;
            reached += 1;
        }
        Ok(format!("{reached} requests answered"))
    });
    report.step("exec and logs", || {
        let pods = pods::running(cluster.kubectl(), "app=web")?;
        for pod in &pods {
            let said = cluster.kubectl().run_long(&["exec", &pod.name, "--", "hostname"])?;
            ensure!(said.trim() == pod.name, "{} says {said}", pod.name);
            cluster.kubectl().run(&["logs", &pod.name])?;
        }
        Ok(format!("{} pods", pods.len()))
    });
    report.step("reboot", || {
        let before = boot_id(&cluster)?;
        let node = cluster.node_mut(2);
        node.reboot()?;
        node.wait_booted()?;
        cluster.kubectl().wait("the new boot in the API", Duration::from_secs(60), || {
            Ok(boot_id(&cluster)? != before)
        })?;
        let took = cluster.wait_ready(Duration::from_secs(60))?;
        Ok(format!("ready after {:.1} s", took.as_secs_f64()))
    });
    let machine = std::fs::read_to_string("/proc/sys/vm/overcommit_memory")?;
    println!("the machine's vm.overcommit_memory: {}", machine.trim());
    report.finish()
}

fn boot_id(cluster: &KubeCluster) -> Result<String> {
    let node = cluster.kubectl().get(&["node", "n2"])?;
    Ok(kubernetes::kubectl::text(&node, "/status/nodeInfo/bootID").to_owned())
}

//! A copy of a node's disk, started beside the original.

use std::time::Duration;

use anyhow::ensure;
use weft_tests::conditions::{found, wait_condition, wait_no_condition};
use weft_tests::{Cluster, Node, Result};

const ORIGINAL: usize = 2;
const COPY: usize = 4;

/// The copy says so, and nobody gets an address there.
fn gives_out_nothing(copy: &Node) -> Result {
    let said = wait_condition(copy, "IdentityCopied")?;
    println!("{}", said.message);
    ensure!(said.message.contains("172.31.117.12"), "where the other is: {said:?}");
    let readiness = copy.agent()?.readiness()?;
    ensure!(!readiness.ready && copy.request("GET", "/status", b"")?.code == 503);
    let sandbox = copy.sandbox()?;
    let refused = copy.shim().pod("ADD", &sandbox)?;
    ensure!(refused.code() == Some(11), "not the code for later: {refused:?}");
    let text = refused.message();
    println!("{text}");
    for part in ["`n2`", "copy of its state directory", "172.31.117.12", "NODE_NAME"] {
        ensure!(text.contains(part), "`{part}` is missing: {text}");
    }
    // What ends may end.
    copy.shim().pod("DEL", &sandbox)?.ok("DEL on the copy")?;
    for (method, path) in [("POST", "/ip/thief"), ("PUT", "/ip/thief/10.32.7.7/12")] {
        let answer = copy.request(method, path, b"")?;
        ensure!(answer.code == 503, "{method} {path}: {answer:?}");
    }
    let leases: Vec<serde_json::Value> = copy.request("GET", "/v1/attachments", b"")?.json()?;
    ensure!(
        !leases.iter().any(|lease| !lease["host_ifname"].as_str().unwrap_or_default().is_empty()),
        "{leases:?}"
    );
    Ok(())
}

#[test]
fn a_copy_of_a_node_beside_it() -> Result {
    let mut cluster = Cluster::builder()
        .nodes(4)
        .peers(3)
        .env("QUARANTINE", "15s")
        .node_env(COPY, "NODE_NAME", "n2")
        .stopped()
        .start()?;
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    let mut pods = cluster.add_pods_on(&[1, ORIGINAL, ORIGINAL, 3])?;
    // As a disk is copied while the machine is off.
    cluster.node_mut(ORIGINAL).terminate()?;
    let (from, to) =
        (cluster.node(ORIGINAL).spec().state_dir(), cluster.node(COPY).spec().state_dir());
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(&from)?.flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    cluster.node_mut(ORIGINAL).restart()?;

    cluster.node_mut(COPY).start()?;
    gives_out_nothing(cluster.node(COPY))?;
    // The original goes on, also as a new life beside the copy.
    pods.extend(cluster.add_pods_on(&[ORIGINAL])?);
    cluster.node_mut(ORIGINAL).restart()?;
    pods.extend(cluster.add_pods_on(&[1, ORIGINAL])?);
    cluster.assert_unique(&pods)?;
    cluster.assert_reachable(&pods)?;
    ensure!(found(&cluster.node(ORIGINAL).status()?, "IdentityCopied").is_none());
    gives_out_nothing(cluster.node(COPY))?;
    // The copy remembers, although nobody tells it any more.
    cluster.node(COPY).cut()?;
    cluster.node_mut(COPY).start()?;
    gives_out_nothing(cluster.node(COPY))?;
    cluster.node(COPY).heal()?;

    // The original is gone, and its pods with it: by itself the copy takes its place.
    cluster.node_mut(ORIGINAL).kill9()?;
    cluster.node(ORIGINAL).cut()?;
    let took = cluster.node_mut(COPY).wait_ready(Duration::from_secs(180))?;
    println!("the copy serves {took:?} after the end of the original");
    wait_no_condition(cluster.node(COPY), "IdentityCopied")?;
    let gone = cluster.node(ORIGINAL).plan.name.clone();
    pods.retain(|pod| pod.shim.netns.name() != cluster.node(ORIGINAL).netns().name());
    ensure!(pods.len() == 3, "the pods of {gone} do not count any more");
    pods.extend(cluster.add_pods_on(&[COPY, COPY])?);
    cluster.assert_unique(&pods)?;
    cluster.assert_reachable(&pods).map(drop)
}

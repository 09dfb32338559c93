//! Most voters are lost for good: the survivor founds consensus again, with
//! the operator's consent, and keeps what it had.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use weft_tests::{Cluster, Node, Pod, Result, binaries, wait_until};

/// More pods than any node can own addresses for.
const TOO_MANY: usize = 300;
const CONSENT: &str = "/v1/recover?yes-i-accept-the-loss=true";

/// `agent recover` on this node: exit code, and what it said.
fn command(node: &Node, args: &[&str]) -> Result<(Option<i32>, String)> {
    let spec = node.spec();
    let output = node.netns().run(|| {
        Command::new(&spec.exe)
            .arg("recover")
            .args(args)
            .env("HTTP_ADDR", spec.http().to_string())
            .env("RUN_DIR", spec.run_dir())
            .output()
    })??;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

/// Pods until none gets an address any more; why not.
fn exhaust(node: &Node, pods: &mut Vec<Pod>) -> Result<String> {
    for _ in 0..TOO_MANY {
        match node.add_pod() {
            Ok(pod) => pods.push(pod),
            Err(error) => return Ok(format!("{error:#}")),
        }
    }
    anyhow::bail!("{TOO_MANY} pods without quorum, and no end")
}

#[test]
fn two_of_three_voters_lost_for_good() -> Result {
    binaries::agent()?;
    // A small range has small blocks: they run out quickly.
    let mut cluster = Cluster::builder().range("10.32.0.0/23").start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;

    let answer = cluster.node(1).request("POST", CONSENT, b"")?;
    ensure!(answer.code == 409, "with a quorum: {} {}", answer.code, answer.text());
    let (code, text) = command(cluster.node(1), &["--yes"])?;
    ensure!(code == Some(1) && text.contains("quorum"), "with a quorum: {code:?} {text}");

    cluster.node_mut(2).kill9()?;
    cluster.node_mut(3).kill9()?;
    let node = cluster.node(1);
    wait_until("node 1 to see that it has no quorum", Duration::from_secs(30), || {
        let consensus = node.status()?.consensus;
        Ok(!consensus.quorum && consensus.voters.iter().filter(|v| v.alive).count() == 1)
    })?;
    let refusal = exhaust(node, &mut pods)?;
    println!("without quorum, after {} pods: {refusal}", pods.len());
    ensure!(refusal.contains("code 11"), "a runtime must try again: {refusal}");
    let reason = refusal.to_lowercase();
    ensure!(reason.contains("quorum") || reason.contains("voter"), "it says why: {refusal}");
    let before = node.status()?;

    let answer = node.request("POST", "/v1/recover", b"")?;
    ensure!(answer.code == 400, "without consent: {} {}", answer.code, answer.text());
    let (code, text) = command(node, &[])?;
    println!("{text}");
    ensure!(code == Some(1), "nothing was done: {code:?}");
    for part in ["n2", "n3", "STATE_DIR", "--yes"] {
        ensure!(text.contains(part), "{part} is not mentioned: {text}");
    }
    ensure!(!node.status()?.consensus.quorum, "asking changed something");

    let (code, text) = command(node, &["--yes"])?;
    println!("{text}");
    ensure!(code == Some(0), "{code:?} {text}");
    let mut added = None;
    let took = wait_until("a new block after the recovery", Duration::from_secs(30), || {
        added = Some(node.add_pod()?);
        Ok(true)
    })?;
    println!("an address from a new block {took:?} after the recovery");
    pods.push(added.context("a pod")?);
    let after = node.status()?;
    ensure!(after.consensus.quorum, "still no quorum: {:?}", after.consensus);
    ensure!(after.node.cluster == before.node.cluster, "another cluster");
    ensure!(
        before.ipam.blocks.iter().all(|block| after.ipam.blocks.contains(block)),
        "blocks were lost: {:?}, then {:?}",
        before.ipam.blocks,
        after.ipam.blocks
    );
    ensure!(after.ipam.leases == before.ipam.leases + 1, "leases were lost");
    cluster.assert_unique(&pods)?;
    let on_one = [pods[0].clone(), pods[3].clone(), pods[pods.len() - 1].clone()];
    cluster.assert_reachable(&on_one)?;

    // The lost voters come back as told: with an empty state directory.
    for number in [2, 3] {
        let node = cluster.node_mut(number);
        let state = node.spec().state_dir();
        ensure!(state.exists(), "{} is not the state directory", state.display());
        std::fs::remove_dir_all(&state)?;
        node.start()?;
    }
    cluster.wait_ready()?;
    wait_until("three voters again", Duration::from_secs(60), || {
        let consensus = cluster.node(1).status()?.consensus;
        Ok(consensus.quorum && consensus.voters.iter().filter(|v| v.alive).count() == 3)
    })?;
    for number in [2, 3] {
        pods.push(cluster.node(number).add_pod()?);
    }
    let ends = [pods[0].clone(), pods[pods.len() - 2].clone(), pods[pods.len() - 1].clone()];
    cluster.assert_reachable(&ends).map(drop)
}

#[test]
fn a_node_that_was_away_while_the_range_grew_comes_back() -> Result {
    let mut cluster = Cluster::builder().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.node_mut(3).kill9()?;
    let answer = cluster.node(1).request("POST", "/v1/ranges", br#"{"range":"10.64.0.0/16"}"#)?;
    ensure!(answer.code == 204, "{answer:?}");
    cluster.wait_one_ledger()?;
    cluster.node_mut(3).restart()?;
    cluster.wait_one_ledger()?;
    cluster.assert_reachable(&pods).map(drop)
}

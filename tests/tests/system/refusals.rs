//! What does not fit is refused, and the refusal shows both values.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use weft_tests::{Cluster, Node, Result, wait_until};

/// All that a node says of itself: log, readiness, conditions.
fn words(node: &Node) -> String {
    let mut text = node.log();
    if let Ok(agent) = node.agent() {
        if let Ok(readiness) = agent.readiness() {
            let _ = write!(text, "\nready: {}; {}", readiness.ready, readiness.reasons.join("; "));
        }
        if let Ok(status) = agent.status() {
            for condition in status.conditions {
                let _ = write!(text, "\n{}: {}", condition.reason, condition.message);
            }
        }
    }
    text
}

/// Starts node 3 of a running cluster, which must not join, and must say `parts`
/// in one line.
fn refused(cluster: &mut Cluster, parts: &[&str]) -> Result {
    cluster.node_mut(3).start()?;
    let node = cluster.node(3);
    let mut line = None;
    wait_until(&format!("a refusal that says {parts:?}"), Duration::from_secs(30), || {
        if node.agent()?.readiness().is_ok_and(|readiness| readiness.ready) {
            bail!("the node is ready");
        }
        let words = words(node);
        line = words.lines().find(|l| parts.iter().all(|p| l.contains(p))).map(str::to_owned);
        Ok(line.is_some())
    })
    .with_context(|| words(node))?;
    println!("{}", line.unwrap_or_default());
    for number in [1, 2] {
        let status = cluster.node(number).status()?;
        ensure!(status.ipam.owners.len() <= 2, "the refused node owns blocks: {:?}", status.ipam);
    }
    cluster.add_pods_on(&[1, 2]).map(drop)
}

fn two_of_three(node_3: &[(&str, &str)]) -> Result<Cluster> {
    let mut builder = Cluster::builder().peers(2).stopped();
    for (name, value) in node_3 {
        builder = builder.node_env(3, name, value);
    }
    let mut cluster = builder.start()?;
    cluster.node_mut(1).start()?;
    cluster.node_mut(2).start()?;
    cluster.wait_ready()?;
    Ok(cluster)
}

#[test]
fn a_second_node_with_the_same_name() -> Result {
    let mut cluster = two_of_three(&[("NODE_NAME", "n1")])?;
    refused(&mut cluster, &["`n1`", "NODE_NAME"])
}

#[test]
fn a_state_directory_of_another_node() -> Result {
    let mut cluster = two_of_three(&[])?;
    let place = |number: usize| cluster.node(number).spec().state_dir();
    let (from, to) = (place(2), place(3));
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(&from)?.flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    refused(&mut cluster, &["`n2`", "`n3`", "NODE_NAME=n2", "move it away"])?;
    // The advice works.
    std::fs::remove_dir_all(&to)?;
    cluster.node_mut(3).start()?;
    cluster.wait_ready().map(drop)
}

#[test]
fn another_range() -> Result {
    let mut cluster = two_of_three(&[("IPALLOC_RANGE", "10.64.0.0/12")])?;
    refused(&mut cluster, &["10.32.0.0/12", "10.64.0.0/12"])
}

#[test]
fn a_range_that_overlaps_a_host_route() -> Result {
    let mut cluster = two_of_three(&[])?;
    let gateway = cluster.plan.gateway;
    cluster.node(3).netns().ip(&format!("route add 10.40.0.0/16 via {gateway}\n"))?;
    refused(&mut cluster, &["10.32.0.0/12", "10.40.0.0/16"])
}

#[test]
fn a_range_that_overlaps_the_underlay() -> Result {
    let mut cluster = Cluster::builder().nodes(1).range("172.31.0.0/16").no_wait().start()?;
    let node = cluster.node_mut(1);
    wait_until("a refusal", Duration::from_secs(10), || {
        let words = words(node);
        let said = words.lines().any(|l| l.contains("172.31.0.0/16") && l.contains("172.31.117."));
        Ok(said)
    })
    .with_context(|| words(cluster.node(1)))
    .map(drop)
}

/// Each variable wrong in turn: the start ends, and says name and value.
#[test]
fn every_bad_variable_is_named() -> Result {
    const BAD: [(&str, &str); 15] = [
        ("IPALLOC_RANGE", "10.32.0.0/33"),
        ("IPALLOC_RANGE", "ten.dot.something"),
        ("IPALLOC_RANGE", "10.32.0.0/12,10.40.0.0/16"),
        ("IPALLOC_INIT", "consensus=many"),
        ("MTU", "12"),
        ("MTU", "big"),
        ("KUBE_PEERS", "172.31.117.11 not_an_address!"),
        ("CONN_LIMIT", "-1"),
        ("HTTP_ADDR", "localhost"),
        ("METRICS_ADDR", "0.0.0.0:99999"),
        ("NODE_IP", "172.31.117.999"),
        ("NODE_NAME", "no spaces, please"),
        ("EXPECT_NPC", "perhaps"),
        ("HAIRPIN_MODE", "perhaps"),
        ("VXLAN_PORT", "0x1a80"),
    ];
    let mut cluster = Cluster::builder().nodes(1).stopped().start()?;
    let mut faults = Vec::new();
    for (name, value) in BAD {
        let node = cluster.node_mut(1);
        node.spec_mut().env = vec![(name.to_owned(), value.to_owned())];
        let _ = std::fs::remove_file(&node.spec().log);
        node.start()?;
        let exit = match node.wait_exit(Duration::from_secs(5)) {
            Ok(exit) => exit,
            Err(_) => {
                faults.push(format!("{name}={value}: started all the same"));
                node.kill9()?;
                continue;
            }
        };
        let log = node.log();
        println!("{name}={value}: exit {exit:?}: {}", log.trim());
        if exit == Some(0) || exit.is_none() {
            faults.push(format!("{name}={value}: exit {exit:?}"));
        }
        if !log.contains(name) || !log.contains(value) {
            faults.push(format!("{name}={value}: the message does not say both: {log}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

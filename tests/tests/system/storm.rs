//! Five thousand Nodes in the API server, and a few real agents: what each of them
//! asks of it at its start, at rest, when connections break, and after an outage.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use weft_tests::apiserver::{ApiServer, Counts, Verb, objects};
use weft_tests::conditions::{wait_condition, wait_no_condition};
use weft_tests::{Cluster, Result, wait_until};

const OTHERS: usize = 5_000;
const AGENTS: usize = 5;
/// Of five nodes and more.
const VOTERS: u64 = 5;
/// Of Nodes, in a list.
const PAGE: u64 = 500;
/// Requests of one agent that come again and again: Node, Secret, ConfigMap.
const ROUND: u64 = 3;
const LONG: Duration = Duration::from_secs(120);

fn watching(api: &ApiServer) -> usize {
    api.open_watches().values().sum()
}

/// One list of all Nodes: pages, of metadata only.
fn ensure_lists(news: &Counts, lists: u64) -> Result {
    let nodes = (OTHERS + AGENTS) as u64;
    let seen = news.of(Verb::List, "nodes");
    ensure!(seen.requests <= lists * nodes.div_ceil(PAGE), "{lists} lists at most:\n{news}");
    ensure!(seen.bytes <= lists * nodes * 1024, "metadata only:\n{news}");
    Ok(())
}

#[test]
fn five_thousand_nodes_and_no_storm() -> Result {
    let mut cluster = Cluster::builder().nodes(AGENTS).kubernetes().stopped().start()?;
    let images: Vec<Value> = (0..10)
        .map(|n| json!({"names": [format!("registry.example/{n}@{}", "x".repeat(500))]}))
        .collect();
    for number in 0..OTHERS {
        let mut node = objects::node(&format!("other-{number}"), "192.0.2.1".parse()?);
        node["status"]["images"] = json!(images);
        cluster.api()?.put(&node)?;
    }

    let before = cluster.api()?.counts();
    for number in 1..=AGENTS {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    wait_until("voters to watch Nodes", LONG, || {
        Ok(cluster.api()?.open_watches().get("nodes").copied().unwrap_or(0) as u64 >= VOTERS)
    })?;
    let news = cluster.api()?.counts().since(&before);
    println!("{AGENTS} agents start, {} Nodes:\n{news}", OTHERS + AGENTS);
    // Every voter, and whoever founds the cluster.
    ensure_lists(&news, VOTERS + 1)?;

    // At rest: no lists, a few small requests.
    let rounds = 3 * ROUND * AGENTS as u64;
    let before = cluster.api()?.counts();
    wait_until("some rounds", LONG, || {
        let news = cluster.api()?.counts().since(&before);
        Ok(news.of(Verb::Get, "secrets").requests * ROUND >= rounds)
    })?;
    let news = cluster.api()?.counts().since(&before);
    println!("three rounds at rest:\n{news}");
    ensure!(news.of(Verb::List, "nodes").requests == 0, "nobody lists:\n{news}");
    let total = news.total();
    ensure!(total.requests <= 2 * rounds, "a round is {ROUND} requests:\n{news}");
    // Its own Node, without the list of others', is the largest of them.
    ensure!(total.bytes <= total.requests * 8192, "small answers:\n{news}");

    // Connections break: watches go on where they were.
    let before = cluster.api()?.counts();
    let watched = watching(cluster.api()?);
    cluster.api()?.cut_watches();
    wait_until("watches again", LONG, || {
        let again = cluster.api()?.counts().since(&before).of(Verb::Watch, "nodes");
        Ok(again.requests >= VOTERS && watching(cluster.api()?) >= watched)
    })?;
    let news = cluster.api()?.counts().since(&before);
    println!("connections broke:\n{news}");
    ensure!(lists(&news) == 0, "watches are resumed:\n{news}");

    // An outage that everybody remembers well enough.
    let before = outage(&mut cluster, watched, false)?;
    let news = cluster.api()?.counts().since(&before);
    println!("after an outage:\n{news}");
    ensure!(lists(&news) == 0, "watches are resumed:\n{news}");

    // And one so long that nobody can go on where he was.
    let before = outage(&mut cluster, watched, true)?;
    let news = cluster.api()?.counts().since(&before);
    println!("after a long outage:\n{news}");
    ensure_lists(&news, VOTERS)
}

/// Lists of anything.
fn lists(news: &Counts) -> u64 {
    ["nodes", "pods", "namespaces", "networkpolicies.networking.k8s.io"]
        .map(|resource| news.of(Verb::List, resource).requests)
        .iter()
        .sum()
}

/// The server goes, all agents notice, it comes back; counts at its return.
fn outage(cluster: &mut Cluster, watched: usize, long: bool) -> Result<Counts> {
    cluster.api()?.stop()?;
    for node in cluster.nodes() {
        wait_condition(node, "KubernetesAway")?;
    }
    if long {
        cluster.api()?.compact();
    }
    let before = cluster.api()?.counts();
    cluster.api_mut()?.resume()?;
    for node in cluster.nodes() {
        wait_no_condition(node, "KubernetesAway")?;
    }
    wait_until("the watches to be back", LONG, || Ok(watching(cluster.api()?) >= watched))?;
    Ok(before)
}

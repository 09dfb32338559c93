//! The agent in Kubernetes, against an API server for tests: founding, Nodes
//! that go and come back, addresses that change, rights that are missing, and a
//! server that is away. The real thing is in `e2e*.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use weft_proto::api::Health;
use weft_tests::apiserver::{ApiServer, Effect, Logged, Verb, objects};
use weft_tests::conditions::{SOON, found, wait_condition, wait_no_condition};
use weft_tests::{Cluster, Node, Result, wait_until};

const SPACE: &str = "kube-system";

/// Creations that succeeded.
fn created(api: &ApiServer, resource: &str) -> u64 {
    let count = api.counts().of(Verb::Create, resource);
    count.requests - count.refused
}

fn data(api: &ApiServer, resource: &str, entry: &str) -> Result<Option<String>> {
    let object = api.get(resource, SPACE, "weft")?;
    Ok(object.and_then(|object| object["data"][entry].as_str().map(str::to_owned)))
}

/// Waits until the Node's condition says that it has a network.
fn wait_network(api: &ApiServer, node: &str) -> Result {
    wait_until(&format!("NetworkUnavailable=False of {node}"), SOON, || {
        let object = api.get("nodes", "", node)?.context("no Node")?;
        Ok(objects::condition(&object, "NetworkUnavailable")
            .is_some_and(|condition| condition["status"] == "False"))
    })?;
    Ok(())
}

fn about_all_nodes(logged: &Logged) -> bool {
    logged.resource == "nodes" && matches!(logged.verb, Verb::List | Verb::Watch)
}

#[test]
fn five_nodes_at_once_found_one_cluster() -> Result {
    let cluster = Cluster::builder().nodes(5).kubernetes().start()?;
    let api = cluster.api()?;
    let ids: BTreeSet<String> =
        cluster.nodes().iter().map(|n| Ok(n.status()?.node.cluster)).collect::<Result<_>>()?;
    ensure!(ids.len() == 1, "one cluster: {ids:?}");
    let id = ids.first().context("no cluster")?;
    ensure!(!id.is_empty(), "a cluster has an id");
    ensure!(created(api, "configmaps") == 1, "{}", api.counts());
    ensure!(created(api, "secrets") == 1, "{}", api.counts());
    wait_until("the record to name the cluster", SOON, || {
        let founded = data(api, "configmaps", "founded")?.as_deref() == Some("true");
        Ok(founded && data(api, "configmaps", "cluster")?.as_ref() == Some(id))
    })?;
    let founder = data(api, "configmaps", "founder")?.context("no founder")?;
    ensure!(cluster.nodes().iter().any(|n| n.plan.name == founder), "founder {founder}");

    for node in cluster.nodes() {
        let name = &node.plan.name;
        wait_until(&format!("{name} to know all others"), SOON, || {
            let alive = node.status()?.mesh.members.into_iter().filter(|m| m.state == "alive");
            Ok(alive.count() == 4)
        })?;
        ensure!(node.status()?.mesh.keyed, "{name} has the key of the Secret");
        wait_network(api, name)?;
        let object = api.get("nodes", "", name)?.context("no Node")?;
        let told = object["metadata"]["annotations"]["weft.io/underlay"].as_str();
        ensure!(told.is_some_and(|text| text.contains(&node.plan.address.to_string())));
        ensure!(objects::condition(&object, "Ready").is_some(), "conditions of others stay");
    }
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let whole: Vec<_> = api.requests().into_iter().filter(about_all_nodes).collect();
    ensure!(whole.iter().all(|logged| logged.accept.contains("PartialObjectMetadata")));
    ensure!(whole.len() <= 20, "nobody lists Nodes again and again: {whole:?}");
    println!("founding by five nodes:\n{}", api.counts());

    // Whoever deletes the record does not start another cluster.
    api.delete("configmaps", SPACE, "weft")?;
    wait_until("the record to be restored", SOON, || {
        Ok(data(api, "configmaps", "cluster")?.as_ref() == Some(id))
    })?;
    Ok(())
}

/// `agent cleanup` on a node whose agent is stopped; what it says.
fn clean(node: &mut Node) -> Result<String> {
    node.terminate()?;
    let output = node.netns().run(|| node.spec().command().arg("cleanup").output())??;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{text}");
    println!("{text}");
    Ok(text)
}

#[test]
fn a_cleanup_takes_the_annotations_off_the_node_or_says_how() -> Result {
    let mut cluster = Cluster::builder().nodes(2).kubernetes().start()?;
    let notes = |cluster: &Cluster, node: &str| -> Result<Vec<String>> {
        let object = cluster.api()?.get("nodes", "", node)?.context("no Node")?;
        let all = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        Ok(all.keys().filter(|key| key.starts_with("weft.io/")).cloned().collect())
    };
    for node in ["n1", "n2"] {
        wait_until(&format!("annotations of {node}"), SOON, || {
            Ok(notes(&cluster, node)?.len() == 3)
        })?;
    }
    let text = clean(cluster.node_mut(1))?;
    ensure!(text.contains("removed 3 annotations of Node n1"), "{text}");
    ensure!(notes(&cluster, "n1")?.is_empty() && notes(&cluster, "n2")?.len() == 3);
    // Where it may not, it says what is left.
    let denied = cluster.api()?.deny(Verb::Patch, "nodes/status");
    let text = clean(cluster.node_mut(2))?;
    let command = "kubectl annotate node n2 weft.io/cluster- weft.io/node-id- weft.io/underlay-";
    ensure!(text.contains("left: ") && text.contains(command), "{text}");
    cluster.api()?.lift(denied);
    ensure!(notes(&cluster, "n2")?.len() == 3);
    Ok(())
}

/// Waits until so many agents watch Nodes: what was never seen cannot be missed.
fn wait_watches(api: &ApiServer, count: usize) -> Result {
    wait_until("voters to watch Nodes", SOON, || {
        Ok(api.open_watches().get("nodes").copied().unwrap_or(0) >= count)
    })?;
    Ok(())
}

fn leads(node: &Node) -> Result<bool> {
    Ok(node.status()?.consensus.role == "leader")
}

#[test]
fn a_deleted_node_is_evicted_and_may_return() -> Result {
    let mut cluster = Cluster::builder().kubernetes().start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    cluster.wait_one_ledger()?;
    wait_watches(cluster.api()?, 3)?;
    let mut leader = 0;
    wait_until("a leader", SOON, || {
        for number in 1..=3 {
            if leads(cluster.node(number))? {
                leader = number;
            }
        }
        Ok(leader > 0)
    })?;
    let (gone, other) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let name = cluster.node(gone).plan.name.clone();
    let id = cluster.node(gone).status()?.node.id;
    let owns = |node: &Node| -> Result<bool> {
        Ok(node.status()?.ipam.owners.iter().any(|owner| owner.id == id))
    };

    // Deleted while its agent lives: it keeps its blocks, and is named.
    cluster.api()?.delete("nodes", "", &name)?;
    let said = wait_condition(cluster.node(leader), "NodeGone")?;
    ensure!(said.message.contains(&name), "{said:?}");
    let said = wait_condition(cluster.node(gone), "NodeMissing")?;
    ensure!(said.message.contains(&name), "{said:?}");
    ensure!(owns(cluster.node(leader))?, "a live node is not evicted");

    // Its agent ends, too.
    cluster.node_mut(gone).kill9()?;
    wait_until("the node to be evicted", SOON, || Ok(!owns(cluster.node(leader))?))
        .with_context(|| cluster.node(leader).log_tail())?;
    let quarantined = cluster.node(leader).status()?.ipam.quarantined;
    ensure!(quarantined > 0, "its blocks rest");
    pods.extend(cluster.add_pods_on(&[leader, other])?);
    cluster.assert_unique(&pods)?;

    // It comes back with what it had.
    let node = objects::node(&name, cluster.node(gone).plan.address);
    cluster.api()?.put(&node)?;
    cluster.node_mut(gone).restart()?;
    wait_network(cluster.api()?, &name)?;
    wait_until("the node to own its blocks again", SOON, || {
        let status = cluster.node(leader).status()?;
        Ok(owns(cluster.node(leader))? && status.ipam.quarantined == 0)
    })?;
    pods.extend(cluster.add_pods_on(&[gone])?);
    cluster.assert_unique(&pods)?;
    cluster.assert_reachable(&pods)?;
    for node in cluster.nodes() {
        wait_no_condition(node, "NodeGone")?;
        wait_no_condition(node, "NodeMissing")?;
    }
    Ok(())
}

#[test]
fn the_api_server_may_be_away() -> Result {
    let mut cluster = Cluster::builder().kubernetes().start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;
    for node in cluster.nodes() {
        wait_network(cluster.api()?, &node.plan.name)?;
    }
    for node in cluster.nodes() {
        let file = node.spec().state_dir().join("policy.json");
        wait_until("what is known of policy to be kept", SOON, || Ok(file.exists()))?;
    }
    cluster.api()?.stop()?;
    // One that has state needs nobody, and knows that its pods may be reached.
    let took = cluster.node_mut(2).restart()?;
    println!("restart without the API server: ready after {took:?}");
    pods.extend(cluster.add_pods(2)?);
    cluster.assert_unique(&pods)?;
    cluster.assert_reachable(&pods)?;
    for node in cluster.nodes() {
        let said = wait_condition(node, "KubernetesAway")?;
        ensure!(said.health != Health::Broken, "pods start all the same: {said:?}");
        ensure!(node.status()?.kubernetes.is_some_and(|kubernetes| !kubernetes.reachable));
    }
    pods.extend(cluster.add_pods(1)?);
    cluster.api_mut()?.resume()?;
    for node in cluster.nodes() {
        wait_no_condition(node, "KubernetesAway")?;
    }
    cluster.assert_reachable(&pods)?;
    Ok(())
}

#[test]
fn a_first_start_waits_for_the_api_server() -> Result {
    let mut cluster = Cluster::builder().kubernetes().stopped().start()?;
    cluster.api()?.stop()?;
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    let server = cluster.api()?.url();
    for node in cluster.nodes() {
        let said = wait_condition(node, "KubernetesAway")?;
        ensure!(said.message.contains(&server), "it says who is waited for: {said:?}");
        ensure!(!node.agent()?.readiness()?.ready);
    }
    cluster.api_mut()?.resume()?;
    cluster.wait_ready()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    Ok(())
}

#[test]
fn founding_stands_a_bad_server() -> Result {
    let mut cluster = Cluster::builder().kubernetes().stopped().start()?;
    let api = cluster.api()?;
    // What is created may be there although nobody was told so.
    for resource in ["secrets", "configmaps"] {
        api.on(Some(Verb::Create), resource, Effect::Lose, Some(2));
    }
    api.on(Some(Verb::Update), "configmaps", Effect::Lose, Some(2));
    api.on(None, "*", Effect::Fail(500, None), Some(5));
    api.on(None, "*", Effect::Fail(429, Some(1)), Some(5));
    api.on(None, "*", Effect::Delay(Duration::from_millis(300)), None);
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    for number in 1..=3 {
        cluster.node_mut(number).wait_ready(2 * SOON)?;
    }
    cluster.wait_one_ledger()?;
    let id = cluster.node(1).status()?.node.cluster;
    wait_until("the record to name the cluster", SOON, || {
        Ok(data(cluster.api()?, "configmaps", "cluster")?.as_ref() == Some(&id))
    })?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    println!("founding with a bad server:\n{}", cluster.api()?.counts());
    Ok(())
}

/// The founder has vanished between its claim and its ledger.
#[test]
fn a_dead_founders_claim_is_taken_over() -> Result {
    let mut cluster = Cluster::builder().kubernetes().stopped().start()?;
    let claim = [
        ("founder", "ghost"),
        ("founder-id", "00112233445566778899aabbccddeeff"),
        ("founded", "false"),
        ("turn", "3"),
    ];
    cluster.api()?.put(&objects::config_map(SPACE, "weft", &claim))?;
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    for number in 1..=3 {
        cluster.node_mut(number).wait_ready(3 * SOON)?;
    }
    cluster.wait_one_ledger()?;
    ensure!(data(cluster.api()?, "configmaps", "founder")?.is_some_and(|name| name != "ghost"));
    Ok(())
}

#[test]
fn the_secret_changes_the_key() -> Result {
    let mut cluster = Cluster::builder().kubernetes().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;
    let old = data(cluster.api()?, "secrets", "key")?.context("no key")?;
    // "new!!" and a line end, in base64: first both are valid, then one.
    for (changes, key) in [(1, format!("bmV3ISEK{old}")), (2, "bmV3ISEK".to_owned())] {
        cluster.api()?.edit("secrets", SPACE, "weft", |s| s["data"]["key"] = json!(key))?;
        for node in cluster.nodes() {
            wait_until("the agent to take the new key", SOON, || {
                Ok(node.log().matches("the cluster key has changed").count() >= changes)
            })
            .with_context(|| node.log_tail())?;
        }
    }
    // Whoever connects now proves the new one.
    cluster.node_mut(2).restart()?;
    for node in cluster.nodes() {
        wait_until("all to be connected", SOON, || {
            let alive = node.status()?.mesh.members.into_iter().filter(|m| m.state == "alive");
            Ok(alive.count() == 2)
        })?;
    }
    cluster.assert_reachable(&pods).map(drop)
}

#[test]
fn missing_rights_are_named_and_told_by_events() -> Result {
    let mut cluster = Cluster::builder().nodes(2).kubernetes().stopped().start()?;
    let api = cluster.api()?;
    let secrets = api.deny(Verb::Get, "secrets");
    let status = api.deny(Verb::Patch, "nodes/status");
    for number in 1..=2 {
        cluster.node_mut(number).start()?;
    }
    for node in cluster.nodes() {
        let said = wait_condition(node, "KubernetesDenied")?;
        ensure!(said.message.contains("secrets") && said.hint.contains("secrets"), "{said:?}");
        ensure!(said.health == Health::Broken, "without a key there is no start: {said:?}");
    }
    cluster.api()?.lift(secrets);
    cluster.wait_ready()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let api = cluster.api()?;
    for node in cluster.nodes() {
        wait_until("the other right to be missed", SOON, || {
            let said = found(&node.status()?, "KubernetesDenied");
            Ok(said.is_some_and(|said| said.message.contains("nodes/status")))
        })?;
        wait_until("an Event on the Node", SOON, || {
            Ok(api.events()?.iter().any(|event| {
                event.reason == "KubernetesDenied"
                    && event.kind == "Warning"
                    && event.about == ("Node".to_owned(), node.plan.name.clone())
            }))
        })?;
        let object = api.get("nodes", "", &node.plan.name)?.context("no Node")?;
        ensure!(objects::condition(&object, "NetworkUnavailable").is_none());
    }
    api.lift(status);
    for node in cluster.nodes() {
        wait_network(api, &node.plan.name)?;
        wait_no_condition(node, "KubernetesDenied")?;
        wait_until("an Event that it is over", SOON, || {
            Ok(api.events()?.iter().any(|event| {
                event.reason == "KubernetesDenied"
                    && event.kind == "Normal"
                    && event.about.1 == node.plan.name
            }))
        })?;
    }
    Ok(())
}

#[test]
fn a_nodes_new_address_is_followed() -> Result {
    let cluster = Cluster::builder().kubernetes().start()?;
    let pods = cluster.add_pods(1)?;
    cluster.assert_reachable(&pods)?;
    let node = cluster.node(2);
    let IpAddr::V4(old) = node.plan.address else { bail!("no IPv4 underlay") };
    let new = Ipv4Addr::from(u32::from(old) + 100);
    let length = cluster.plan.base.prefix_len();
    node.exec(&["sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1"])?;
    node.netns().ip(&format!("addr add {new}/{length} dev eth0\n"))?;
    cluster.api()?.edit("nodes", "", "n2", |node| objects::set_addresses(node, &[new.into()]))?;
    wait_until("n2 to live at its new address", SOON, || {
        Ok(node.status()?.node.underlay.first() == Some(&new.into()))
    })
    .with_context(|| node.log_tail())?;
    node.netns().ip(&format!("addr del {old}/{length} dev eth0\n"))?;
    for other in [1, 3] {
        wait_until("the others to know it", SOON, || {
            let members = cluster.node(other).status()?.mesh.members;
            Ok(members.iter().any(|m| m.name == "n2" && m.underlay.first() == Some(&new.into())))
        })?;
    }
    for (from, to) in [(0, 1), (1, 2), (2, 1)] {
        pods[from].wait_ping(pods[to].address(), SOON)?;
    }
    Ok(())
}

#[test]
fn an_outage_ends_without_a_storm() -> Result {
    const OTHERS: usize = 300;
    let mut cluster = Cluster::builder().nodes(5).kubernetes().start()?;
    // Nodes as kubelets make them: large, and of no interest beyond their names.
    let images: Vec<Value> = (0..50)
        .map(|n| json!({"names": [format!("registry.example/{n}@{}", "x".repeat(500))]}))
        .collect();
    for number in 0..OTHERS {
        let mut node = objects::node(&format!("other-{number}"), "192.0.2.1".parse()?);
        node["status"]["images"] = json!(images);
        cluster.api()?.put(&node)?;
    }
    for node in cluster.nodes() {
        wait_network(cluster.api()?, &node.plan.name)?;
    }
    let watching = |cluster: &Cluster| -> Result<usize> {
        Ok(cluster.api()?.open_watches().get("nodes").copied().unwrap_or(0))
    };
    wait_watches(cluster.api()?, 3)?;
    let watched = watching(&cluster)?;

    cluster.api()?.stop()?;
    for node in cluster.nodes() {
        wait_condition(node, "KubernetesAway")?;
    }
    // So long that nobody can go on where he was.
    cluster.api()?.compact();
    let before = cluster.api()?.counts();
    let start = std::time::Instant::now();
    cluster.api_mut()?.resume()?;
    for node in cluster.nodes() {
        wait_no_condition(node, "KubernetesAway")?;
    }
    wait_until("the watches to be back", SOON, || Ok(watching(&cluster)? >= watched))?;
    let news = cluster.api()?.counts().since(&before);
    println!("five nodes after an outage, {} Nodes:\n{news}", OTHERS + 5);
    let lists = news.of(Verb::List, "nodes");
    ensure!(lists.requests <= watched as u64, "one list per watch at most:\n{news}");
    let each = lists.bytes / lists.requests.max(1) / (OTHERS as u64 + 5);
    ensure!(each < 1024, "{each} bytes per Node in a list");
    // Of each agent: every list and watch twice at most, and a round of three each 10 s.
    let rounds = start.elapsed().as_secs() / 10 + 1;
    ensure!(news.total().requests <= 5 * (17 + 3 * rounds), "requests are paced:\n{news}");
    Ok(())
}

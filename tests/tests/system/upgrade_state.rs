//! Files that released versions wrote, opened by this one. They are kept in
//! `tests/fixtures/upgrade`, a directory for each version; `make upgrade-fixture` records one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_proto::api::LeaseInfo;
use weft_tests::cluster::Builder;
use weft_tests::{Cluster, Node, Result, binaries, wait_until};

const NODES: usize = 3;
const RANGE: &str = "10.32.0.0/23";
/// After the recorded cluster grew.
const WIDER: &str = "10.32.0.0/22";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/upgrade")
}

/// What a node held when its files were kept.
fn held(node: &Node) -> Result<Value> {
    let leases: Vec<LeaseInfo> = node.request("GET", "/v1/attachments", b"")?.json()?;
    let leases: BTreeMap<String, Vec<IpAddr>> =
        leases.into_iter().map(|lease| (lease.key.to_string(), lease.addresses)).collect();
    let status = node.status()?;
    let blocks: BTreeSet<_> = status.ipam.blocks.into_iter().collect();
    let owners: BTreeMap<_, _> = status
        .ipam
        .owners
        .into_iter()
        .map(|owner| (owner.id, (owner.name, owner.addresses, owner.blocks)))
        .collect();
    Ok(json!({
        "node": status.node.id, "cluster": status.node.cluster, "overlay": status.node.overlay,
        "ranges": status.ipam.ranges, "unowned": status.ipam.unowned,
        "leases": leases, "blocks": blocks, "owners": owners,
    }))
}

fn tar(what: &[&str]) -> Result {
    let output = Command::new("tar").args(what).output()?;
    ensure!(output.status.success(), "{what:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// All nodes' files and what they held; the agents have ended.
fn keep(cluster: &Cluster, held: &[Value], into: &Path) -> Result {
    fs::create_dir_all(into)?;
    for node in cluster.nodes() {
        let archive = into.join(format!("{}.tar.gz", node.plan.name));
        let from = &node.spec().directory;
        tar(&["-czf", text(&archive)?, "-C", text(from)?, "--exclude=released", "state", "run"])?;
    }
    fs::write(into.join("held.json"), serde_json::to_vec_pretty(held)?)?;
    Ok(())
}

/// Puts kept files in place of every node's; what they held.
fn restore(cluster: &Cluster, from: &Path) -> Result<Vec<Value>> {
    for node in cluster.nodes() {
        let into = &node.spec().directory;
        fs::create_dir_all(into)?;
        let archive = from.join(format!("{}.tar.gz", node.plan.name));
        tar(&["-xzf", text(&archive)?, "-C", text(into)?])?;
    }
    let held = from.join("held.json");
    serde_json::from_slice(&fs::read(&held)?).with_context(|| held.display().to_string())
}

fn plain() -> Builder {
    Cluster::builder().nodes(NODES).range(RANGE)
}

fn in_kubernetes() -> Builder {
    Cluster::builder().nodes(1).range(RANGE).kubernetes()
}

/// A cluster in which everything has happened that leaves something in a file.
#[test]
#[ignore = "records files of another version: make upgrade-fixture FROM=…"]
fn record() -> Result {
    let old = binaries::previous()?;
    let name = std::env::var("WEFT_FIXTURE").context("WEFT_FIXTURE names what is recorded")?;
    let into = fixtures().join(name);
    let mut cluster = plain().binaries(&old).start()?;
    for _ in 0..6 {
        let mut pods = cluster.add_pods(2)?;
        for pod in pods.drain(..NODES) {
            pod.detach()?;
        }
    }
    let body = format!("{{\"range\":\"{WIDER}\"}}");
    let answer = cluster.node(2).request("POST", "/v1/ranges", body.as_bytes())?;
    ensure!(answer.code == 204, "{answer:?}");
    // One is removed and comes back: addresses rest, and are claimed.
    cluster.node_mut(3).kill9()?;
    let answer = cluster.node(1).request("DELETE", "/v1/peers/n3?force=true", b"")?;
    ensure!(answer.code == 200, "{answer:?}");
    cluster.node_mut(3).restart()?;
    cluster.add_pods(1)?;
    // In short form for one, as it was written for the others.
    cluster.node_mut(1).terminate()?;
    cluster.node_mut(1).restart()?;
    cluster.wait_one_ledger()?;
    let mut last = Vec::new();
    wait_until("nothing under way", Duration::from_secs(30), || {
        let now = cluster.nodes().iter().map(held).collect::<Result<Vec<_>>>()?;
        let same = now == last;
        last = now;
        std::thread::sleep(Duration::from_secs(3));
        Ok(same)
    })?;
    for number in 1..=NODES {
        cluster.node_mut(number).terminate()?;
    }
    keep(&cluster, &last, &into.join("plain"))?;

    let mut cluster = in_kubernetes().binaries(&old).start()?;
    cluster.add_pods(3)?;
    let memory = cluster.node(1).spec().state_dir().join("kubernetes.json");
    wait_until("all that the API server can say", Duration::from_secs(60), || {
        let known: Value = serde_json::from_slice(&fs::read(&memory)?)?;
        let contacts = known["contacts"].as_array().is_some_and(|list| !list.is_empty());
        Ok(known["cluster"].is_string() && contacts)
    })?;
    let held = vec![held(cluster.node(1))?];
    cluster.node_mut(1).terminate()?;
    keep(&cluster, &held, &into.join("kubernetes"))?;
    println!("recorded {}", into.display());
    Ok(())
}

/// Versions of which files are kept.
fn kept(kind: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(fixtures())? {
        let path = entry?.path().join(kind);
        ensure!(path.is_dir(), "{} is missing", path.display());
        all.push(path);
    }
    ensure!(!all.is_empty(), "no files are kept in {}", fixtures().display());
    all.sort();
    Ok(all)
}

/// Nothing was taken for damaged or lost.
fn read_all(node: &Node) -> Result {
    for word in ["damaged", "empty book", "asked again", "counts as absent", "numbered by clock"] {
        let log = node.log();
        let line = log.lines().find(|line| line.contains(word));
        ensure!(line.is_none(), "{}: {line:?}", node.plan.name);
    }
    Ok(())
}

const WHAT_TO_DO: &str = "this version reads files of an earlier one differently. If that is meant, \
    the files have a new form: raise FORM in agent/src/app/form.rs, and read the old form, too \
    (ARCHITECTURE.md, Versions)";

/// All is there that was; a block may have come, since nodes ask ahead.
fn same(from: &Path, before: &Value, now: &Value) -> Result {
    for field in ["node", "cluster", "overlay", "leases", "ranges"] {
        let (was, is) = (&before[field], &now[field]);
        ensure!(was == is, "{}: {WHAT_TO_DO}\n{was}\nbecame\n{is}", from.display());
    }
    let (was, is) = (before["blocks"].as_array(), now["blocks"].as_array());
    let (was, is) = (was.context("blocks")?, is.context("blocks")?);
    let all = was.iter().all(|block| is.contains(block));
    ensure!(all, "{}: {WHAT_TO_DO}\n{was:?}\nbecame\n{is:?}", from.display());
    Ok(())
}

#[test]
fn files_of_earlier_versions_are_opened_whole() -> Result {
    for from in kept("plain")? {
        let mut cluster = plain().stopped().start()?;
        let before = restore(&cluster, &from)?;
        let sessions: Vec<u64> = cluster.nodes().iter().map(session).collect::<Result<_>>()?;
        for number in 1..=NODES {
            cluster.node_mut(number).start()?;
        }
        cluster.wait_ready().with_context(|| from.display().to_string())?;
        cluster.wait_one_ledger()?;
        for (node, before) in cluster.nodes().iter().zip(&before) {
            same(&from, before, &held(node)?)?;
            read_all(node)?;
        }
        for (node, before) in cluster.nodes().iter().zip(sessions) {
            ensure!(session(node)? > before, "a life is numbered higher than the one before");
        }
        // What is in use by somebody is not given to others.
        let used: BTreeSet<IpAddr> = before.iter().flat_map(addresses).collect();
        let pods = cluster.add_pods(4)?;
        ensure!(pods.iter().all(|pod| !used.contains(&pod.address())), "{used:?}, {pods:?}");
        cluster.assert_unique(&pods)?;
        cluster.assert_reachable(&pods)?;
        println!("{}: {} leases, {} nodes", from.display(), used.len(), before.len());
    }
    Ok(())
}

fn addresses(held: &Value) -> Vec<IpAddr> {
    let lists = held["leases"].as_object().into_iter().flat_map(serde_json::Map::values);
    lists.filter_map(Value::as_array).flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn session(node: &Node) -> Result<u64> {
    let text = fs::read_to_string(node.spec().state_dir().join("session"))?;
    Ok(text.trim().parse()?)
}

/// What the API server said last is in a file, too: an agent starts without it.
#[test]
fn a_start_from_the_memory_of_an_earlier_version() -> Result {
    for from in kept("kubernetes")? {
        let mut cluster = in_kubernetes().stopped().start()?;
        cluster.api()?.stop()?;
        let before = restore(&cluster, &from)?;
        cluster.node_mut(1).restart().with_context(|| from.display().to_string())?;
        same(&from, &before[0], &held(cluster.node(1))?)?;
        read_all(cluster.node(1))?;
    }
    Ok(())
}

/// All files below, with their bytes.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(contents(&path)?);
        } else {
            all.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(all)
}

#[test]
fn files_of_a_later_version_are_refused_by_name_and_left_alone() -> Result {
    let from = kept("plain")?.pop().context("some")?;
    let mut cluster = plain().stopped().start()?;
    restore(&cluster, &from)?;
    let node = cluster.node_mut(1);
    let (state, run) = (node.spec().state_dir(), node.spec().run_dir());
    fs::write(state.join("form"), r#"{"form":77,"weft":"7.7.7"}"#)?;
    let before = (contents(&state)?, contents(&run)?);
    node.start()?;
    let code = node.wait_exit(Duration::from_secs(10))?;
    ensure!(code == Some(1), "exit {code:?}");
    let log = node.log();
    for part in ["form 77", "weft 7.7.7", "Nothing was changed", text(&state.join("form"))?] {
        ensure!(log.contains(part), "`{part}` is not said: {log}");
    }
    ensure!((contents(&state)?, contents(&run)?) == before, "something was changed");
    let links = node.exec(&["ip", "-o", "link"])?;
    ensure!(!links.contains(": weft"), "not even in the kernel: {links}");
    Ok(())
}

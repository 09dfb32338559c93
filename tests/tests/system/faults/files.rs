//! Every file an agent keeps, spoilt in every way: it serves as before, or it says which file
//! is wrong and what to do. Never an address twice.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use ring::digest::{SHA256, digest};
use weft_tests::dice::Dice;
use weft_tests::told::{told, took};
use weft_tests::{Cluster, Node, Pod, Result, audit, wait_until};

use crate::faults::common::{PATIENCE, audit_all, wait_reachable};

/// How a file is spoilt.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spoil {
    Empty,
    Half,
    /// Ends where a line does: nothing about it looks wrong.
    FirstLine,
    Flip,
    Noise,
}

const SPOILS: [Spoil; 6] =
    [Spoil::Empty, Spoil::Half, Spoil::FirstLine, Spoil::Flip, Spoil::Flip, Spoil::Noise];

impl Spoil {
    fn of(self, whole: &[u8], dice: &mut Dice) -> Vec<u8> {
        match self {
            Self::Empty => Vec::new(),
            Self::Half => whole[..whole.len() / 2].to_vec(),
            Self::FirstLine => {
                let end = whole.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
                whole[..end].to_vec()
            }
            Self::Flip => {
                let mut bytes = whole.to_vec();
                // Where there is something; most of a database is empty space.
                let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
                let at = used[dice.below(used.len())];
                bytes[at] ^= 1 << dice.below(8);
                bytes
            }
            Self::Noise => whole.iter().map(|_| dice.word() as u8).collect(),
        }
    }
}

/// A promise to another node in the form the agent keeps it: of addresses here that nobody has.
fn promise(node: &Node, to: &Node) -> Result<Vec<u8>> {
    let used: Vec<_> = audit::leases(node)?.into_values().flat_map(|l| l.addresses).collect();
    let own = node.status()?.node.overlay;
    let block = *node.status()?.ipam.blocks.first().context("a block")?;
    let prefix = block
        .subnets(31)?
        .filter(|part| !used.iter().chain(&own).any(|ip| part.contains(ip)))
        .last()
        .context("a free part of the block")?;
    let to = to.status()?.node.id;
    let json = serde_json::to_vec(&serde_json::json!([{ "prefix": prefix, "to": to }]))?;
    let hash = digest(&SHA256, &json);
    let bits = hash.as_ref()[..4].iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1));
    let seal: Vec<u8> = bits.map(|bit| if bit == 0 { b' ' } else { b'\t' }).collect();
    Ok([&json[..], &seal, b"\n"].concat())
}

/// What must be the same in every life of a node.
fn self_of(node: &Node) -> Result<(String, String, Vec<IpNet>)> {
    let status = node.status()?;
    let mut blocks = status.ipam.blocks;
    blocks.sort();
    Ok((status.node.id, status.node.cluster, blocks))
}

/// One life of an agent with spoilt files: true if it served.
fn one_life(node: &mut Node, what: &str, names: &[&str], pods: &mut Vec<Pod>) -> Result<bool> {
    std::fs::write(&node.spec().log, "")?;
    node.start()?;
    let mut ready = false;
    wait_until(&format!("a word of the agent: {what}"), PATIENCE, || {
        ready = node.is_running() && node.agent()?.readiness().is_ok_and(|r| r.ready);
        Ok(ready || !node.is_running())
    })
    .with_context(|| node.log())?;
    if ready {
        let pod = node.add_pod()?;
        let own: Vec<&Pod> = pods.iter().filter(|pod| pod.shim.netns == node.netns()).collect();
        audit::wait_exactly(node, &[&own[..], &[&pod]].concat())?;
        pods.push(pod);
    } else {
        let code = node.wait_exit(Duration::from_secs(1))?;
        let log = node.log();
        ensure!(code.is_some_and(|code| code != 0), "exit {code:?}: {log}");
        ensure!(names.iter().any(|name| log.contains(name)), "the file is not named: {log}");
        let advice = ["restore", "move it", "remove", "rmpeer", "delete"];
        ensure!(advice.iter().any(|word| log.contains(word)), "no advice: {log}");
    }
    ensure!(!node.log().contains("panicked"), "{}", node.log());
    Ok(ready)
}

#[test]
fn every_file_spoilt_in_every_way() -> Result {
    let mut dice = Dice::new("files");
    let mut cluster = Cluster::builder().kubernetes().nodes(2).start()?;
    let mut pods = cluster.add_pods(2)?;
    cluster.wait_one_ledger()?;
    let (run, state) = (cluster.node(1).spec().run_dir(), cluster.node(1).spec().state_dir());
    let kubernetes = state.join("kubernetes.json");
    wait_until("all files", PATIENCE, || {
        Ok(kubernetes.exists() && state.join("peers.json").exists())
    })?;
    let before = self_of(cluster.node(1))?;
    let told_to = promise(cluster.node(1), cluster.node(2))?;
    let promises = state.join("promises.json");

    let together = ["session", "peers.json", "kubernetes.json", "policy.json"];
    let together = together.iter().map(|name| state.join(name)).filter(|path| path.exists());
    // Together those without which an agent can do, then one by one those it needs.
    let sets: [(Vec<PathBuf>, bool); 4] = [
        (together.chain([run.join("leases.json")]).collect(), true),
        (vec![promises.clone()], false),
        (vec![state.join("identity.key")], false),
        (vec![state.join("consensus.redb")], false),
    ];
    for (files, serves) in &sets {
        let mut names: Vec<&str> = Vec::new();
        for file in files {
            names.push(file.file_name().and_then(|name| name.to_str()).context("a name")?);
        }
        let (mut served, mut refused) = (0, 0);
        let mut slowest = Duration::ZERO;
        for spoil in SPOILS {
            // What counted as lost is written anew.
            wait_until(&format!("{names:?} to be there"), PATIENCE, || {
                let there = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|m| m.len() > 0);
                Ok(names == ["promises.json"] || files.iter().all(there))
            })?;
            let node = cluster.node_mut(1);
            node.kill9()?;
            if names == ["promises.json"] {
                std::fs::write(&promises, &told_to)?;
            }
            let mut whole = Vec::new();
            for file in files {
                let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
                std::fs::write(file, spoil.of(&bytes, &mut dice))?;
                whole.push((file.clone(), bytes));
            }
            let what = format!("{names:?} spoilt: {spoil:?}");
            let start = Instant::now();
            let ready = one_life(node, &what, &names, &mut pods).context(what.clone())?;
            if ready {
                served += 1;
                slowest = slowest.max(start.elapsed());
            } else {
                refused += 1;
                ensure!(!serves, "{what}: it refuses to start");
                for (file, bytes) in &whole {
                    std::fs::write(file, bytes)?;
                }
                node.restart()?;
            }
            ensure!(self_of(cluster.node(1))?.0 == before.0, "{what}: another identity");
            ensure!(self_of(cluster.node(1))?.1 == before.1, "{what}: another cluster");
            cluster.assert_unique(&pods)?;
        }
        cluster.wait_one_ledger()?;
        audit_all(&cluster, &pods)?;
        told(
            &format!("{} empty, cut, one bit flipped, random", names.join(", ")),
            &format!("{served} times served as before, {refused} times refused by name"),
            &match refused {
                0 => format!("by itself, at most {}", took(slowest)),
                _ => "at once with the file restored".to_owned(),
            },
        );
    }
    // The promise was kept all the same: the other node has the addresses.
    wait_reachable(&cluster, &pods).map(drop)
}

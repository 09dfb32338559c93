//! The harness itself: what every other test stands on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_agent::lab::netns::{self, Netns};
use weft_agent::lab::probe;
use weft_agent::lab::topology::prefix;
use weft_tests::podman::Podman;
use weft_tests::reference::Reference;
use weft_tests::{Cluster, Result};

fn reaches(from: &Netns, to: std::net::IpAddr) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(1);
    Ok(probe::round_trip(from, to, deadline, &|| false)?.is_some())
}

#[test]
fn nodes_reach_each_other_until_cut_and_nothing_stays() -> Result {
    let cluster = Cluster::builder().nodes(2).stopped().start()?;
    let (one, two) = (cluster.node(1), cluster.node(2));
    ensure!(reaches(&one.netns(), two.plan.address)?, "the underlay works");
    two.cut()?;
    ensure!(!reaches(&one.netns(), two.plan.address)?, "a cut node is cut off");
    two.heal()?;
    ensure!(reaches(&one.netns(), two.plan.address)?, "a healed node is back");

    let (names, directory) = (prefix(&cluster.plan.name), cluster.directory().clone());
    // A process inside must not outlive the lab.
    let mut child =
        one.netns().run(|| std::process::Command::new("sleep").arg("600").spawn())??;
    drop(cluster);
    ensure!(child.try_wait()?.is_some(), "the process inside was ended");
    ensure!(netns::list(&names).is_empty(), "no namespace is left");
    ensure!(!directory.exists(), "no file is left");
    Ok(())
}

#[test]
fn the_reference_plugin_can_be_measured() -> Result {
    let cluster = Cluster::builder().nodes(1).stopped().start()?;
    let node = cluster.node(1);
    let reference = Reference::new(node.netns(), cluster.directory())?;
    let sandbox = Netns::named(node.sandbox()?.netns);
    for _ in 0..2 {
        let add = reference.call("ADD", &sandbox)?;
        let del = reference.call("DEL", &sandbox)?;
        println!("bridge + host-local: ADD {add:?}, DEL {del:?}");
    }
    Ok(())
}

/// If this fails, no podman test can tell anything about weft.
#[test]
fn podman_works_with_the_reference_plugin() -> Result {
    let cluster = Cluster::builder().nodes(1).stopped().start()?;
    let directory = cluster.directory().join("podman-reference");
    let conf = directory.join("net.d");
    std::fs::create_dir_all(&conf)?;
    let list = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "weft",
        "plugins": [{
            "type": "bridge", "bridge": "ref0", "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("host-local"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]],
            },
        }],
    });
    std::fs::write(conf.join("10-reference.conflist"), list.to_string())?;
    let plugins = [Path::new("/usr/lib/cni").to_path_buf()];
    let podman = Podman::with(cluster.node(1).netns(), &directory, &conf, &plugins)?;
    podman.start("c1", &[], &["sleep", "600"])?;
    let address = podman.address("c1").context("podman reports the plugin's result")?;
    ensure!(podman.exec("c1", &["ip", "addr"])?.contains(&address.to_string()));
    podman.remove("c1")
}

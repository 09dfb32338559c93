//! `agent cleanup`: everything of ours goes from this machine, and from its Node.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_proto::names;

use super::cni;
use crate::cli::Cleaned;
use crate::config::Config;
use crate::dataplane;
use crate::files;
use crate::kube::{Kube, cache, node};

const NOTES: [&str; 3] = [node::CLUSTER, node::NODE_ID, node::UNDERLAY];
/// How long the API server may take.
const ASK: Duration = Duration::from_secs(15);
const REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

/// Removes everything of ours from this machine's kernel and host directories, and the
/// annotations from its Node where that can be reached. What stays is said, with the command
/// that ends it.
pub fn cleanup(config: &Config) -> Result<Cleaned> {
    if std::net::TcpStream::connect_timeout(&config.http_addr, Duration::from_millis(300)).is_ok() {
        bail!(
            "an agent still answers at {}; it would put everything back: stop it first",
            config.http_addr
        );
    }
    let mut cleaned = Cleaned { removed: cni::uninstall(config), left: Vec::new() };
    let there = [names::BRIDGE, names::VXLAN]
        .iter()
        .any(|device| Path::new("/sys/class/net").join(device).exists());
    let mut errors = Vec::new();
    match crate::policy::engine::remove() {
        Ok(true) => cleaned.removed.push("nftables table of network policy".to_owned()),
        Ok(false) => {}
        Err(error) => errors.push(error.to_string()),
    }
    if let Err(more) = dataplane::cleanup() {
        errors.extend(more.iter().map(ToString::to_string));
    }
    if !errors.is_empty() {
        bail!("not everything could be removed from the kernel: {}", errors.join("; "));
    }
    if there {
        cleaned
            .removed
            .push("bridge, VXLAN device, routes, pod interfaces and nftables tables".to_owned());
        if std::fs::read_to_string(REDIRECTS).is_ok_and(|now| now.trim() == "0") {
            // What it was before, nobody has written down.
            cleaned.left.push(
                "net.ipv4.conf.all.send_redirects is 0, as weft set it, until the next reboot; \
                 where it is to be 1 before: sysctl -w net.ipv4.conf.all.send_redirects=1"
                    .to_owned(),
            );
        }
    }
    let known = config.state_dir.join(cache::FILE).exists();
    for dir in [&config.run_dir, &config.state_dir] {
        if dir.join("identity.key").exists() || dir.join(names::TOKEN_FILE).exists() {
            files::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            cleaned.removed.push(dir.display().to_string());
        }
    }
    match remove_notes(config) {
        Ok(Some(removed)) => cleaned.removed.push(removed),
        Ok(None) => {}
        // Where the agent never was in Kubernetes, there are none.
        Err(_) if !known => {}
        Err(why) => cleaned.left.push(format!(
            "annotations of Node {name} ({why}): kubectl annotate node {name} {}",
            NOTES.map(|note| format!("{note}-")).join(" "),
            name = config.node_name,
        )),
    }
    Ok(cleaned)
}

/// Takes our annotations off the Node; what was removed, or why that cannot be said.
fn remove_notes(config: &Config) -> Result<Option<String>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| text(&e))?;
    let work = async {
        let kube = Kube::find(config)
            .map_err(|e| text(&e))?
            .ok_or("there is no way to the API server here")?;
        let Some(node) = kube.own_node().await.map_err(|e| text(&e))? else { return Ok(None) };
        let have = node.metadata.annotations.unwrap_or_default();
        let ours: Vec<_> = NOTES.iter().filter(|note| have.contains_key(**note)).collect();
        if ours.is_empty() {
            return Ok(None);
        }
        let mut gone = json!({});
        for note in &ours {
            gone[**note] = serde_json::Value::Null;
        }
        let patch = json!({ "metadata": { "annotations": gone } });
        kube.patch_own_node(&patch).await.map_err(|e| text(&e))?;
        Ok(Some(format!("{} annotations of Node {}", ours.len(), config.node_name)))
    };
    runtime.block_on(async {
        let late = || format!("no answer in {} s", ASK.as_secs());
        tokio::time::timeout(ASK, work).await.unwrap_or_else(|_| Err(late()))
    })
}

//! The reference plugins, to see that a cluster works before weft is judged in it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::KubeCluster;
use super::kubectl::write_json;

const PLUGINS: &str = "/usr/lib/cni";

/// Installs `bridge`, `host-local` and `portmap` on every node: 10.99.N.0/24 on
/// node N, routed over the nodes.
pub fn install(cluster: &KubeCluster) -> Result<()> {
    for node in cluster.nodes() {
        for name in ["bridge", "host-local", "portmap"] {
            fs::copy(Path::new(PLUGINS).join(name), node.file("opt/cni/bin").join(name))
                .with_context(|| {
                    format!("no {PLUGINS}/{name}: install containernetworking-plugins")
                })?;
        }
        for other in cluster.nodes() {
            if other.number() != node.number() {
                node.netns().ip(&format!(
                    "route replace 10.99.{}.0/24 via {}\n",
                    other.number(),
                    other.ipv4()
                ))?;
            }
        }
        let conf = json!({
            "cniVersion": "0.4.0",
            "name": "reference",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": format!("10.99.{}.0/24", node.number())}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        write_json(&node.file("etc/cni/net.d/10-reference.conflist"), &conf)?;
    }
    Ok(())
}

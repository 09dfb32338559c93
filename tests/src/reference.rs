//! The reference plugins `bridge` and `host-local`, to be measured against.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Call, IFNAME, Shim};

const DIRECTORY: &str = "/usr/lib/cni";

/// `bridge` with `host-local` in one node's namespace.
#[derive(Debug, Clone)]
pub struct Reference {
    plugin: Shim,
    conf: Value,
}

impl Reference {
    /// Its address files go below `directory`.
    pub fn new(netns: Netns, directory: &Path) -> Result<Self> {
        let exe = PathBuf::from(DIRECTORY).join("bridge");
        ensure!(
            exe.is_file() && exe.with_file_name("host-local").is_file(),
            "{DIRECTORY} has no bridge and host-local: install containernetworking-plugins"
        );
        let conf = json!({
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "bridge",
            "bridge": "ref0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("host-local"),
                "ranges": [[{"subnet": "10.99.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        let plugin = Shim {
            exe,
            netns,
            run_dir: directory.to_path_buf(),
            agent: ([127, 0, 0, 1], 1).into(),
        };
        Ok(Self { plugin, conf })
    }

    /// One call; how long it took.
    pub fn call(&self, verb: &str, sandbox: &Netns) -> Result<Duration> {
        let answer = self.plugin.call(&Call {
            verb,
            container_id: sandbox.name(),
            ifname: IFNAME,
            netns: Some(sandbox.path()),
            args: "",
            conf: self.conf.clone(),
        })?;
        Ok(answer.ok(&format!("{verb} by the reference plugin"))?.took)
    }
}

//! The reference plugins `bridge`, `host-local` and `portmap`, to be measured against.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Answer, Call, IFNAME, Shim};

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
        for plugin in ["bridge", "host-local", "portmap"] {
            ensure!(
                exe.with_file_name(plugin).is_file(),
                "{DIRECTORY} has no {plugin}: install containernetworking-plugins"
            );
        }
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
        Ok(execute(&self.plugin, verb, sandbox, self.conf.clone())?.took)
    }
}

fn execute(plugin: &Shim, verb: &str, sandbox: &Netns, conf: Value) -> Result<Answer> {
    let answer = plugin.call(&Call {
        verb,
        container_id: sandbox.name(),
        ifname: IFNAME,
        netns: Some(sandbox.path()),
        args: "",
        conf,
    })?;
    answer.ok(&format!("{verb} by the reference plugin {}", plugin.exe.display()))
}

/// `bridge` with masquerading, then `portmap`: the usual chain for host ports.
#[derive(Debug, Clone)]
pub struct PortChain {
    bridge: Reference,
    portmap: Shim,
}

impl PortChain {
    /// Its address files go below `directory`.
    pub fn new(netns: Netns, directory: &Path) -> Result<Self> {
        let mut bridge = Reference::new(netns, directory)?;
        bridge.conf["name"] = json!("reference-ports");
        bridge.conf["bridge"] = json!("ref1");
        bridge.conf["ipMasq"] = json!(true);
        bridge.conf["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/16"}]]);
        let exe = bridge.plugin.exe.with_file_name("portmap");
        let portmap = Shim { exe, ..bridge.plugin.clone() };
        Ok(Self { bridge, portmap })
    }

    fn ports(&self, host_port: u16, before: &Value) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "reference-ports",
            "type": "portmap",
            "capabilities": {"portMappings": true},
            "runtimeConfig": { "portMappings": port_mappings(host_port) },
            "prevResult": before,
        })
    }

    /// Both plugins; how long they took together, and what there is to tell `del`.
    pub fn add(&self, sandbox: &Netns, host_port: u16) -> Result<(Duration, Value)> {
        let first = execute(&self.bridge.plugin, "ADD", sandbox, self.bridge.conf.clone())?;
        let conf = self.ports(host_port, &first.json);
        let then = execute(&self.portmap, "ADD", sandbox, conf)?;
        Ok((first.took + then.took, then.json))
    }

    /// Both in reverse.
    pub fn del(&self, sandbox: &Netns, host_port: u16, result: &Value) -> Result<Duration> {
        let conf = self.ports(host_port, result);
        let first = execute(&self.portmap, "DEL", sandbox, conf)?;
        let mut conf = self.bridge.conf.clone();
        conf["prevResult"] = result.clone();
        Ok(first.took + execute(&self.bridge.plugin, "DEL", sandbox, conf)?.took)
    }
}

/// One host port, led to port 80.
pub fn port_mappings(host_port: u16) -> Value {
    json!([{"hostPort": host_port, "containerPort": 80, "protocol": "tcp"}])
}

//! Who is measured: weft, with and without host ports, and the reference plugins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Call, IFNAME, Shim};
use weft_tests::reference::{PortChain, Reference, port_mappings};

/// A pod without a network; its number is nobody else's.
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) number: u16,
}

/// One way to attach.
pub(crate) trait Plugin: Sync {
    /// How long it took, from the start of the process to its end.
    fn add(&self, sandbox: &Sandbox) -> Result<Duration>;
    fn del(&self, sandbox: &Sandbox) -> Result<Duration>;
}

impl Plugin for Reference {
    fn add(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.call("ADD", &sandbox.netns)
    }

    fn del(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.call("DEL", &sandbox.netns)
    }
}

/// The plugin of a node.
pub(crate) struct Weft {
    pub(crate) shim: Shim,
    /// Every pod gets a host port.
    pub(crate) ports: bool,
}

fn host_port(sandbox: &Sandbox) -> u16 {
    20_000 + sandbox.number
}

impl Weft {
    fn call(&self, verb: &str, sandbox: &Sandbox) -> Result<Duration> {
        let mut conf = self.shim.conf("1.0.0");
        if self.ports {
            conf["runtimeConfig"] = json!({ "portMappings": port_mappings(host_port(sandbox)) });
        }
        let name = sandbox.netns.name();
        let answer = self.shim.call(&Call {
            verb,
            container_id: name,
            ifname: IFNAME,
            netns: Some(sandbox.netns.path()),
            args: &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name}"),
            conf,
        })?;
        Ok(answer.ok(&format!("{verb} of {name}"))?.took)
    }
}

impl Plugin for Weft {
    fn add(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.call("ADD", sandbox)
    }

    fn del(&self, sandbox: &Sandbox) -> Result<Duration> {
        self.call("DEL", sandbox)
    }
}

/// The reference chain for host ports, with what it wants to be told at DEL.
pub(crate) struct Ports {
    chain: PortChain,
    results: Mutex<BTreeMap<u16, Value>>,
}

impl Ports {
    pub(crate) fn new(netns: Netns, directory: &Path) -> Result<Self> {
        Ok(Self { chain: PortChain::new(netns, directory)?, results: Mutex::default() })
    }
}

impl Plugin for Ports {
    fn add(&self, sandbox: &Sandbox) -> Result<Duration> {
        let (took, result) = self.chain.add(&sandbox.netns, host_port(sandbox))?;
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(sandbox.number, result);
        Ok(took)
    }

    fn del(&self, sandbox: &Sandbox) -> Result<Duration> {
        let result = {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.remove(&sandbox.number).unwrap_or_default()
        };
        self.chain.del(&sandbox.netns, host_port(sandbox), &result)
    }
}

//! Pods of a lab: attached as a container runtime would, by executing the shim.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::netns::Netns;
use super::topology::PodPlan;

/// Interface of a pod.
pub const IFNAME: &str = "eth0";

/// The shim of one node, and what its configuration says.
#[derive(Debug, Clone)]
pub struct Shim {
    /// The binary.
    pub exe: PathBuf,
    /// The node.
    pub netns: Netns,
    /// `runDir`.
    pub run_dir: PathBuf,
    /// `agentAddr`.
    pub agent: SocketAddr,
}

/// One call of the shim.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// `CNI_COMMAND`.
    pub verb: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_NETNS`.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// Standard input.
    pub conf: Value,
}

/// How a call went.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit code, `None` if killed by a signal.
    pub exit: Option<i32>,
    /// Standard output as JSON, `Null` if empty.
    pub json: Value,
    /// Standard error.
    pub stderr: String,
    /// Fork to end.
    pub took: Duration,
}

impl Answer {
    /// The CNI error code, if it failed with one.
    pub fn code(&self) -> Option<u64> {
        self.json.get("code").and_then(Value::as_u64)
    }

    /// The error's sentences.
    pub fn message(&self) -> String {
        let field = |name| self.json.get(name).and_then(Value::as_str).unwrap_or_default();
        format!("{} {} {}", field("msg"), field("details"), self.stderr.trim()).trim().to_owned()
    }

    /// Addresses of a result.
    pub fn addresses(&self) -> Vec<IpNet> {
        let ips = self.json.get("ips").and_then(Value::as_array);
        ips.into_iter()
            .flatten()
            .filter_map(|ip| ip.get("address")?.as_str()?.parse().ok())
            .collect()
    }

    /// An error unless it succeeded.
    pub fn ok(self, what: &str) -> Result<Self> {
        if self.exit == Some(0) {
            return Ok(self);
        }
        let code = self.code().map_or_else(String::new, |code| format!(" code {code}"));
        bail!("{what} failed{code}: {}", self.message());
    }
}

impl Shim {
    /// A network configuration for it.
    pub fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "weft",
            "type": "weft",
            "runDir": self.run_dir,
            "agentAddr": self.agent.to_string(),
        })
    }

    /// Executes it inside the node.
    pub fn call(&self, call: &Call<'_>) -> Result<Answer> {
        let mut command = Command::new(&self.exe);
        command
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", call.container_id)
            .env("CNI_IFNAME", call.ifname)
            .env("CNI_ARGS", call.args)
            .env("CNI_PATH", self.exe.parent().unwrap_or(&self.exe))
            .env("CNI_NETNS", call.netns.clone().unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let conf = call.conf.to_string();
        let (took, output) = self
            .netns
            .run(|| {
                let start = Instant::now();
                let mut child = command.spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // One that does not read its input says why on its output.
                    let _ = stdin.write_all(conf.as_bytes());
                }
                let output = child.wait_with_output()?;
                Ok::<_, std::io::Error>((start.elapsed(), output))
            })?
            .with_context(|| {
                format!("cannot run {}: build it first, or give --shim", self.exe.display())
            })?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let json = match stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| {
                format!("{} {} did not print JSON: {text}", call.verb, call.container_id)
            })?,
        };
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Answer { exit: output.status.code(), json, stderr, took })
    }

    /// A call about a pod's first interface.
    pub fn pod(&self, verb: &str, pod: &PodPlan) -> Result<Answer> {
        self.call(&Call {
            verb,
            container_id: &pod.container_id,
            ifname: IFNAME,
            netns: Some(Netns::named(&pod.netns).path()),
            args: &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={}", pod.name),
            conf: self.conf("1.0.0"),
        })
    }

    /// ADD; the pod's first address and how long it took.
    pub fn attach(&self, pod: &PodPlan) -> Result<(IpAddr, Duration)> {
        let what = format!("ADD of pod {}", pod.name);
        let answer = self.pod("ADD", pod)?.ok(&what)?;
        let address = answer.addresses().first().map(IpNet::addr);
        let address = address.with_context(|| format!("{what}: no address in {}", answer.json))?;
        Ok((address, answer.took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_errors_are_read() {
        let answer = |exit, json| Answer {
            exit: Some(exit),
            json,
            stderr: String::new(),
            took: Duration::ZERO,
        };
        let good = answer(0, json!({"ips": [{"address": "10.32.0.2/32"}, {"address": "x"}]}));
        assert_eq!(good.addresses(), ["10.32.0.2/32".parse::<IpNet>().unwrap()]);
        let bad = answer(1, json!({"code": 11, "msg": "no address is free", "details": "in x"}));
        assert_eq!(bad.code(), Some(11));
        let text = bad.ok("ADD").unwrap_err().to_string();
        assert_eq!(text, "ADD failed code 11: no address is free in x");
    }
}

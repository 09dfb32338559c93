//! The API, through kubectl of the same version.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;

/// Longest any one request may take.
const REQUEST: &str = "--request-timeout=20s";
/// Between two looks: each one is a process.
const PAUSE: Duration = Duration::from_millis(200);

/// kubectl with one identity.
#[derive(Debug, Clone)]
pub struct Kubectl {
    exe: PathBuf,
    kubeconfig: PathBuf,
    netns: Option<Netns>,
}

/// A kubeconfig for a token; JSON is YAML.
pub fn kubeconfig(url: &str, certificate: &Path, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": url,
            "certificate-authority": certificate,
        }}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    })
}

impl Kubectl {
    /// `kubeconfig` is a file; `netns` is where the server can be reached.
    pub fn new(exe: PathBuf, kubeconfig: PathBuf, netns: Option<Netns>) -> Self {
        Self { exe, kubeconfig, netns }
    }

    /// The command that would run, for a person to try by hand.
    pub fn command_line(&self) -> String {
        let inside = self
            .netns
            .as_ref()
            .map_or_else(String::new, |netns| format!("ip netns exec {} ", netns.name()));
        format!("{inside}{} --kubeconfig {}", self.exe.display(), self.kubeconfig.display())
    }

    /// Any command, whatever it returns.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.start(arguments, None)
    }

    fn start(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<Output> {
        let mut command = match &self.netns {
            None => Command::new(&self.exe),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.path().display())).arg(&self.exe);
                command
            }
        };
        let cache = self.kubeconfig.with_file_name("kubectl-cache");
        let mut child = command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(cache)
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.exe.display()))?;
        if let Some(input) = input
            && let Some(mut stdin) = child.stdin.take()
        {
            // One that ends without reading says why itself.
            let _ = stdin.write_all(input);
        }
        Ok(child.wait_with_output()?)
    }

    fn done(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<String> {
        let output = self.start(arguments, input)?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Any command; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.done(&[&[REQUEST], arguments].concat(), None)
    }

    /// Any command without a bound in time, as `exec` and `logs -f` need.
    pub fn run_long(&self, arguments: &[&str]) -> Result<String> {
        self.done(arguments, None)
    }

    /// `get ... -o json`. `what` may hold several words.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], what].concat())?;
        serde_json::from_str(&text).with_context(|| format!("get {} is no JSON", what.join(" ")))
    }

    /// The items of a list.
    pub fn items(&self, what: &[&str]) -> Result<Vec<Value>> {
        match self.get(what)?.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => bail!("get {} is no list", what.join(" ")),
        }
    }

    /// `apply -f -`: objects as JSON, or a manifest as text.
    pub fn apply(&self, objects: &[Value]) -> Result<String> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.apply_text(&list.to_string())
    }

    /// `apply -f -` of a whole manifest.
    pub fn apply_text(&self, manifest: &str) -> Result<String> {
        self.done(&[REQUEST, "apply", "-f", "-"], Some(manifest.as_bytes()))
    }

    /// `delete`, not waiting until it is done; what is not there is no error.
    pub fn delete(&self, what: &[&str]) -> Result<()> {
        self.run(&[&["delete", "--ignore-not-found", "--wait=false"], what].concat()).map(drop)
    }

    /// `POST` of an object to a path.
    pub fn post(&self, path: &str, object: &Value) -> Result<Value> {
        let input = object.to_string();
        let text =
            self.done(&[REQUEST, "create", "--raw", path, "-f", "-"], Some(input.as_bytes()));
        Ok(serde_json::from_str(&text?)?)
    }

    /// A token of a service account, as a pod would hold one.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86_400},
        });
        let answer = self.post(&path, &request)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        Ok(token.with_context(|| format!("no token in {answer}"))?.to_owned())
    }

    /// Waits until `condition` holds; how long that took. For what takes
    /// requests to look at.
    pub fn wait(
        &self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let start = Instant::now();
        crate::wait_until(what, patience, || {
            let looked = condition();
            if !matches!(looked, Ok(true)) {
                std::thread::sleep(PAUSE);
            }
            looked
        })?;
        Ok(start.elapsed())
    }
}

/// Writes a JSON file.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, serde_json::to_vec_pretty(value)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Text at a JSON pointer, or nothing.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Items at a JSON pointer, or none.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

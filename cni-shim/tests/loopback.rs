//! The same program under the name `loopback`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// A namespace and a directory, both removed on drop.
struct Pod {
    name: String,
    directory: PathBuf,
}

impl Pod {
    fn new() -> Self {
        let name = format!("wlo{}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&directory).unwrap();
        symlink(env!("CARGO_BIN_EXE_weft"), directory.join("loopback")).unwrap();
        let pod = Self { name, directory };
        pod.ip(&["netns", "add", &pod.name]);
        pod
    }

    fn ip(&self, arguments: &[&str]) -> String {
        let output = Command::new("ip").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// As containerd calls it.
    fn call(&self, verb: &str, netns: &str) -> Output {
        let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
        let mut child = Command::new(Path::new(&self.directory).join("loopback"))
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "lo")])
            .envs([("CNI_NETNS", netns), ("CNI_PATH", "/opt/cni/bin")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn lo_comes_up_without_an_agent() {
    let pod = Pod::new();
    let netns = format!("/run/netns/{}", pod.name);
    let before = pod.call("CHECK", &netns);
    assert!(!before.status.success(), "lo is down at first");
    let added = pod.call("ADD", &netns);
    let result: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert!(added.status.success(), "{result}");
    assert_eq!(result["cniVersion"], "0.3.1");
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["interfaces"][0]["sandbox"], netns.as_str());
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert!(pod.ip(&["-n", &pod.name, "-o", "link", "show", "lo"]).contains(",UP"));
    assert!(pod.call("CHECK", &netns).status.success());
    // A namespace that is gone is as good as one that was left.
    assert!(pod.call("DEL", "").status.success());
    assert!(!pod.call("ADD", "/run/netns/nowhere").status.success());
}

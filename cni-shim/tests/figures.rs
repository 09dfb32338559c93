//! How long a call takes. Prints, judges nothing:
//! `WEFT_BIN=target/…/release/weft cargo test -p weft-cni-shim --test figures -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use rig::Node;
use serde_json::json;

fn spread(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("{what:28} p50 {:>9.3?}  p90 {:>9.3?}  p99 {:>9.3?}", at(50), at(90), at(99));
}

fn timed(program: &str, env: &[(&str, &str)], input: &str) -> Duration {
    let start = Instant::now();
    let mut child = Command::new(program)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let time = start.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    time
}

#[test]
#[ignore = "prints figures, for a quiet machine and a release binary"]
fn figures() {
    let mut node = Node::new();
    let pods: Vec<_> = (0..100).map(|_| node.pod()).collect();
    let file = std::fs::File::open(format!("/run/netns/{}", node.namespace)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    let weft = std::env::var("WEFT_BIN").unwrap_or(env!("CARGO_BIN_EXE_weft").to_owned());
    let conf = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft",
                      "runDir": node.run_dir.to_str().unwrap()})
    .to_string();
    let calls = |env: &[(&str, &str)], program: &str| {
        (0..300).map(|_| timed(program, env, &conf)).collect::<Vec<_>>()
    };
    spread("/bin/true", calls(&[], "/bin/true"));
    spread("VERSION", calls(&[("CNI_COMMAND", "VERSION")], &weft));
    spread("STATUS (one HTTP exchange)", calls(&[("CNI_COMMAND", "STATUS")], &weft));
    let mut times = Vec::new();
    for pod in &pods {
        let netns = format!("/run/netns/{pod}");
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", pod.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &netns),
        ];
        times.push(timed(&weft, &env, &conf));
    }
    spread("ADD", times);
    let mut times = Vec::new();
    for pod in &pods {
        let env =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", pod.as_str()), ("CNI_IFNAME", "eth0")];
        times.push(timed(&weft, &env, &conf));
    }
    spread("DEL (agent's work not in it)", times);
}

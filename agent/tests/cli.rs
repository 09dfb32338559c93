//! The real binary: exit codes and closed pipes.

use std::process::{Command, Stdio};

fn agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(args).env_clear().env("HTTP_ADDR", "127.0.0.1:1");
    command
}

#[test]
fn a_wrong_configuration_ends_with_64_and_one_sentence_each() {
    let out = agent(&["--mtu", "x"]).env("WEAVE_CONN_LIMIT", "y").output().unwrap();
    assert_eq!(out.status.code(), Some(64));
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("--mtu=`x`") && text.contains("WEAVE_CONN_LIMIT=`y`"), "{text}");
    assert!(out.stdout.is_empty());
    assert_eq!(agent(&["nonsense"]).output().unwrap().status.code(), Some(64));
}

#[test]
fn status_without_an_agent_is_broken_and_says_what_to_do() {
    let out = agent(&["status"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.starts_with("BROKEN") && text.contains("is it running"), "{text}");
    let out = agent(&["status", "-o", "json"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["health"], "broken");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for args in [&["config"][..], &["version"], &["--help"], &["config", "-o", "json"]] {
        let mut child = agent(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{args:?}");
        assert_eq!(out.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn watching_ends_when_nobody_reads() {
    let mut child = agent(&["status", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

//! The plugin's way to the agent, and what it makes of odd standard streams.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rig::Node;
use serde_json::json;
use weft_proto::names::SOCKET_FILE;

/// One request on the socket file is answered: ready.
fn answer_once(listener: &UnixListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
    }
    let body = json!({"ready": true, "connectivity": true}).to_string();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Connections that nobody accepts, until the queue is full.
fn fill(path: &Path) -> Vec<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let address = UnixAddr::new(path).unwrap();
    let mut queue = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK;
        let one = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(one.as_raw_fd(), &address) {
            Ok(()) => queue.push(UnixStream::from(one)),
            Err(error) => {
                assert_eq!(std::io::Error::from(error).kind(), ErrorKind::WouldBlock);
                return queue;
            }
        }
    }
}

#[test]
fn the_socket_file_is_asked_first_and_tcp_when_nobody_is_there() {
    let node = Node::new();
    // Over TCP the agent says that it is not ready: so it is seen who has answered.
    node.state().ready = Some(json!({"ready": false, "connectivity": true, "reasons": ["TCP"]}));
    node.call("STATUS").fails(50);
    let path = node.run_dir.join(SOCKET_FILE);
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        let asked = scope.spawn(|| answer_once(&listener));
        node.call("STATUS").ok();
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("GET /v1/ready HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Host: 127.0.0.1:6784\r\n"), "{asked}");
    });
    let queue = fill(&path);
    assert!(!queue.is_empty());
    node.call("STATUS").fails(50);
    drop((listener, queue));
    // The file of an agent that is gone.
    assert!(path.exists());
    node.call("STATUS").fails(50);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "no socket").unwrap();
    node.call("STATUS").fails(50);
}

#[test]
fn nobody_reading_is_an_error_and_no_signal() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(br#"{"cniVersion": "1.1.0"}"#).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn closed_streams_are_no_places_for_files() {
    let weft = env!("CARGO_BIN_EXE_weft");
    let run = |streams: &str| {
        let script = format!("exec {weft} {streams}");
        Command::new("sh").args(["-c", &script]).env("CNI_COMMAND", "VERSION").output().unwrap()
    };
    // An empty input, as if it had been /dev/null.
    let output = run("<&-");
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("supportedVersions"));
    assert!(run(">&- <&- 2>&-").status.success());
}

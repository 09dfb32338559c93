//! A node and its pods as namespaces, a small stand-in for the agent, and the
//! real plugin driven as a runtime drives it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its part of the rig; a broken rig is a failed test"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use weft_proto::names::{bridge_mac, format_mac, host_ifname, pod_mac};

pub(crate) const TOKEN: &str = "5ca1ab1e";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs a command that must succeed; its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What the stand-in holds and how it misbehaves.
#[derive(Default)]
pub(crate) struct AgentState {
    pub leases: BTreeMap<String, (Vec<IpAddr>, Value)>,
    pub requests: Vec<(String, String, Value)>,
    pub headers: String,
    /// Answer everything with this.
    pub refuse: Option<(u16, Value)>,
    /// Put into every attachment.
    pub override_with: Vec<(String, Value)>,
    pub ready: Option<Value>,
    pub dual_stack: bool,
    pub hang: bool,
    next: u8,
}

pub(crate) struct FakeAgent {
    pub state: Arc<Mutex<AgentState>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    fn start(namespace: &str, state: Arc<Mutex<AgentState>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, namespace) = (state.clone(), stop.clone(), namespace.to_owned());
        let (bound, is_bound) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind("127.0.0.1:6784").unwrap();
            listener.set_nonblocking(true).unwrap();
            bound.send(()).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => serve(&stream, &shared, &stopped),
                    Err(_) => thread::sleep(Duration::from_micros(200)),
                }
            }
        });
        is_bound.recv().unwrap();
        Self { state, stop, thread: Some(thread) }
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(mut stream: &TcpStream, state: &Mutex<AgentState>, stopped: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let (head, body) = loop {
        let read = stream.read(&mut chunk).unwrap_or(0);
        if read == 0 {
            return;
        }
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length: usize = head
                .lines()
                .find_map(|l| l.strip_prefix("Content-Length: "))
                .map_or(0, |l| l.parse().unwrap());
            if body.len() >= length {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let hang = state.lock().unwrap().hang;
    while hang && !stopped.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
    let (status, answer) = answer(&head, &body, &mut state.lock().unwrap());
    let answer = answer.to_string();
    let _ =
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
}

fn answer(head: &str, body: &str, state: &mut AgentState) -> (u16, Value) {
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    state.requests.push((method.to_owned(), path.to_owned(), body.clone()));
    state.headers = head.to_owned();
    if method != "GET" && !head.contains(&format!("x-weft-token: {TOKEN}")) {
        return (403, json!({"error": "forbidden", "message": "no token"}));
    }
    if let Some(refusal) = &state.refuse {
        return refusal.clone();
    }
    let gone = (404, json!({"error": "not_found", "message": "no such attachment"}));
    let key = path.strip_prefix("/v1/attachments/").unwrap_or_default().to_owned();
    match (method, path) {
        ("POST", "/v1/attachments") => (200, attach(&body, state)),
        ("POST", "/v1/gc") => {
            (200, json!({"released": [{"container_id": "old", "ifname": "eth0"}]}))
        }
        ("GET", "/v1/ready") => {
            (200, state.ready.clone().unwrap_or(json!({"ready": true, "connectivity": true})))
        }
        ("GET", _) => match state.leases.get(&key) {
            Some((addresses, _)) => {
                let (id, ifname) = key.split_once('/').unwrap();
                (
                    200,
                    json!({"container_id": id, "ifname": ifname, "addresses": addresses, "since_ms": 1}),
                )
            }
            None => gone,
        },
        ("DELETE", _) => match state.leases.remove(&key) {
            Some(_) => (200, json!({})),
            None => gone,
        },
        _ => (404, json!({"error": "not_found", "message": path})),
    }
}

fn attach(body: &Value, state: &mut AgentState) -> Value {
    let (id, ifname) = (body["container_id"].as_str().unwrap(), body["ifname"].as_str().unwrap());
    let key = format!("{id}/{ifname}");
    let existing = state.leases.contains_key(&key);
    if !existing {
        state.next += 1;
        let mut addresses = vec![IpAddr::from(Ipv4Addr::new(10, 32, 0, state.next))];
        if state.dual_stack {
            addresses.push(format!("fd00:77::{}", state.next).parse().unwrap());
        }
        state.leases.insert(key.clone(), (addresses, body.clone()));
    }
    let addresses = &state.leases[&key].0;
    let mut answer = json!({
        "container_id": id, "ifname": ifname, "host_ifname": host_ifname(id, ifname),
        "mac": format_mac(pod_mac(addresses[0])), "addresses": addresses, "bridge": "weft",
        "gateway_mac": format_mac(bridge_mac("test")), "mtu": 1400,
        "ranges": ["10.32.0.0/12", "fd00:77::/64"], "hairpin": false, "existing": existing,
    });
    for (field, value) in &state.override_with {
        answer[field] = value.clone();
    }
    answer
}

/// A node with the bridge that the agent would have made.
pub(crate) struct Node {
    pub namespace: String,
    pub run_dir: PathBuf,
    pub agent: Option<FakeAgent>,
    pub state: Arc<Mutex<AgentState>>,
    pods: Vec<String>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("shimt{}-{id}", std::process::id());
        sh(&format!("ip netns add {namespace}"));
        let run_dir = std::env::temp_dir().join(&namespace);
        std::fs::create_dir_all(&run_dir).unwrap();
        std::fs::write(run_dir.join("token"), format!("{TOKEN}\n")).unwrap();
        let mut node =
            Self { namespace, run_dir, agent: None, state: Arc::default(), pods: Vec::new() };
        let mac = format_mac(bridge_mac("test"));
        node.sh("ip link set lo up");
        node.sh(&format!("ip link add weft address {mac} mtu 1400 type bridge"));
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        node.sh("ip addr add 10.47.255.254/12 dev weft noprefixroute");
        node.sh("ip addr add fd00:77::fffe/64 dev weft noprefixroute nodad");
        node.sh("ip link set weft up");
        node.start_agent();
        node
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(FakeAgent::start(&self.namespace, self.state.clone()));
    }

    pub(crate) fn stop_agent(&mut self) {
        self.agent = None;
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, AgentState> {
        self.state.lock().unwrap()
    }

    /// A new pod namespace.
    pub(crate) fn pod(&mut self) -> String {
        let name = format!("{}p{}", self.namespace, self.pods.len());
        sh(&format!("ip netns add {name}"));
        self.pods.push(name.clone());
        name
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.namespace))
    }

    pub(crate) fn call<'a>(&'a self, verb: &'a str) -> Call<'a> {
        Call {
            node: self,
            conf: json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft",
                         "runDir": self.run_dir.to_str().unwrap()}),
            env: vec![("CNI_COMMAND", verb.to_owned())],
        }
    }

    pub(crate) fn add(&self, id: &str, pod: &str) -> Call<'_> {
        self.call("ADD").key(id, "eth0").netns(pod)
    }

    pub(crate) fn del(&self, id: &str) -> Call<'_> {
        self.call("DEL").key(id, "eth0")
    }

    /// Everything the plugin may have left on the node.
    pub(crate) fn kernel(&self) -> String {
        let links = self.sh("ip -o link show type veth");
        let routes = self.sh("ip route show proto 117") + &self.sh("ip -6 route show proto 117");
        let neighbours = self.sh("ip neigh show nud permanent dev weft");
        format!("{links}{routes}{neighbours}")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.agent = None;
        for name in self.pods.iter().chain([&self.namespace]) {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// One call of the plugin.
pub(crate) struct Call<'a> {
    node: &'a Node,
    pub conf: Value,
    env: Vec<(&'static str, String)>,
}

impl Call<'_> {
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    pub(crate) fn key(self, id: &str, ifname: &str) -> Self {
        self.env("CNI_CONTAINERID", id).env("CNI_IFNAME", ifname)
    }

    pub(crate) fn netns(self, pod: &str) -> Self {
        self.env("CNI_NETNS", &format!("/run/netns/{pod}"))
    }

    pub(crate) fn conf(mut self, key: &str, value: Value) -> Self {
        self.conf[key] = value;
        self
    }

    pub(crate) fn output(self) -> Output {
        let conf = self.conf.to_string();
        self.output_with(conf.as_bytes())
    }

    pub(crate) fn output_with(self, input: &[u8]) -> Output {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.node.namespace, env!("CARGO_BIN_EXE_weft")])
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .envs(self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The plugin may end without having read it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Must succeed; its result, if any.
    pub(crate) fn ok(self) -> Value {
        let output = self.output();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Must fail with this code; the error object.
    pub(crate) fn fails(self, code: u32) -> Value {
        let version = self.conf["cniVersion"].clone();
        let output = self.output();
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(!output.status.success(), "{error}");
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["cniVersion"], version, "{error}");
        assert!(!error["msg"].as_str().unwrap().is_empty());
        error
    }
}

/// Waits until `done` holds.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

//! Services beside the network: what kube-proxy writes into iptables, with real
//! connections, on nodes whose FORWARD chain accepts and on nodes where it drops.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use weft_agent::lab::netns::Netns;
use weft_tests::{Cluster, Node, Pod, Result, wait_until};

const PATIENCE: Duration = Duration::from_secs(15);
const SERVICE: &str = "10.96.0.10";
const PORT: u16 = 8080;
/// externalTrafficPolicy Cluster and Local.
const CLUSTER_PORT: u16 = 30080;
const LOCAL_PORT: u16 = 30081;
/// A machine that is no node: the underlay's own address.
const OUTSIDE: &str = "172.31.117.1";

/// Answers every connection with the address it comes from.
fn serve(netns: &Netns, port: u16) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(("0.0.0.0", port)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            if let Ok(from) = stream.peer_addr() {
                let _ = write!(stream, "{}", from.ip());
            }
        }
    });
    Ok(())
}

/// Connects from a namespace; whom the server thinks it talks to.
fn seen(from: &Netns, to: SocketAddr) -> Result<IpAddr> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
    let mut stream = stream.with_context(|| format!("{} to {to}", from.name()))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().with_context(|| format!("the server said `{text}`"))
}

/// The first connection may need a moment; what is seen then counts.
fn sees(what: &str, from: &Netns, to: SocketAddr, expected: Option<IpAddr>) -> Result {
    let mut found = None;
    wait_until(what, PATIENCE, || {
        found = Some(seen(from, to)?);
        Ok(true)
    })?;
    println!("{what}: seen as {found:?}");
    ensure!(expected.is_none() || found == expected, "{what}: {found:?}, not {expected:?}");
    Ok(())
}

fn restore(node: &Node, rules: &str) -> Result {
    let mut child = Command::new("ip")
        .args(["netns", "exec", &node.plan.netns, "iptables-nft-restore", "--noflush"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("iptables-nft-restore: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// One service with one endpoint, in the form that kube-proxy gives it in its
/// iptables mode. `here`: the endpoint is on this node.
fn proxy(endpoint: IpAddr, here: bool) -> String {
    let local = if here { "-A KUBE-EXT-L -j KUBE-SEP" } else { "-A KUBE-EXT-L -j RETURN" };
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC - [0:0]
:KUBE-EXT - [0:0]
:KUBE-EXT-L - [0:0]
:KUBE-SEP - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {SERVICE}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {CLUSTER_PORT} -j KUBE-EXT
-A KUBE-NODEPORTS -p tcp -m tcp --dport {LOCAL_PORT} -j KUBE-EXT-L
-A KUBE-EXT -j KUBE-MARK-MASQ
-A KUBE-EXT -j KUBE-SVC
{local}
-A KUBE-SVC ! -s 10.32.0.0/12 -d {SERVICE}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC -j KUBE-SEP
-A KUBE-SEP -s {endpoint}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP -p tcp -m tcp -j DNAT --to-destination {endpoint}:{PORT}
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )
}

struct Scene {
    cluster: Cluster,
    /// Two on the first node, one on the second; the second of them serves.
    pods: Vec<Pod>,
    outside: Netns,
}

impl Scene {
    fn new(cluster: Cluster) -> Result<Self> {
        let outside = Netns::named(&cluster.plan.underlay);
        let pods = cluster.add_pods_on(&[1, 1, 2])?;
        serve(&pods[1].netns(), PORT)?;
        for (number, here) in [(1, true), (2, false)] {
            restore(cluster.node(number), &proxy(pods[1].address(), here))?;
        }
        Ok(Self { cluster, pods, outside })
    }

    fn node(&self, number: usize) -> (Netns, IpAddr) {
        let node = self.cluster.node(number);
        (node.netns(), node.plan.address)
    }

    fn overlay(&self, number: usize) -> Result<IpAddr> {
        let own = self.cluster.node(number).status()?.node.overlay;
        own.first().copied().context("no overlay address")
    }

    /// Every way to the one server.
    fn everybody_is_served(&self) -> Result {
        let service = SocketAddr::new(SERVICE.parse()?, 80);
        let outside: IpAddr = OUTSIDE.parse()?;
        let [near, server, far] = [0, 1, 2].map(|at| &self.pods[at]);
        let ((n1, one), (n2, two)) = (self.node(1), self.node(2));

        // Within the cluster nobody's address changes.
        let own = |pod: &Pod| Some(pod.address());
        sees("pod to ClusterIP, same node", &near.netns(), service, own(near))?;
        sees("pod to ClusterIP, other node", &far.netns(), service, own(far))?;
        sees("pod to itself by ClusterIP", &server.netns(), service, None)?;
        sees("node to ClusterIP, own pod", &n1, service, None)?;
        // kube-proxy masquerades it, and the tunnel's device has no address to give.
        sees("node to ClusterIP, other node's pod", &n2, service, None)?;

        let at = |ip, port| SocketAddr::new(ip, port);
        sees("outside to NodePort", &self.outside, at(one, CLUSTER_PORT), None)?;
        sees("outside to NodePort of the other node", &self.outside, at(two, CLUSTER_PORT), None)?;
        sees("pod to NodePort of the other node", &near.netns(), at(two, CLUSTER_PORT), None)?;
        sees("pod to itself by NodePort", &server.netns(), at(one, CLUSTER_PORT), None)?;
        sees("node to its NodePort", &n1, at(one, CLUSTER_PORT), None)?;

        // What externalTrafficPolicy: Local is for.
        sees("outside to NodePort, Local", &self.outside, at(one, LOCAL_PORT), Some(outside))?;
        sees("node to NodePort, Local", &n2, at(one, LOCAL_PORT), Some(two))?;
        Ok(())
    }

    /// Nodes and pods reach each other directly, each under its own address.
    fn nodes_and_pods(&self) -> Result {
        for number in [1, 2] {
            serve(&self.node(number).0, PORT)?;
        }
        for (number, other) in [(1, 2), (2, 1)] {
            let (netns, address) = self.node(number);
            let own = self.overlay(number)?;
            let to = SocketAddr::new(self.pods[1].address(), PORT);
            sees("node to pod", &netns, to, Some(own))?;
            for (at, pod) in self.pods.iter().enumerate() {
                let to = SocketAddr::new(own, PORT);
                sees("pod to a node's overlay address", &pod.netns(), to, Some(pod.address()))?;
                let to = SocketAddr::new(address, PORT);
                // Through another node it leaves the pod network under its node's address.
                let same = (at < 2) == (number == 1);
                let expected = if same { pod.address() } else { self.node(other).1 };
                sees("pod to a node", &pod.netns(), to, Some(expected))?;
            }
        }
        Ok(())
    }
}

fn drops(node: &Node) -> Result<bool> {
    Ok(node.exec(&["iptables-nft", "-S", "FORWARD"])?.contains("-P FORWARD DROP"))
}

#[test]
fn services_of_kube_proxy() -> Result {
    let cluster = Cluster::builder().nodes(2).node_env(1, "EXPOSE_IP", "10.32.0.77").start()?;
    let scene = Scene::new(cluster)?;
    ensure!(scene.overlay(1)? == "10.32.0.77".parse::<IpAddr>()?, "EXPOSE_IP");
    scene.everybody_is_served()?;
    scene.nodes_and_pods()?;
    for node in scene.cluster.nodes() {
        let bridged = node.exec(&["cat", "/proc/sys/net/bridge/bridge-nf-call-iptables"]);
        // Without the module there is nothing that could call iptables for frames.
        ensure!(bridged.is_err() || bridged.is_ok_and(|text| text.trim() == "0"));
    }
    Ok(())
}

#[test]
fn a_forward_chain_that_drops_lets_pods_through() -> Result {
    let mut cluster = Cluster::builder().nodes(2).stopped().start()?;
    for node in cluster.nodes() {
        node.exec(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    }
    for number in [1, 2] {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    let scene = Scene::new(cluster)?;
    scene.everybody_is_served()?;
    scene.nodes_and_pods()?;
    for node in scene.cluster.nodes() {
        ensure!(drops(node)?, "the policy is not ours to change");
        let told: Vec<_> = node.status()?.conditions.into_iter().map(|c| c.reason).collect();
        ensure!(!told.contains(&"ForwardDrop".to_owned()), "{told:?}");
        // A rule of somebody who flushes is not the last word, either.
        node.exec(&["iptables-nft", "-F", "FORWARD"])?;
    }
    let (from, to) = (&scene.pods[0], scene.pods[2].address());
    from.wait_ping(to, PATIENCE)?;
    Ok(())
}

#[test]
fn told_to_keep_off_it_names_what_drops() -> Result {
    let mut cluster = Cluster::builder().nodes(2).env("FORWARD_ACCEPT", "off").stopped().start()?;
    cluster.node(1).exec(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    for number in [1, 2] {
        cluster.node_mut(number).start()?;
    }
    cluster.wait_ready()?;
    let node = cluster.node(1);
    let mut hint = String::new();
    wait_until("the condition", PATIENCE, || {
        let found = node.status()?.conditions.into_iter().find(|c| c.reason == "ForwardDrop");
        hint = found.map(|c| c.hint).unwrap_or_default();
        Ok(!hint.is_empty())
    })?;
    let rules = node.exec(&["iptables-nft", "-S", "FORWARD"])?;
    ensure!(rules.trim() == "-P FORWARD DROP", "{rules}");
    let pods = cluster.add_pods(1)?;
    ensure!(pods[0].ping(pods[1].address())?.is_none(), "it drops");
    // What the condition says to type helps.
    node.exec(&["sh", "-c", &hint.replace("iptables", "iptables-nft")])?;
    pods[0].wait_ping(pods[1].address(), PATIENCE)?;
    Ok(())
}

//! Ways to the API server, what it refuses, and what it says of services: the agent
//! against an API server for tests.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use weft_agent::lab::netns::Netns;
use weft_proto::api::{Health, KubernetesStatus};
use weft_tests::apiserver::{Verb, objects};
use weft_tests::conditions::{SOON, found, wait_condition, wait_no_condition};
use weft_tests::{Cluster, Node, Result, binaries, wait_until};

fn kubernetes(node: &Node) -> Result<KubernetesStatus> {
    node.status()?.kubernetes.context("no Kubernetes in the status")
}

/// A service address that kube-proxy serves: connections go on to another.
struct Proxy {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    address: SocketAddr,
    netns: Netns,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(netns: &Netns, address: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(address))??;
        let stop = Arc::new(AtomicBool::new(false));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (inside, stopped, streams) = (netns.clone(), Arc::clone(&stop), Arc::clone(&open));
        let thread = std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(Ok(server)) = inside.run(|| TcpStream::connect(to)) else { continue };
                // A copy that cannot begin ends its connection, which the agent sees.
                let _ = copy(&client, &server).and_then(|()| copy(&server, &client));
                streams.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        Ok(Self { stop, open, address, netns: netns.clone(), thread: Some(thread) })
    }
}

fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let address = self.address;
        // Wakes the thread, so that it sees the end.
        let _ = self.netns.run(|| TcpStream::connect(address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn endpoints_stand_in_for_a_dead_service_address() -> Result {
    let mut cluster = Cluster::builder().kubernetes().start()?;
    let mut pods = cluster.add_pods(1)?;
    cluster.wait_one_ledger()?;
    let real = cluster.api()?.address();
    for node in cluster.nodes() {
        let file = node.spec().state_dir().join("kubernetes.json");
        wait_until("the endpoints to be remembered", SOON, || {
            Ok(std::fs::read_to_string(&file)?.contains(&real.to_string()))
        })?;
        ensure!(kubernetes(node)?.via.is_none(), "the address itself answers");
    }

    // A service address without kube-proxy: nothing listens there.
    let dead = SocketAddr::new(real.ip(), 1);
    let file = cluster.directory().join("kubeconfig");
    let text = cluster.api()?.kubeconfig();
    std::fs::write(&file, text.replace(&real.to_string(), &dead.to_string()))?;
    let before = cluster.api()?.counts();
    for number in 1..=3 {
        cluster.node_mut(number).restart()?;
    }
    for node in cluster.nodes() {
        wait_until("the agent to reach the API server", SOON, || {
            let found = kubernetes(node)?;
            Ok(found.reachable && found.via == Some(real.to_string()))
        })
        .with_context(|| node.log_tail())?;
        ensure!(kubernetes(node)?.server.contains(&dead.to_string()), "what is configured");
        ensure!(found(&node.status()?, "KubernetesAway").is_none(), "it is not away");
    }
    let program = binaries::agent()?;
    let program = program.to_str().context("a path")?;
    let said = cluster.node(1).exec(&["sh", "-c", &format!("{program} status || true")])?;
    ensure!(said.contains(&format!("through its endpoint {real}")), "{said}");
    // It works: what changes there is noticed here.
    cluster.api()?.edit("secrets", "kube-system", "weft", |secret| {
        // "new!!" and a line end, in base64.
        let old = secret["data"]["key"].as_str().unwrap_or_default().to_owned();
        secret["data"]["key"] = serde_json::json!(format!("bmV3ISEK{old}"));
    })?;
    for node in cluster.nodes() {
        node.wait_log(&["the cluster key has changed"], SOON)?;
    }
    pods.extend(cluster.add_pods(1)?);
    cluster.assert_reachable(&pods)?;

    // kube-proxy comes: new connections go through the service address again.
    let proxy = Proxy::start(&Netns::named(&cluster.plan.underlay), dead, real)?;
    for node in cluster.nodes() {
        wait_until("the agent to go back to the service address", 3 * SOON, || {
            let found = kubernetes(node)?;
            Ok(found.reachable && found.via.is_none())
        })
        .with_context(|| node.log_tail())?;
    }
    let news = cluster.api()?.counts().since(&before);
    println!("three agents restarted, to an endpoint and back:\n{news}");
    ensure!(news.of(Verb::List, "nodes").requests <= 3, "a list per restart at most:\n{news}");
    drop(proxy);
    for node in cluster.nodes() {
        wait_until("the endpoint to stand in again", SOON, || {
            Ok(kubernetes(node)?.via == Some(real.to_string()))
        })?;
    }
    Ok(())
}

#[test]
fn a_server_that_warms_up_is_not_blamed() -> Result {
    let mut cluster = Cluster::builder().nodes(1).kubernetes().start()?;
    let node = cluster.node(1);
    wait_until("the key to be read", SOON, || {
        Ok(cluster.api()?.counts().of(Verb::Get, "secrets").requests > 1)
    })?;
    // Restarted: first it does not know its rules.
    cluster.api()?.stop()?;
    let rule = cluster.api()?.deny(Verb::Get, "secrets");
    wait_condition(node, "KubernetesAway")?;
    cluster.api_mut()?.resume()?;
    let node = cluster.node(1);
    node.wait_log(&["WARN", "get secrets", "it was granted before"], SOON)?;
    ensure!(found(&node.status()?, "KubernetesDenied").is_none());
    let api = cluster.api()?;
    api.lift(rule);
    let granted = || -> u64 {
        let count = api.counts().of(Verb::Get, "secrets");
        count.requests - count.refused
    };
    let before = granted();
    wait_until("the key to be read again", SOON, || Ok(granted() > before))?;
    ensure!(!node.log().contains("missing: "), "{}", node.log_tail());
    ensure!(!api.events()?.iter().any(|event| event.reason == "KubernetesDenied"));

    // Taken away for good.
    api.deny(Verb::Get, "secrets");
    let said = wait_condition(node, "KubernetesDenied")?;
    ensure!(said.hint.contains("secrets"), "{said:?}");
    node.wait_log(&["ERROR", "get secrets", "missing: Role rule"], SOON)?;
    wait_until("an Event on the Node", SOON, || {
        Ok(api.events()?.iter().any(|event| event.reason == "KubernetesDenied"))
    })?;
    Ok(())
}

#[test]
fn services_inside_the_pod_network_are_named() -> Result {
    const SERVICES: &str = "10.40.0.0/16";
    let mut cluster = Cluster::builder().nodes(2).kubernetes().stopped().start()?;
    cluster.api()?.put(&objects::service_cidr(&[SERVICES, "fd00:5::/112"]))?;
    cluster.node_mut(1).start()?;
    let node = cluster.node(1);
    let said = wait_condition(node, "ServiceOverlap")?;
    ensure!(said.health == Health::Broken, "a first start goes no further: {said:?}");
    ensure!(said.message.contains(SERVICES) && said.message.contains("10.32.0.0/12"), "{said:?}");
    ensure!(!node.agent()?.readiness()?.ready);
    node.wait_log(&["WARN", SERVICES, "10.32.0.0/12"], SOON)?;
    let api = cluster.api()?;
    wait_until("an Event on the Node", SOON, || {
        let about = ("Node".to_owned(), "n1".to_owned());
        Ok(api.events()?.iter().any(|event| {
            event.reason == "ServiceOverlap" && event.kind == "Warning" && event.about == about
        }))
    })?;
    // Corrected: the start goes on.
    api.edit("servicecidrs", "", "kubernetes", |object| {
        object["spec"]["cidrs"] = serde_json::json!(["10.96.0.0/16"]);
    })?;
    cluster.node_mut(1).wait_ready(2 * SOON)?;
    wait_no_condition(cluster.node(1), "ServiceOverlap")?;

    // Where a node works already, it is told and works on.
    cluster.api()?.put(&objects::service_cidr(&["10.0.0.0/8"]))?;
    cluster.node_mut(1).restart()?;
    let said = wait_condition(cluster.node(1), "ServiceOverlap")?;
    ensure!(said.message.contains("10.0.0.0/8"), "{said:?}");
    let pods = cluster.add_pods_on(&[1, 1])?;
    cluster.assert_reachable(&pods)?;

    // Before 1.33 there is no such resource.
    cluster.api()?.serve("servicecidrs.networking.k8s.io", false);
    cluster.node_mut(2).start()?;
    cluster.node_mut(2).wait_ready(SOON)?;
    ensure!(found(&cluster.node(2).status()?, "ServiceOverlap").is_none());
    let log = cluster.node(2).log();
    ensure!(!log.contains("servicecidrs"), "nothing is said of it:\n{log}");
    Ok(())
}

//! Misbehaviour, outages, counters, and where it listens.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_tests::apiserver::{Effect, Verb, objects};
use weft_tests::{ApiServer, Cluster, Result};

use crate::apiserver::client::{PATIENCE, names, send};

#[test]
fn misbehaves_as_told_and_counts() -> Result {
    let mut server =
        ApiServer::builder().token("secret").without("policy.networking.k8s.io").start()?;
    server.put(&objects::node("n1", "192.0.2.1".parse()?))?;
    let bearer = "Authorization: Bearer secret\r\n";
    let ask = |server: &ApiServer, path: &str| send(server.address(), "GET", path, bearer, "");
    for headers in ["", "Authorization: Bearer wrong\r\n"] {
        ensure!(send(server.address(), "GET", "/api/v1/nodes", headers, "")?.code == 401);
    }
    ensure!(send(server.address(), "GET", "/readyz", "", "")?.code == 200);

    let rule = server.deny(Verb::List, "networkpolicies.networking.k8s.io");
    let policies = "/apis/networking.k8s.io/v1/networkpolicies";
    let status = ask(&server, policies)?.json()?;
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(status["code"] == 403 && message.contains("cannot list resource \"networkpolicies\""));
    ensure!(message.contains("API group \"networking.k8s.io\" at the cluster scope"), "{message}");
    server.lift(rule);
    ensure!(ask(&server, policies)?.code == 200);

    server.on(None, "*", Effect::Fail(429, Some(7)), Some(1));
    let busy = ask(&server, "/api/v1/nodes/n1")?;
    ensure!(busy.code == 429 && busy.head.to_lowercase().contains("retry-after: 7"));
    let late = Duration::from_millis(200);
    server.on(Some(Verb::Get), "nodes", Effect::Delay(late), Some(1));
    let start = Instant::now();
    ensure!(ask(&server, "/api/v1/nodes/n1")?.code == 200 && start.elapsed() >= late);

    server.put(&objects::node("n0", "192.0.2.9".parse()?))?;
    server.on(Some(Verb::Delete), "nodes", Effect::Lose, Some(1));
    for code in [504, 404] {
        let gone = send(server.address(), "DELETE", "/api/v1/nodes/n0", bearer, "")?;
        ensure!(gone.code == code, "done, though it was not told: {}", gone.code);
    }

    // A group that is not there has no page at all, until it is installed.
    let cluster = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    let groups =
        |server: &ApiServer| -> Result<String> { Ok(ask(server, "/apis")?.json()?.to_string()) };
    ensure!(ask(&server, cluster)?.code == 404);
    ensure!(!groups(&server)?.contains("policy.networking"));
    server.serve("policy.networking.k8s.io", true);
    ensure!(ask(&server, cluster)?.code == 200);
    ensure!(groups(&server)?.contains("policy.networking"));
    server.serve("discovery.k8s.io/v1", false);
    ensure!(ask(&server, "/apis/discovery.k8s.io/v1/endpointslices")?.code == 404);
    let core = ask(&server, "/api/v1")?.json()?;
    ensure!(core["resources"].to_string().contains("nodes/status"));

    // Away, and back on the same port, with what was stored meanwhile.
    let mut open = ask(&server, "/api/v1/nodes?watch=1")?;
    open.next(1)?;
    let (before, address) = (server.counts(), server.address());
    server.stop()?;
    ensure!(open.events().is_err(), "watches are cut, not ended");
    let refused = TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| e.kind());
    ensure!(matches!(refused, Err(std::io::ErrorKind::ConnectionRefused)), "{refused:?}");
    server.put(&objects::node("n2", "192.0.2.2".parse()?))?;
    server.resume()?;
    ensure!(server.address() == address);
    let mut list = ask(&server, "/api/v1/nodes")?;
    let mut body = String::new();
    list.body.read_to_string(&mut body)?;
    ensure!(body.contains("\"n2\""));

    let news = server.counts().since(&before);
    let count = news.of(Verb::List, "nodes");
    ensure!(
        count.requests == 1 && count.refused == 0 && count.bytes == body.len() as u64,
        "{news}"
    );
    ensure!(news.total() == count, "nothing else was asked: {news}");
    let last = server.requests().pop().context("no request")?;
    ensure!(last.code == 200 && last.from.is_loopback() && last.resource == "nodes", "{last:?}");
    ensure!(before.of(Verb::Watch, "nodes").bytes > 0, "bytes of watches count");
    Ok(())
}

#[test]
fn a_node_reaches_it_over_the_underlay() -> Result {
    let cluster = Cluster::builder().nodes(1).stopped().start()?;
    let underlay = weft_agent::lab::netns::Netns::named(&cluster.plan.underlay);
    let address = SocketAddr::from((cluster.plan.gateway, 0));
    let server = ApiServer::builder().netns(&underlay).address(address).start()?;
    let to = server.address();
    let ask = || cluster.node(1).netns().run(|| send(to, "GET", "/api/v1/namespaces", "", ""))?;
    ensure!(names(&ask()?.json()?).contains(&"kube-system"));
    let last = server.requests().pop().context("no request")?;
    ensure!(last.from == cluster.node(1).plan.address, "the log says who asked: {last:?}");
    Ok(())
}

//! podman, a CNI runtime nobody here wrote, drives the plugin on two nodes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use weft_agent::lab::http;
use weft_tests::podman::Podman;
use weft_tests::{Cluster, Result, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn containers_reach_each_other_and_publish_ports() -> Result {
    let cluster = Cluster::builder().nodes(2).start()?;
    let (one, two) = (cluster.node(1), cluster.node(2));
    let leases = [one.status()?.ipam.leases, two.status()?.ipam.leases];
    for node in [one, two] {
        let list = node.spec().conf_dir().join("10-weft.conflist");
        wait_until("the agent's conflist", PATIENCE, || Ok(list.is_file()))?;
        ensure!(node.spec().bin_dir().join("weft").is_file(), "the agent installs the plugin");
    }
    let (here, there) = (Podman::new(one)?, Podman::new(two)?);
    here.start("client", &[], &["sleep", "3600"])?;
    there.start("server", &["-p", "8080:80"], &["httpd", "-f", "-p", "80", "-h", "/bin"])?;
    let (client, server) = (here.address("client")?, there.address("server")?);
    println!("client {client} on n1, server {server} on n2");
    ensure!(client != server);

    let ping = |to: &str| here.exec("client", &["ping", "-c", "1", "-W", "1", to]);
    wait_until("ping across nodes", PATIENCE, || ping(&server.to_string()).map(|_| true))?;
    there
        .exec("server", &["ping", "-c", "1", "-W", "2", &client.to_string()])
        .context("and the other way")?;

    let get = |from: &weft_tests::Node, to: SocketAddr| -> Result<u16> {
        Ok(from.netns().run(|| http::request(to, "GET", "/nothing", None, b""))??.code)
    };
    // Not found, but by busybox httpd: the request arrived.
    let direct = SocketAddr::new(server, 80);
    ensure!(get(one, direct)? == 404, "from the other node to the container");
    let published = SocketAddr::new(two.plan.address, 8080);
    wait_until("the published port", PATIENCE, || Ok(get(one, published)? == 404))?;
    ensure!(get(two, published)? == 404, "from its own node to the published port");
    let text = format!("{}:{}", published.ip(), published.port());
    let script =
        format!("printf 'GET /nothing HTTP/1.0\\r\\n\\r\\n' | nc {}", text.replace(':', " "));
    let answer = here.exec("client", &["sh", "-c", &script])?;
    ensure!(answer.contains("404"), "from a pod of the other node to the published port: {answer}");

    here.remove("client")?;
    there.remove("server")?;
    one.wait_clean(leases[0], 0)?;
    two.wait_clean(leases[1], 0)?;
    ensure!(get(one, published).is_err(), "the published port is closed");
    let rules = two.exec(&["nft", "list", "ruleset"])?;
    ensure!(!rules.contains("8080"), "a rule for the port is left: {rules}");
    Ok(())
}

#[test]
fn many_containers_come_and_go() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let leases = node.status()?.ipam.leases;
    let list = node.spec().conf_dir().join("10-weft.conflist");
    wait_until("the agent's conflist", PATIENCE, || Ok(list.is_file()))?;
    let podman = Podman::new(node)?;
    for round in 0..3 {
        for at in 0..3 {
            podman.start(&format!("c{round}{at}"), &[], &["sleep", "3600"])?;
        }
        podman.run(&["rm", "-f", "-a", "-t", "0"])?;
        node.wait_clean(leases, 0)?;
    }
    Ok(())
}

//! The plugin verb by verb, for every supported version of the specification.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::pods::{Answer, Call, Shim};
use weft_agent::lab::topology::PodPlan;
use weft_tests::{Cluster, Result};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn call(shim: &Shim, verb: &str, pod: &PodPlan, ifname: &str, conf: Value) -> Result<Answer> {
    shim.call(&Call {
        verb,
        container_id: &pod.container_id,
        ifname,
        netns: Some(Netns::named(&pod.netns).path()),
        args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;SOMETHING=else",
        conf,
    })
}

fn has_fields(result: &Value, version: &str, ifname: &str, sandbox: &str) -> Result {
    ensure!(result["cniVersion"] == version, "the result has the version of the request");
    let interfaces = result["interfaces"].as_array().context("interfaces")?;
    let ips = result["ips"].as_array().context("ips")?;
    ensure!(!ips.is_empty(), "an address");
    for ip in ips {
        let at = ip["interface"].as_u64().context("ips[].interface")? as usize;
        let interface = interfaces.get(at).context("ips[].interface points at an interface")?;
        ensure!(interface["name"] == ifname, "it is the pod's: {interface}");
        ensure!(interface["sandbox"] == sandbox, "its sandbox is CNI_NETNS: {interface}");
        ensure!(interface["mac"].as_str().is_some_and(|mac| mac.len() == 17), "it has a MAC");
        ensure!(ip["address"].as_str().is_some_and(|a| a.contains('/')), "CIDR: {ip}");
        let old = version.starts_with("0.");
        ensure!(ip.get("version").is_some() == old, "ips[].version is for versions before 1.0");
        let mtu = interface.get("mtu").is_some();
        ensure!(!mtu || version == "1.1.0", "interfaces[].mtu came with 1.1.0");
    }
    Ok(())
}

#[test]
fn every_verb_of_every_version() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let shim = node.shim();
    let before = node.status()?.ipam.leases;
    for version in VERSIONS {
        let pod = node.sandbox()?;
        let conf = shim.conf(version);
        let path = Netns::named(&pod.netns).path();
        let sandbox = path.to_str().context("path")?;

        let answer = call(&shim, "VERSION", &pod, "eth0", json!({"cniVersion": version}))?;
        let answer = answer.ok("VERSION")?;
        let known = answer.json["supportedVersions"].as_array().context("supportedVersions")?;
        ensure!(VERSIONS.iter().all(|v| known.contains(&json!(v))), "{known:?}");

        let first = call(&shim, "ADD", &pod, "eth0", conf.clone())?.ok("ADD")?;
        has_fields(&first.json, version, "eth0", sandbox)
            .with_context(|| first.json.to_string())?;
        let second = call(&shim, "ADD", &pod, "net1", conf.clone())?.ok("ADD of net1")?;
        has_fields(&second.json, version, "net1", sandbox)?;
        ensure!(first.addresses() != second.addresses(), "each interface has its own address");

        if version != "0.3.1" {
            let mut check = conf.clone();
            check["prevResult"] = first.json.clone();
            call(&shim, "CHECK", &pod, "eth0", check.clone())?.ok("CHECK")?;
            Netns::named(&pod.netns).exec(&["ip", "addr", "flush", "dev", "eth0"])?;
            let broken = call(&shim, "CHECK", &pod, "eth0", check)?;
            ensure!(broken.exit != Some(0), "CHECK misses the address");
            ensure!(broken.code().is_some(), "and says so with a code: {}", broken.json);
        }
        if version == "1.1.0" {
            call(&shim, "STATUS", &pod, "", conf.clone())?.ok("STATUS")?;
            let mut gc = conf.clone();
            gc["cni.dev/valid-attachments"] =
                json!([{"containerID": pod.container_id, "ifname": "eth0"}]);
            call(&shim, "GC", &pod, "", gc)?.ok("GC")?;
            node.wait_clean(before + 1, 1)?;
        }
        for ifname in ["eth0", "net1", "net1"] {
            let answer = call(&shim, "DEL", &pod, ifname, conf.clone())?.ok("DEL")?;
            ensure!(answer.json.is_null(), "DEL prints nothing");
        }
    }
    node.wait_clean(before, 0).map(drop)
}

#[test]
fn results_of_earlier_plugins_are_kept() -> Result {
    let cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let pod = node.sandbox()?;
    let mut conf = node.shim().conf("1.0.0");
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "sandbox": "/x"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "dns": {"nameservers": ["10.0.0.53"]},
    });
    let answer = call(&node.shim(), "ADD", &pod, "eth0", conf)?.ok("ADD")?;
    let text = answer.json.to_string();
    ensure!(text.contains("127.0.0.1/8") && text.contains("10.0.0.53"), "{text}");
    ensure!(answer.addresses().len() == 2, "{text}");
    Ok(())
}

#[test]
fn errors_have_codes_and_change_nothing() -> Result {
    let mut cluster = Cluster::builder().nodes(1).start()?;
    let node = cluster.node(1);
    let shim = node.shim();
    let before = node.status()?.ipam.leases;
    let pod = node.sandbox()?;
    let conf = shim.conf("1.0.0");
    let mut future = conf.clone();
    future["cniVersion"] = json!("9.0.0");
    let mut nowhere = pod.clone();
    nowhere.netns += "-that-is-not-there";
    for (what, code, answer) in [
        ("a version nobody knows", Some(1), call(&shim, "ADD", &pod, "eth0", future)?),
        ("a verb nobody knows", Some(4), call(&shim, "FROB", &pod, "eth0", conf.clone())?),
        ("no interface name", Some(4), call(&shim, "ADD", &pod, "", conf.clone())?),
        ("a bad interface name", None, call(&shim, "ADD", &pod, "eth0/../x", conf.clone())?),
        ("input that is no configuration", None, call(&shim, "ADD", &pod, "eth0", json!([1, 2]))?),
        (
            "a namespace that is not there",
            None,
            call(&shim, "ADD", &nowhere, "eth0", conf.clone())?,
        ),
        ("an interface that exists", None, call(&shim, "ADD", &pod, "lo", conf.clone())?),
    ] {
        println!("{what}: exit {:?}, code {:?}: {}", answer.exit, answer.code(), answer.message());
        ensure!(answer.exit != Some(0), "{what} is accepted");
        ensure!(answer.code().is_some(), "{what} has no code: {answer:?}");
        ensure!(code.is_none() || answer.code() == code, "{what}: {:?}", answer.code());
    }
    node.wait_clean(before, 0)?;

    cluster.node_mut(1).kill9()?;
    let answer = call(&shim, "ADD", &pod, "eth0", conf)?;
    println!("no agent: code {:?}: {}", answer.code(), answer.message());
    ensure!(answer.code() == Some(11), "without its agent: try again later");
    let status = call(&shim, "STATUS", &pod, "", shim.conf("1.1.0"))?;
    ensure!(matches!(status.code(), Some(50 | 51)), "STATUS: {:?}", status.code());
    ensure!(status.took < std::time::Duration::from_secs(2), "a bounded wait");
    Ok(())
}

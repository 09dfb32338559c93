//! The agent as a container with the rights of `deploy/daemonset.yaml`, and no others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use weft_agent::lab::http;
use weft_agent::lab::pods::Shim;
use weft_image::{Image, Labels, Program};
use weft_tests::pinger::Pinger;
use weft_tests::podman::Podman;
use weft_tests::{Cluster, Node, Pod, Result, binaries, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const IMAGE: &str = "localhost/weft:test";

/// One container of a manifest, as arguments of podman.
fn rights(path: &str, node: &Node) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path)?)?;
    let set = documents.iter().find(|d| d["kind"] == "DaemonSet").context("no DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    let (container, context) = (&pod["containers"][0], &pod["containers"][0]["securityContext"]);
    ensure!(pod["hostNetwork"] == true && context["readOnlyRootFilesystem"] == true);
    ensure!(context["allowPrivilegeEscalation"] == false && context["privileged"].is_null());
    let mut out = vec!["--read-only".to_owned(), "--security-opt=no-new-privileges".to_owned()];
    out.push("--read-only-tmpfs=false".to_owned());
    for (what, flag) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        for name in context["capabilities"][what].as_array().into_iter().flatten() {
            out.push(format!("{flag}={}", name.as_str().unwrap_or_default()));
        }
    }
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let at = mount["mountPath"].as_str().unwrap_or_default();
        let of_host = match at {
            "/var/lib/weft" => node.spec().state_dir(),
            "/run/weft" => node.spec().run_dir(),
            "/opt/cni/bin" => node.spec().bin_dir(),
            "/etc/cni/net.d" => node.spec().conf_dir(),
            "/host/proc/sys/net" => PathBuf::from("/proc/sys/net"),
            other => anyhow::bail!("the test knows no {other}"),
        };
        if at != "/host/proc/sys/net" {
            std::fs::create_dir_all(&of_host)?;
        }
        out.push(format!("--volume={}:{at}", of_host.display()));
    }
    Ok(out)
}

/// podman on a node, with the image made from the programs under test.
fn load(node: &Node) -> Result<Podman> {
    let podman = Podman::new(node)?;
    let program = |name: &str, path: PathBuf| -> Result<Program> {
        Ok(Program { name: name.to_owned(), bytes: std::fs::read(path)? })
    };
    let labels = Labels { reference: IMAGE.to_owned(), version: "test".to_owned(), created: 0 };
    let programs = [program("agent", binaries::agent()?)?, program("weft", binaries::shim()?)?];
    let image = Image::build(&programs, &labels)?;
    for (name, bytes) in
        [("oci.tar", weft_image::oci(&image)?), ("docker.tar", weft_image::docker(&image)?)]
    {
        let path = node.spec().directory.join(name);
        std::fs::write(&path, bytes)?;
        let said = podman.run(&["load", "-i", &path.display().to_string()])?;
        ensure!(said.contains(IMAGE), "{name}: {said}");
        std::fs::remove_file(path)?;
    }
    Ok(podman)
}

fn run(podman: &Podman, node: &Node, manifest: &str, name: &str, command: &[&str]) -> Result {
    let mut arguments: Vec<String> =
        ["run", "-d", "--cgroups=disabled", "--network=host", "--name", name]
            .map(str::to_owned)
            .to_vec();
    // Machines without CAP_SYS_RESOURCE cannot raise limits to podman's defaults.
    arguments.extend(["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"].map(str::to_owned));
    arguments.extend(rights(manifest, node)?);
    let spec = node.spec();
    for (name, value) in [
        ("NODE_NAME", spec.name.as_str()),
        ("KUBE_PEERS", &spec.peers),
        ("PASSWORD", "a key for tests only"),
    ] {
        arguments.push(format!("--env={name}={value}"));
    }
    arguments.push(IMAGE.to_owned());
    arguments.extend(command.iter().map(|word| (*word).to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    podman.run(&arguments).map(drop)
}

fn agent(podman: &Podman, node: &Node) -> Result {
    run(podman, node, "deploy/daemonset.yaml", "weft", &[])
}

fn status(node: &Node) -> Result<u16> {
    let address = node.spec().http();
    Ok(node.netns().run(|| http::request(address, "GET", "/status", None, b""))??.code)
}

fn wait_ready(podman: &Podman, node: &Node) -> Result {
    wait_until(&format!("readiness of {}", node.plan.name), PATIENCE, || Ok(status(node)? == 200))
        .with_context(|| podman.run(&["logs", "weft"]).unwrap_or_default())
        .map(drop)
}

/// A pod attached by the plugin that the container has installed.
fn attach(node: &Node) -> Result<Pod> {
    let exe = node.spec().bin_dir().join("weft");
    wait_until("the configuration", PATIENCE, || {
        Ok(node.spec().conf_dir().join("10-weft.conflist").is_file() && exe.is_file())
    })?;
    Pod::attach(Shim { exe, ..node.shim() }, node.sandbox()?)
}

#[test]
fn nodes_whose_agents_are_containers_with_few_rights() -> Result {
    let cluster = Cluster::builder().nodes(2).stopped().start()?;
    let nodes = [cluster.node(1), cluster.node(2)];
    let podmen = [load(nodes[0])?, load(nodes[1])?];
    let said = podmen[0].run(&[
        "run",
        "--rm",
        "--cgroups=disabled",
        "--network=host",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=4096:4096",
        IMAGE,
        "--version",
    ])?;
    ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    for (podman, node) in podmen.iter().zip(nodes) {
        agent(podman, node)?;
    }
    for (podman, node) in podmen.iter().zip(nodes) {
        wait_ready(podman, node)?;
        // Written through the second mount of /proc/sys/net.
        let forwarding = node.exec(&["cat", "/proc/sys/net/ipv4/ip_forward"])?;
        ensure!(forwarding.trim() == "1", "forwarding is off on {}", node.plan.name);
        let log = podman.run(&["logs", "weft"])?;
        ensure!(!log.contains("refused changes"), "{log}");
    }
    let (here, there) = (attach(nodes[0])?, attach(nodes[1])?);
    here.wait_ping(there.address(), PATIENCE)?;
    there.wait_ping(here.address(), PATIENCE)?;

    // As a rolling update does it: another container, the same directories.
    let pinger = Pinger::start(&here, there.address(), Duration::from_millis(5))?;
    podmen[0].remove("weft")?;
    agent(&podmen[0], nodes[0])?;
    wait_ready(&podmen[0], nodes[0])?;
    let again = attach(nodes[0])?;
    again.wait_ping(there.address(), PATIENCE)?;
    let tally = pinger.stop()?;
    println!("{} pings during the update, lost {:?}", tally.sent, tally.lost);
    ensure!(tally.lost.is_empty(), "lost {:?} of {}", tally.lost, tally.sent);

    // While the agent runs, cleanup refuses.
    let (podman, node) = (&podmen[0], nodes[0]);
    run(podman, node, "deploy/cleanup.yaml", "early", &["cleanup"])?;
    ensure!(podman.run(&["wait", "early"])? != "0", "it cleaned up under a running agent");
    podman.remove("weft")?;
    run(podman, node, "deploy/cleanup.yaml", "cleanup", &["cleanup", "--stay"])?;
    wait_until("the node to be clean", PATIENCE, || {
        let links = node.exec(&["ip", "-o", "link"])?;
        let ours =
            |line: &str| line.split(": ").nth(1).is_some_and(|name| name.starts_with("weft"));
        let rules = node.exec(&["nft", "list", "tables"])?;
        Ok(!links.lines().any(ours) && !rules.contains("weft"))
    })
    .with_context(|| podman.run(&["logs", "cleanup"]).unwrap_or_default())?;
    wait_until("the directories to be empty", PATIENCE, || {
        let spec = node.spec();
        for directory in [spec.state_dir(), spec.run_dir(), spec.conf_dir(), spec.bin_dir()] {
            for left in std::fs::read_dir(directory)? {
                let left = left?;
                // podman's own.
                if left.file_name() != "cni.lock" {
                    anyhow::bail!("{} is left", left.path().display());
                }
            }
        }
        Ok(true)
    })?;
    // It stays until it is told to go, and goes at once: the first process of a
    // container does not die of a signal it has no handler for.
    let running = podman.run(&["inspect", "cleanup", "--format", "{{.State.Running}}"])?;
    ensure!(running == "true", "{running}");
    podman.run(&["stop", "-t", "60", "cleanup"])?;
    let code = podman.run(&["inspect", "cleanup", "--format", "{{.State.ExitCode}}"])?;
    ensure!(code == "0", "it ended with {code}");
    Ok(())
}

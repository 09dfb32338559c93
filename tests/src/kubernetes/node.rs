//! One node: namespaces with containerd, kubelet and kube-proxy inside.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_agent::lab::netns::Netns;

use super::images::PAUSE;
use super::kubectl::{kubeconfig, write_json};
use super::process::{Process, tail};
use crate::wait_until;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/node");
/// How long containerd, its images and the start of the kubelet may take.
const BOOT: Duration = Duration::from_secs(120);

/// What a node is made of.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) netns: Netns,
    pub(crate) cgroup: String,
    pub(crate) disk: PathBuf,
    pub(crate) binaries: PathBuf,
    pub(crate) images: PathBuf,
    /// Where the bridge between the nodes is, its name, and its address.
    pub(crate) underlay: Netns,
    pub(crate) bridge: String,
    pub(crate) gateway: Ipv4Addr,
    /// API server, its certificate, and the tokens of kubelet and kube-proxy.
    pub(crate) url: String,
    pub(crate) certificate: PathBuf,
    pub(crate) kubelet_token: String,
    pub(crate) proxy_token: String,
}

/// A node.
#[derive(Debug)]
pub struct KubeNode {
    spec: Spec,
    process: Option<Process>,
}

impl KubeNode {
    pub(crate) fn new(spec: Spec) -> Result<Self> {
        let node = Self { spec, process: None };
        node.configure()?;
        Ok(node)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its address between nodes.
    pub fn address(&self) -> IpAddr {
        self.ipv4().into()
    }

    pub(crate) fn ipv4(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.spec.gateway.octets();
        Ipv4Addr::new(a, b, c, 10 + self.spec.number)
    }

    pub(crate) fn number(&self) -> u8 {
        self.spec.number
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.spec.netns
    }

    /// A file of its disk, which survives reboots. Only below `/etc`, `/opt`, `/var`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.spec.disk.join(path.trim_start_matches('/'))
    }

    fn configure(&self) -> Result<()> {
        let spec = &self.spec;
        let etc = |path: &str| self.file(&format!("etc/{path}"));
        for part in ["etc/cni/net.d", "etc/kubernetes/manifests", "etc/containerd", "opt/cni/bin"] {
            fs::create_dir_all(self.file(part))?;
        }
        // Runtimes want this one for every pod, beside that of the network; nodes
        // have it from their distribution.
        let loopback = self.file("opt/cni/bin/loopback");
        fs::copy("/usr/lib/cni/loopback", loopback)
            .context("no /usr/lib/cni/loopback: install containernetworking-plugins")?;
        let certificate = etc("kubernetes/ca.crt");
        fs::copy(&spec.certificate, &certificate)?;
        let inside = Path::new("/etc/kubernetes/ca.crt");
        for (name, token) in [("kubelet", &spec.kubelet_token), ("kube-proxy", &spec.proxy_token)] {
            let file = etc(&format!("kubernetes/{name}.conf"));
            write_json(&file, &kubeconfig(&spec.url, inside, token))?;
        }
        write_json(
            &etc("kubernetes/kubelet.json"),
            &json!({
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
                "authorization": {"mode": "AlwaysAllow"},
                "cgroupDriver": "cgroupfs",
                "clusterDomain": "cluster.local",
                "staticPodPath": "/etc/kubernetes/manifests",
                "volumePluginDir": "/var/lib/kubelet/volumeplugins",
                "resolvConf": "/etc/resolv.conf",
                "clusterDNS": ["10.96.0.10"],
                "failSwapOn": false,
                "fileCheckFrequency": "2s",
                "nodeStatusUpdateFrequency": "4s",
                // A full disk or a slow request must not decide a test.
                "evictionHard": {
                    "memory.available": "0%",
                    "nodefs.available": "0%",
                    "nodefs.inodesFree": "0%",
                    "imagefs.available": "0%",
                },
                "imageGCHighThresholdPercent": 100,
                "imageGCLowThresholdPercent": 99,
                "kubeAPIQPS": 100,
                "kubeAPIBurst": 200,
                "eventRecordQPS": 0,
            }),
        )?;
        write_json(
            &etc("kubernetes/kube-proxy.json"),
            &json!({
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "iptables",
                "hostnameOverride": spec.name,
                "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
                // These belong to the machine, not to the namespace.
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 0,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "0s",
                },
            }),
        )?;
        // Some machines lack CAP_SYS_RESOURCE, without which nothing can have a
        // lower score than its parent.
        let containerd = format!(
            "version = 2\n\
             root = \"/var/lib/containerd\"\n\
             state = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n\
             address = \"/run/containerd/containerd.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{PAUSE}\"\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
             bin_dir = \"/opt/cni/bin\"\n\
             conf_dir = \"/etc/cni/net.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
             snapshotter = \"{}\"\n",
            snapshotter(&spec.disk)
        );
        fs::write(etc("containerd/config.toml"), containerd)?;
        Ok(())
    }

    /// Connects it to the others, and starts process 1.
    pub fn boot(&mut self) -> Result<()> {
        let spec = &self.spec;
        let port = format!("port-{}", spec.name);
        spec.netns.create()?;
        // Made in the underlay, so that nothing passes through this namespace.
        spec.underlay.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master {} up\n",
            spec.netns.name(),
            spec.bridge
        ))?;
        spec.netns.ip(&format!(
            "addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
            self.ipv4(),
            spec.gateway
        ))?;
        let env = [
            ("NODE", spec.name.clone()),
            ("ADDRESS", self.address().to_string()),
            ("NETNS", spec.netns.path().display().to_string()),
            ("CGROUP", spec.cgroup.clone()),
            ("DISK", spec.disk.display().to_string()),
            ("BIN", spec.binaries.display().to_string()),
            ("IMAGES", spec.images.display().to_string()),
        ];
        let argv = ["bash".to_owned(), SCRIPT.to_owned()];
        self.process = Some(Process::start(None, &self.boot_log(), &argv, &env)?);
        Ok(())
    }

    fn boot_log(&self) -> PathBuf {
        self.spec.disk.with_extension("boot.log")
    }

    /// Waits until its services have been started.
    pub fn wait_booted(&mut self) -> Result<Duration> {
        let mut ended = None;
        let boot_log = self.boot_log();
        let log = self.file("var/log/node.log");
        let name = self.spec.name.clone();
        let process = self.process.as_mut().with_context(|| format!("node {name} is off"))?;
        let launcher = process.id();
        let waited = wait_until(&format!("the boot of {name}"), BOOT, || {
            ended = process.check().err();
            let booted = || {
                Path::new(&format!("/proc/{}/root/run/booted", init(launcher)?))
                    .exists()
                    .then_some(())
            };
            Ok(ended.is_some() || booted().is_some())
        });
        match (waited, ended) {
            (Ok(took), None) => Ok(took),
            (_, Some(error)) => Err(error),
            (Err(error), None) => {
                Err(error.context(format!("{}\n{}", tail(&boot_log), tail(&log))))
            }
        }
    }

    /// Its process 1, as this machine counts.
    pub fn init(&self) -> Result<u32> {
        let process = self.process.as_ref();
        process
            .and_then(|process| init(process.id()))
            .with_context(|| format!("node {} is off", self.spec.name))
    }

    /// Power off: all of it ends at once. What is not on its disk is gone.
    pub fn power_off(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let init = init(process.id());
        process.kill();
        if let Some(init) = init {
            wait_until(&format!("the end of {}", self.spec.name), Duration::from_secs(20), || {
                Ok(!Path::new(&format!("/proc/{init}")).exists())
            })?;
        }
        self.spec.netns.delete()?;
        // The kernel takes a device away some time after its namespace.
        let port = format!("port-{}", self.spec.name);
        let _ = self.spec.underlay.ip(&format!("link del {port}\n"));
        super::home::remove_cgroups(&self.spec.cgroup)
    }

    /// Power off, and on again with the same disk.
    pub fn reboot(&mut self) -> Result<()> {
        self.power_off()?;
        self.boot()
    }

    /// Runs a command inside, as root of the node.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        let output = self.output(argv)?;
        if !output.status.success() {
            bail!(
                "`{}` on {}: {}: {}{}",
                argv.join(" "),
                self.spec.name,
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command inside, whatever it returns.
    pub fn output(&self, argv: &[&str]) -> Result<Output> {
        Command::new("nsenter")
            .arg(format!("--target={}", self.init()?))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/"])
            .args(argv)
            .env_clear()
            .env("PATH", "/kubernetes:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .output()
            .context("cannot run nsenter")
    }

    /// Processes of a pod, as this machine counts, by the pod's UID.
    pub fn pod_processes(&self, uid: &str) -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .is_ok_and(|text| text.contains(&self.spec.cgroup) && text.contains(uid))
            })
            .collect()
    }

    /// The last lines of its logs.
    pub fn log_tails(&self) -> String {
        let names = ["node", "containerd", "kubelet", "kube-proxy"];
        let tails = names.map(|name| tail(&self.file(&format!("var/log/{name}.log"))));
        tails.join("\n")
    }

    /// Takes its cable out.
    pub fn cut(&self) -> Result<()> {
        self.spec.underlay.ip(&format!("link set port-{} down\n", self.spec.name))
    }

    /// Puts it back.
    pub fn heal(&self) -> Result<()> {
        self.spec.underlay.ip(&format!("link set port-{} up\n", self.spec.name))
    }
}

impl Drop for KubeNode {
    fn drop(&mut self) {
        if let Err(error) = self.power_off() {
            eprintln!("{error:#}");
        }
    }
}

/// Process 1 of a node: the only child of `unshare`, once that runs.
fn init(launcher: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    // Before `unshare`, the script has children of its own.
    let same = |name: &str| {
        let inode = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|ns| ns.ino());
        Some(inode(launcher).ok()? == inode(child).ok()?)
    };
    (!same("pid")?).then_some(child)
}

/// overlayfs does not lie on overlayfs, as in a container.
fn snapshotter(disk: &Path) -> &'static str {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(disk).output();
    let kind = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if kind.is_ok_and(|kind| kind == "overlayfs") { "native" } else { "overlayfs" }
}

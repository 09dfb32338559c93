//! podman with its CNI back end inside one node: a client nobody here wrote.
//!
//! Everything it writes is private to the node. It runs in the node's network
//! namespace, and in a mount namespace of its own: on machines with both
//! cgroup versions mounted crun refuses to start unless the second is out of
//! sight, and containers need no cgroups here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_agent::lab::netns::Netns;

use crate::{Node, wait_until};

/// The only image, made of busybox.
pub const IMAGE: &str = "localhost/busybox:test";

/// podman of one node.
#[derive(Debug)]
pub struct Podman {
    directory: PathBuf,
    netns: Netns,
    holder: Child,
}

impl Podman {
    /// Sets it up with the node's CNI directories, and the image imported.
    pub fn new(node: &Node) -> Result<Self> {
        let spec = node.spec();
        Self::with(
            node.netns(),
            &spec.directory.join("podman"),
            &spec.conf_dir(),
            &[spec.bin_dir(), "/usr/lib/cni".into()],
        )
    }

    /// Sets it up with any CNI directories.
    pub fn with(netns: Netns, directory: &Path, conf: &Path, plugins: &[PathBuf]) -> Result<Self> {
        for part in ["root", "run", "tmp"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let text = |path: &Path| format!("{:?}", path.display().to_string());
        let plugins: Vec<_> = plugins.iter().map(|path| text(path)).collect();
        let conf = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n\
             lock_type = \"file\"\ntmp_dir = {}\n\
             [containers]\nlog_driver = \"k8s-file\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{}]\nnetwork_config_dir = {}\n",
            text(&directory.join("tmp")),
            plugins.join(", "),
            text(conf),
        );
        fs::write(directory.join("containers.conf"), conf)?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {}\nrunroot = {}\n",
            text(&directory.join("root")),
            text(&directory.join("run")),
        );
        fs::write(directory.join("storage.conf"), storage)?;
        let holder = hold_mounts(directory)?;
        let podman = Self { directory: directory.to_path_buf(), netns, holder };
        let backend = podman.run(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
        ensure!(backend == "cni", "this podman was built without CNI (its back end: {backend})");
        podman.import()?;
        Ok(podman)
    }

    fn import(&self) -> Result<()> {
        let root = self.directory.join("image");
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("www"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("no /bin/busybox: install busybox-static")?;
        let tar = self.directory.join("image.tar");
        let made =
            Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status()?;
        ensure!(made.success(), "tar failed: {made}");
        self.run(&["import", &tar.display().to_string(), IMAGE]).map(drop)
    }

    /// Runs podman; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(format!("--net={}", self.netns.path().display()))
            .arg("podman")
            .args(arguments)
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.directory.join("storage.conf"))
            .stdin(Stdio::null())
            .output()
            .context("cannot run nsenter: install util-linux")?;
        if !output.status.success() {
            bail!(
                "podman {}: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a container on network `weft` that runs a busybox command.
    pub fn start(&self, name: &str, options: &[&str], busybox: &[&str]) -> Result<String> {
        // Machines without CAP_SYS_RESOURCE cannot raise limits to podman's defaults.
        let fixed = ["run", "-d", "--cgroups=disabled", "--ulimit", "nofile=1024:1024"];
        let more = ["--ulimit", "nproc=4096:4096", "--network", "weft", "--name", name];
        let mut arguments = [&fixed[..], &more, options].concat();
        arguments.extend([IMAGE, "/bin/busybox"]);
        arguments.extend(busybox);
        self.run(&arguments)
    }

    /// Runs a busybox command in a container.
    pub fn exec(&self, name: &str, busybox: &[&str]) -> Result<String> {
        self.run(&[&["exec", name, "/bin/busybox"], busybox].concat())
    }

    /// The container's address.
    pub fn address(&self, name: &str) -> Result<std::net::IpAddr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let text = self.run(&["inspect", name, "--format", format])?;
        text.parse().with_context(|| format!("container {name} has address `{text}`"))
    }

    /// Removes a container.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.run(&["rm", "-f", "-t", "0", name]).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Containers are in namespaces of their own, which no cleanup finds.
        let _ = self.run(&["rm", "-f", "-a", "-t", "0"]);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A mount namespace that lives as long as the returned process.
fn hold_mounts(directory: &Path) -> Result<Child> {
    let ready = directory.join("mounts-ready");
    let script = format!(
        "mount --make-rprivate /\n\
         if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi\n\
         touch {}\nexec sleep infinity",
        ready.display()
    );
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "unchanged"])
        .args(["sh", "-ec", &script])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run setpriv and unshare: install util-linux")?;
    wait_until("a mount namespace for podman", Duration::from_secs(10), || {
        if let Some(status) = child.try_wait()? {
            bail!("its holder ended: {status}");
        }
        Ok(ready.exists())
    })?;
    Ok(child)
}

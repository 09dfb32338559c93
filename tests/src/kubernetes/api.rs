//! etcd and kube-apiserver.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_agent::lab::netns::Netns;

use super::binaries::Binaries;
use super::home::Home;
use super::kubectl::{Kubectl, kubeconfig, write_json};
use super::process::Process;

/// How long it may take to get ready; about six seconds on two processors.
const READY: Duration = Duration::from_secs(90);
/// Services of the cluster.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The user that may do everything.
pub const ADMIN: &str = "admin";

/// An API server with its own etcd; ends when dropped.
///
/// It runs with RBAC, and without controllers: nothing happens to an object
/// unless the test does it. Service accounts have no token secrets, but real
/// tokens can be asked for: [`Kubectl::service_account_token`].
#[derive(Debug)]
pub struct ApiServer {
    server: Server,
    // After the server: processes end before their files go.
    home: Home,
}

impl ApiServer {
    /// Starts one on the loopback address of this machine.
    pub fn start() -> Result<Self> {
        let home = Home::new()?;
        let spec = Spec {
            netns: None,
            address: Ipv4Addr::LOCALHOST.into(),
            ports: [free_port()?, free_port()?, free_port()?],
            controllers: false,
        };
        Self::with(home, spec)
    }

    /// Starts one inside a namespace, at an address of it, port 6443.
    pub fn start_in(netns: &Netns, address: IpAddr) -> Result<Self> {
        let home = Home::new()?;
        let spec = Spec {
            netns: Some(netns.clone()),
            address,
            ports: [6443, 2379, 2380],
            controllers: false,
        };
        Self::with(home, spec)
    }

    fn with(home: Home, spec: Spec) -> Result<Self> {
        let mut server = Server::new(Binaries::api()?, home.directory("api")?, spec)?;
        server.start()?;
        Ok(Self { server, home })
    }

    /// `https://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The bearer token of a user who may do everything.
    pub fn token(&self) -> String {
        self.server.token(ADMIN)
    }

    /// PEM file of the authority that signed the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.server.certificate()
    }

    /// kubectl of that user: `apply`, `get`, `delete`, `post`.
    pub fn kubectl(&self) -> Result<Kubectl> {
        self.server.kubectl(ADMIN, &self.server.token(ADMIN))
    }

    /// kubectl of whom `token` belongs to; `name` is for its file.
    pub fn kubectl_as(&self, name: &str, token: &str) -> Result<Kubectl> {
        self.server.kubectl(name, token)
    }

    /// `kill -9` of the API server; etcd goes on.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again, with everything it had.
    pub fn restart(&mut self) -> Result<Duration> {
        self.server.start()
    }

    /// Where its logs and files are.
    pub fn directory(&self) -> &Path {
        self.home.disk()
    }
}

/// Where a server runs.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) netns: Option<Netns>,
    pub(crate) address: IpAddr,
    /// Of the API server, of etcd for clients, of etcd for peers.
    pub(crate) ports: [u16; 3],
    /// Whether the controllers run: without them no pod gets an account.
    pub(crate) controllers: bool,
}

/// The two programs, without a home of their own.
#[derive(Debug)]
pub(crate) struct Server {
    binaries: Binaries,
    directory: PathBuf,
    spec: Spec,
    secret: String,
    // The API server ends before its store.
    api: Option<Process>,
    etcd: Option<Process>,
}

impl Server {
    pub(crate) fn new(binaries: Binaries, directory: PathBuf, spec: Spec) -> Result<Self> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let server = Self { binaries, directory, spec, secret: uuid, api: None, etcd: None };
        let key = server.path("service-accounts.key");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .output()
            .context("cannot run openssl: install it")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let mut users = server.user(ADMIN, "system:masters");
        for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            users.push_str(&server.user(&format!("system:{part}"), ""));
        }
        // Nodes that may ever join: the file is read once.
        for number in 1..=16 {
            users.push_str(&server.user(&format!("system:node:n{number}"), "system:nodes"));
        }
        fs::write(server.path("tokens.csv"), users)?;
        Ok(server)
    }

    fn user(&self, name: &str, group: &str) -> String {
        let groups = if group.is_empty() { String::new() } else { format!(",\"{group}\"") };
        format!("{},{name},{name}{groups}\n", self.token(name))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The token of a user.
    pub(crate) fn token(&self, user: &str) -> String {
        format!("{}-{}", user.replace(':', "-"), self.secret)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.spec.address, self.spec.ports[0]))
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("certs/apiserver.crt")
    }

    pub(crate) fn kubectl(&self, name: &str, token: &str) -> Result<Kubectl> {
        let file = self.path(&format!("kubectl-{name}/kubeconfig"));
        write_json(&file, &kubeconfig(&self.url(), &self.certificate(), token))?;
        Ok(Kubectl::new(self.binaries.path("kubectl"), file, self.spec.netns.clone()))
    }

    pub(crate) fn kill(&mut self) {
        self.api = None;
    }

    /// Starts what does not run, and waits until it serves.
    pub(crate) fn start(&mut self) -> Result<Duration> {
        let start = Instant::now();
        if self.etcd.is_none() {
            self.etcd = Some(self.start_etcd()?);
        }
        if self.api.is_none() {
            self.api = Some(self.start_api()?);
        }
        let kubectl = self.kubectl(ADMIN, &self.token(ADMIN))?;
        let mut ended = None;
        kubectl.wait("the API server", READY, || {
            let parts = [&mut self.etcd, &mut self.api];
            ended = parts.into_iter().flatten().find_map(|part| part.check().err());
            if ended.is_some() {
                return Ok(true);
            }
            kubectl.run(&["get", "--raw", "/readyz"])?;
            // Roles are made after it says so.
            kubectl.run(&["get", "clusterrolebinding", "system:node-proxier"])?;
            Ok(true)
        })?;
        match ended {
            Some(error) => Err(error),
            None => Ok(start.elapsed()),
        }
    }

    fn start_etcd(&self) -> Result<Process> {
        let client = format!("http://127.0.0.1:{}", self.spec.ports[1]);
        let peer = format!("http://127.0.0.1:{}", self.spec.ports[2]);
        let argv = [
            self.binaries.path("etcd").display().to_string(),
            format!("--data-dir={}", self.path("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            // Nothing here has to outlive the machine.
            "--unsafe-no-fsync".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        Process::start(self.spec.netns.as_ref(), &self.path("etcd.log"), &argv, &[])
    }

    fn start_api(&self) -> Result<Process> {
        let [port, etcd, _] = self.spec.ports;
        let key = self.path("service-accounts.key");
        let mut argv = vec![
            self.binaries.path("kube-apiserver").display().to_string(),
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--bind-address={}", self.spec.address),
            format!("--advertise-address={}", self.spec.address),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.path("certs").display()),
            format!("--token-auth-file={}", self.path("tokens.csv").display()),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", key.display()),
            format!("--service-account-signing-key-file={}", key.display()),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        if !self.spec.controllers {
            argv.push("--disable-admission-plugins=ServiceAccount".to_owned());
            argv.push("--endpoint-reconciler-type=none".to_owned());
        }
        Process::start(self.spec.netns.as_ref(), &self.path("kube-apiserver.log"), &argv, &[])
    }

    /// kube-controller-manager or kube-scheduler, beside the API server.
    pub(crate) fn start_part(&self, name: &str, more: &[String]) -> Result<Process> {
        let user = format!("system:{name}");
        let file = self.path(&format!("{name}.kubeconfig"));
        write_json(&file, &kubeconfig(&self.url(), &self.certificate(), &self.token(&user)))?;
        let mut argv = vec![
            self.binaries.path(name).display().to_string(),
            format!("--kubeconfig={}", file.display()),
            "--leader-elect=false".to_owned(),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        argv.extend_from_slice(more);
        let log = self.path(&format!("{name}.log"));
        Process::start(self.spec.netns.as_ref(), &log, &argv, &[])
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

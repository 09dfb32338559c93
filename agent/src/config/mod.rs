//! Effective configuration: environment and flags in, one value out, each
//! setting with the place it came from. Nothing is bound or opened here.

mod env;
mod error;
mod log;
mod value;
mod vars;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use tracing_subscriber::filter::Targets;

pub use env::{Env, MapEnv, ProcessEnv};
pub use error::{ConfigError, ConfigErrors};
pub use value::{Callers, Init, LogFormat, duration, is_target, keys, range};
pub use vars::{VARS, Var, var};

use crate::policy::world::Unknown;

/// Flags by variable name (`IPALLOC_RANGE` -> value); they win over the environment.
pub type Flags = BTreeMap<&'static str, String>;

/// Where an effective value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Not given.
    Default,
    /// The variable of this name.
    Env(String),
    /// The flag of this name.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One effective value, as `agent config` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The variable.
    pub name: &'static str,
    /// Its value; secrets hidden.
    pub value: String,
    /// Where from.
    pub source: Source,
    /// Set if the value is taken but nothing depends on it: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_effect: Option<&'static str>,
}

/// Everything the agent can be told.
#[derive(Clone, Serialize)]
pub struct Config {
    /// Pod network, at most one range per family.
    pub ranges: Vec<IpNet>,
    /// How a new cluster is founded.
    pub ipalloc_init: Init,
    /// Overlay MTU; `None`: underlay minus overhead.
    pub mtu: Option<u32>,
    /// `HOST` or `HOST:PORT` of other nodes; without a port, [`Config::mesh_port`].
    pub peers: Vec<String>,
    /// Most connections to peers; 0: no limit.
    pub conn_limit: usize,
    /// Cluster keys: the first signs, all verify. Empty: no key was given.
    #[serde(skip)]
    pub password: Vec<String>,
    /// Enforce NetworkPolicy.
    pub expect_npc: bool,
    /// What pods may do whose labels are not known.
    #[serde(skip)]
    pub policy_unknown: Unknown,
    /// Connections that a change of policy forbids end at once.
    #[serde(skip)]
    pub policy_established_drop: bool,
    /// Hairpin on pods' bridge ports.
    pub hairpin: bool,
    /// This node's own overlay address.
    pub expose_ip: Option<IpNet>,
    /// `/metrics` listener.
    pub metrics_addr: Option<SocketAddr>,
    /// Listener of the read-only routes.
    pub status_addr: Option<SocketAddr>,
    /// Keep accepts in iptables' FORWARD chain where it drops.
    pub forward_accept: bool,
    /// Keep client addresses towards local pods.
    pub no_masq_local: bool,
    /// Accepted, without effect.
    pub iptables_backend: String,
    /// Accepted, without effect: weft never phones home.
    pub checkpoint_disable: bool,
    /// Local API.
    pub http_addr: SocketAddr,
    /// `http_addr` may be other than loopback.
    pub http_allow_remote: bool,
    /// Who may use Weave's `/ip` routes.
    pub api_callers: Callers,
    /// This node's name.
    pub node_name: String,
    /// This node's underlay address; `None`: found by route.
    pub node_ip: Option<IpAddr>,
    /// Identity, ledger.
    pub state_dir: PathBuf,
    /// Leases, token.
    pub run_dir: PathBuf,
    /// UDP port of the mesh.
    pub mesh_port: u16,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// No encapsulation towards on-link nodes.
    pub direct_routing: bool,
    /// Where the conflist goes; `None`: not installed.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the plugin goes; `None`: not installed.
    pub cni_bin_dir: Option<PathBuf>,
    /// How the API server is found.
    pub kubernetes: Kubernetes,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Filter of the log (`RUST_LOG`, else `LOG_LEVEL`).
    pub log_filter: String,
    /// Rest of an evicted node's blocks.
    #[serde(with = "as_millis")]
    pub quarantine: Duration,
    /// Rest of a freed address.
    #[serde(with = "as_millis")]
    pub lease_cooldown: Duration,
    /// Every variable with its value and source.
    pub values: Vec<Effective>,
    /// Usable, but worth a line in the log.
    pub warnings: Vec<String>,
}

/// How the API server is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kubernetes {
    /// False: it is not looked for.
    pub wanted: bool,
    /// File with server and credentials.
    pub kubeconfig: Option<PathBuf>,
    /// Its address, whatever the rest says.
    pub server: Option<String>,
    /// Host of its service, in a pod.
    pub service_host: Option<String>,
    /// Port of its service.
    pub service_port: u16,
    /// Namespace of ConfigMap and Secret `weft`.
    pub namespace: String,
}

mod as_millis {
    pub(super) fn serialize<S: serde::Serializer>(
        value: &std::time::Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }
}

// By hand: a key must not end up in a log by way of `{:?}`.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.values.iter().map(|v| (v.name, &v.value))).finish()
    }
}

impl Config {
    /// Reads everything; answers with all problems at once.
    pub fn parse(env: &dyn Env, flags: &Flags) -> Result<Self, ConfigErrors> {
        let mut reader = Reader { env, flags, values: Vec::new(), errors: Vec::new() };
        let config = read(&mut reader);
        if reader.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(reader.errors)) }
    }

    /// Where the agent of this machine listens and keeps its token: all that
    /// a command talking to it needs to know.
    pub fn endpoint(env: &dyn Env, flags: &Flags) -> Result<Endpoint, ConfigErrors> {
        let mut r = Reader { env, flags, values: Vec::new(), errors: Vec::new() };
        let loopback = SocketAddr::from(([127, 0, 0, 1], weft_proto::names::VXLAN_PORT));
        let http_addr = r.get("HTTP_ADDR", loopback, |text| value::http_addr(text, true));
        let run_dir = r.get("RUN_DIR", PathBuf::new(), value::directory);
        if r.errors.is_empty() {
            Ok(Endpoint { http_addr, run_dir })
        } else {
            Err(ConfigErrors(r.errors))
        }
    }

    /// [`Self::log_filter`], read.
    pub fn log_targets(&self) -> Targets {
        log::targets(&self.log_filter).unwrap_or_default()
    }

    /// What `GET /v1/config` and `agent config -o json` show: no secret in it.
    pub fn report(&self) -> serde_json::Value {
        serde_json::json!({ "values": self.values, "warnings": self.warnings })
    }
}

/// See [`Config::endpoint`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Local API.
    pub http_addr: SocketAddr,
    /// Directory of the token.
    pub run_dir: PathBuf,
}

struct Reader<'a> {
    env: &'a dyn Env,
    flags: &'a Flags,
    values: Vec<Effective>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    /// The text of a variable and where it is from; `None` if it is nowhere.
    fn raw(&self, var: &Var) -> Option<(String, Source)> {
        if let Some(text) = self.flags.get(var.name) {
            return Some((text.clone(), Source::Flag(format!("--{}", var.flag()))));
        }
        std::iter::once(&var.name).chain(var.aliases).find_map(|name| {
            let text = self.env.get(name)?;
            // Manifests set variables to nothing to say "as if not set".
            // A key of blanks alone is a mistake that must not pass for "no key".
            let set = if var.secret { !text.is_empty() } else { !text.trim().is_empty() };
            (var.empty_counts || set).then(|| (text, Source::Env((*name).to_owned())))
        })
    }

    /// Parses a variable; a wrong one is noted, and `fallback` goes on in its
    /// place so that later ones are checked too.
    fn get<T>(
        &mut self,
        name: &'static str,
        fallback: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(var) = var(name) else { return fallback };
        let given = self.raw(var);
        let (text, source) = match &given {
            Some((text, source)) => (text.as_str(), source.clone()),
            None => (var.default, Source::Default),
        };
        // A key may begin or end with spaces; nothing else does.
        let text = if var.secret { text } else { text.trim() };
        let parsed = if given.is_none() && text.is_empty() && !var.empty_counts {
            Ok(fallback)
        } else {
            match parse(text) {
                Ok(value) => Ok(value),
                Err(why) => Err((why, fallback)),
            }
        };
        let value = if var.secret && !text.is_empty() { "(hidden)" } else { text };
        self.values.push(Effective {
            name: var.name,
            value: value.to_owned(),
            source: source.clone(),
            without_effect: var.without_effect,
        });
        match parsed {
            Ok(value) => value,
            Err((why, fallback)) => {
                let given_as = match &source {
                    Source::Default => var.name,
                    Source::Env(name) | Source::Flag(name) => name,
                };
                self.errors.push(ConfigError::new(var, given_as, text, &why));
                fallback
            }
        }
    }

    /// The effective value was found elsewhere.
    fn show(&mut self, name: &str, value: &str) {
        if let Some(shown) = self.values.iter_mut().find(|v| v.name == name) {
            value.clone_into(&mut shown.value);
        }
    }
}

fn read(r: &mut Reader<'_>) -> Config {
    let loopback = SocketAddr::from(([127, 0, 0, 1], weft_proto::names::VXLAN_PORT));
    let optional_dir =
        |text: &str| if text.is_empty() { Ok(None) } else { value::directory(text).map(Some) };
    let mut warnings = Vec::new();

    let ranges = r.get("IPALLOC_RANGE", Vec::new(), value::ranges);
    for net in ranges.iter().filter(|net| !value::is_private(net)) {
        warnings.push(format!(
            "IPALLOC_RANGE={net} is not for private use: pods cannot reach Internet hosts in it"
        ));
    }
    let ipalloc_init = r.get("IPALLOC_INIT", Init::Consensus(None), value::init);
    let mtu = r.get("MTU", None, value::mtu);
    let peers = r.get("KUBE_PEERS", Vec::new(), value::peers);
    let conn_limit = r.get("CONN_LIMIT", 0, |text| {
        value::bounded(text, 0, 100_000).and_then(|n| usize::try_from(n).map_err(|_| String::new()))
    });
    let password = passwords(r, &mut warnings);
    let expect_npc = r.get("EXPECT_NPC", true, value::boolean);
    let policy_unknown = r.get("POLICY_UNKNOWN", Unknown::Deny, value::unknown);
    let policy_established_drop = r.get("POLICY_ESTABLISHED", true, value::established);
    let hairpin = r.get("HAIRPIN_MODE", true, value::boolean);
    let expose_ip = r.get("EXPOSE_IP", None, |text| value::expose(text, &ranges));
    let metrics_addr = r.get("METRICS_ADDR", None, value::listen);
    let status_addr = r.get("STATUS_ADDR", None, value::listen);
    let forward_accept = r.get("FORWARD_ACCEPT", true, value::auto_or_off);
    let no_masq_local = r.get("NO_MASQ_LOCAL", true, value::boolean);
    if !no_masq_local {
        warnings.push(
            "NO_MASQ_LOCAL=0 has no effect: weft never hides a client's address from a pod"
                .to_owned(),
        );
    }
    let http_allow_remote = r.get("HTTP_ALLOW_REMOTE", false, value::boolean);
    let http_addr = r.get("HTTP_ADDR", loopback, |text| value::http_addr(text, http_allow_remote));
    if !http_addr.ip().is_loopback() {
        warnings.push(format!("HTTP_ADDR={http_addr} can be reached from other machines"));
    }
    let api_callers = r.get("API_CALLERS", Callers::Token, value::callers);
    let node_name = node_name(r);
    let node_ip = r.get("NODE_IP", None, value::node_ip);
    let state_dir = r.get("STATE_DIR", PathBuf::new(), value::directory);
    let run_dir = r.get("RUN_DIR", PathBuf::new(), value::directory);
    let mesh_port = r.get("MESH_PORT", weft_proto::names::MESH_PORT, value::port);
    let vxlan_port = r.get("VXLAN_PORT", weft_proto::names::VXLAN_PORT, |text| {
        match value::port(text)? {
            // Both are UDP sockets of this node.
            port if port == mesh_port => Err("it is also MESH_PORT".to_owned()),
            port => Ok(port),
        }
    });
    let direct_routing = r.get("DIRECT_ROUTING", false, value::boolean);
    let cni_conf_dir = r.get("CNI_CONF_DIR", None, optional_dir);
    let cni_bin_dir = r.get("CNI_BIN_DIR", None, optional_dir);
    let kubernetes = Kubernetes {
        wanted: r.get("KUBERNETES", true, value::kubernetes),
        kubeconfig: r.get("KUBECONFIG", None, optional_dir),
        server: r.get("KUBE_APISERVER", None, |text| value::api_server(text).map(Some)),
        service_host: r.get("KUBERNETES_SERVICE_HOST", None, |text| value::host(text).map(Some)),
        service_port: r.get("KUBERNETES_SERVICE_PORT", 443, value::port),
        namespace: r.get("POD_NAMESPACE", String::new(), value::namespace),
    };
    let log_format = r.get("LOG_FORMAT", LogFormat::Text, value::log_format);
    let level = r.get("LOG_LEVEL", String::new(), log::level);
    let log_filter = r
        .get("RUST_LOG", None, |text| log::filter(text).map(Some))
        .unwrap_or_else(|| log::quiet(&level));
    let quarantine = r.get("QUARANTINE", Duration::ZERO, duration);
    let lease_cooldown = r.get("LEASE_COOLDOWN", Duration::ZERO, duration);

    let iptables_backend = r.get("IPTABLES_BACKEND", String::new(), |text| {
        value::iptables_backend(text).map(|()| text.to_owned())
    });
    let checkpoint_disable = r.get("CHECKPOINT_DISABLE", false, |_| Ok(true));
    r.get("INIT_CONTAINER", false, value::boolean);
    for var in VARS.iter().filter(|v| v.without_effect.is_some()) {
        if !r.values.iter().any(|v| v.name == var.name) {
            r.get(var.name, (), |_| Ok(()));
        }
    }
    for given in r.values.iter().filter(|v| v.source != Source::Default) {
        if let Some(why) = given.without_effect {
            warnings.push(format!("{} has no effect: {why}", given.name));
        }
    }

    Config {
        ranges,
        ipalloc_init,
        mtu,
        peers,
        conn_limit,
        password,
        expect_npc,
        policy_unknown,
        policy_established_drop,
        hairpin,
        expose_ip,
        metrics_addr,
        status_addr,
        forward_accept,
        no_masq_local,
        iptables_backend,
        checkpoint_disable,
        http_addr,
        http_allow_remote,
        api_callers,
        node_name,
        node_ip,
        state_dir,
        run_dir,
        mesh_port,
        vxlan_port,
        direct_routing,
        cni_conf_dir,
        cni_bin_dir,
        kubernetes,
        log_format,
        log_filter,
        quarantine,
        lease_cooldown,
        values: std::mem::take(&mut r.values),
        warnings,
    }
}

fn passwords(r: &mut Reader<'_>, warnings: &mut Vec<String>) -> Vec<String> {
    let direct = r.get("PASSWORD", Vec::new(), keys);
    let env = r.env;
    let from_file = r.get("PASSWORD_FILE", Vec::new(), |path| {
        let text = env
            .read_file(&value::directory(path)?)
            .map_err(|error| format!("it cannot be read ({error})"))?;
        keys(&text)
    });
    if !direct.is_empty() && !from_file.is_empty() {
        warnings.push("PASSWORD_FILE is not used: PASSWORD is set too".to_owned());
    }
    let keys = if direct.is_empty() { from_file } else { direct };
    if keys.iter().any(|key| key.len() < 8) {
        warnings.push("a cluster key is shorter than 8 characters: easy to guess".to_owned());
    }
    keys
}

fn node_name(r: &mut Reader<'_>) -> String {
    let given = r.get("NODE_NAME", None, |text| value::node_name(text).map(Some));
    let wrong = r.errors.iter().any(|e| e.variable == "NODE_NAME");
    if let Some(name) = given {
        return name;
    }
    let host = r.env.hostname().unwrap_or_default();
    match value::node_name(&host) {
        Ok(name) => {
            r.show("NODE_NAME", &name);
            name
        }
        Err(_) if wrong => host,
        Err(_) => {
            if let Some(var) = var("NODE_NAME") {
                r.errors.push(ConfigError::new(var, "NODE_NAME", &host, "it is the host name"));
            }
            host
        }
    }
}

#[cfg(test)]
mod tests;

//! The table of all variables: the one place that lists names, aliases,
//! defaults and forms. Flags, help, errors and `agent config` are made from it.

use weft_proto::names;

/// One variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Var {
    /// Environment name; the flag is the same in kebab-case.
    pub name: &'static str,
    /// Weave's names for it, asked in this order after `name`.
    pub aliases: &'static [&'static str],
    /// Default as shown by `agent config`; empty where there is none.
    pub default: &'static str,
    /// What a value looks like.
    pub form: &'static str,
    /// A value that works.
    pub example: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Never shown.
    pub secret: bool,
    /// Empty means something other than "not set".
    pub empty_counts: bool,
    /// Taken so that existing manifests start, but nothing depends on it: why.
    pub without_effect: Option<&'static str>,
}

impl Var {
    const fn new(name: &'static str, default: &'static str, form: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            default,
            form,
            example: default,
            help: "",
            secret: false,
            empty_counts: false,
            without_effect: None,
        }
    }

    const fn accepted(name: &'static str, form: &'static str, why: &'static str) -> Self {
        let mut var = Self::new(name, "", form);
        var.help = why;
        var.without_effect = Some(why);
        var
    }

    const fn alias(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    const fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn empty_counts(mut self) -> Self {
        self.empty_counts = true;
        self
    }

    /// Long flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }
}

const BOOL: &str = "1 or 0 (also true/false, yes/no, on/off)";
const PORT: &str = "a port number from 1 to 65535";
const DIR: &str = "an absolute path";
const DURATION: &str = "a duration with a unit (ms, s, m, h), at most 168h";
const LISTEN: &str = "ADDRESS:PORT, or off";

/// Every variable, in the order in which `agent config` shows them.
pub const VARS: &[Var] = &[
    Var::new(
        "IPALLOC_RANGE",
        names::DEFAULT_RANGE,
        "a network in CIDR form, at least 4 addresses; a comma list of one per family",
    )
    .alias(&["WEAVE_IPALLOC_RANGE"])
    .help("the pod network"),
    Var::new(
        "IPALLOC_INIT",
        "consensus",
        "consensus, consensus=N (1 to 10000), seed=NAME,NAME,… or observer",
    )
    .alias(&["WEAVE_IPALLOC_INIT"])
    .example("consensus=3")
    .help("how a new cluster is founded"),
    Var::new("MTU", "auto", "auto, or a number from 1280 to 65535")
        .alias(&["WEAVE_MTU"])
        .example("1450")
        .help("MTU of pod interfaces; auto: underlay minus overhead"),
    Var::new("KUBE_PEERS", "", "HOST or HOST:PORT, separated by spaces or commas")
        .alias(&["WEAVE_PEERS", "WEAVE_KUBE_PEERS"])
        .example("10.0.0.1,10.0.0.2:6783")
        .help("addresses of other nodes; if set, Kubernetes is not asked"),
    Var::new("CONN_LIMIT", "200", "a number from 0 (no limit) to 100000")
        .alias(&["WEAVE_CONN_LIMIT"])
        .help("most connections to peers"),
    Var::new("PASSWORD", "", "at least one non-blank line; the first signs, all are accepted")
        .alias(&["WEAVE_PASSWORD"])
        .example("a long random text")
        .secret()
        .help("cluster key; visible to `ps` if given as a flag, so prefer PASSWORD_FILE"),
    Var::new("PASSWORD_FILE", "", "path of a readable file with one key per line")
        .alias(&["WEAVE_PASSWORD_FILE"])
        .example("/etc/weft/password")
        .help("file with the cluster key"),
    Var::new("EXPECT_NPC", "1", BOOL)
        .alias(&["WEAVE_EXPECT_NPC"])
        .help("enforce NetworkPolicy, where there is an API server"),
    Var::new("POLICY_UNKNOWN", "deny", "deny or allow")
        .example("allow")
        .help("what a pod may do while its labels are not known, if any policy could apply"),
    Var::new("POLICY_ESTABLISHED", "drop", "drop or keep")
        .example("keep")
        .help("what becomes of established connections that a change of policy forbids"),
    Var::new("HAIRPIN_MODE", "true", BOOL)
        .alias(&["WEAVE_HAIRPIN_MODE"])
        .help("a pod may reach itself through a service"),
    Var::new("EXPOSE_IP", "", "an IP address, with or without prefix length")
        .alias(&["WEAVE_EXPOSE_IP"])
        .example("10.32.0.1/12")
        .help("this node's own overlay address; default: allocated"),
    Var::new("METRICS_ADDR", names::METRICS_ADDR, LISTEN)
        .alias(&["WEAVE_METRICS_ADDR"])
        .help("where /metrics is served"),
    Var::new("STATUS_ADDR", "off", LISTEN)
        .alias(&["WEAVE_STATUS_ADDR"])
        .example("10.0.0.1:6782")
        .help("where the read-only routes are served besides HTTP_ADDR"),
    Var::new("NO_MASQ_LOCAL", "1", BOOL)
        .alias(&["WEAVE_NO_MASQ_LOCAL"])
        .help("keep the client's address towards pods; 0 is taken, but weft never hides it"),
    Var::new("FORWARD_ACCEPT", "auto", "auto or off")
        .example("off")
        .help("auto: where iptables' FORWARD chain drops by default, keep two rules there that accept pod traffic"),
    Var::new("HTTP_ADDR", names::HTTP_ADDR, "ADDRESS:PORT on a loopback address")
        .alias(&["WEAVE_HTTP_ADDR"])
        .help("where the local API is served"),
    Var::new("HTTP_ALLOW_REMOTE", "0", BOOL)
        .help("lets HTTP_ADDR be other than loopback: whoever reaches it and has the token controls this node"),
    Var::new("API_CALLERS", "token", "token or any")
        .example("any")
        .help("who may use Weave's routes under /ip: holders of the token, or any local process"),
    Var::new("NODE_NAME", "", "at most 253 letters, digits, dots, dashes, underscores")
        .alias(&["HOSTNAME"])
        .example("worker-1")
        .help("this node's name; default: the host name"),
    Var::new("NODE_IP", "", "a unicast IP address")
        .example("192.0.2.1")
        .help("this node's underlay address; default: found by route"),
    Var::new("STATE_DIR", names::STATE_DIR, DIR).help("identity and ledger of this one node; must survive reboots, and does not belong into a machine image"),
    Var::new("RUN_DIR", names::RUN_DIR, DIR).help("leases and token; must vanish with a reboot"),
    Var::new("MESH_PORT", "6783", PORT).help("UDP port of the mesh"),
    Var::new("VXLAN_PORT", "6784", "a port number from 1 to 65535, other than MESH_PORT")
        .help("UDP port of the overlay"),
    Var::new("DIRECT_ROUTING", "0", BOOL)
        .help("no encapsulation towards nodes on the same link"),
    Var::new("CNI_CONF_DIR", "/etc/cni/net.d", "an absolute path, or empty: do not install")
        .empty_counts()
        .help("where the CNI configuration is written"),
    Var::new("CNI_BIN_DIR", "/opt/cni/bin", "an absolute path, or empty: do not install")
        .alias(&["WEAVE_CNI_PLUGIN_DIR"])
        .empty_counts()
        .help("where the CNI plugin is installed"),
    Var::new("KUBERNETES", "auto", "auto or off")
        .example("off")
        .help("auto: use the API server if KUBECONFIG is set or this is a pod with a service account"),
    Var::new("KUBECONFIG", "", DIR)
        .example("/etc/kubernetes/weft.conf")
        .help("file that says where the API server is and who asks; default: the pod's service account"),
    Var::new("KUBE_APISERVER", "", "https://HOST:PORT")
        .example("https://192.0.2.1:6443")
        .help("another address of the API server: one that needs no kube-proxy"),
    Var::new("KUBERNETES_SERVICE_HOST", "", "a host name or an IP address")
        .example("10.96.0.1")
        .help("address of the API server's service; set by the kubelet"),
    Var::new("KUBERNETES_SERVICE_PORT", "443", PORT)
        .help("port of the API server's service; set by the kubelet"),
    Var::new("POD_NAMESPACE", "kube-system", "a namespace")
        .help("where ConfigMap and Secret `weft` are kept"),
    Var::new("LOG_FORMAT", "text", "text or json").example("json").help("form of the log"),
    Var::new("LOG_LEVEL", "info", "error, warn, info, debug or trace")
        .alias(&["WEAVE_LOG_LEVEL"])
        .example("debug")
        .help("how much is logged; RUST_LOG says it more finely and wins"),
    Var::new("RUST_LOG", "", "filter directives: LEVEL or TARGET=LEVEL, comma separated")
        .example("info,weft_agent::mesh=debug")
        .help("how much is logged, per part"),
    Var::new("QUARANTINE", "10m", DURATION)
        .help("how long an evicted node's blocks rest before reuse"),
    Var::new("LEASE_COOLDOWN", "30s", DURATION)
        .help("how long a freed address rests before reuse"),
    Var::accepted("IPTABLES_BACKEND", "auto, nft or legacy", "weft talks to nftables itself")
        .example("nft"),
    Var::accepted("CHECKPOINT_DISABLE", "any text", "weft never phones home").example("1"),
    Var::accepted("INIT_CONTAINER", BOOL, "no init container is needed").example("true"),
    Var::accepted("WEAVE_NO_FASTDP", "any text", "there is one data path, in the kernel")
        .example("1"),
    Var::accepted("HOST_ROOT", "any text", "host directories are named one by one").example("/host"),
    Var::accepted("DB_PREFIX", "any text", "see STATE_DIR").example("/weavedb/weave-net"),
    Var::accepted("EXTRA_ARGS", "any text", "weaver's own flags do not exist here")
        .example("--log-level=debug"),
    Var::accepted("WEAVE_KUBERNETES_VERSION", "any text", "weft never phones home").example("v1.30"),
    Var::accepted("WEAVE_KUBERNETES_UID", "any text", "weft never phones home").example("uid"),
];

/// The variable of that name.
pub fn var(name: &str) -> Option<&'static Var> {
    VARS.iter().find(|v| v.name == name)
}

use super::*;

fn parse<'a>(vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Config, ConfigErrors> {
    Config::parse(&MapEnv::new(vars), &Flags::new())
}

/// For each variable, values that must be refused.
const WRONG: &[(&str, &[&str])] = &[
    (
        "IPALLOC_RANGE",
        &[
            "10.32.0.0",
            "10.32.0.1/12",
            "10.0.0.0/31",
            "10.0.0.0/33",
            "x",
            "10.0.0.0/8,10.0.0.0/9",
            "10.0.0.0/8,",
            "224.0.0.0/8",
            "127.0.0.0/8",
            "0.0.0.0/0",
            "fd00::/127",
            "fe80::/64",
        ],
    ),
    (
        "IPALLOC_INIT",
        &[
            "x",
            "consensus=x",
            "consensus=-1",
            "consensus=99999",
            "seed",
            "seed=",
            "seed=a,,b",
            "seed=a,a",
            "observer=1",
        ],
    ),
    ("MTU", &["x", "1279", "65536", "-1", "1500.0", "+1500"]),
    ("KUBE_PEERS", &["a b c:0", "10.0.0.256", "a:99999", "-:", "10.0.0.1:x", "[::1", "a/b"]),
    ("CONN_LIMIT", &["x", "-1", "100001", "1e3"]),
    ("PASSWORD", &["\n \n"]),
    ("PASSWORD_FILE", &["/no/such", "relative", "/empty"]),
    ("EXPECT_NPC", &["2", "maybe"]),
    ("POLICY_UNKNOWN", &["Deny", "1"]),
    ("POLICY_ESTABLISHED", &["kept", "0"]),
    ("HAIRPIN_MODE", &["2", "promiscuous"]),
    ("EXPOSE_IP", &["x", "192.168.1.1", "10.32.0.1/33", "224.0.0.1/8", "0.0.0.0/8"]),
    ("METRICS_ADDR", &["x", "6782", "0.0.0.0", "host:6782", ":0", ":x"]),
    ("STATUS_ADDR", &["x", "6782", "1.2.3.4:99999"]),
    ("FORWARD_ACCEPT", &["on", "1"]),
    ("NO_MASQ_LOCAL", &["2"]),
    (
        "HTTP_ADDR",
        &["x", "0.0.0.0:6784", "192.0.2.1:6784", "[::]:1", "127.0.0.1", "/run/weave.sock"],
    ),
    ("HTTP_ALLOW_REMOTE", &["2"]),
    ("API_CALLERS", &["all", "Token"]),
    ("NODE_NAME", &["a b", "a/b", "é", "x\u{1b}[31m"]),
    ("NODE_IP", &["x", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "10.0.0.1/8"]),
    ("STATE_DIR", &["relative", "/a/../b"]),
    ("RUN_DIR", &["relative", "/a/../b"]),
    ("MESH_PORT", &["0", "65536", "x", "tcp://10.0.0.1:6783"]),
    ("VXLAN_PORT", &["0", "65536", "x", "6783"]),
    ("DIRECT_ROUTING", &["2"]),
    ("CNI_CONF_DIR", &["relative"]),
    ("CNI_BIN_DIR", &["relative"]),
    ("KUBERNETES", &["maybe", "on"]),
    ("KUBECONFIG", &["relative", "/a/../b"]),
    ("KUBE_APISERVER", &["10.0.0.1:6443", "https://", "https://a/b", "https://a:x", "ftp://a"]),
    ("KUBERNETES_SERVICE_HOST", &["a b", "a:1", "https://a"]),
    ("KUBERNETES_SERVICE_PORT", &["0", "x", "tcp://10.0.0.1:443"]),
    ("POD_NAMESPACE", &["Kube", "a b", "-a", "a/b"]),
    ("LOG_FORMAT", &["xml"]),
    ("LOG_LEVEL", &["loud"]),
    ("RUST_LOG", &["a=loud", "weft[=debug"]),
    ("QUARANTINE", &["x", "10", "10 m", "-1s", "1d", "169h", "99999999999999999999s", "10é"]),
    ("LEASE_COOLDOWN", &["x", "30", "30sec"]),
    ("IPTABLES_BACKEND", &["ebpf"]),
    ("INIT_CONTAINER", &["maybe"]),
];

/// Taken whatever they say, because nothing depends on them.
const ANYTHING: &[&str] = &[
    "CHECKPOINT_DISABLE",
    "WEAVE_NO_FASTDP",
    "HOST_ROOT",
    "DB_PREFIX",
    "EXTRA_ARGS",
    "WEAVE_KUBERNETES_VERSION",
    "WEAVE_KUBERNETES_UID",
];

fn env_with(name: &str, value: &str) -> MapEnv {
    let mut env = MapEnv::new([(name, value)]);
    env.files.insert("/empty".into(), "\n".into());
    env.files.insert("/etc/weft/password".into(), "key number one\nkey number two\n".into());
    env
}

#[test]
fn each_variable_wrong_in_turn_is_named() {
    for var in VARS {
        if ANYTHING.contains(&var.name) {
            continue;
        }
        let (_, values) = WRONG
            .iter()
            .find(|(name, _)| *name == var.name)
            .unwrap_or_else(|| panic!("no wrong value of {} is tested", var.name));
        for value in *values {
            for name in std::iter::once(&var.name).chain(var.aliases) {
                let errors = Config::parse(&env_with(name, value), &Flags::new())
                    .expect_err(&format!("{name}={value:?} was taken"));
                let text = errors.to_string();
                assert_eq!(errors.0.len(), 1, "{name}={value:?}: {text}");
                assert!(text.starts_with(&format!("{name}=`")), "{text}");
                assert!(text.contains("for example ") && text.contains(var.form), "{text}");
                assert!(!text.contains(['\n', '\u{1b}']), "{text:?}");
            }
            let flags = Flags::from([(var.name, (*value).to_owned())]);
            let errors = Config::parse(&env_with("X", ""), &flags).expect_err(var.name);
            assert!(errors.to_string().starts_with(&format!("--{}=`", var.flag())), "{errors}");
        }
    }
}

#[test]
fn every_example_works_under_every_name() {
    for var in VARS {
        assert!(!var.example.is_empty() && !var.help.is_empty(), "{}", var.name);
        for name in std::iter::once(&var.name).chain(var.aliases) {
            let config = Config::parse(&env_with(name, var.example), &Flags::new())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let shown = config.values.iter().find(|v| v.name == var.name).unwrap();
            assert_eq!(shown.source, Source::Env((*name).to_owned()));
            assert_eq!(shown.value == "(hidden)", var.secret, "{name}");
            let warned = config.warnings.iter().any(|w| w.contains("has no effect"));
            assert_eq!(warned, var.without_effect.is_some(), "{name}");
        }
    }
}

#[test]
fn each_variable_is_shown_once_and_the_table_has_no_doubles() {
    let config = parse([]).unwrap();
    let mut names: Vec<_> = config.values.iter().map(|v| v.name).collect();
    names.sort_unstable();
    let mut table: Vec<_> = VARS.iter().map(|v| v.name).collect();
    table.sort_unstable();
    assert_eq!(names, table);
    let mut all: Vec<_> =
        VARS.iter().flat_map(|v| v.aliases.iter().chain(std::iter::once(&v.name))).collect();
    let before = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), before);
}

#[test]
fn defaults() {
    let config = parse([]).unwrap();
    assert_eq!(config.ranges, ["10.32.0.0/12".parse::<IpNet>().unwrap()]);
    assert_eq!(config.ipalloc_init, Init::Consensus(None));
    assert_eq!((config.mtu, config.conn_limit), (None, 200));
    assert_eq!(config.http_addr, "127.0.0.1:6784".parse().unwrap());
    assert_eq!(config.metrics_addr, Some("0.0.0.0:6782".parse().unwrap()));
    assert_eq!(config.status_addr, None);
    assert_eq!((config.mesh_port, config.vxlan_port), (6783, 6784));
    assert_eq!(config.node_name, "host");
    assert_eq!(config.quarantine, Duration::from_secs(600));
    assert_eq!(config.lease_cooldown, Duration::from_secs(30));
    assert!(config.expect_npc && config.hairpin && config.no_masq_local);
    assert!(config.password.is_empty() && config.warnings.is_empty());
    assert_eq!(config.cni_conf_dir, Some("/etc/cni/net.d".into()));
    assert!(config.log_filter.starts_with(
        "info,openraft=error,openraft::core::raft_core=off,openraft::replication=off,quinn=warn"
    ));
}

/// The table of the README is for people; this keeps it whole.
#[test]
fn the_readme_names_every_variable() {
    let readme = include_str!("../../../README.md");
    for var in VARS {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", var.name)))
            .unwrap_or_else(|| panic!("README.md has no row for {}", var.name));
        for alias in var.aliases {
            assert!(row.contains(&format!("`{alias}`")), "{alias} is missing: {row}");
        }
        assert!(row.contains(&format!("`{}`", var.default)) || var.default.is_empty(), "{row}");
    }
}

#[test]
fn sources_and_precedence() {
    let env =
        MapEnv::new([("MTU", "1400"), ("WEAVE_MTU", "1300"), ("WEAVE_HTTP_ADDR", "127.0.0.1:1")]);
    let flags = Flags::from([("CONN_LIMIT", "7".to_owned())]);
    let config = Config::parse(&env, &flags).unwrap();
    assert_eq!((config.mtu, config.conn_limit), (Some(1400), 7));
    let source =
        |name: &str| config.values.iter().find(|v| v.name == name).unwrap().source.to_string();
    assert_eq!(source("MTU"), "env MTU");
    assert_eq!(source("HTTP_ADDR"), "env WEAVE_HTTP_ADDR");
    assert_eq!(source("CONN_LIMIT"), "flag --conn-limit");
    assert_eq!(source("KUBE_PEERS"), "default");
}

#[test]
fn all_problems_at_once() {
    let errors = parse([("MTU", "x"), ("CONN_LIMIT", "y"), ("NODE_NAME", "a b")]).unwrap_err();
    assert_eq!(errors.0.len(), 3);
    assert_eq!(errors.to_string().lines().count(), 3);
}

#[test]
fn a_misaligned_range_is_told_its_network() {
    let text = parse([("IPALLOC_RANGE", "10.32.7.0/12")]).unwrap_err().to_string();
    assert!(text.contains("the network is 10.32.0.0/12"), "{text}");
}

#[test]
fn secrets_never_show() {
    let mut env = MapEnv::new([("PASSWORD", "sesame open")]);
    let config = Config::parse(&env, &Flags::new()).unwrap();
    assert_eq!(config.password, ["sesame open"]);
    for text in [
        format!("{config:?}"),
        serde_json::to_string(&config).unwrap(),
        config.report().to_string(),
    ] {
        assert!(!text.contains("sesame"), "{text}");
    }
    env.vars = [("PASSWORD_FILE".to_owned(), "/k".to_owned())].into();
    env.files.insert("/k".into(), "new key here\r\nold key here\n\n".into());
    let config = Config::parse(&env, &Flags::new()).unwrap();
    assert_eq!(config.password, ["new key here", "old key here"]);
}

#[test]
fn values_with_more_than_one_part() {
    let config = parse([
        ("IPALLOC_RANGE", "10.96.0.0/16, fd00:10::/48"),
        ("KUBE_PEERS", "10.0.0.1 node-2,[fd00::3]:7000  fd00::4,10.0.0.1"),
        ("IPALLOC_INIT", "seed=a,b"),
        ("EXPOSE_IP", "10.96.0.1"),
        ("CNI_CONF_DIR", ""),
        ("MTU", ""),
        ("METRICS_ADDR", "off"),
        ("RUST_LOG", "warn,weft_agent=trace"),
        ("QUARANTINE", "1h30m"),
    ])
    .unwrap();
    assert_eq!(config.ranges.len(), 2);
    assert_eq!(config.peers, ["10.0.0.1", "node-2", "[fd00::3]:7000", "fd00::4"]);
    assert_eq!(config.ipalloc_init, Init::Seed(vec!["a".into(), "b".into()]));
    assert_eq!(config.expose_ip, Some("10.96.0.1/16".parse().unwrap()));
    assert_eq!((config.cni_conf_dir, config.mtu, config.metrics_addr), (None, None, None));
    assert_eq!(config.log_filter, "warn,weft_agent=trace");
    assert_eq!(config.quarantine, Duration::from_secs(5400));
}

#[test]
fn remote_api_needs_consent() {
    let config = parse([("HTTP_ADDR", "10.0.0.1:6784"), ("HTTP_ALLOW_REMOTE", "1")]).unwrap();
    assert_eq!(config.http_addr, "10.0.0.1:6784".parse().unwrap());
    assert_eq!(config.warnings.len(), 1);
    assert_eq!(parse([("IPALLOC_RANGE", "9.0.0.0/16")]).unwrap().warnings.len(), 1);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(value in "\\PC{0,40}|[0-9a-z:.,=/\\[\\]]{0,40}") {
        let env = MapEnv {
            vars: VARS.iter().map(|v| (v.name.to_owned(), value.clone())).collect(),
            ..MapEnv::new([])
        };
        let _ = Config::parse(&env, &Flags::new());
    }
}

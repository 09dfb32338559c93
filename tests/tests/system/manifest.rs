//! The manifests in `deploy`: what they say must be what the programs need.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use serde_json::Value;
use weft_agent::config::{Config, Flags, MapEnv, VARS};
use weft_proto::names;
use weft_tests::Result;
use weft_tests::manifest::{documents, read};

fn one(documents: &[Value], kind: &str) -> Result<Value> {
    let mut of_kind = documents.iter().filter(|document| document["kind"] == kind);
    let found = of_kind.next().with_context(|| format!("no {kind}"))?;
    ensure!(of_kind.next().is_none(), "more than one {kind}");
    Ok(found.clone())
}

fn list<'a>(value: &'a Value, pointer: &str) -> Result<&'a [Value]> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map(Vec::as_slice).with_context(|| format!("no list at {pointer}"))
}

fn texts(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

const CONTAINER: &str = "/spec/template/spec/containers/0";

#[test]
fn every_variable_is_one_the_agent_knows() -> Result {
    let known: BTreeSet<&str> =
        VARS.iter().flat_map(|v| v.aliases.iter().chain([&v.name])).copied().collect();
    let text = read("deploy/daemonset.yaml")?;
    let block = text.split("          env:\n").nth(1).context("no env")?;
    let block = block.split("          resources:").next().unwrap_or_default();
    // Those in comments are to be uncommented.
    let named: Vec<&str> = block
        .lines()
        .filter_map(|line| line.trim_start_matches([' ', '#']).strip_prefix("- name: "))
        .map(|rest| rest.split_whitespace().next().unwrap_or_default())
        .collect();
    ensure!(named.len() >= 8, "the env block is found: {named:?}");
    for name in named {
        ensure!(known.contains(name), "deploy/daemonset.yaml: the agent knows no {name}");
    }
    let overlay = documents("examples/overlay/env.yaml")?;
    let env = list(&overlay[0], &format!("{CONTAINER}/env"))?;
    let pairs: Vec<(&str, &str)> = env
        .iter()
        .filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?)))
        .collect();
    ensure!(pairs.len() == env.len(), "every value is text: {env:?}");
    Config::parse(&MapEnv::new(pairs), &Flags::new())?;
    Ok(())
}

#[test]
fn every_rule_has_its_reason() -> Result {
    let text = read("deploy/daemonset.yaml")?;
    let lines: Vec<&str> = text.lines().collect();
    let rules: Vec<usize> =
        (0..lines.len()).filter(|at| lines[*at].starts_with("  - apiGroups:")).collect();
    ensure!(rules.len() >= 8, "the rules are found");
    for at in rules {
        let above = lines[at - 1].trim_start();
        ensure!(above.starts_with("# "), "line {}: why? `{}`", at + 1, lines[at]);
    }
    let found = documents("deploy/daemonset.yaml")?;
    for kind in ["ClusterRole", "Role"] {
        for rule in list(&one(&found, kind)?, "/rules")? {
            let (groups, resources, verbs) =
                (texts(&rule["apiGroups"]), texts(&rule["resources"]), texts(&rule["verbs"]));
            ensure!(!verbs.is_empty() && !resources.is_empty() && groups.len() == 1, "{rule}");
            let all = groups.iter().chain(&resources).chain(&verbs).any(|word| *word == "*");
            ensure!(!all && !verbs.contains("delete"), "more than is needed: {rule}");
            if resources.contains("secrets") || resources.contains("configmaps") {
                let named = texts(&rule["resourceNames"]) == BTreeSet::from(["weft"]);
                ensure!(kind == "Role" && (named || verbs == BTreeSet::from(["create"])), "{rule}");
            }
        }
    }
    Ok(())
}

#[test]
fn roles_are_bound_to_the_account_the_pods_run_as() -> Result {
    let found = documents("deploy/daemonset.yaml")?;
    let account = one(&found, "ServiceAccount")?;
    for (binding, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        let (binding, role) = (one(&found, binding)?, one(&found, role)?);
        ensure!(binding["roleRef"]["kind"] == role["kind"], "{binding}");
        ensure!(binding["roleRef"]["name"] == role["metadata"]["name"], "{binding}");
        let subjects = list(&binding, "/subjects")?;
        ensure!(subjects.len() == 1, "{binding}");
        for field in ["name", "namespace"] {
            ensure!(subjects[0][field] == account["metadata"][field], "{binding}");
        }
    }
    let set = one(&found, "DaemonSet")?;
    let pod = &set["spec"]["template"];
    ensure!(pod["spec"]["serviceAccountName"] == account["metadata"]["name"]);
    ensure!(pod["metadata"]["labels"]["name"] == set["spec"]["selector"]["matchLabels"]["name"]);
    ensure!(
        set["metadata"]["labels"]["name"] == "weft"
            && set["metadata"]["namespace"] == "kube-system"
    );
    Ok(())
}

#[test]
fn probes_ask_routes_that_exist_where_the_agent_listens() -> Result {
    let routes = read("agent/src/api/routes.rs")?;
    let set = one(&documents("deploy/daemonset.yaml")?, "DaemonSet")?;
    let container = set.pointer(CONTAINER).context("no container")?;
    let mut paths = Vec::new();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        let path = get["path"].as_str().with_context(|| format!("{probe} has no path"))?;
        ensure!(routes.contains(&format!(".route(\"{path}\", get(")), "{probe}: no route {path}");
        let address = format!("{}:{}", get["host"].as_str().unwrap_or_default(), get["port"]);
        ensure!(address == names::HTTP_ADDR, "{probe} asks {address}");
        paths.push(path);
    }
    ensure!(paths == ["/healthz", "/healthz", "/status"], "{paths:?}");
    let slowest = container["startupProbe"]["periodSeconds"].as_u64().unwrap_or(0)
        * container["startupProbe"]["failureThreshold"].as_u64().unwrap_or(0);
    ensure!(slowest >= 300, "a slow start is killed after {slowest} s");
    Ok(())
}

#[test]
fn directories_are_mounted_where_the_agent_expects_them() -> Result {
    let defaults: BTreeMap<&str, &str> = VARS.iter().map(|v| (v.name, v.default)).collect();
    let agent = ["STATE_DIR", "RUN_DIR", "CNI_BIN_DIR", "CNI_CONF_DIR"].map(|name| defaults[name]);
    for (path, more) in
        [("deploy/daemonset.yaml", Some("/host/proc/sys/net")), ("deploy/cleanup.yaml", None)]
    {
        let set = one(&documents(path)?, "DaemonSet")?;
        let pod = &set["spec"]["template"]["spec"];
        let wanted: BTreeSet<&str> = agent.into_iter().chain(more).collect();
        let mut volumes: BTreeMap<&str, &str> = BTreeMap::new();
        for volume in list(pod, "/volumes")? {
            let host = volume["hostPath"]["path"].as_str().context("not of the host")?;
            volumes.insert(volume["name"].as_str().unwrap_or_default(), host);
        }
        let containers = list(pod, "/containers")?;
        let more = pod["initContainers"].as_array().into_iter().flatten();
        for container in containers.iter().chain(more) {
            let mut mounted = BTreeSet::new();
            for mount in list(container, "/volumeMounts")? {
                let at = mount["mountPath"].as_str().unwrap_or_default();
                let host = volumes.get(mount["name"].as_str().unwrap_or_default());
                ensure!(host.is_some_and(|host| at.ends_with(host)), "{path}: {mount}");
                mounted.insert(at);
            }
            ensure!(mounted == wanted, "{path} mounts {mounted:?}, not {wanted:?}");
        }
        ensure!(volumes.len() == wanted.len(), "{path}: a volume is not used");
    }
    // Where the agent looks for what the last of them gives it.
    ensure!(read("agent/src/dataplane/sysctl.rs")?.contains("\"/host/proc/sys\""));
    Ok(())
}

#[test]
fn the_image_is_of_this_version() -> Result {
    let wanted = format!("localhost/weft:{}", env!("CARGO_PKG_VERSION"));
    let mut images = 0;
    for path in ["deploy/daemonset.yaml", "deploy/cleanup.yaml"] {
        for line in read(path)?.lines() {
            if let Some(image) = line.trim_start().strip_prefix("image: ") {
                ensure!(image == wanted, "{path}: {image} instead of {wanted}");
                images += 1;
            }
        }
    }
    ensure!(images == 3, "{images} images");
    let overlay = documents("examples/overlay/kustomization.yaml")?;
    ensure!(
        wanted
            .starts_with(&format!("{}:", overlay[0]["images"][0]["name"].as_str().unwrap_or("?")))
    );
    Ok(())
}

/// Fields of Kubernetes 1.20; later ones are refused or dropped there.
const POD_FIELDS: &[&str] = &[
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "hostNetwork",
    "initContainers",
    "priorityClassName",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
];
const CONTAINER_FIELDS: &[&str] = &[
    "command",
    "env",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePolicy",
    "volumeMounts",
];

#[test]
fn little_is_asked_for_and_nothing_newer_than_1_20() -> Result {
    for path in ["deploy/daemonset.yaml", "deploy/cleanup.yaml"] {
        let set = one(&documents(path)?, "DaemonSet")?;
        let pod = set.pointer("/spec/template/spec").context("no pod")?;
        let fields = |value: &Value| -> BTreeSet<String> {
            value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect()
        };
        for field in fields(pod) {
            ensure!(POD_FIELDS.contains(&field.as_str()), "{path}: {field}");
        }
        ensure!(pod["hostNetwork"] == true && pod["priorityClassName"] == "system-node-critical");
        ensure!(pod["tolerations"] == serde_json::json!([{ "operator": "Exists" }]), "{path}");
        let inits = pod["initContainers"].as_array().into_iter().flatten();
        for container in list(pod, "/containers")?.iter().chain(inits) {
            for field in fields(container) {
                ensure!(CONTAINER_FIELDS.contains(&field.as_str()), "{path}: {field}");
            }
            let rights = &container["securityContext"];
            ensure!(rights["privileged"].is_null() && rights["readOnlyRootFilesystem"] == true);
            ensure!(rights["allowPrivilegeEscalation"] == false, "{path}");
            ensure!(texts(&rights["capabilities"]["drop"]) == BTreeSet::from(["ALL"]), "{path}");
            ensure!(
                texts(&rights["capabilities"]["add"]) == BTreeSet::from(["NET_ADMIN"]),
                "{path}"
            );
            ensure!(!container["resources"]["requests"]["memory"].is_null(), "{path}");
        }
    }
    Ok(())
}

/// What people have in the env block of Weave's manifest, in its words.
const WEAVE: &[(&str, &str)] = &[
    ("INIT_CONTAINER", "true"),
    ("HOSTNAME", "worker-7"),
    ("IPALLOC_RANGE", "10.40.0.0/13"),
    ("IPALLOC_INIT", "consensus=3"),
    ("KUBE_PEERS", "192.0.2.1 192.0.2.2 192.0.2.3"),
    ("CONN_LIMIT", "100"),
    ("WEAVE_PASSWORD", "a password of the old days"),
    ("WEAVE_MTU", "1376"),
    ("WEAVE_NO_FASTDP", "1"),
    ("WEAVE_EXPOSE_IP", "10.40.0.9/13"),
    ("WEAVE_HTTP_ADDR", "127.0.0.1:6784"),
    ("WEAVE_METRICS_ADDR", "0.0.0.0:6782"),
    ("WEAVE_STATUS_ADDR", "0.0.0.0:6785"),
    ("EXPECT_NPC", "0"),
    ("NO_MASQ_LOCAL", "1"),
    ("IPTABLES_BACKEND", "nft"),
    ("HAIRPIN_MODE", "false"),
    ("HOST_ROOT", "/host"),
    ("DB_PREFIX", "/weavedb/weave-net"),
    ("EXTRA_ARGS", "--log-level=debug"),
    ("CHECKPOINT_DISABLE", "1"),
    ("WEAVE_KUBERNETES_VERSION", "v1.20.2"),
];

#[test]
fn an_env_block_of_weaves_manifest_works_when_moved_over() -> Result {
    let config = Config::parse(&MapEnv::new(WEAVE.iter().copied()), &Flags::new())?;
    ensure!(config.node_name == "worker-7" && config.mtu == Some(1376));
    ensure!(config.ranges == ["10.40.0.0/13".parse::<ipnet::IpNet>()?]);
    ensure!(config.peers.len() == 3 && config.conn_limit == 100);
    ensure!(config.password == ["a password of the old days"]);
    ensure!(config.expose_ip == Some("10.40.0.9/13".parse()?));
    ensure!(config.status_addr == Some("0.0.0.0:6785".parse()?));
    ensure!(!config.expect_npc && !config.hairpin && config.no_masq_local);
    // Whatever is taken without effect is said.
    let idle: Vec<&str> = VARS
        .iter()
        .filter(|v| v.without_effect.is_some() && WEAVE.iter().any(|(name, _)| v.name == *name))
        .map(|v| v.name)
        .collect();
    ensure!(idle.len() >= 6, "{idle:?}");
    for name in idle {
        let said = config.warnings.iter().any(|w| w.starts_with(&format!("{name} has no effect")));
        ensure!(said, "nothing is said of {name}: {:?}", config.warnings);
    }
    Ok(())
}

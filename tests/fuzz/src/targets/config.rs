//! What operators write: configuration, and objects of Kubernetes.

use weft_agent::config::{Config, Flags, MapEnv, VARS};

pub(super) fn configs() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = [
        "IPALLOC_RANGE=10.32.0.0/12,fd00:10::/48\nKUBE_PEERS=192.0.2.1 n2:6783,[2001:db8::1]:6783\nMTU=1400",
        "PASSWORD=first key\nIPALLOC_INIT=seed=n1,192.0.2.2\nCONN_LIMIT=0\nHTTP_ADDR=127.0.0.1:1",
        "HTTP_ADDR=0.0.0.0:1\nHTTP_ALLOW_REMOTE=1\nAPI_CALLERS=any\nEXPOSE_IP=10.32.0.1/12",
        "QUARANTINE=1h30m\nLEASE_COOLDOWN=500ms\nMETRICS_ADDR=off\nNODE_IP=2001:db8::1\nLOG_FORMAT=json",
        "KUBERNETES=off\nKUBERNETES_SERVICE_HOST=10.96.0.1\nKUBE_APISERVER=https://[::1]:6443",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    // Every variable has been seen once.
    out.push(VARS.iter().map(|var| format!("{}=1\n", var.name)).collect::<String>().into());
    out
}

/// Variables, one a line: a value that cannot be used is named with its variable, and
/// a key is never shown.
pub(super) fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let env = MapEnv::new(text.lines().filter_map(|line| line.split_once('=')));
    match Config::parse(&env, &Flags::new()) {
        Ok(config) => {
            assert!((1..=2).contains(&config.ranges.len()));
            assert!(config.http_addr.ip().is_loopback() || config.http_allow_remote);
            let report = config.report().to_string();
            for key in config.password.iter().filter(|key| key.len() >= 12) {
                let quoted = serde_json::Value::from(key.as_str()).to_string();
                let elsewhere = env.vars.iter().any(|(name, value)| {
                    !name.contains("PASSWORD") && value.contains(key.as_str())
                });
                assert!(elsewhere || !report.contains(quoted.trim_matches('"')), "a key is shown");
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            for error in &errors.0 {
                let text = error.to_string();
                assert!(VARS.iter().any(|var| text.contains(var.name)), "{text}");
            }
        }
    }
}

pub(super) fn objects() -> Vec<Vec<u8>> {
    let pod = r#"{"kind":"Pod","metadata":{"name":"web-0","namespace":"shop","uid":"u","labels":{"app":"web"}},"spec":{"nodeName":"n1","containers":[{"ports":[{"name":"http","containerPort":8080}]}]},"status":{"phase":"Running","podIP":"10.32.0.5","podIPs":[{"ip":"10.32.0.5"},{"ip":"fd00::5"}]}}"#;
    let other = r#"{"kind":"Pod","metadata":{"name":"db-0","namespace":"shop","labels":{"app":"db"}},"spec":{},"status":{"podIPs":[{"ip":"10.32.1.9"}]}}"#;
    let namespace = r#"{"kind":"Namespace","metadata":{"name":"shop","labels":{"team":"a"}}}"#;
    let node = r#"{"kind":"Node","metadata":{"name":"n1","labels":{"zone":"z"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#;
    let network = r#"{"kind":"NetworkPolicy","metadata":{"name":"p","namespace":"shop"},"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress","Egress"],"ingress":[{"from":[{"podSelector":{"matchExpressions":[{"key":"app","operator":"In","values":["db"]}]},"namespaceSelector":{}},{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.32.1.0/24"]}}],"ports":[{"port":"http"},{"protocol":"UDP","port":53,"endPort":60}]}],"egress":[{}]}}"#;
    let cluster = r#"{"kind":"ClusterNetworkPolicy","metadata":{"name":"c"},"spec":{"tier":"Admin","priority":5,"subject":{"namespaces":{"matchLabels":{"team":"a"}}},"ingress":[{"name":"r","action":"Deny","from":[{"pods":{"namespaceSelector":{},"podSelector":{}}}],"protocols":[{"tcp":{"destinationPort":{"number":80}}}]}],"egress":[{"action":"Pass","to":[{"networks":["10.0.0.0/8"]},{"nodes":{"matchLabels":{"zone":"z"}}}]}]}}"#;
    let all = [pod, other, namespace, node, network, cluster];
    let mut out: Vec<Vec<u8>> = all.map(|text| text.as_bytes().to_vec()).into();
    out.push(all.join("\n").into_bytes());
    out
}

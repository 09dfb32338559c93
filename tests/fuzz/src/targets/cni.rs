//! What a container runtime says to the plugin, and the kernel to both.

use std::net::IpAddr;

use weft_agent::dataplane::fuzzing::links as agent_links;
use weft_proto::attachment::{ALIAS_MAX, Alias, AttachmentKey};
use weft_proto::cni::{CniError, Command, Conf, Env, Outcome, SpecVersion, parse_args};

use weft_cni_shim::fuzzing::{AddressView, LinkView, NeighbourView, RouteView, attributes};

fn named(error: &CniError) {
    assert!(error.code > 0 && !error.msg.is_empty());
    let json = serde_json::from_str::<serde_json::Value>(&error.to_json("1.0.0"));
    assert!(json.is_ok_and(|json| json["code"] == error.code));
}

pub(super) fn confs() -> Vec<Vec<u8>> {
    [
        r#"{"cniVersion":"1.0.0","name":"weft","type":"weft","mtu":1400,"hairpinMode":true,"ipam":{"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]},"dns":{"nameservers":["10.0.0.1"]},"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":"192.0.2.1"}],"bandwidth":{"ingressRate":1000,"ingressBurst":1000,"egressRate":0,"egressBurst":0}},"agentAddr":"127.0.0.1:6784","runDir":"/run/weft","logFile":"/x","disableGC":true}"#,
        r#"{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"0a:58:0a:20:00:05","mtu":1450,"sandbox":"/x"}],"ips":[{"address":"10.32.0.5/32","gateway":"169.254.1.1","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1","table":7}],"dns":{}}}"#,
        r#"{"cniVersion":"0.2.0","name":"weft","prevResult":{"cniVersion":"0.2.0","ip4":{"ip":"10.32.0.5/32","gateway":"169.254.1.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{}}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// The configuration on standard input. A previous result that is read is told
/// again so that it reads the same.
pub(super) fn conf(bytes: &[u8]) {
    let _ = Conf::version_text(bytes);
    let conf = match Conf::parse(bytes) {
        Ok(conf) => conf,
        Err(error) => return named(&error),
    };
    assert!(conf.mtu != Some(0) && !conf.name.is_empty());
    let Some(prev) = &conf.prev_result else { return };
    match Outcome::parse(prev) {
        Ok(outcome) => {
            // The newest version says all; what it says reads as the same.
            let told = outcome.to_json(SpecVersion::V1_1_0, None);
            // No DNS is told as empty DNS.
            match told.as_object().map(Outcome::parse) {
                Some(Ok(again)) => {
                    assert_eq!(Outcome { dns: outcome.dns.clone(), ..again }, outcome);
                }
                other => unreachable!("{other:?} of {told}"),
            }
            for version in [SpecVersion::V0_1_0, SpecVersion::V0_4_0, SpecVersion::V1_0_0] {
                assert!(outcome.to_json(version, Some(prev)).is_object());
            }
        }
        Err(error) => named(&error),
    }
}

pub(super) fn envs() -> Vec<Vec<u8>> {
    let all = "CNI_COMMAND=ADD\nCNI_CONTAINERID=abc-1\nCNI_IFNAME=eth0\nCNI_NETNS=/var/run/netns/x\nCNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=y";
    let verbs = ["DEL", "CHECK", "STATUS", "GC", "VERSION"];
    let mut out = vec![all.as_bytes().to_vec()];
    out.extend(verbs.map(|verb| all.replace("ADD", verb).into_bytes()));
    out
}

/// The environment, one variable a line: an attachment that is accepted can be
/// written to the interface it belongs to, and into a path of the API.
pub(super) fn env(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let vars: std::collections::BTreeMap<_, _> =
        text.lines().filter_map(|line| line.split_once('=')).collect();
    match Env::read(|name| vars.get(name).map(|value| (*value).to_owned())) {
        Ok(env) => {
            if matches!(env.command, Command::Add | Command::Check | Command::Del) {
                let key = env.key;
                assert!((1..=15).contains(&key.ifname.len()) && !key.ifname.contains(['/', ' ']));
                assert!(!key.container_id.is_empty() && !key.container_id.contains(['/', ' ']));
                let addresses = vec![IpAddr::from([255; 4]), IpAddr::from([255; 16])];
                let alias = Alias { key, addresses, pod: None, uid: None };
                let read = alias.to_text().and_then(|text| Alias::parse(&text));
                assert_eq!(read, Some(alias));
            }
        }
        Err(error) => named(&error),
    }
    if let Err(error) = parse_args(&text) {
        named(&error);
    }
}

pub(super) fn aliases() -> Vec<Vec<u8>> {
    let key = AttachmentKey { container_id: "abc".to_owned(), ifname: "eth0".to_owned() };
    let alias = Alias {
        key,
        addresses: vec![IpAddr::from([10, 32, 0, 5]), IpAddr::from([0xfd; 16])],
        pod: Some("default/web".to_owned()),
        uid: Some("u-1".to_owned()),
    };
    alias.to_text().map(String::into_bytes).into_iter().collect()
}

/// The alias of an interface, which anybody with rights may have written.
pub(super) fn alias(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some(alias) = Alias::parse(&text) else { return };
    let Some(again) = alias.to_text() else { return };
    assert!(again.len() <= ALIAS_MAX);
    let read = Alias::parse(&again);
    let same = read
        .as_ref()
        .is_some_and(|read| read.key == alias.key && read.addresses == alias.addresses);
    assert!(same, "{alias:?} {read:?}");
}

pub(super) fn links() -> Vec<Vec<u8>> {
    agent_links()
}

/// What the kernel says to the plugin.
pub(super) fn view(bytes: &[u8]) {
    let room: usize = attributes(bytes).map(|(_, value)| value.len() + 4).sum();
    assert!(room <= bytes.len());
    for payload in [bytes, bytes.get(16..).unwrap_or_default()] {
        if let Some(link) = LinkView::parse(payload) {
            assert!(link.name.len() <= 3 * bytes.len());
        }
        let _ = AddressView::parse(payload);
        let _ = RouteView::parse(payload);
        let _ = NeighbourView::parse(payload);
    }
}

pub(super) fn nothing() -> Vec<Vec<u8>> {
    vec![vec![0; 64]]
}

/// One attribute of netlink.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub(super) fn logged() -> Vec<Vec<u8>> {
    let mut v4 = vec![0x45; 28];
    v4[9] = 6;
    let mut v6 = vec![0x60; 56];
    (v6[6], v6[40], v6[41]) = (0, 17, 0);
    let of = |prefix: &str, packet: &[u8]| {
        [vec![0; 4], attribute(10, prefix.as_bytes()), attribute(9, packet)].concat()
    };
    vec![
        of("weft-policy in:\0", &v4),
        of("weft-policy out:\0", &v6),
        of("weft-policy stray:\0", &v4),
    ]
}

pub(super) fn connections() -> Vec<Vec<u8>> {
    let tuple = |from: [u8; 4], to: [u8; 4]| {
        let addresses = [attribute(1, &from), attribute(2, &to)].concat();
        let ports = [attribute(1, &[6]), attribute(2, &[0, 80]), attribute(3, &[1, 0])].concat();
        [attribute(1, &addresses), attribute(2, &ports)].concat()
    };
    let (a, b) = ([10, 32, 0, 5], [10, 32, 0, 6]);
    let whole = [attribute(1, &tuple(a, b)), attribute(2, &tuple(b, a)), attribute(12, &[0; 4])];
    vec![whole.concat()]
}

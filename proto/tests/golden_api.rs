//! What plugin and agent say to each other: for a moment after an upgrade, and for pods of
//! before, they are of two versions. Fields may be added, with a default; no other change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weft_proto::api::*;
use weft_proto::attachment::{Alias, AttachmentKey};

const WHAT_TO_DO: &str = "the plugin or the agent of the version before would not understand it: \
    keep the names, and give what is new a default (ARCHITECTURE.md, Versions)";

fn key() -> AttachmentKey {
    AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() }
}

/// Is written like this and read from this, also with more in it than is known here.
fn frozen<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, text: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), text, "{WHAT_TO_DO}");
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), value, "{WHAT_TO_DO}");
    let more = format!("{},\"later\":[1]}}", &text[..text.len() - 1]);
    assert_eq!(&serde_json::from_str::<T>(&more).unwrap(), value, "{WHAT_TO_DO}");
}

#[test]
fn requests_and_answers_of_the_plugin() {
    let port = PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: Some("192.0.2.1".parse().unwrap()),
    };
    frozen(
        &AttachRequest {
            key: key(),
            netns: "/var/run/netns/x".into(),
            args: [("K8S_POD_NAME".to_owned(), "p".to_owned())].into(),
            port_mappings: vec![port.clone()],
            wait_ms: Some(5),
        },
        r#"{"container_id":"c1","ifname":"eth0","netns":"/var/run/netns/x","args":{"K8S_POD_NAME":"p"},"port_mappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"}],"wait_ms":5}"#,
    );
    let least: AttachRequest =
        serde_json::from_str(r#"{"container_id":"c1","ifname":"eth0"}"#).unwrap();
    assert_eq!((least.key, least.wait_ms, least.port_mappings), (key(), None, vec![]));
    frozen(
        &Attachment {
            key: key(),
            host_ifname: "weft0123456789a".into(),
            mac: "02:00:0a:20:00:05".into(),
            addresses: vec!["10.32.0.5".parse().unwrap()],
            bridge: "weft".into(),
            gateway_mac: "02:00:00:00:00:01".into(),
            mtu: 1450,
            ranges: vec!["10.32.0.0/12".parse().unwrap()],
            hairpin: true,
            existing: false,
        },
        r#"{"container_id":"c1","ifname":"eth0","host_ifname":"weft0123456789a","mac":"02:00:0a:20:00:05","addresses":["10.32.0.5"],"bridge":"weft","gateway_mac":"02:00:00:00:00:01","mtu":1450,"ranges":["10.32.0.0/12"],"hairpin":true,"existing":false}"#,
    );
    frozen(
        &LeaseInfo {
            key: key(),
            addresses: vec!["10.32.0.5".parse().unwrap()],
            pod: Some("default/p".into()),
            uid: Some("u".into()),
            since_ms: 7,
            host_ifname: "weft0123456789a".into(),
            port_mappings: vec![port],
        },
        r#"{"container_id":"c1","ifname":"eth0","addresses":["10.32.0.5"],"pod":"default/p","uid":"u","since_ms":7,"host_ifname":"weft0123456789a","port_mappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"}]}"#,
    );
    frozen(&GcRequest { keep: vec![key()] }, r#"{"keep":[{"container_id":"c1","ifname":"eth0"}]}"#);
    frozen(
        &GcReply { released: vec![key()] },
        r#"{"released":[{"container_id":"c1","ifname":"eth0"}]}"#,
    );
    frozen(
        &Readiness { ready: false, connectivity: true, reasons: vec!["r".into()] },
        r#"{"ready":false,"connectivity":true,"reasons":["r"]}"#,
    );
    frozen(
        &ApiError { error: "exhausted".into(), message: "m".into(), retry_after_ms: Some(9) },
        r#"{"error":"exhausted","message":"m","retry_after_ms":9}"#,
    );
}

/// It outlives every version: a pod's interface keeps the alias it was made with.
#[test]
fn the_alias_of_an_interface() {
    let alias = Alias {
        key: key(),
        addresses: vec!["10.32.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        pod: Some("default/p".into()),
        uid: Some("u".into()),
    };
    let text = "weft1 c1 eth0 10.32.0.5,fd00::5 default/p u";
    assert_eq!(alias.to_text().as_deref(), Some(text), "{WHAT_TO_DO}");
    assert_eq!(Alias::parse(text), Some(alias), "{WHAT_TO_DO}");
    let later = Alias::parse("weft1 c1 eth0 10.32.0.5 default/p u more").unwrap();
    assert_eq!((later.key, later.uid.as_deref()), (key(), Some("u")));
}

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::policy::feed::Body;

const CLUSTER: &str = "c1";

fn texts() -> Vec<(Source, Arc<str>)> {
    let pod = json!({
        "metadata": { "namespace": "shop", "name": "web", "uid": "u", "labels": { "a": "b" } },
        "spec": { "nodeName": "n1", "containers": [{ "ports": [{ "name": "http", "containerPort": 80 }] }] },
        "status": { "podIPs": [{ "ip": "10.32.0.2" }, { "ip": "fd00::2" }] },
    });
    let policy = json!({
        "metadata": { "namespace": "shop", "name": "odd" },
        "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": "?" }] }], "more": 1 },
    });
    let cluster_policy = json!({
        "metadata": { "name": "all" },
        "spec": { "tier": "Admin", "priority": 1, "subject": { "namespaces": {} } },
    });
    let node =
        json!({ "metadata": { "name": "n1" }, "status": { "addresses": [{ "address": "::1" }] } });
    [
        (Source::LocalPods, pod),
        (Source::Namespaces, json!({ "metadata": { "name": "shop" } })),
        (Source::Nodes, node),
        (Source::Policies, policy),
        (Source::ClusterPolicies, cluster_policy),
    ]
    .map(|(source, object)| (source, object.to_string().into()))
    .to_vec()
}

#[test]
fn what_was_known_comes_back() {
    let content = encode(&texts(), CLUSTER, 7);
    let found = decode(&content, CLUSTER).unwrap();
    assert_eq!((found.at_ms, found.objects.len()), (7, 5));
    let Body::Pod(pod) = &found.objects[0].1.body else { panic!("{found:?}") };
    assert_eq!((pod.addresses.len(), &*pod.ports[0].name), (2, "http"));
    let Body::Policy(policy) = &found.objects[3].1.body else { panic!("{found:?}") };
    assert_eq!(policy.problems.len(), 2, "what is odd about it is told again");
    assert_eq!(&*found.objects[3].0.1, "shop/odd");
    // What is read is written the same again.
    let mut memory = Memory::default();
    for ((source, key), known) in found.objects {
        memory.take(&Op::Put(source, key, known));
    }
    assert_eq!(encode(&memory.snapshot(), CLUSTER, 7), content);
    assert_eq!(memory.changes, 5);
    let op: Op<Known> = Op::Remove(Source::OtherPods, "shop/web".into());
    memory.take(&op);
    memory.take(&op);
    assert_eq!((memory.changes, memory.snapshot().len()), (6, 4));
}

#[test]
fn what_is_not_ours_is_named() {
    let content = encode(&texts(), CLUSTER, 7);
    assert_eq!(decode(&content, "c2").unwrap_err(), Useless::Foreign(CLUSTER.into()));
    let later = String::from_utf8(content.clone()).unwrap().replace("\"form\":1", "\"form\":2");
    assert_eq!(decode(later.as_bytes(), CLUSTER).unwrap_err(), Useless::Form(2));
    assert!(matches!(decode(b"", CLUSTER), Err(Useless::Damaged(_))));
    // Whole, and yet it makes no sense.
    for line in [r#"{"metadata":{}}"#, "3"] {
        let content = encode(&[(Source::Nodes, line.into())], CLUSTER, 7);
        assert!(matches!(decode(&content, CLUSTER), Err(Useless::Damaged(_))), "{line}");
    }
    let dir = std::env::temp_dir().join(format!("weft-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("policy.json");
    assert!(load(&path, CLUSTER).is_none());
    std::fs::write(&path, &content).unwrap();
    assert!(load(&path, CLUSTER).is_some() && load(&path, "c2").is_none());
    std::fs::remove_dir_all(&dir).unwrap();
}

proptest! {
    #[test]
    fn damage_of_any_kind_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
        let mut content = encode(&texts(), CLUSTER, 7);
        let at = at.index(content.len());
        if cut {
            content.truncate(at);
        } else {
            content[at] ^= 1 << bit;
        }
        match decode(&content, CLUSTER) {
            Err(_) => {}
            // Of the first line, a time or a count of objects can still be read.
            Ok(found) => prop_assert!(!cut && found.at_ms != 7, "{} is not noticed", at),
        }
    }

    #[test]
    fn no_content_makes_it_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&content, CLUSTER);
    }
}

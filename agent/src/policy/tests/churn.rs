//! Pods and policies come, change and go: in the end the kernel holds what a
//! fresh start would make.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::engine::{config, read, settled, start};
use super::states::ip;
use super::wires::Node;
use crate::dataplane::tests::ns::eventually;
use crate::policy::objects::{LocalPod, PodRef};
use crate::policy::world::Change;

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<u64, Value>,
    policies: BTreeMap<u64, Value>,
    /// Lease by address: pods of this node, each life of a pod another one.
    local: BTreeMap<u64, (u64, u64)>,
    lives: u64,
}

fn pod(n: u64, life: u64, labels: &Value, address: u64) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": format!("p{n}"), "uid": format!("u{life}"), "labels": labels},
        "spec": {"nodeName": "node", "containers": [{"ports": [{"name": "web", "containerPort": 8000 + address}]}]},
        "status": {"podIPs": [{"ip": format!("10.32.0.{}", address + 1)}, {"ip": format!("fd00::{}", address + 1)}]},
    })
}

fn labels(dice: &mut Dice) -> Value {
    json!({"app": format!("a{}", dice.roll(3)), "tier": format!("t{}", dice.roll(2))})
}

fn policy(n: u64, dice: &mut Dice) -> Value {
    let peer = match dice.roll(4) {
        0 => json!({"podSelector": {"matchLabels": {"app": format!("a{}", dice.roll(3))}}}),
        1 => json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "t0"}}}),
        2 => {
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", dice.roll(3))]}})
        }
        _ => json!({"podSelector": {}}),
    };
    let port = match dice.roll(3) {
        0 => json!({"port": "web"}),
        1 => json!({"port": 80, "endPort": 80 + dice.roll(9)}),
        _ => json!({"port": 53, "protocol": "UDP"}),
    };
    let subject = match dice.roll(3) {
        0 => json!({}),
        n => json!({"matchLabels": {"app": format!("a{n}")}}),
    };
    let mut spec = json!({"podSelector": subject});
    if dice.roll(2) == 0 {
        spec["ingress"] = json!([{"from": [peer], "ports": [port]}]);
        spec["policyTypes"] = json!(["Ingress"]);
    } else {
        spec["egress"] =
            json!([{"to": [peer], "ports": [port]}, {"ports": [{"port": 53, "protocol": "UDP"}]}]);
        spec["policyTypes"] = json!(["Egress"]);
    }
    json!({"metadata": {"namespace": "default", "name": format!("n{n}")}, "spec": spec})
}

impl Cluster {
    /// One thing happens; what the API server says of it.
    fn step(&mut self, dice: &mut Dice) -> Option<Change> {
        let n = dice.roll(8);
        match dice.roll(6) {
            0 | 1 => {
                self.policies.insert(n, policy(n, dice));
                Some(Change::Policy(read(self.policies[&n].clone())))
            }
            2 if n < 5 => {
                self.policies.remove(&n)?;
                Some(Change::PolicyGone("default".into(), format!("n{n}").as_str().into()))
            }
            3 => {
                // Ends; its address is free for another.
                self.pods.remove(&n)?;
                self.local.retain(|_, (pod, _)| *pod != n);
                Some(Change::PodGone(PodRef::new("default", &format!("p{n}"))))
            }
            4 => {
                let known = self.pods.get_mut(&n)?;
                known["metadata"]["labels"] = labels(dice);
                Some(Change::Pod(read(known.clone())))
            }
            _ => {
                if self.pods.contains_key(&n) {
                    return None;
                }
                let used: BTreeSet<u64> = self.local.keys().copied().collect();
                let address = (0..8).find(|a| !used.contains(a))?;
                self.lives += 1;
                self.local.insert(address, (n, self.lives));
                self.pods.insert(n, pod(n, self.lives, &labels(dice), address));
                Some(Change::Pod(read(self.pods[&n].clone())))
            }
        }
    }

    fn locals(&self) -> Vec<LocalPod> {
        let lease = |(address, (pod, life)): (&u64, &(u64, u64))| LocalPod {
            id: format!("c{life}/eth0").into(),
            addresses: [
                ip(&format!("10.32.0.{}", address + 1)),
                ip(&format!("fd00::{}", address + 1)),
            ]
            .into(),
            pod: Some(PodRef::new("default", &format!("p{pod}"))),
            uid: Some(format!("u{life}").into()),
        };
        self.local.iter().map(lease).collect()
    }

    fn everything(&self) -> Vec<Change> {
        vec![
            Change::AllNamespaces(vec![read(json!({"metadata": {"name": "default"}}))]),
            Change::AllPods(self.pods.values().cloned().map(read).collect()),
            Change::AllPolicies(self.policies.values().cloned().map(read).collect()),
        ]
    }
}

#[test]
fn in_the_end_the_kernel_holds_what_a_fresh_start_makes() {
    let node = Node::new(0);
    for seed in 1..=6 {
        let mut dice = Dice(seed);
        let mut cluster = Cluster::default();
        let engine = start(&node, config());
        engine.local(Vec::new());
        engine.changes(cluster.everything());
        engine.synced(true);
        for _ in 0..150 {
            // Leases go before, and come before, the API server says so.
            let change = cluster.step(&mut dice);
            engine.local(cluster.locals());
            engine.changes(change.into_iter().collect());
            if dice.roll(3) == 0 {
                settled(&engine);
            }
        }
        settled(&engine);
        eventually("told", || engine.report().enforced && engine.report().table.transactions > 0);
        let table = engine.report().table;
        // Every delta was taken as it was: nothing had to be looked up again.
        assert_eq!((table.repairs, table.errors.len()), (0, 0), "seed {seed}: {table:?}");
        eprintln!(
            "seed {seed}: {} transactions, longest {} us",
            table.transactions, table.longest_us
        );
        drop(engine);
        let again = start(&node, config());
        again.local(cluster.locals());
        again.changes(cluster.everything());
        again.synced(true);
        settled(&again);
        eventually("following", || again.report().enforced);
        assert_eq!(again.report().table.transactions, 0, "seed {seed}\n{}", node.rules());
    }
}

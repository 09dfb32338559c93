//! Random ClusterNetworkPolicies.

use serde_json::{Value, json};

use super::generate::Generator;

impl Generator {
    pub(super) fn cluster_policy(&mut self) -> Value {
        let subject = if self.chance(50) {
            json!({ "namespaces": self.selector("namespace") })
        } else {
            json!({ "pods": {
                "namespaceSelector": self.selector("namespace"),
                "podSelector": self.selector("pod"),
            } })
        };
        let mut spec = json!({
            "tier": *self.one(&["Admin", "Baseline"]),
            "priority": *self.one(&[0, 1, 10, 10, 1000]),
            "subject": subject,
        });
        for (section, list) in [("ingress", "from"), ("egress", "to")] {
            let rules: Vec<Value> =
                (0..self.dice.below(4)).map(|_| self.cluster_rule(list)).collect();
            if !rules.is_empty() {
                spec[section] = json!(rules);
            }
        }
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": { "name": format!("c{}", self.dice.below(5)) },
            "spec": spec,
        })
    }

    fn cluster_rule(&mut self, list: &str) -> Value {
        let count = 1 + self.dice.below(2);
        let peers: Vec<Value> = (0..count).map(|_| self.cluster_peer(list == "to")).collect();
        let on_nodes = |peer: &Value| peer["networks"].is_array() || peer["nodes"].is_object();
        let names_mean_something = !peers.iter().any(on_nodes);
        let mut rule = json!({
            "name": format!("rule {}", self.dice.below(9)),
            "action": *self.one(&["Accept", "Deny", "Pass"]),
        });
        rule[list] = json!(peers);
        if self.chance(60) {
            let count = 1 + self.dice.below(2);
            let protocols: Vec<Value> =
                (0..count).map(|_| self.cluster_protocol(names_mean_something)).collect();
            rule["protocols"] = json!(protocols);
        }
        rule
    }

    fn cluster_peer(&mut self, egress: bool) -> Value {
        if self.nonsense && self.chance(3) {
            return match self.dice.below(4) {
                0 => json!({}),
                1 => json!({ "planets": {} }),
                2 if egress => json!({ "networks": ["10.0.0.0/8", "nowhere"] }),
                3 if egress => json!({ "domainNames": ["kubernetes.io"] }),
                _ => {
                    json!({ "namespaces": { "matchExpressions": [{ "key": "a", "operator": "In" }] } })
                }
            };
        }
        match self.dice.below(if egress { 6 } else { 4 }) {
            0 | 1 => json!({ "namespaces": self.selector("namespace") }),
            2 | 3 => json!({ "pods": {
                "namespaceSelector": self.selector("namespace"),
                "podSelector": self.selector("pod"),
            } }),
            4 => json!({ "nodes": self.selector("node") }),
            _ => {
                let networks: Vec<String> =
                    (0..=self.dice.below(2)).map(|_| self.block()).collect();
                json!({ "networks": networks })
            }
        }
    }

    fn cluster_protocol(&mut self, names: bool) -> Value {
        let kind = *self.one(&["tcp", "udp", "sctp"]);
        if self.nonsense && self.chance(3) {
            return match self.dice.below(3) {
                0 => json!({ kind: {} }),
                1 => json!({ "icmp": {} }),
                _ => {
                    json!({ kind: { "destinationPort": { "range": { "start": 81, "end": 80 } } } })
                }
            };
        }
        match self.dice.below(5) {
            0 if names => json!({ "destinationNamedPort": *self.one(&["web", "alt", "x"]) }),
            1 => {
                let (start, end) = *self.one(&[(1, 80), (80, 81), (81, 65535)]);
                json!({ kind: { "destinationPort": { "range": { "start": start, "end": end } } } })
            }
            _ => json!({ kind: { "destinationPort": { "number": *self.one(&[80, 81]) } } }),
        }
    }
}

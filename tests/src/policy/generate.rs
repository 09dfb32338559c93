//! Random worlds and random steps from one to the next.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::objects::{Objects, Plan, PodPlan, Step, key, pod};
use crate::dice::Dice;

/// Makes worlds; the same seed makes the same.
#[derive(Debug)]
pub struct Generator {
    pub(super) dice: Dice,
    pub(super) plan: Plan,
    /// Also pods without an address, finished ones, and those on their node's network.
    odd_pods: bool,
    /// Also policies that no API server would take.
    pub(super) nonsense: bool,
    /// Also ClusterNetworkPolicies.
    cluster: bool,
    /// Counts uids and creation times.
    made: u64,
}

impl Generator {
    /// Only pods that run, and policies that an API server takes.
    pub fn new(seed: u64, plan: Plan) -> Self {
        let dice = Dice::seeded(seed);
        Self { dice, plan, odd_pods: false, nonsense: false, cluster: false, made: 0 }
    }

    /// With pods that are no end of any connection.
    pub fn odd_pods(mut self) -> Self {
        self.odd_pods = true;
        self
    }

    /// With policies of which a part makes no sense.
    pub fn nonsense(mut self) -> Self {
        self.nonsense = true;
        self
    }

    /// With ClusterNetworkPolicies.
    pub fn cluster(mut self) -> Self {
        self.cluster = true;
        self
    }

    /// A world.
    pub fn world(&mut self) -> Objects {
        let mut objects = Objects::default();
        for node in self.plan.nodes.clone() {
            let addresses: Vec<Value> = node
                .addresses
                .iter()
                .map(|ip| json!({ "type": "InternalIP", "address": ip.to_string() }))
                .chain([json!({ "type": "Hostname", "address": node.name })])
                .collect();
            objects.nodes.push(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": node.name, "labels": self.labels("zone", &["north", "south"]) },
                "status": { "addresses": addresses },
            }));
        }
        let mut spaces: Vec<String> =
            self.plan.pods.iter().map(|pod| pod.namespace.clone()).collect();
        spaces.dedup();
        objects.namespaces.extend(spaces.iter().map(|name| self.namespace(name)));
        for plan in self.plan.pods.clone() {
            let pod = self.pod(&plan);
            objects.pods.push(pod);
        }
        for _ in 0..self.dice.below(5) {
            let policy = self.policy();
            objects.take(&Step::Put(policy));
        }
        if self.cluster {
            for _ in 0..self.dice.below(4) {
                let policy = self.cluster_policy();
                objects.take(&Step::Put(policy));
            }
        }
        objects
    }

    /// Changes that happen next, mostly one.
    pub fn step(&mut self, objects: &Objects) -> Vec<Step> {
        match self.dice.below(12) {
            0 | 1 => vec![self.relabel_pod(objects)],
            2 => vec![self.relabel_namespace(objects)],
            3 => self.recreate(objects),
            4 | 5 => vec![self.change_policy(objects)],
            6 if !objects.policies.is_empty() => {
                vec![Step::Delete(self.one(&objects.policies).clone())]
            }
            7 if self.cluster => vec![Step::Put(self.cluster_policy())],
            8 if self.cluster && !objects.cluster_policies.is_empty() => {
                vec![Step::Delete(self.one(&objects.cluster_policies).clone())]
            }
            9 => {
                // Another place in the cluster: labels of a node.
                let mut node = self.one(&objects.nodes).clone();
                node["metadata"]["labels"] = json!(self.labels("zone", &["north", "south"]));
                vec![Step::Put(node)]
            }
            10 => {
                let mut steps = vec![self.relabel_pod(objects), self.relabel_namespace(objects)];
                steps.push(Step::Put(self.policy()));
                steps
            }
            _ => vec![Step::Put(self.policy())],
        }
    }

    pub(super) fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.dice.below(all.len())]
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.dice.below(100) < percent
    }

    fn labels(&mut self, key: &str, values: &[&str]) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        if self.chance(80) {
            labels.insert(key.to_owned(), (*self.one(values)).to_owned());
        }
        labels
    }

    fn pod_labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = self.labels("app", &["web", "db", "job"]);
        labels.extend(self.labels("tier", &["front", "back"]));
        labels
    }

    fn namespace(&mut self, name: &str) -> Value {
        let mut labels = self.labels("team", &["red", "blue"]);
        labels.extend(self.labels("app", &["web", "db"]));
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        })
    }

    fn pod(&mut self, plan: &PodPlan) -> Value {
        self.made += 1;
        let labels = self.pod_labels();
        let mut pod = pod(plan, &format!("uid-{}", self.made), self.made, &labels);
        for list in ["containers", "initContainers"] {
            let mut ports = Vec::new();
            for _ in 0..self.dice.below(3) {
                let mut port = json!({
                    "name": *self.one(&["web", "alt", "x"]),
                    "containerPort": *self.one(&[80, 81]),
                });
                if self.chance(70) {
                    port["protocol"] = json!(*self.one(&["TCP", "UDP", "SCTP"]));
                }
                ports.push(port);
            }
            pod["spec"][list] = json!([{ "name": list.to_lowercase(), "ports": ports }]);
        }
        if self.odd_pods {
            match self.dice.below(30) {
                0 => pod["spec"]["hostNetwork"] = json!(true),
                1 => pod["status"]["phase"] = json!("Succeeded"),
                2 => pod["status"] = json!({ "phase": "Pending" }),
                _ => {}
            }
        }
        pod
    }

    fn relabel_pod(&mut self, objects: &Objects) -> Step {
        let mut pod = self.one(&objects.pods).clone();
        pod["metadata"]["labels"] = json!(self.pod_labels());
        Step::Put(pod)
    }

    fn relabel_namespace(&mut self, objects: &Objects) -> Step {
        let (_, _, name) = key(self.one(&objects.namespaces));
        Step::Put(self.namespace(&name))
    }

    /// A pod goes, and its successor has the same name, or another pod takes its address.
    fn recreate(&mut self, objects: &Objects) -> Vec<Step> {
        let old = self.one(&objects.pods).clone();
        let (_, namespace, name) = key(&old);
        let plan = self.plan.pods.iter().find(|p| p.namespace == namespace && p.name == name);
        let Some(plan) = plan.cloned() else { return Vec::new() };
        vec![Step::Delete(old), Step::Put(self.pod(&plan))]
    }

    fn change_policy(&mut self, objects: &Objects) -> Step {
        if objects.policies.is_empty() {
            return Step::Put(self.policy());
        }
        let old = self.one(&objects.policies).clone();
        let mut new = self.policy();
        new["metadata"] = old["metadata"].clone();
        // Mostly one part of it changes.
        for part in ["podSelector", "policyTypes", "ingress", "egress"] {
            if self.chance(60) {
                new["spec"][part] = old["spec"][part].clone();
            }
        }
        Step::Put(new)
    }

    fn policy(&mut self) -> Value {
        let namespace = {
            let pods = self.plan.pods.clone();
            self.one(&pods).namespace.clone()
        };
        let mut spec = json!({ "podSelector": self.selector("pod") });
        match self.dice.below(6) {
            0 => {}
            1 => spec["policyTypes"] = json!([]),
            2 => spec["policyTypes"] = json!(["Ingress"]),
            3 => spec["policyTypes"] = json!(["Egress"]),
            _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        }
        for (section, list) in [("ingress", "from"), ("egress", "to")] {
            match self.dice.below(6) {
                0 => {}
                1 => spec[section] = json!([]),
                _ => {
                    let count = 1 + self.dice.below(2);
                    let rules: Vec<Value> = (0..count).map(|_| self.rule(list)).collect();
                    spec[section] = json!(rules);
                }
            }
        }
        if self.nonsense && self.chance(3) {
            spec["policyTypes"] = json!(["Ingress", "Sideways"]);
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": format!("p{}", self.dice.below(6)), "namespace": namespace },
            "spec": spec,
        })
    }

    fn rule(&mut self, list: &str) -> Value {
        let mut rule = json!({});
        match self.dice.below(8) {
            0 => {}
            1 => rule[list] = json!([]),
            _ => {
                let count = 1 + self.dice.below(3);
                rule[list] = (0..count).map(|_| self.peer()).collect();
            }
        }
        match self.dice.below(4) {
            0 => {}
            1 if self.chance(20) => rule["ports"] = json!([]),
            _ => {
                let count = 1 + self.dice.below(3);
                rule["ports"] = (0..count).map(|_| self.port()).collect();
            }
        }
        rule
    }

    fn peer(&mut self) -> Value {
        if self.nonsense && self.chance(4) {
            return match self.dice.below(5) {
                0 => json!({}),
                1 => json!({ "ipBlock": { "cidr": "10.0.0.0/99" } }),
                2 => json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["nowhere"] } }),
                3 => json!({ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} }),
                _ => json!({ "podSelector": { "matchExpressions": [
                    { "key": "app", "operator": "Like", "values": ["w"] }] } }),
            };
        }
        match self.dice.below(7) {
            0 | 1 => json!({ "podSelector": self.selector("pod") }),
            2 | 3 => json!({ "namespaceSelector": self.selector("namespace") }),
            4 => json!({
                "namespaceSelector": self.selector("namespace"),
                "podSelector": self.selector("pod"),
            }),
            _ => {
                let mut block = json!({ "cidr": self.block() });
                if self.chance(50) {
                    let except: Vec<String> =
                        (0..=self.dice.below(2)).map(|_| self.block()).collect();
                    block["except"] = json!(except);
                }
                json!({ "ipBlock": block })
            }
        }
    }

    /// A block around an address of the world, or of everything.
    pub(super) fn block(&mut self) -> String {
        let mut all: Vec<IpAddr> =
            self.plan.pods.iter().flat_map(|p| p.addresses.clone()).collect();
        all.extend(self.plan.nodes.iter().flat_map(|node| node.addresses.clone()));
        all.extend(&self.plan.outside);
        let address = *self.one(&all);
        let lengths: &[u8] = if address.is_ipv4() {
            &[0, 8, 16, 24, 29, 30, 31, 32]
        } else {
            &[0, 16, 64, 116, 120, 125, 127, 128]
        };
        format!("{address}/{}", self.one(lengths))
    }

    /// Labels of the other kind are asked for too, so that mixing them up would show.
    pub(super) fn selector(&mut self, of: &str) -> Value {
        let (keys, values): (&[&str], &[&str]) = match of {
            "pod" => (&["app", "tier"], &["web", "db", "job", "front", "back"]),
            "node" => (&["zone"], &["north", "south"]),
            _ => (&["team", "app"], &["red", "blue", "web", "db"]),
        };
        let mut selector = json!({});
        if self.chance(25) {
            return selector;
        }
        if self.chance(60) {
            let labels: BTreeMap<&str, &str> = [(*self.one(keys), *self.one(values))].into();
            selector["matchLabels"] = json!(labels);
        }
        if self.chance(50) {
            let expressions: Vec<Value> = (0..=self.dice.below(2))
                .map(|_| {
                    let operator = *self.one(&["In", "NotIn", "Exists", "DoesNotExist"]);
                    let mut one = json!({ "key": *self.one(keys), "operator": operator });
                    if operator.ends_with("In") {
                        let count = 1 + self.dice.below(3);
                        let listed: Vec<&str> = (0..count).map(|_| *self.one(values)).collect();
                        one["values"] = json!(listed);
                    }
                    one
                })
                .collect();
            selector["matchExpressions"] = json!(expressions);
        }
        selector
    }

    fn port(&mut self) -> Value {
        if self.nonsense && self.chance(6) {
            return match self.dice.below(6) {
                0 => json!({ "port": 81, "endPort": 80 }),
                1 => json!({ "port": 0 }),
                2 => json!({ "port": "" }),
                3 => json!({ "port": "web", "endPort": 81 }),
                4 => json!({ "endPort": 81 }),
                _ => json!({ "port": 80, "protocol": "ICMP" }),
            };
        }
        let mut port = json!({});
        if self.chance(75) {
            port["protocol"] = json!(*self.one(&["TCP", "UDP", "SCTP"]));
        }
        match self.dice.below(7) {
            0 => {}
            1 | 2 => port["port"] = json!(*self.one(&["web", "alt", "x"])),
            3 => {
                port["port"] = json!(*self.one(&[1, 79, 80, 81]));
                port["endPort"] = json!(*self.one(&[81, 82, 65535]));
            }
            _ => port["port"] = json!(*self.one(&[80, 81, 82])),
        }
        port
    }
}

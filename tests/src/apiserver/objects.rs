//! Objects as other parts of a cluster would write them.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

/// A Node that its kubelet has registered, with its address.
pub fn node(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address.to_string()},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
            }],
        },
    })
}

/// The InternalIPs of a Node.
pub fn set_addresses(node: &mut Value, addresses: &[IpAddr]) {
    let entry = |ip: &IpAddr| json!({"type": "InternalIP", "address": ip.to_string()});
    node["status"]["addresses"] = addresses.iter().map(entry).collect();
}

/// The condition of an object with this `type`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// A Namespace with labels.
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": map(labels)},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

/// A NetworkPolicy.
pub fn network_policy(namespace: &str, name: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
    });
    policy["spec"] = spec;
    policy
}

/// A ClusterNetworkPolicy.
pub fn cluster_network_policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
    });
    policy["spec"] = spec;
    policy
}

/// The endpoints of the API server itself.
pub fn endpoints(of: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "subsets": [{
            "addresses": [{"ip": of.ip().to_string()}],
            "ports": [{"name": "https", "port": of.port(), "protocol": "TCP"}],
        }],
    })
}

/// A range of services.
pub fn service_cidr(cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs},
    })
}

/// A ConfigMap.
pub fn config_map(namespace: &str, name: &str, data: &[(&str, &str)]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace}, "data": map(data),
    })
}

fn map(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
}

/// A Pod to be.
#[derive(Debug, Clone)]
pub struct PodObject {
    object: Value,
}

/// A Pod: pending, on no node, with one container.
pub fn pod(namespace: &str, name: &str) -> PodObject {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {}},
        "spec": {"containers": [{"name": "main", "image": "none", "ports": []}]},
        "status": {"phase": "Pending"},
    });
    PodObject { object }
}

impl PodObject {
    /// One more label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Scheduled there.
    pub fn node(mut self, node: &str) -> Self {
        self.object["spec"]["nodeName"] = json!(node);
        self
    }

    /// Shares its node's network.
    pub fn host_network(mut self) -> Self {
        self.object["spec"]["hostNetwork"] = json!(true);
        self
    }

    /// Runs, with these addresses (the first is `podIP`).
    pub fn running(mut self, addresses: &[IpAddr]) -> Self {
        let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        self.object["status"] = json!({"phase": "Running", "podIPs": ips});
        if let Some(first) = addresses.first() {
            self.object["status"]["podIP"] = json!(first.to_string());
        }
        self
    }

    /// One more port of its container.
    pub fn port(mut self, name: &str, number: u16, protocol: &str) -> Self {
        let port = json!({"name": name, "containerPort": number, "protocol": protocol});
        if let Some(ports) = self.object["spec"]["containers"][0]["ports"].as_array_mut() {
            ports.push(port);
        }
        self
    }

    /// The object.
    pub fn build(self) -> Value {
        self.object
    }
}

/// An Event, of whichever group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEvent {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub note: String,
    /// Kind and name of the object it is about.
    pub about: (String, String),
    /// Where it is kept.
    pub namespace: String,
    /// How often it happened, as far as it says.
    pub count: u64,
}

impl SeenEvent {
    pub(super) fn of(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let either = |a: &str, b: &str| {
            if event[a].is_null() { event[b].clone() } else { event[a].clone() }
        };
        let about = either("regarding", "involvedObject");
        let count = event["series"]["count"].as_u64().or_else(|| event["count"].as_u64());
        Self {
            kind: text(&event["type"]),
            reason: text(&event["reason"]),
            note: text(&either("note", "message")),
            about: (text(&about["kind"]), text(&about["name"])),
            namespace: text(&event["metadata"]["namespace"]),
            count: count.unwrap_or(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_what_was_said() {
        let pod = pod("ns", "p")
            .label("app", "web")
            .node("n1")
            .port("http", 80, "TCP")
            .running(&["10.32.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
            .build();
        assert_eq!(pod["metadata"]["labels"]["app"], "web");
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["name"], "http");
        assert_eq!(pod["status"]["podIP"], "10.32.0.1");
        assert_eq!(pod["status"]["podIPs"][1]["ip"], "fd00::1");
    }
}

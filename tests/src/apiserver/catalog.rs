//! Which resources are served, and discovery of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

/// One resource in one version of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// As in paths: `networkpolicies`.
    pub plural: String,
    /// As in objects: `NetworkPolicy`.
    pub kind: String,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// Has `/status`, which ordinary writes do not touch.
    pub status: bool,
    /// Comes from a CustomResourceDefinition.
    pub custom: bool,
}

/// Group, version, plural, kind, namespaced, status, custom.
type Row = (&'static str, &'static str, &'static str, &'static str, bool, bool, bool);

const BUILT_IN: [Row; 16] = [
    ("", "v1", "configmaps", "ConfigMap", true, false, false),
    ("", "v1", "endpoints", "Endpoints", true, false, false),
    ("", "v1", "events", "Event", true, false, false),
    ("", "v1", "namespaces", "Namespace", false, true, false),
    ("", "v1", "nodes", "Node", false, true, false),
    ("", "v1", "pods", "Pod", true, true, false),
    ("", "v1", "secrets", "Secret", true, false, false),
    ("", "v1", "serviceaccounts", "ServiceAccount", true, false, false),
    ("", "v1", "services", "Service", true, true, false),
    ("apps", "v1", "daemonsets", "DaemonSet", true, true, false),
    ("coordination.k8s.io", "v1", "leases", "Lease", true, false, false),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, false, false),
    ("events.k8s.io", "v1", "events", "Event", true, false, false),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true, false, false),
    ("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", false, true, false),
    (
        "policy.networking.k8s.io",
        "v1alpha2",
        "clusternetworkpolicies",
        "ClusterNetworkPolicy",
        false,
        true,
        true,
    ),
];

impl Resource {
    /// `PLURAL.GROUP`, or `PLURAL` for core: as messages and RBAC name it.
    pub fn qualified(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// As objects carry it: `networking.k8s.io/v1`, `v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

/// `PLURAL.GROUP`, or `PLURAL` for core.
pub fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// All resources, and which groups are switched off.
#[derive(Debug, Clone)]
pub struct Catalog {
    resources: Vec<Arc<Resource>>,
    absent: BTreeSet<String>,
}

impl Default for Catalog {
    fn default() -> Self {
        let resource = |row: &Row| {
            Arc::new(Resource {
                group: row.0.to_owned(),
                version: row.1.to_owned(),
                plural: row.2.to_owned(),
                kind: row.3.to_owned(),
                namespaced: row.4,
                status: row.5,
                custom: row.6,
            })
        };
        Self { resources: BUILT_IN.iter().map(resource).collect(), absent: BTreeSet::new() }
    }
}

impl Catalog {
    /// One more resource.
    pub fn add(&mut self, resource: Resource) {
        self.resources.push(Arc::new(resource));
    }

    /// Serves `what` or not: a group (`policy.networking.k8s.io`), one of its
    /// versions (`discovery.k8s.io/v1`) or a resource (`servicecidrs.networking.k8s.io`).
    pub fn serve(&mut self, what: &str, served: bool) {
        if served {
            self.absent.remove(what);
        } else {
            self.absent.insert(what.to_owned());
        }
    }

    fn served(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter().filter(|resource| {
            let names = [&resource.group, &resource.api_version(), &resource.qualified()];
            !names.into_iter().any(|name| self.absent.contains(name))
        })
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let hit =
            |r: &&Arc<Resource>| r.group == group && r.version == version && r.plural == plural;
        self.served().find(hit).cloned()
    }

    /// By `PLURAL` (core first) or `PLURAL.GROUP`, as `kubectl get` takes it.
    /// Also what is switched off: a test may look behind the curtain.
    pub fn named(&self, name: &str) -> Option<Arc<Resource>> {
        let whole = self.resources.iter().find(|r| r.qualified() == name);
        whole.or_else(|| self.resources.iter().find(|r| r.plural == name)).cloned()
    }

    /// The resource of an object.
    pub fn of(&self, object: &Value) -> Option<Arc<Resource>> {
        let (version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        self.resources.iter().find(|r| r.api_version() == version && r.kind == kind).cloned()
    }

    /// `/apis`.
    pub fn groups(&self) -> Value {
        let names: BTreeSet<_> =
            self.served().map(|r| r.group.as_str()).filter(|group| !group.is_empty()).collect();
        let groups: Vec<_> = names.into_iter().filter_map(|name| self.group_entry(name)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/GROUP`.
    pub fn group(&self, name: &str) -> Option<Value> {
        let mut group = self.group_entry(name)?;
        group["kind"] = json!("APIGroup");
        group["apiVersion"] = json!("v1");
        Some(group)
    }

    fn group_entry(&self, name: &str) -> Option<Value> {
        let versions: BTreeSet<_> = self
            .served()
            .filter(|r| r.group == name && !name.is_empty())
            .map(|r| r.version.as_str())
            .collect();
        let entry = |v: &&str| json!({"groupVersion": api_version(name, v), "version": v});
        let versions: Vec<_> = versions.iter().map(entry).collect();
        let first = versions.first()?.clone();
        Some(json!({"name": name, "versions": versions, "preferredVersion": first}))
    }

    /// `/api/v1`, `/apis/GROUP/VERSION`.
    pub fn resources(&self, group: &str, version: &str) -> Option<Value> {
        let mut rows = Vec::new();
        for r in self.served().filter(|r| r.group == group && r.version == version) {
            rows.push(json!({
                "name": r.plural, "singularName": r.kind.to_lowercase(), "kind": r.kind,
                "namespaced": r.namespaced,
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch",
                          "update", "watch"],
            }));
            if r.status {
                rows.push(json!({
                    "name": format!("{}/status", r.plural), "singularName": "", "kind": r.kind,
                    "namespaced": r.namespaced, "verbs": ["get", "patch", "update"],
                }));
            }
        }
        (!rows.is_empty()).then(|| {
            json!({
                "kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": api_version(group, version), "resources": rows,
            })
        })
    }
}

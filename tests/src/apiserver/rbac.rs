//! Rules of RBAC, and which of them were of use.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::verbs::Verb;

/// One request, as RBAC sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) verb: Verb,
    pub(super) group: &'a str,
    /// With `/SUBRESOURCE`.
    pub(super) resource: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: Option<&'a str>,
}

#[derive(Debug, Clone)]
struct Rule {
    /// Of a Role; else of a ClusterRole.
    namespace: Option<String>,
    group: String,
    resource: String,
    /// Empty: all.
    names: BTreeSet<String>,
    verb: String,
    used: bool,
}

impl Rule {
    fn allows(&self, asked: &Asked<'_>) -> bool {
        let named = || asked.name.is_some_and(|name| self.names.contains(name));
        self.verb == asked.verb.word()
            && self.group == asked.group
            && self.resource == asked.resource
            && (self.names.is_empty() || named())
            && self.namespace.as_deref().is_none_or(|space| asked.namespace == Some(space))
    }
}

/// All rules of some account: one for each verb of each resource.
#[derive(Debug, Clone, Default)]
pub(super) struct Rights {
    rules: Vec<Rule>,
}

fn texts(value: &Value) -> Result<Vec<&str>> {
    let Some(list) = value.as_array() else { return Ok(Vec::new()) };
    list.iter().map(|text| text.as_str().context("no text")).collect()
}

impl Rights {
    /// Those of the ClusterRoles and Roles among these objects.
    pub(super) fn read(objects: &[Value]) -> Result<Self> {
        let mut rules = Vec::new();
        for object in objects {
            let namespace = match object["kind"].as_str() {
                Some("ClusterRole") => None,
                Some("Role") => object["metadata"]["namespace"].as_str().map(str::to_owned),
                _ => continue,
            };
            for rule in object["rules"].as_array().context("a role without rules")? {
                let names = texts(&rule["resourceNames"])?;
                for group in texts(&rule["apiGroups"])? {
                    for resource in texts(&rule["resources"])? {
                        for verb in texts(&rule["verbs"])? {
                            let words = [group, resource, verb];
                            ensure!(!words.contains(&"*"), "wildcards are not read: {rule}");
                            rules.push(Rule {
                                namespace: namespace.clone(),
                                group: group.to_owned(),
                                resource: resource.to_owned(),
                                names: names.iter().map(|name| (*name).to_owned()).collect(),
                                verb: verb.to_owned(),
                                used: false,
                            });
                        }
                    }
                }
            }
        }
        ensure!(!rules.is_empty(), "no rules at all");
        Ok(Self { rules })
    }

    /// True if a rule allows it; all that do are then used.
    pub(super) fn allow(&mut self, asked: &Asked<'_>) -> bool {
        let mut allowed = false;
        for rule in self.rules.iter_mut().filter(|rule| rule.allows(asked)) {
            rule.used = true;
            allowed = true;
        }
        allowed
    }

    /// Rights that nobody has made use of: `get pods`, `list networkpolicies.networking.k8s.io`.
    pub(super) fn unused(&self) -> BTreeSet<String> {
        let unused = self.rules.iter().filter(|rule| !rule.used);
        unused
            .map(|rule| {
                let resource = super::catalog::qualified(&rule.resource, &rule.group);
                format!("{} {resource}", rule.verb)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_written_is_allowed() -> Result<()> {
        let mut rights = Rights::read(&[
            json!({"kind": "ServiceAccount"}),
            json!({"kind": "ClusterRole", "rules": [
                {"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get"]},
                {"apiGroups": ["networking.k8s.io"], "resources": ["x"], "verbs": ["list"]},
            ]}),
            json!({"kind": "Role", "metadata": {"namespace": "a"}, "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["weft"],
                 "verbs": ["get", "list", "create"]},
            ]}),
        ])?;
        let mut allow = |verb, resource, namespace, name, group| {
            rights.allow(&Asked { verb, group, resource, namespace, name })
        };
        assert!(allow(Verb::Get, "nodes", None, Some("n1"), ""));
        assert!(allow(Verb::Get, "nodes/status", None, Some("n1"), ""));
        assert!(!allow(Verb::List, "nodes", None, None, ""));
        assert!(allow(Verb::List, "x", Some("any"), None, "networking.k8s.io"));
        assert!(!allow(Verb::List, "x", None, None, ""));
        assert!(allow(Verb::Get, "secrets", Some("a"), Some("weft"), ""));
        assert!(!allow(Verb::Get, "secrets", Some("a"), Some("other"), ""));
        assert!(!allow(Verb::Get, "secrets", Some("b"), Some("weft"), ""));
        // A name is not known when all are asked for, or one is made.
        assert!(!allow(Verb::List, "secrets", Some("a"), None, ""));
        assert!(!allow(Verb::Create, "secrets", Some("a"), None, ""));
        let unused: Vec<String> = rights.unused().into_iter().collect();
        assert_eq!(unused, ["create secrets", "list secrets"]);
        Ok(())
    }
}

//! What was last told, kept in `STATE_DIR`: an agent that starts while the API
//! server is away goes on with it.
//!
//! The first line of the file says of which cluster and when, and the digest of
//! the rest: an object in lean form per line.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Known;
use super::core::{Id, Op, Source};
use super::item::Item;
use super::lean::Lean;

/// Version of the form.
const FORM: u32 = 1;
/// No file of ours is larger: 100,000 pods are a third of it.
const LARGEST: u64 = 128 << 20;

/// All that the world was told of, as text.
#[derive(Debug, Default)]
pub(super) struct Memory {
    objects: BTreeMap<Id, Arc<str>>,
    /// Counts changes.
    pub(super) changes: u64,
}

impl Memory {
    pub(super) fn take(&mut self, op: &Op<Known>) {
        let changed = match op {
            Op::Put(source, key, known) => {
                let old = self.objects.insert((source.kind(), Arc::clone(key)), known.text.clone());
                old.as_ref() != Some(&known.text)
            }
            Op::Remove(source, key) => {
                self.objects.remove(&(source.kind(), Arc::clone(key))).is_some()
            }
        };
        self.changes += u64::from(changed);
    }

    /// The same, for a thread that writes it.
    pub(super) fn snapshot(&self) -> Vec<(Source, Arc<str>)> {
        self.objects.iter().map(|((source, _), text)| (*source, Arc::clone(text))).collect()
    }
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    form: u32,
    cluster: String,
    at_ms: u64,
    objects: usize,
    sha256: String,
}

/// What an earlier life left.
#[derive(Debug)]
pub(super) struct Recalled {
    /// When it was true, in milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) objects: Vec<(Id, Known)>,
}

/// Why a file counts as absent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Useless {
    #[error("cannot be read: {0}")]
    Unread(String),
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error("is of another version of weft (form {0})")]
    Form(u32),
    #[error("is of another cluster ({0})")]
    Foreign(String),
}

fn word(source: Source) -> &'static str {
    match source.kind() {
        Source::LocalPods | Source::OtherPods => "pod",
        Source::Namespaces => "namespace",
        Source::Nodes => "node",
        Source::Policies => "policy",
        Source::ClusterPolicies => "cluster-policy",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file's content.
pub(super) fn encode(objects: &[(Source, Arc<str>)], cluster: &str, at_ms: u64) -> Vec<u8> {
    let mut body = String::new();
    for (source, text) in objects {
        body.push_str("{\"");
        body.push_str(word(*source));
        body.push_str("\":");
        body.push_str(text);
        body.push_str("}\n");
    }
    let sha256 = hex(digest(&SHA256, body.as_bytes()).as_ref());
    let cluster = cluster.to_owned();
    let head = Head { form: FORM, cluster, at_ms, objects: objects.len(), sha256 };
    let mut out = serde_json::to_vec(&head).unwrap_or_default();
    out.push(b'\n');
    out.extend(body.into_bytes());
    out
}

/// What a file says, if it is whole and of this cluster.
pub(super) fn decode(content: &[u8], cluster: &str) -> Result<Recalled, Useless> {
    let damaged = |why: String| Useless::Damaged(why);
    let end = content.iter().position(|byte| *byte == b'\n').unwrap_or(content.len());
    let (head, body) = content.split_at(end);
    let head: Value = serde_json::from_slice(head).map_err(|e| damaged(e.to_string()))?;
    let form = head.get("form").and_then(Value::as_u64).unwrap_or(0);
    if form != u64::from(FORM) {
        return Err(Useless::Form(u32::try_from(form).unwrap_or(u32::MAX)));
    }
    let head: Head = serde_json::from_value(head).map_err(|e| damaged(e.to_string()))?;
    let body = body.get(1..).unwrap_or_default();
    if hex(digest(&SHA256, body).as_ref()) != head.sha256 {
        return Err(damaged("its digest is another".to_owned()));
    }
    if head.cluster != cluster {
        return Err(Useless::Foreign(head.cluster));
    }
    let mut objects = Vec::with_capacity(head.objects.min(1 << 20));
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        objects.push(object(line).map_err(damaged)?);
    }
    if objects.len() != head.objects {
        return Err(damaged(format!("{} objects instead of {}", objects.len(), head.objects)));
    }
    Ok(Recalled { at_ms: head.at_ms, objects })
}

fn object(line: &[u8]) -> Result<(Id, Known), String> {
    let line: BTreeMap<String, Value> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let (word, value) = line.into_iter().next().ok_or("an object without a kind")?;
    match word.as_str() {
        "pod" => read(Source::LocalPods, value, Known::pod),
        "namespace" => read(Source::Namespaces, value, Known::namespace),
        "node" => read(Source::Nodes, value, Known::node),
        "policy" => read(Source::Policies, value, Known::policy),
        "cluster-policy" => read(Source::ClusterPolicies, value, Known::cluster_policy),
        other => Err(format!("no kind of object: {other}")),
    }
}

fn read<T: serde::de::DeserializeOwned + Lean>(
    source: Source,
    value: Value,
    known: impl Fn(T, Arc<str>) -> Known,
) -> Result<(Id, Known), String> {
    let item: Item<T> = Item::deserialize(value).map_err(|e| e.to_string())?;
    let (body, text) = item.body?;
    Ok(((source, item.key), known(body, text)))
}

/// Reads the file; `None` if there is none. One that cannot be used is named and
/// counts as absent.
pub(super) fn load(path: &Path, cluster: &str) -> Option<Recalled> {
    let read = || -> io::Result<Vec<u8>> {
        if std::fs::metadata(path)?.len() > LARGEST {
            return Err(io::Error::other("it is too large to be ours"));
        }
        std::fs::read(path)
    };
    let found = match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => Err(Useless::Unread(e.to_string())),
        Ok(content) => decode(&content, cluster),
    };
    match found {
        Ok(recalled) => Some(recalled),
        Err(why) => {
            tracing::warn!(
                "{} {why}; it counts as absent: until the API server answers, new pods are \
                 isolated as POLICY_UNKNOWN says",
                path.display()
            );
            None
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;

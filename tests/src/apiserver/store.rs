//! Objects, their versions, and what happened to them. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;

/// Events kept when nobody compacts.
const HISTORY: usize = 200_000;

/// Identity of an object: `PLURAL.GROUP`, namespace (empty for cluster scope), name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `PLURAL.GROUP`, or `PLURAL` for core.
    pub resource: String,
    /// Empty for cluster scope.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Puts one together.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        let (resource, namespace, name) = (resource.into(), namespace.into(), name.into());
        Self { resource, namespace, name }
    }
}

/// One change: what was there before it and what after.
#[derive(Debug, Clone)]
pub struct Event {
    /// The change made this version.
    pub revision: u64,
    /// Of what.
    pub key: Key,
    /// Before; none if it was created.
    pub before: Option<Arc<Value>>,
    /// After; none if it was deleted.
    pub after: Option<Arc<Value>>,
}

/// Everything an API server keeps.
#[derive(Debug, Clone)]
pub struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Event>,
    revision: u64,
    compacted: u64,
    seed: u64,
}

impl Store {
    /// An empty one. Uids of stores with different seeds differ.
    pub fn new(seed: u64) -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), revision: 1, compacted: 0, seed }
    }

    /// The version of the whole.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The object as it is now.
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Keeps a new object; gives it uid, version and time of creation.
    pub fn create(&mut self, key: Key, object: Value, now: &str) -> Result<Arc<Value>, ApiError> {
        if self.objects.contains_key(&key) {
            return Err(ApiError::already_exists(&key.resource, &key.name));
        }
        let revision = self.revision + 1;
        let mut object = object;
        let generation = object.get("spec").is_some();
        let meta = metadata(&mut object);
        meta["uid"] = json!(self.uid(revision));
        meta["creationTimestamp"] = json!(now);
        if generation {
            meta["generation"] = json!(1);
        }
        Ok(self.keep(key, object))
    }

    /// Replaces an object, if the version it is based on (if it names one) is
    /// the present one. What is equal makes no new version. The last finalizer's
    /// removal ends an object that is being deleted.
    pub fn update(&mut self, key: Key, object: Value) -> Result<Arc<Value>, ApiError> {
        let Some(old) = self.objects.get(&key).map(Arc::clone) else {
            return Err(ApiError::not_found(&key.resource, &key.name));
        };
        let mut object = object;
        let meta = metadata(&mut object);
        check(&key, &old, meta["uid"].as_str(), meta["resourceVersion"].as_str())?;
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
            copy(&old["metadata"], meta, field);
        }
        copy(&old["metadata"], meta, "resourceVersion");
        if object == *old {
            return Ok(old);
        }
        if object.get("spec") != old.get("spec") {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
            metadata(&mut object)["generation"] = json!(generation + 1);
        }
        if doomed(&object) && !has_finalizers(&object) {
            return Ok(self.forget(key, &object));
        }
        Ok(self.keep(key, object))
    }

    /// Deletes an object; one with finalizers only gets its time of deletion.
    pub fn delete(
        &mut self,
        key: Key,
        uid: Option<&str>,
        version: Option<&str>,
        now: &str,
    ) -> Result<Arc<Value>, ApiError> {
        let Some(old) = self.objects.get(&key).map(Arc::clone) else {
            return Err(ApiError::not_found(&key.resource, &key.name));
        };
        check(&key, &old, uid, version)?;
        if !has_finalizers(&old) {
            return Ok(self.forget(key, &old));
        }
        self.doom(key, now)
    }

    /// Deletes an object, whatever its finalizers say.
    pub fn remove(&mut self, key: Key) -> Result<Arc<Value>, ApiError> {
        match self.objects.get(&key).map(Arc::clone) {
            Some(old) => Ok(self.forget(key, &old)),
            None => Err(ApiError::not_found(&key.resource, &key.name)),
        }
    }

    /// Marks an object as being deleted, without deleting it.
    pub fn doom(&mut self, key: Key, now: &str) -> Result<Arc<Value>, ApiError> {
        let Some(old) = self.objects.get(&key).map(Arc::clone) else {
            return Err(ApiError::not_found(&key.resource, &key.name));
        };
        if doomed(&old) {
            return Ok(old);
        }
        let mut object = Value::clone(&old);
        metadata(&mut object)["deletionTimestamp"] = json!(now);
        Ok(self.keep(key, object))
    }

    /// Keys of everything inside a namespace.
    pub fn keys_in(&self, namespace: &str) -> Vec<Key> {
        self.objects.keys().filter(|key| key.namespace == namespace).cloned().collect()
    }

    /// All objects of a resource, in order of (namespace, name), as they were at
    /// `revision`. An empty `namespace` means all.
    pub fn list(
        &self,
        resource: &str,
        namespace: &str,
        revision: u64,
    ) -> Result<Vec<(Key, Arc<Value>)>, ApiError> {
        if revision < self.compacted {
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter.",
            ));
        }
        let within = |key: &Key| {
            key.resource == resource && (namespace.is_empty() || key.namespace == namespace)
        };
        let from = Key::new(resource, namespace, "");
        let mut objects: BTreeMap<_, _> = self
            .objects
            .range(from..)
            .take_while(|(key, _)| within(key))
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let later = self.history.iter().rev().take_while(|event| event.revision > revision);
        for event in later.filter(|event| within(&event.key)) {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), Arc::clone(before)),
                None => objects.remove(&event.key),
            };
        }
        Ok(objects.into_iter().collect())
    }

    /// May a watch start after `revision`?
    pub fn watchable(&self, revision: u64) -> Result<(), ApiError> {
        if revision < self.compacted {
            let compacted = self.compacted;
            let message = format!("too old resource version: {revision} ({compacted})");
            return Err(ApiError::expired(message));
        }
        Ok(())
    }

    /// What happened after `revision`, for a watch that runs: compaction does
    /// not concern it.
    pub fn since(&self, revision: u64) -> impl Iterator<Item = &Event> {
        let start = self.history.partition_point(|event| event.revision <= revision);
        self.history.range(start..)
    }

    /// Expires every version that anybody has been told: who asks for one
    /// (LIST with `continue`, start of a WATCH) is told 410. As if something
    /// that nobody looks at had been written and the time for compaction come.
    pub fn compact(&mut self) {
        self.revision += 1;
        self.compacted = self.revision;
    }

    fn uid(&self, revision: u64) -> String {
        let (seed, low) = (self.seed, self.seed & 0xfff);
        format!("{:08x}-{:04x}-4{low:03x}-8000-{revision:012x}", seed >> 32, (seed >> 12) & 0xffff)
    }

    fn keep(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        let meta = metadata(&mut object);
        meta["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&object));
        self.remember(Event {
            revision: self.revision,
            key,
            before,
            after: Some(Arc::clone(&object)),
        });
        object
    }

    /// Removes an object whose last state is `object`.
    fn forget(&mut self, key: Key, object: &Value) -> Arc<Value> {
        self.revision += 1;
        let mut last = object.clone();
        metadata(&mut last)["resourceVersion"] = json!(self.revision.to_string());
        let before = self.objects.remove(&key);
        self.remember(Event { revision: self.revision, key, before, after: None });
        Arc::new(last)
    }

    fn remember(&mut self, event: Event) {
        self.history.push_back(event);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.revision;
        }
    }
}

/// The metadata of an object, made if there is none.
pub fn metadata(object: &mut Value) -> &mut Value {
    if !object.is_object() {
        *object = json!({});
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    &mut object["metadata"]
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            if let Value::Object(map) = to {
                map.remove(field);
            }
        }
    }
}

fn doomed(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

fn check(key: &Key, old: &Value, uid: Option<&str>, version: Option<&str>) -> Result<(), ApiError> {
    let conflict = |why: &str| Err(ApiError::conflict(&key.resource, &key.name, why));
    let meta = &old["metadata"];
    if let Some(uid) = uid.filter(|uid| !uid.is_empty() && meta["uid"] != **uid) {
        let found = meta["uid"].as_str().unwrap_or_default();
        return conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
        ));
    }
    let stale = |version: &&str| {
        !version.is_empty() && *version != "0" && meta["resourceVersion"] != **version
    };
    match version.filter(stale) {
        Some(_) => conflict(
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2020-01-01T00:00:00Z";

    fn key(name: &str) -> Key {
        Key::new("pods", "ns", name)
    }

    fn pod(value: u64) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"value": value}})
    }

    fn version(object: &Value) -> u64 {
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    fn names(store: &Store, revision: u64) -> Vec<String> {
        store.list("pods", "", revision).unwrap().into_iter().map(|(key, _)| key.name).collect()
    }

    #[test]
    fn versions_and_identity() {
        let mut store = Store::new(7);
        let first = store.create(key("p"), pod(1), NOW).unwrap();
        assert_eq!(first["metadata"]["creationTimestamp"], NOW);
        assert_eq!(first["metadata"]["generation"], 1);
        assert_eq!(store.create(key("p"), pod(1), NOW).unwrap_err().reason, "AlreadyExists");

        // Unconditional, and equal: nothing happens.
        let same = store.update(key("p"), pod(1)).unwrap();
        assert_eq!(version(&same), version(&first));
        let second = store.update(key("p"), pod(2)).unwrap();
        assert!(version(&second) > version(&first));
        assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
        assert_eq!(second["metadata"]["generation"], 2);

        // Based on what is no more.
        let mut stale = Value::clone(&first);
        stale["spec"]["value"] = json!(3);
        assert_eq!(store.update(key("p"), stale).unwrap_err().reason, "Conflict");
        let wrong = store.delete(key("p"), Some("another"), None, NOW).unwrap_err();
        assert_eq!(wrong.reason, "Conflict");
        let gone = store.delete(key("p"), None, None, NOW).unwrap();
        assert_eq!(version(&gone), store.revision());
        assert_eq!(store.delete(key("p"), None, None, NOW).unwrap_err().reason, "NotFound");
        assert_eq!(store.update(key("p"), pod(2)).unwrap_err().reason, "NotFound");

        let again = store.create(key("p"), pod(1), NOW).unwrap();
        assert_ne!(again["metadata"]["uid"], first["metadata"]["uid"]);
        let other = Store::new(8).create(key("p"), pod(1), NOW).unwrap();
        assert_ne!(other["metadata"]["uid"], first["metadata"]["uid"]);
    }

    #[test]
    fn finalizers_delay_the_end() {
        let mut store = Store::new(7);
        let mut object = pod(1);
        object["metadata"]["finalizers"] = json!(["x/y"]);
        store.create(key("p"), object, NOW).unwrap();
        let doomed = store.delete(key("p"), None, None, NOW).unwrap();
        assert_eq!(doomed["metadata"]["deletionTimestamp"], NOW);
        assert!(store.get(&key("p")).is_some());
        let mut free = Value::clone(&doomed);
        free["metadata"]["finalizers"] = json!([]);
        store.update(key("p"), free).unwrap();
        assert!(store.get(&key("p")).is_none());
        let kinds: Vec<_> =
            store.since(1).map(|event| (event.before.is_some(), event.after.is_some())).collect();
        assert_eq!(kinds, [(false, true), (true, true), (true, false)]);
    }

    #[test]
    fn the_past_can_be_listed_until_it_is_compacted() {
        let mut store = Store::new(7);
        store.create(key("a"), pod(1), NOW).unwrap();
        store.create(Key::new("pods", "other", "z"), pod(1), NOW).unwrap();
        store.create(Key::new("nodes", "", "n"), pod(1), NOW).unwrap();
        let then = store.revision();
        store.create(key("b"), pod(1), NOW).unwrap();
        store.update(key("a"), pod(5)).unwrap();
        store.delete(Key::new("pods", "other", "z"), None, None, NOW).unwrap();
        assert_eq!(names(&store, store.revision()), ["a", "b"]);
        assert_eq!(names(&store, then), ["a", "z"]);
        let (_, old) = store.list("pods", "ns", then).unwrap().remove(0);
        assert_eq!(old["spec"]["value"], 1);
        assert!(store.watchable(then).is_ok());

        let told = store.revision();
        store.compact();
        assert_eq!(store.since(then).count(), 3, "a running watch goes on");
        for old in [then, told] {
            assert_eq!(store.watchable(old).unwrap_err().code, 410);
            assert_eq!(store.list("pods", "", old).unwrap_err().code, 410);
        }
        assert!(store.watchable(store.revision()).is_ok());
        assert_eq!(names(&store, store.revision()), ["a", "b"]);
    }
}

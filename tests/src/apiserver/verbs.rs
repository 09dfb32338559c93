//! What each verb does to the store. Pure: a request in, an answer out.

use std::sync::Arc;

use serde_json::{Value, json};

use super::catalog::Resource;
use super::error::ApiError;
use super::patch::{self, Style};
use super::request::{Query, Target};
use super::selectors::Selector;
use super::store::{Key, Store, metadata};
use super::validate;

/// What a request is, as RBAC names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// One object.
    Get,
    /// Many.
    List,
    /// Many, and what becomes of them.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one.
    Delete,
    /// DELETE of many.
    DeleteCollection,
}

impl Verb {
    /// From the method and what it is applied to.
    pub fn of(method: &str, target: &Target, query: &Query) -> Result<Self, ApiError> {
        match (method, target.name.is_some()) {
            ("GET", _) if query.flag("watch") => Ok(Self::Watch),
            ("GET", true) => Ok(Self::Get),
            ("GET", false) => Ok(Self::List),
            ("POST", false) => Ok(Self::Create),
            ("PUT", true) => Ok(Self::Update),
            ("PATCH", true) => Ok(Self::Patch),
            ("DELETE", true) => Ok(Self::Delete),
            ("DELETE", false) => Ok(Self::DeleteCollection),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// As in RBAC rules.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// One request about objects.
#[derive(Debug)]
pub struct Request<'a> {
    /// What it is.
    pub verb: Verb,
    /// About what.
    pub resource: &'a Resource,
    /// About which.
    pub target: &'a Target,
    /// With which options.
    pub query: &'a Query,
    /// How the body is meant.
    pub content_type: &'a str,
    /// Its body, parsed; null if there is none.
    pub body: Value,
    /// The time, as objects carry it.
    pub now: &'a str,
}

/// What a verb that is no WATCH answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// 200 with an object.
    Object(Arc<Value>),
    /// 201 with an object.
    Created(Arc<Value>),
    /// 200 with many.
    List {
        /// Of the whole list.
        metadata: Value,
        /// In order.
        items: Vec<Arc<Value>>,
    },
    /// 200 with a `Status`.
    Done(Value),
}

/// Does it.
pub fn execute(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let known = match request.target.subresource.as_deref() {
        None => true,
        Some("status") => {
            request.resource.status
                && matches!(request.verb, Verb::Get | Verb::Update | Verb::Patch)
        }
        Some(_) => false,
    };
    if !known {
        return Err(ApiError::method_not_allowed());
    }
    if !request.query.text("dryRun").is_empty() {
        return Err(ApiError::bad_request("dryRun is not supported by this test server"));
    }
    match request.verb {
        Verb::Get => get(store, request),
        Verb::List => super::list::list(store, request),
        Verb::Create => create(store, request),
        Verb::Update => update(store, request),
        Verb::Patch => patch(store, request),
        Verb::Delete => delete(store, request),
        Verb::DeleteCollection => delete_collection(store, request),
        Verb::Watch => Err(ApiError::method_not_allowed()),
    }
}

impl Request<'_> {
    fn key(&self) -> Key {
        Key::new(
            &self.resource.qualified(),
            self.target.namespace.as_deref().unwrap_or_default(),
            self.target.name.as_deref().unwrap_or_default(),
        )
    }

    fn selector(&self) -> Result<Selector, ApiError> {
        let (labels, fields) = (self.query.text("labelSelector"), self.query.text("fieldSelector"));
        Selector::parse(&self.resource.qualified(), labels, fields)
    }

    /// The object of the body, with what the path says filled in.
    fn object(&self, name: &str) -> Result<Value, ApiError> {
        let mut object = self.body.clone();
        if !object.is_object() {
            return Err(ApiError::bad_request("the body must be an object"));
        }
        let (version, kind) = (self.resource.api_version(), &self.resource.kind);
        for (field, own) in [("apiVersion", &version), ("kind", kind)] {
            let given = object[field].as_str().unwrap_or_default();
            if !given.is_empty() && given != own {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({own})"
                )));
            }
            object[field] = json!(own);
        }
        let namespace = self.target.namespace.as_deref().unwrap_or_default();
        let meta = metadata(&mut object);
        for (field, own) in [("namespace", namespace), ("name", name)] {
            let given = meta[field].as_str().unwrap_or_default();
            if !given.is_empty() && !own.is_empty() && given != own {
                return Err(ApiError::bad_request(format!(
                    "the {field} of the provided object ({given}) does not match the {field} sent \
                     on the request ({own})"
                )));
            }
            if !own.is_empty() {
                meta[field] = json!(own);
            }
        }
        Ok(object)
    }
}

fn get(store: &Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let key = request.key();
    let missing = || ApiError::not_found(&key.resource, &key.name);
    store.get(&key).cloned().map(Answer::Object).ok_or_else(missing)
}

fn create(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    json_only(request.content_type)?;
    let mut object = request.object("")?;
    let mut key = request.key();
    let revision = store.revision();
    let meta = metadata(&mut object);
    if !meta["resourceVersion"].as_str().unwrap_or_default().is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let given = meta["name"].as_str().unwrap_or_default();
    let prefix = meta["generateName"].as_str().unwrap_or_default();
    key.name = match (given, prefix) {
        ("", "") => {
            let why = "metadata.name: Required value: name or generateName is required";
            return Err(ApiError::invalid(&key.resource, "", why));
        }
        ("", prefix) => format!("{prefix}{}", suffix(revision)),
        (name, _) => name.to_owned(),
    };
    meta["name"] = json!(key.name);
    // A new pod is nobody's yet.
    if key.resource == "pods" {
        object["status"] = json!({"phase": "Pending"});
    }
    validate::name(&key.resource, &key.name)?;
    in_namespace(store, request, &key)?;
    validate::defaults(request.resource, &mut object);
    validate::object(request.resource, &object)?;
    store.create(key, object, request.now).map(Answer::Created)
}

/// Namespaced objects only live in namespaces that are there.
fn in_namespace(store: &Store, request: &Request<'_>, key: &Key) -> Result<(), ApiError> {
    if !request.resource.namespaced {
        return Ok(());
    }
    let namespace = Key::new("namespaces", "", &key.namespace);
    match store.get(&namespace) {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found("namespaces", &key.namespace)),
    }
}

/// Five letters and digits, as `generateName` appends.
fn suffix(revision: u64) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut word = revision.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = || {
        word ^= word >> 29;
        word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        char::from(LETTERS[usize::try_from(word >> 40).unwrap_or(0) % LETTERS.len()])
    };
    (0..5).map(|_| letter()).collect()
}

fn update(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    json_only(request.content_type)?;
    let key = request.key();
    let object = request.object(&key.name)?;
    if request.resource.custom
        && object["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty()
    {
        let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
        return Err(ApiError::invalid(&key.resource, &key.name, why));
    }
    replace(store, request, key, object)
}

fn patch(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let key = request.key();
    let style = Style::of(request.content_type)?;
    if style == Style::Strategic && request.resource.custom {
        return Err(ApiError::unsupported(request.content_type));
    }
    if style == Style::Apply && request.query.text("fieldManager").is_empty() {
        let why = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is \
                   required for apply patch";
        return Err(ApiError::bad_request(why));
    }
    let Some(old) = store.get(&key).map(Arc::clone) else {
        if style != Style::Apply || request.target.subresource.is_some() {
            return Err(ApiError::not_found(&key.resource, &key.name));
        }
        let object = request.object(&key.name)?;
        validate::name(&key.resource, &key.name)?;
        in_namespace(store, request, &key)?;
        validate::object(request.resource, &object)?;
        return store.create(key, object, request.now).map(Answer::Created);
    };
    let mut object = patch::patched(&old, &request.body, style)?;
    // A patch names the version it is based on only if it wants to be refused.
    if request.body["metadata"]["resourceVersion"].is_null() && style != Style::Json {
        metadata(&mut object)["resourceVersion"] = json!("");
    }
    let whole = Request { body: object, target: request.target, query: request.query, ..*request };
    let object = whole.object(&key.name)?;
    replace(store, request, key, object)
}

/// Keeps `object`, or its status only, or all but its status.
fn replace(
    store: &mut Store,
    request: &Request<'_>,
    key: Key,
    mut object: Value,
) -> Result<Answer, ApiError> {
    let Some(old) = store.get(&key).map(Arc::clone) else {
        return Err(ApiError::not_found(&key.resource, &key.name));
    };
    if request.target.subresource.is_some() {
        // Built-in types keep their spec, custom ones all but the status.
        if request.resource.custom {
            let version = object["metadata"]["resourceVersion"].take();
            object["metadata"] = old["metadata"].clone();
            metadata(&mut object)["resourceVersion"] = version;
        }
        match (old.get("spec"), &mut object) {
            (Some(spec), object) => object["spec"] = spec.clone(),
            (None, Value::Object(map)) => drop(map.remove("spec")),
            (None, _) => {}
        }
    } else if request.resource.status {
        match old.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => {
                if let Value::Object(map) = &mut object {
                    map.remove("status");
                }
            }
        }
    }
    validate::defaults(request.resource, &mut object);
    validate::object(request.resource, &object)?;
    store.update(key, object).map(Answer::Object)
}

fn delete(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let key = request.key();
    let text = |field: &str| request.body["preconditions"][field].as_str();
    let in_body = request.body["gracePeriodSeconds"].as_u64();
    let grace = request.query.number("gracePeriodSeconds")?.or(in_body);
    let pod = store.get(&key).filter(|_| key.resource == "pods").map(Arc::clone);
    // A pod on a node ends when its kubelet says so: by a DELETE without grace.
    if let Some(pod) = pod
        && !pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty()
        && grace != Some(0)
    {
        return store.doom(key, request.now).map(Answer::Object);
    }
    let gone = store.delete(key.clone(), text("uid"), text("resourceVersion"), request.now)?;
    if store.get(&key).is_some() {
        return Ok(Answer::Object(gone));
    }
    if key.resource == "namespaces" {
        empty_namespace(store, &key.name, request.now);
    }
    let details = json!({
        "name": key.name, "kind": request.resource.plural, "uid": gone["metadata"]["uid"],
        "group": request.resource.group,
    });
    Ok(Answer::Done(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })))
}

/// What the namespace controller does, at once.
fn empty_namespace(store: &mut Store, namespace: &str, now: &str) {
    for key in store.keys_in(namespace) {
        let _ = store.delete(key, None, None, now);
    }
}

fn delete_collection(store: &mut Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let key = request.key();
    let selector = request.selector()?;
    let found = store.list(&key.resource, &key.namespace, store.revision())?;
    let mut items = Vec::new();
    for (key, _) in found.into_iter().filter(|(_, object)| selector.matches(object)) {
        items.push(store.delete(key, None, None, request.now)?);
    }
    Ok(Answer::List { metadata: json!({"resourceVersion": store.revision().to_string()}), items })
}

fn json_only(content_type: &str) -> Result<(), ApiError> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(()),
        other => Err(ApiError::unsupported(other)),
    }
}

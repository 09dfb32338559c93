//! A Kubernetes API server in memory, for tests: plain HTTP, the semantics that
//! clients depend on, and every misbehaviour a test needs.
//!
//! It keeps objects of any resource of its [`Catalog`], with versions, a
//! history that watches follow and that can be compacted, pages, selectors, the
//! four kinds of PATCH, `/status`, and `Status` objects as refusals. Not there:
//! admission, schemas and defaults of types, field ownership, controllers
//! (except that a deleted namespace is emptied at once), TLS.
//!
//! It runs on a thread of its own, so that plain and async tests can use it,
//! and listens where it is told, also inside a network namespace:
//!
//! ```no_run
//! use weft_tests::apiserver::{ApiServer, Verb, objects};
//! # fn main() -> weft_tests::Result {
//! let server = ApiServer::start()?;
//! server.put(&objects::node("n1", "192.0.2.1".parse()?))?;
//! let before = server.counts();
//! // ... a client of server.url() at work ...
//! let asked = server.counts().since(&before).of(Verb::List, "nodes").requests;
//! # let _ = asked; Ok(()) }
//! ```

pub mod catalog;
pub mod controls;
mod encode;
pub mod error;
mod list;
pub mod objects;
pub mod patch;
mod rbac;
pub mod request;
pub mod selectors;
mod server;
pub mod store;
pub mod validate;
pub mod verbs;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc as commands;
use weft_agent::lab::netns::Netns;

use self::catalog::{Catalog, Resource};
use self::controls::Rules;
use self::rbac::Rights;
use self::server::{Command, Shared, lock, timestamp};
use self::store::{Key, Store};

pub use self::controls::{Count, Counts, Effect, Logged, RuleId};
pub use self::verbs::Verb;

/// Between bookmarks, as real servers do it.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    netns: Option<Netns>,
    orders: Option<commands::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What a server shall be.
#[derive(Debug)]
pub struct Builder {
    address: SocketAddr,
    netns: Option<Netns>,
    token: Option<String>,
    catalog: Catalog,
    rights: Option<Rights>,
}

impl Builder {
    /// Where to listen; port 0 takes any. Else 127.0.0.1.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Listens inside this namespace.
    pub fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// Answers 401 to everybody without this bearer token.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Does not serve this group, version of one (`discovery.k8s.io/v1`), or resource.
    pub fn without(mut self, what: &str) -> Self {
        self.catalog.serve(what, false);
        self
    }

    /// Allows only what the ClusterRoles and Roles among these objects do, whoever asks.
    pub fn rights(mut self, objects: &[Value]) -> Result<Self> {
        self.rights = Some(Rights::read(objects)?);
        Ok(self)
    }

    /// Starts it, with the namespaces every cluster has.
    pub fn start(self) -> Result<ApiServer> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = u64::try_from(now.as_nanos() & u128::from(u64::MAX))?;
        let store = Store::new(seed ^ u64::from(std::process::id()).rotate_left(40));
        let shared = Arc::new(Shared {
            changed: tokio::sync::watch::Sender::new(store.revision()),
            store: Mutex::new(store),
            catalog: Mutex::new(self.catalog),
            rules: Mutex::new(Rules::default()),
            ledger: Mutex::default(),
            token: self.token,
            rights: Mutex::new(self.rights),
            bookmark_period: Mutex::new(BOOKMARKS),
            marks: tokio::sync::watch::Sender::new(0),
            cuts: tokio::sync::watch::Sender::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, inbox) = commands::unbounded_channel();
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || runtime.block_on(server::run(shared, inbox))
        })?;
        let mut server = ApiServer {
            shared,
            address: self.address,
            netns: self.netns,
            orders: Some(orders),
            thread: Some(thread),
        };
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            server.put(&objects::namespace(namespace, &[]))?;
        }
        server.resume()?;
        Ok(server)
    }
}

/// Life of the server.
impl ApiServer {
    /// On 127.0.0.1, for everybody, serving everything.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Like that, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            netns: None,
            token: None,
            catalog: Catalog::default(),
            rights: None,
        }
    }

    /// Where it listens, or did.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads here (JSON, which is YAML).
    pub fn kubeconfig(&self) -> String {
        let user = self.shared.token.as_ref().map_or(json!({}), |token| json!({"token": token}));
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }

    /// Writes [`Self::kubeconfig`] to a file.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.kubeconfig())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// An outage: the port is closed, all connections and watches are cut. What
    /// is stored stays, and tests can go on changing it.
    pub fn stop(&self) -> Result<()> {
        let (done, wait) = mpsc::channel();
        self.order(Command::Stop(done))?;
        wait.recv().context("the API server's thread is gone")
    }

    /// After [`Self::stop`]: listens again, on the same port.
    pub fn resume(&mut self) -> Result<()> {
        let address = self.address;
        let bind = move || std::net::TcpListener::bind(address);
        let socket = match &self.netns {
            Some(netns) => netns.run(bind)?,
            None => bind(),
        };
        let socket = socket.with_context(|| format!("API server: cannot listen on {address}"))?;
        self.address = socket.local_addr()?;
        let (done, wait) = mpsc::channel();
        self.order(Command::Serve(socket, done))?;
        Ok(wait.recv().context("the API server's thread is gone")??)
    }

    fn order(&self, command: Command) -> Result<()> {
        let orders = self.orders.as_ref().context("the API server was dropped")?;
        orders.send(command).map_err(|_| anyhow!("the API server's thread is gone"))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Objects, past HTTP and its rules: as if others had written them. Resources
/// are named `PLURAL` or `PLURAL.GROUP`; cluster scope is namespace "".
impl ApiServer {
    fn resource(&self, name: &str) -> Result<Arc<Resource>> {
        let found = lock(&self.shared.catalog).named(name);
        found.with_context(|| format!("the test server has no resource `{name}`"))
    }

    /// Creates or replaces the whole object, its status included. Returns it
    /// with uid and version.
    pub fn put(&self, object: &Value) -> Result<Value> {
        let resource = lock(&self.shared.catalog).of(object);
        let resource =
            resource.with_context(|| format!("no such apiVersion and kind: {object}"))?;
        let meta = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let key = Key::new(&resource.qualified(), meta("namespace"), meta("name"));
        if key.name.is_empty() || key.namespace.is_empty() == resource.namespaced {
            return Err(anyhow!("{} needs its name and namespace: {object}", resource.kind));
        }
        let mut object = object.clone();
        validate::defaults(&resource, &mut object);
        let now = timestamp(SystemTime::now());
        let kept = self.shared.change(|store| match store.get(&key) {
            Some(_) => store.update(key, object),
            None => store.create(key, object, &now),
        })?;
        Ok(Value::clone(&kept))
    }

    /// The object, if it is there.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let key = Key::new(&self.resource(resource)?.qualified(), namespace, name);
        Ok(lock(&self.shared.store).get(&key).map(|object| Value::clone(object)))
    }

    /// All objects of a resource, of all namespaces if `namespace` is "".
    pub fn list(&self, resource: &str, namespace: &str) -> Result<Vec<Value>> {
        let resource = self.resource(resource)?.qualified();
        let store = lock(&self.shared.store);
        let objects = store.list(&resource, namespace, store.revision())?;
        Ok(objects.iter().map(|(_, object)| Value::clone(object)).collect())
    }

    /// Changes an object that is there.
    pub fn edit(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value> {
        let key = Key::new(&self.resource(resource)?.qualified(), namespace, name);
        let kept = self.shared.change(|store| {
            let old = store.get(&key).with_context(|| format!("there is no {key:?}"))?;
            let mut object = Value::clone(old);
            change(&mut object);
            anyhow::Ok(store.update(key, object)?)
        })?;
        Ok(Value::clone(&kept))
    }

    /// Deletes an object, whatever its finalizers say.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<()> {
        let key = Key::new(&self.resource(resource)?.qualified(), namespace, name);
        self.shared.change(|store| store.remove(key))?;
        Ok(())
    }

    /// Events of both groups, oldest first.
    pub fn events(&self) -> Result<Vec<objects::SeenEvent>> {
        let mut all = self.list("events", "")?;
        all.extend(self.list("events.events.k8s.io", "")?);
        let version = |object: &Value| {
            object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok())
        };
        all.sort_by_key(version);
        Ok(all.iter().map(objects::SeenEvent::of).collect())
    }
}

/// Misbehaviour.
impl ApiServer {
    /// Lets `effect` happen to requests of `verb` (all, if none) about
    /// `resource` (`PLURAL.GROUP`, `nodes/status`, or `*` for all); only so many
    /// times, if `times` is given. The first rule that fits decides.
    pub fn on(
        &self,
        verb: Option<Verb>,
        resource: &str,
        effect: Effect,
        times: Option<usize>,
    ) -> RuleId {
        lock(&self.shared.rules).add(verb, resource, effect, times)
    }

    /// 403 until lifted.
    pub fn deny(&self, verb: Verb, resource: &str) -> RuleId {
        self.on(Some(verb), resource, Effect::Deny, None)
    }

    /// Takes a rule back.
    pub fn lift(&self, rule: RuleId) {
        lock(&self.shared.rules).lift(rule);
    }

    /// Takes all rules back.
    pub fn lift_all(&self) {
        lock(&self.shared.rules).lift_all();
    }

    /// Serves a group, one version of it, or one resource, or not: as if its
    /// definition was installed or removed. Running watches end.
    pub fn serve(&self, what: &str, served: bool) {
        lock(&self.shared.catalog).serve(what, served);
        self.cut_watches();
    }

    /// One more resource, with an empty store.
    pub fn add_resource(&self, resource: Resource) {
        lock(&self.shared.catalog).add(resource);
    }

    /// Expires all versions told so far: 410 for whoever asks for one. Running
    /// watches go on.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// Ends all running watches, without a word.
    pub fn cut_watches(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// A bookmark to all watches that want some.
    pub fn bookmark(&self) {
        self.shared.marks.send_modify(|count| *count += 1);
    }

    /// How often bookmarks come by themselves, for watches that open from now on.
    pub fn bookmark_every(&self, period: Duration) {
        *lock(&self.shared.bookmark_period) = period;
    }
}

/// What was asked.
impl ApiServer {
    /// Requests and bytes up to now.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.ledger).counts.clone()
    }

    /// The last 100,000 requests about objects, oldest first.
    pub fn requests(&self) -> Vec<Logged> {
        lock(&self.shared.ledger).log.iter().cloned().collect()
    }

    /// Requests that were about no object of a served resource: discovery,
    /// health, wrong paths, wrong methods, wrong tokens.
    pub fn other_requests(&self) -> u64 {
        lock(&self.shared.ledger).others
    }

    /// Rights (`get pods`) that no request has needed, of those given to
    /// [`Builder::rights`].
    pub fn unused_rights(&self) -> BTreeSet<String> {
        lock(&self.shared.rights).as_ref().map(Rights::unused).unwrap_or_default()
    }

    /// Watches that are open now, by resource.
    pub fn open_watches(&self) -> BTreeMap<String, usize> {
        server::open_watches(&self.shared)
    }

    /// The version of the whole store.
    pub fn revision(&self) -> u64 {
        lock(&self.shared.store).revision()
    }
}

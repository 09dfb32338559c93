//! An agent that is not there, a server in front of it, a client that can
//! misbehave.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_proto::api::*;
use weft_proto::attachment::AttachmentKey;

use crate::api::backend::{Backend, BackendError, PolicyQuestion};
use crate::api::{ApiOptions, ApiStats, Limits, Token, serve};
use crate::config::Callers;
use crate::mesh::net::BoxFuture;
use crate::policy::explain::{End, Explanation, Reason, Side};

/// What it does depends on the id: `hang` never answers, `conflict` and its
/// like fail so, others succeed.
#[derive(Default)]
pub(crate) struct Fake {
    calls: Mutex<Vec<String>>,
    waiting: AtomicUsize,
    leases: Mutex<Vec<AttachmentKey>>,
    /// What `status` says; 0, 1, 2.
    pub(crate) health: AtomicUsize,
    /// ADD cannot be served.
    pub(crate) unready: AtomicBool,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Futures not yet dropped.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    async fn outcome(&self, id: &str) -> Result<(), BackendError> {
        let text = || format!("{id}: because");
        match id {
            "hang" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let _guard = Waiting(&self.waiting);
                std::future::pending().await
            }
            "exhausted" => Err(BackendError::Exhausted(text())),
            "notready" => Err(BackendError::NotReady(text())),
            "notfound" | "nobody" => Err(BackendError::NotFound(text())),
            "conflict" => Err(BackendError::Conflict(text())),
            "bad" => Err(BackendError::Bad(text())),
            "internal" => Err(BackendError::Internal(text())),
            _ => Ok(()),
        }
    }
}

impl Backend for Fake {
    fn status(&self) -> Status {
        let mut status = crate::status::sample::status();
        status.health = match self.health.load(Ordering::SeqCst) {
            0 => Health::Ok,
            1 => Health::Degraded,
            _ => Health::Broken,
        };
        status
    }

    fn readiness(&self) -> Readiness {
        let ready = !self.unready.load(Ordering::Relaxed);
        Readiness { ready, connectivity: true, reasons: vec![] }
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({ "values": [] })
    }

    fn explain(
        &self,
        question: PolicyQuestion,
    ) -> BoxFuture<'_, Result<Explanation, BackendError>> {
        Box::pin(async move {
            // Port 80 is open to all; namespaces do as ids do.
            let allowed = question.port == 80;
            let side = |end: &End| {
                let (pod, address) = match end {
                    End::Pod(pod) => (Some(pod.clone()), IpAddr::from([10, 32, 0, 5])),
                    End::Address(address) => (None, *address),
                };
                Side {
                    allowed,
                    reason: Reason::NotSelected,
                    isolated_by: vec![],
                    passed: vec![],
                    pod,
                    address,
                    here: true,
                }
            };
            if let End::Pod(pod) = &question.to {
                self.outcome(&pod.namespace).await?;
            }
            Ok(Explanation {
                allowed,
                egress: side(&question.from),
                ingress: side(&question.to),
                protocol: "TCP".into(),
                port: question.port,
            })
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Attachment, BackendError>> {
        Box::pin(async move {
            let key = request.key;
            self.note(format!("attach {key} wait {}", request.wait_ms.unwrap()));
            self.outcome(&key.container_id).await?;
            self.leases.lock().unwrap().push(key.clone());
            Ok(Attachment {
                key,
                host_ifname: "weftx".into(),
                mac: "0a:58:0a:20:00:05".into(),
                addresses: vec!["10.32.0.5".parse().unwrap()],
                bridge: "weft".into(),
                gateway_mac: "0a:00:00:00:00:01".into(),
                mtu: 1450,
                ranges: vec!["10.32.0.0/12".parse().unwrap()],
                hairpin: true,
                existing: false,
            })
        })
    }

    fn detach(&self, key: AttachmentKey) -> BoxFuture<'_, Result<bool, BackendError>> {
        Box::pin(async move {
            let mut leases = self.leases.lock().unwrap();
            let before = leases.len();
            leases.retain(|lease| *lease != key);
            Ok(leases.len() < before)
        })
    }

    fn attachment(&self, key: &AttachmentKey) -> Option<LeaseInfo> {
        self.leases().into_iter().find(|lease| lease.key == *key)
    }

    fn gc(&self, _: GcRequest) -> BoxFuture<'_, Result<GcReply, BackendError>> {
        Box::pin(async { Ok(GcReply::default()) })
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        let leases = self.leases.lock().unwrap();
        let info = |key: &AttachmentKey| LeaseInfo {
            key: key.clone(),
            addresses: vec!["10.32.0.5".parse().unwrap()],
            pod: Some("default/web".into()),
            uid: None,
            since_ms: 1,
            host_ifname: "weftx".into(),
            port_mappings: vec![],
        };
        leases.iter().map(info).collect()
    }

    fn allocate(
        &self,
        id: String,
        subnet: Option<IpNet>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<IpNet, BackendError>> {
        Box::pin(async move {
            self.note(format!("allocate {id} {subnet:?} {patience:?}"));
            self.outcome(&id).await?;
            let len = subnet.map_or(12, |net| net.prefix_len());
            Ok(format!("10.32.0.5/{len}").parse().unwrap())
        })
    }

    fn lookup(&self, id: &str, _: Option<IpNet>) -> Vec<IpNet> {
        match id {
            "two" => vec!["10.32.0.5/12".parse().unwrap(), "10.32.0.6/12".parse().unwrap()],
            _ => vec![],
        }
    }

    fn claim(
        &self,
        id: String,
        address: IpNet,
        _: Duration,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            self.note(format!("claim {id} {address}"));
            // For the anonymous, whose id is their address.
            self.outcome(if id == "10.32.0.99" { "conflict" } else { &id }).await
        })
    }

    fn release(&self, id: &str) -> BoxFuture<'_, Result<usize, BackendError>> {
        let id = id.to_owned();
        Box::pin(async move {
            self.outcome(&id).await?;
            Ok(usize::from(id != "none"))
        })
    }

    fn release_one(&self, id: &str, _: IpAddr) -> BoxFuture<'_, Result<(), BackendError>> {
        let id = id.to_owned();
        Box::pin(async move { self.outcome(&id).await })
    }

    fn owned(&self) -> BTreeMap<String, Vec<IpNet>> {
        [("weave:expose".to_owned(), vec!["10.32.0.1/12".parse().unwrap()])].into()
    }

    fn default_subnet(&self) -> Option<IpNet> {
        Some("10.32.0.0/12".parse().unwrap())
    }

    fn prime(&self, patience: Duration) -> BoxFuture<'_, Result<(), BackendError>> {
        let id = if patience == Duration::from_secs(10) { "ok" } else { "hang" };
        Box::pin(self.outcome(id))
    }

    fn connect(&self, targets: Vec<String>, replace: bool) -> Result<(), BackendError> {
        self.note(format!("connect {targets:?} {replace}"));
        let bad = targets.iter().filter(|t| t.contains('!')).map(|t| format!("bad target {t}"));
        let bad: Vec<_> = bad.collect();
        if bad.is_empty() { Ok(()) } else { Err(BackendError::Bad(bad.join("\n"))) }
    }

    fn forget(&self, targets: Vec<String>) {
        self.note(format!("forget {targets:?}"));
    }

    fn expose(&self, address: IpNet, skip: bool) -> BoxFuture<'_, Result<(), BackendError>> {
        self.note(format!("expose {address} {skip}"));
        Box::pin(async { Ok(()) })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async { Ok(()) })
    }

    fn remove_peer(&self, name: String, force: bool) -> BoxFuture<'_, Result<u64, BackendError>> {
        Box::pin(async move {
            if name == "live" && !force {
                return Err(BackendError::Conflict("live is alive".into()));
            }
            self.outcome(&name).await.map(|()| 64)
        })
    }

    fn recover(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        Box::pin(async { self.outcome("recover").await.map(|()| 7) })
    }

    fn grow(&self, _: IpNet) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A listener on loopback with the fake behind it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) fake: Arc<Fake>,
    pub(crate) token: Token,
    pub(crate) stats: Arc<ApiStats>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

pub(crate) type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Server {
    pub(crate) async fn start(callers: Callers) -> Self {
        Self::with(callers, Limits { grace: Duration::from_millis(100), ..Limits::default() }).await
    }

    pub(crate) async fn with(callers: Callers, limits: Limits) -> Self {
        let token = Token::random().unwrap();
        let given = token.clone();
        let mut server =
            Self::listen(Arc::default(), |listener, backend, _, stats, stop| async move {
                let options = ApiOptions { token: given, callers, limits, stats };
                serve(listener, None, backend, options, stop).await;
            })
            .await;
        server.token = token;
        server
    }

    pub(crate) async fn listen<F, Fut>(fake: Arc<Fake>, serve: F) -> Self
    where
        F: FnOnce(TcpListener, Arc<dyn Backend>, Limits, Arc<ApiStats>, Stop) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stats = Arc::new(ApiStats::default());
        let (stop, stopped) = oneshot::channel();
        let stopped: Stop = Box::pin(async {
            let _ = stopped.await;
        });
        let backend: Arc<dyn Backend> = fake.clone();
        let task =
            tokio::spawn(serve(listener, backend, Limits::default(), stats.clone(), stopped));
        let token = Token::random().unwrap();
        Self { address, fake, token, stats, stop: Some(stop), task: Some(task) }
    }

    pub(crate) async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.task.take().unwrap().await.unwrap();
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// With the token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let token = format!("x-weft-token: {}\r\n", self.token.reveal());
        self.send(method, path, &token, body).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.raw(format!("{head}{body}").as_bytes()).await
    }

    /// Sends a request and does not wait.
    pub(crate) async fn begin(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect().await;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x-weft\r\nx-weft-token: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token.reveal(),
            body.len()
        )
        .replace("x-weft\r\n", &format!("{}\r\n", self.address));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    pub(crate) async fn raw(&self, bytes: &[u8]) -> Reply {
        Reply::parse(&self.until_closed(bytes).await)
    }

    /// Everything the server says until it closes the connection.
    pub(crate) async fn until_closed(&self, bytes: &[u8]) -> String {
        let stream = self.connect().await;
        let (mut reader, mut writer) = stream.into_split();
        let mut answer = Vec::new();
        // The server may close before it has read everything.
        let (_, _) = tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answer));
        String::from_utf8(answer).unwrap()
    }
}

pub(crate) struct Reply {
    /// 0 if there was no answer.
    pub(crate) code: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Self { code, head: head.to_owned(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn error(&self) -> String {
        serde_json::from_str::<ApiError>(&self.body).unwrap().error
    }
}

/// Waits for a condition; the test runner's patience is the bound.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

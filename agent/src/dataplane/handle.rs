//! How the agent talks to the data plane's thread.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::{oneshot, watch};
use weft_proto::api::{Condition, DataplaneStatus};
use weft_proto::attachment::{Alias, AttachmentKey};
use weft_proto::names::MIN_MTU;

use super::driver::Driver;
use super::intent::{Intent, PodIntent};
use super::{DataplaneConfig, DataplaneError, thread};

/// The host end of a pod's veth, as found in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WiredPod {
    /// Name.
    pub host_ifname: String,
    /// Index.
    pub ifindex: u32,
    /// What its alias says.
    pub alias: Alias,
}

/// What is asked of the thread.
pub(crate) enum Command {
    Wired(oneshot::Sender<Result<Vec<WiredPod>, DataplaneError>>),
    Stop,
}

/// What the thread has not seen yet.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) intent: Option<Arc<Intent>>,
    /// What became of pods since that intent, or since the last one taken: the
    /// later of two about one pod counts.
    pub(crate) changes: Vec<PodChange>,
    /// Counts intents and changes.
    pub(crate) generation: u64,
    pub(crate) commands: Vec<Command>,
}

/// A pod as it now is; `None`: it is no more.
pub(crate) type PodChange = (AttachmentKey, Option<PodIntent>);

/// What the thread tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) status: DataplaneStatus,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) underlay: Vec<IpNet>,
    /// Addresses of devices that are not ours.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The last intent or change that was applied, and how that went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) generation: u64,
    pub(crate) result: Option<DataplaneError>,
}

pub(crate) struct Shared {
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) report: Mutex<Report>,
    pub(crate) applied: watch::Sender<Applied>,
    waker: UnixStream,
}

impl Shared {
    fn wake(&self) {
        // A full pipe means that a wake-up is on its way.
        let _ = (&self.waker).write(&[1]);
    }
}

/// A lock whose holder panicked still guards a whole value here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The data plane.
pub struct Dataplane;

/// Handle of the running data plane. When the last one is dropped the thread
/// ends and leaves everything in the kernel as it is.
#[derive(Clone)]
pub struct DataplaneHandle {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.shared.inbox).commands.push(Command::Stop);
        self.shared.wake();
    }
}

impl Dataplane {
    /// Opens the sockets, takes a first look and starts the thread, in the
    /// network namespace of the calling thread. Nothing is changed before the
    /// first intent.
    pub fn start(config: DataplaneConfig) -> Result<DataplaneHandle, DataplaneError> {
        if let Some(value) = config.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(DataplaneError::MtuTooSmall { value });
        }
        let io = |what: &str| {
            let what = what.to_owned();
            move |e: std::io::Error| DataplaneError::Netlink { what, why: e.to_string() }
        };
        let (waker, woken) = thread::pipe().map_err(io("make a wake-up pipe"))?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            report: Mutex::default(),
            applied: watch::Sender::new(Applied::default()),
            waker,
        });
        let theirs = shared.clone();
        let make = move || Driver::new(config, theirs, woken);
        let started = thread::start("dataplane", make, Driver::run);
        started.map_err(io("start the data plane thread"))?.ok_or(DataplaneError::Stopped)??;
        Ok(DataplaneHandle { owner: Arc::new(Owner { shared }) })
    }
}

impl DataplaneHandle {
    /// What the kernel should hold from now on.
    pub fn set_intent(&self, intent: Intent) {
        let shared = &self.owner.shared;
        {
            let mut inbox = lock(&shared.inbox);
            inbox.generation += 1;
            inbox.intent = Some(Arc::new(intent));
            inbox.changes.clear();
        }
        shared.wake();
    }

    /// The last intent, but for these pods.
    pub fn change_pods(&self, changes: Vec<PodChange>) {
        let shared = &self.owner.shared;
        {
            let mut inbox = lock(&shared.inbox);
            inbox.generation += 1;
            inbox.changes.extend(changes);
        }
        shared.wake();
    }

    /// Waits until the last intent or change before this call is in the kernel. An
    /// error means that rules (isolation, host ports) are not.
    pub async fn settled(&self) -> Result<(), DataplaneError> {
        let shared = &self.owner.shared;
        let wanted = lock(&shared.inbox).generation;
        let mut applied = shared.applied.subscribe();
        let applied = applied
            .wait_for(|applied| applied.generation >= wanted)
            .await
            .map_err(|_| DataplaneError::Stopped)?;
        applied.result.clone().map_or(Ok(()), Err)
    }

    /// The host ends of pods that are in the kernel now.
    pub async fn wired(&self) -> Result<Vec<WiredPod>, DataplaneError> {
        let (tell, told) = oneshot::channel();
        lock(&self.owner.shared.inbox).commands.push(Command::Wired(tell));
        self.owner.shared.wake();
        told.await.map_err(|_| DataplaneError::Stopped)?
    }

    /// State of the kernel objects.
    pub fn status(&self) -> DataplaneStatus {
        lock(&self.owner.shared.report).status.clone()
    }

    /// What an operator should know.
    pub fn conditions(&self) -> Vec<Condition> {
        lock(&self.owner.shared.report).conditions.clone()
    }

    /// This node's underlay addresses, preferred first.
    pub fn underlay(&self) -> Vec<IpAddr> {
        lock(&self.owner.shared.report).underlay.iter().map(IpNet::addr).collect()
    }

    /// All addresses of this machine, but those of our own devices.
    pub fn addresses(&self) -> Vec<IpAddr> {
        lock(&self.owner.shared.report).addresses.clone()
    }

    /// MTU of the overlay.
    pub fn mtu(&self) -> u32 {
        lock(&self.owner.shared.report).status.mtu
    }
}

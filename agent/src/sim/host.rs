//! The machine's part of a simulation: wall clocks that can be wrong, chance
//! from the seed, tasks that belong to a process which can be stopped or killed.
//!
//! One thread runs one simulation at a time, so its state is the thread's own.
//! Without one (all other tests) everything is the system's.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::machine::Machine;

/// Simulated Unix time at the start of every run, in milliseconds.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// Makes this thread a simulation until dropped. Within a paused runtime.
pub(crate) struct Installed(());

impl Installed {
    pub(crate) fn new(seed: u64) -> Self {
        STATE.set(Some(seed));
        START.set(Some(Instant::now()));
        Self(())
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        STATE.set(None);
        START.set(None);
        CURRENT.set(None);
    }
}

/// Virtual time since the start of the run.
pub(crate) fn elapsed() -> Duration {
    START.get().map_or(Duration::ZERO, |start| start.elapsed())
}

/// Simulated Unix time without any clock's error.
pub(crate) fn true_ms() -> u64 {
    EPOCH_MS + u64::try_from(elapsed().as_millis()).unwrap()
}

/// One step of SplitMix64.
pub(crate) fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Chance: the run's own, else the system's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chance;

fn next() -> u64 {
    match STATE.get() {
        Some(mut state) => {
            let out = mix(&mut state);
            STATE.set(Some(state));
            out
        }
        None => rand::random(),
    }
}

impl rand::RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        (next() >> 32) as u32
    }
    fn next_u64(&mut self) -> u64 {
        next()
    }
    fn fill_bytes(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The same for the engine, which knows an older generation of the trait.
impl rand08::RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        (next() >> 32) as u32
    }
    fn next_u64(&mut self) -> u64 {
        next()
    }
    fn fill_bytes(&mut self, out: &mut [u8]) {
        rand::RngCore::fill_bytes(self, out);
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rand08::Error> {
        rand::RngCore::fill_bytes(self, out);
        Ok(())
    }
}

/// See [`crate::host`].
pub(crate) fn rng() -> Chance {
    Chance
}

/// See [`crate::host`].
pub(crate) fn now_ms() -> u64 {
    if START.get().is_none() {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    }
    let wrong = CURRENT.with_borrow(|p| p.as_ref().map_or(0, |p| p.machine.clock_error_ms()));
    true_ms().saturating_add_signed(wrong)
}

/// One life of an agent: its tasks run, stand still, or are gone, all together.
pub(crate) struct Process {
    pub(crate) machine: Arc<Machine>,
    stopped: AtomicBool,
    dead: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
    ends: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Process {
    pub(crate) fn new(machine: Arc<Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            stopped: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            waiting: Mutex::default(),
            tasks: Mutex::default(),
            ends: Mutex::default(),
        })
    }

    /// A task of this process.
    pub(crate) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let handle = tokio::spawn(Task { process: Arc::clone(self), work: Box::pin(future) });
        self.keep(handle.abort_handle());
        handle
    }

    /// What is done once the process is dead.
    pub(crate) fn at_end(&self, end: impl FnOnce() + Send + 'static) {
        self.ends.lock().unwrap().push(Box::new(end));
    }

    fn keep(&self, handle: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap();
        // Amortised: most tasks serve one message.
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    /// SIGSTOP: time goes on, nothing runs.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.stopped.store(false, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// SIGKILL: every task ends where it waits. Done when it returns.
    pub(crate) async fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.resume();
        loop {
            let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
            if tasks.is_empty() {
                break;
            }
            tasks.iter().for_each(AbortHandle::abort);
            while tasks.iter().any(|task| !task.is_finished()) {
                tokio::task::yield_now().await;
            }
        }
        let ends = std::mem::take(&mut *self.ends.lock().unwrap());
        ends.into_iter().for_each(|end| end());
    }
}

struct Task<F> {
    process: Arc<Process>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.stopped.load(Ordering::Relaxed) {
            self.process.waiting.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        // Whoever looks after the machines ends it.
        if self.process.machine.disk.burnt() {
            return Poll::Pending;
        }
        let before = CURRENT.replace(Some(Arc::clone(&self.process)));
        let out = self.work.as_mut().poll(cx);
        CURRENT.set(before);
        out
    }
}

fn current() -> Option<Arc<Process>> {
    CURRENT.with_borrow(Clone::clone)
}

/// See [`crate::host`].
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    match current() {
        Some(process) => process.spawn(future),
        None => tokio::spawn(future),
    }
}

/// See [`crate::host`].
pub(crate) fn spawn_in<F>(set: &mut JoinSet<F::Output>, future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    match current() {
        Some(process) => {
            let task = Task { process: Arc::clone(&process), work: Box::pin(future) };
            process.keep(set.spawn(task));
        }
        None => drop(set.spawn(future)),
    }
}

/// See [`crate::host`]. In a simulation it is done at once, or, on a slow disk,
/// after a while by a task of its own, as a thread would.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let Some(process) = current() else { return tokio::task::spawn_blocking(work).await };
    let delay = process.machine.disk.delay();
    if delay.is_zero() {
        return Ok(work());
    }
    let late = process.spawn(async move {
        tokio::time::sleep(delay).await;
        work()
    });
    late.await
}

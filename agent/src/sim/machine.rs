//! What outlives the agent on a node: disk and clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rand::Rng;

use super::disk::Disk;
use super::fs::MOUNT;
use super::host::rng;

thread_local! {
    static DISKS: RefCell<BTreeMap<usize, Arc<Disk>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The disk of a machine of this thread's simulation.
pub(crate) fn disk(number: usize) -> Option<Arc<Disk>> {
    DISKS.with_borrow(|disks| disks.get(&number).cloned())
}

/// Takes all disks of this thread's simulation away.
pub(crate) fn unmount() {
    DISKS.take();
}

/// See the module.
pub(crate) struct Machine {
    pub(crate) number: usize,
    pub(crate) disk: Arc<Disk>,
    clock_error_ms: AtomicI64,
    /// The power fails with the next vote that is given.
    ballot: AtomicBool,
    /// The power fails soon after the next request to hand over a part of a block.
    donation: AtomicBool,
    /// That request was made.
    failing: Arc<AtomicBool>,
}

impl Machine {
    pub(crate) fn new(number: usize) -> Arc<Self> {
        let disk = Arc::new(Disk::default());
        DISKS.with_borrow_mut(|disks| disks.insert(number, Arc::clone(&disk)));
        Arc::new(Self {
            number,
            disk,
            clock_error_ms: AtomicI64::new(0),
            ballot: AtomicBool::new(false),
            donation: AtomicBool::new(false),
            failing: Arc::default(),
        })
    }

    /// `STATE_DIR`.
    pub(crate) fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("{MOUNT}/{}/state", self.number))
    }

    /// `RUN_DIR`.
    pub(crate) fn run_dir(&self) -> PathBuf {
        PathBuf::from(format!("{MOUNT}/{}/run", self.number))
    }

    /// The power is to fail with the next vote this machine gives, or not.
    pub(crate) fn await_ballot(&self, on: bool) {
        self.ballot.store(on, Ordering::Relaxed);
    }

    /// A vote was given.
    pub(crate) fn has_voted(&self) {
        if self.ballot.swap(false, Ordering::Relaxed) {
            self.disk.set_fuse(0);
        }
    }

    /// The power is to fail soon after the next request to hand something over, or not.
    pub(crate) fn await_donation(&self, on: bool) {
        self.donation.store(on, Ordering::Relaxed);
        self.failing.store(false, Ordering::Relaxed);
    }

    /// A request to hand something over was made: now or a few packets later.
    pub(crate) fn has_given(&self) {
        if self.donation.swap(false, Ordering::Relaxed) {
            let (disk, failing) = (Arc::clone(&self.disk), Arc::clone(&self.failing));
            failing.store(true, Ordering::Relaxed);
            let later = Duration::from_micros(rng().random_range(0..20_000));
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                if failing.swap(false, Ordering::Relaxed) {
                    disk.set_fuse(0);
                }
            });
        }
    }

    /// How wrong the wall clock is.
    pub(crate) fn clock_error_ms(&self) -> i64 {
        self.clock_error_ms.load(Ordering::Relaxed)
    }

    /// Sets the wall clock forward or back.
    pub(crate) fn jump_clock(&self, by_ms: i64) {
        self.clock_error_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

//! Kubernetes, wired: what of it decides about this node, and what it is told.
//!
//! [`boot`] runs before the mesh and waits only where an earlier life has left
//! nothing; [`round`], [`departures`] and [`tell`] run beside everything else.

mod boot;
mod departures;
mod judge;
mod room;
mod round;
mod tell;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) use boot::{Boot, boot};
pub(super) use departures::run as departures;
pub(super) use round::run as rounds;
pub(super) use tell::run as tell;

use crate::consensus::Founding;
use crate::kube::Kube;
use crate::kube::cache::{Cache, Store};
use crate::kube::events::Emitter;

/// What the daemon holds of Kubernetes.
pub(crate) struct Wired {
    /// The API server.
    pub(crate) kube: Kube,
    /// For Events on any object.
    pub(crate) events: Emitter,
    store: Mutex<Store>,
    /// Peers and founding are given by configuration.
    by_list: bool,
    /// The founding this life started with.
    founding: Founding,
    /// Underlay address taken from the Node.
    address: Option<IpAddr>,
}

impl Wired {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept for the next start.
    fn keep(&self, change: impl FnOnce(&mut Cache)) {
        if let Err(e) = self.store().change(change) {
            tracing::warn!("what the API server said cannot be kept for the next start: {e}");
        }
    }

    /// For `agent status`.
    pub(super) fn status(&self) -> weft_proto::api::KubernetesStatus {
        let founder = self.store().get().founder.clone();
        self.kube.status(founder)
    }
}

/// The first of these addresses that this machine has.
fn own_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|ip| std::net::UdpSocket::bind((*ip, 0)).is_ok())
}

/// A claim of the founding that was written at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim(Instant);

impl Claim {
    /// True while nobody can have taken it over.
    pub(super) fn is_fresh(self) -> bool {
        self.0.elapsed() < crate::kube::founding::FRESH
    }
}

//! The underlay: who is where, which ways are cut, how long a packet takes.
//!
//! A *leg* is one packet, lost or delivered late. What travels on a QUIC stream
//! is sent again until it arrives or nobody waits any longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rand::Rng;

use super::check::Checker;
use super::host::rng;
use super::trace::Trace;
use crate::mesh::simulated::SimMesh;

/// After this a lost part of a stream is sent again.
const AGAIN: Duration = Duration::from_millis(250);

/// What packets suffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Share of packets lost.
    pub(crate) loss: f64,
    /// Share of notifications delivered twice.
    pub(crate) twice: f64,
    /// Share of requests whose answer is lost with the connection.
    pub(crate) mute: f64,
    /// Delay of one leg, from and to, in microseconds.
    pub(crate) delay_us: (u64, u64),
}

impl Default for Weather {
    fn default() -> Self {
        Self { loss: 0.0, twice: 0.0, mute: 0.0, delay_us: (200, 2_000) }
    }
}

#[derive(Default)]
struct State {
    /// One-way cuts, by machine.
    cut: BTreeSet<(usize, usize)>,
    weather: Weather,
    at: BTreeMap<IpAddr, Weak<SimMesh>>,
    names: BTreeMap<usize, IpAddr>,
    delivered: u64,
    lost: u64,
}

/// See the module.
pub(crate) struct Network {
    state: Mutex<State>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) checker: Arc<Checker>,
}

impl Network {
    pub(crate) fn new(trace: Arc<Trace>, checker: Arc<Checker>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), trace, checker })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The address of a machine, as a name server knows it.
    pub(crate) fn resolve(&self, machine: usize) -> Option<IpAddr> {
        self.lock().names.get(&machine).copied()
    }

    /// A machine has an address.
    pub(crate) fn name(&self, machine: usize, ip: IpAddr) {
        self.lock().names.insert(machine, ip);
    }

    /// An agent is at an address.
    pub(crate) fn attach(&self, ip: IpAddr, mesh: &Arc<SimMesh>) {
        self.lock().at.insert(ip, Arc::downgrade(mesh));
    }

    /// Nobody is there any more.
    pub(crate) fn detach(&self, ip: IpAddr) {
        self.lock().at.remove(&ip);
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    pub(crate) fn weather(&self) -> Weather {
        self.lock().weather
    }

    /// Cuts one direction, or mends it.
    pub(crate) fn cut(&self, from: usize, to: usize, on: bool) {
        let mut state = self.lock();
        if on {
            state.cut.insert((from, to));
        } else {
            state.cut.remove(&(from, to));
        }
    }

    /// Mends everything.
    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        state.cut.clear();
        state.weather = Weather::default();
    }

    /// True if any way is cut.
    pub(crate) fn has_cuts(&self) -> bool {
        !self.lock().cut.is_empty()
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.lock().cut.contains(&(from, to))
    }

    /// Packets delivered and lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.delivered, state.lost)
    }

    /// One packet. Whoever is at the address when it arrives.
    pub(crate) async fn leg(&self, from: usize, ip: IpAddr) -> Option<Arc<SimMesh>> {
        let delay = {
            let mut state = self.lock();
            let weather = state.weather;
            let mut rng = rng();
            if weather.loss > 0.0 && rng.random_bool(weather.loss) {
                state.lost += 1;
                None
            } else {
                Some(Duration::from_micros(
                    rng.random_range(weather.delay_us.0..=weather.delay_us.1),
                ))
            }
        };
        tokio::time::sleep(delay?).await;
        let mut state = self.lock();
        let there = state.at.get(&ip).and_then(Weak::upgrade);
        let there = there.filter(|mesh| !state.cut.contains(&(from, mesh.machine())));
        if there.is_some() {
            state.delivered += 1;
        } else {
            state.lost += 1;
        }
        there
    }

    /// The same, sent again until it arrives. Ends only with its caller.
    pub(crate) async fn stream(&self, from: usize, ip: IpAddr) -> Arc<SimMesh> {
        loop {
            if let Some(mesh) = self.leg(from, ip).await {
                return mesh;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// True if the answer to a request never arrives.
    pub(crate) fn mute(&self) -> bool {
        let share = self.lock().weather.mute;
        share > 0.0 && rng().random_bool(share)
    }

    /// True if a notification arrives twice.
    pub(crate) fn twice(&self) -> bool {
        let share = self.lock().weather.twice;
        share > 0.0 && rng().random_bool(share)
    }
}

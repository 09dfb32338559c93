//! What happens to a cluster, and what is measured.

use std::time::Duration;

use serde::Serialize;

use super::world::World;

const SEED: u64 = 7;
const STEP: Duration = Duration::from_millis(50);
/// Nodes that the others are told to begin with, as the voters are.
const CONTACTS: usize = 3;

/// What a scene came to. Times are virtual, bytes are those of one node.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// How many nodes.
    pub nodes: usize,
    /// Seconds until it was over; `None`: not within the time given.
    pub seconds: Option<f64>,
    /// Seconds until the one it is about was done, where that is something else.
    pub own_seconds: Option<f64>,
    /// Bytes that a node sent, on average, all the time or per second (at rest).
    pub bytes: f64,
    /// The same of the one that sent most.
    pub most_bytes: f64,
    /// Handshakes accepted by a node, on average and at most.
    pub handshakes: f64,
    /// At most.
    pub most_handshakes: u64,
    /// Connections of a node at the end, on average.
    pub connections: f64,
}

impl World {
    fn reset(&mut self) {
        for host in &mut self.hosts {
            (host.sent, host.received, host.handshakes) = (0, 0, 0);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn figures(&self, per: f64, seconds: Option<Duration>) -> Figures {
        let nodes = self.hosts.len();
        let all = nodes as f64;
        let most = self.hosts.iter().map(|h| h.sent).max().unwrap_or(0);
        Figures {
            nodes,
            seconds: seconds.map(|s| s.as_secs_f64()),
            own_seconds: None,
            bytes: self.traffic() as f64 / all / per,
            most_bytes: most as f64 / per,
            handshakes: self.hosts.iter().map(|h| h.handshakes).sum::<u64>() as f64 / all,
            most_handshakes: self.hosts.iter().map(|h| h.handshakes).max().unwrap_or(0),
            connections: self.hosts.iter().map(|h| h.conns.len()).sum::<usize>() as f64 / all,
        }
    }
}

/// A settled cluster of so many nodes, for the scenes below.
pub fn settled(nodes: usize) -> World {
    let mut world = World::settled(nodes, SEED);
    world.run(Duration::from_secs(45));
    world
}

/// Nothing happens for half a minute: bytes per second.
pub fn rest(world: &mut World) -> Figures {
    let time = Duration::from_secs(30);
    world.reset();
    world.run(time);
    let alive = world.hosts.iter().all(|h| h.knows() + 1 == world.hosts.len());
    world.figures(time.as_secs_f64(), alive.then_some(time))
}

/// One more node: until all route to it; `own_seconds`: until it routes to all.
pub fn join(world: &mut World) -> Figures {
    let host = world.hosts.len();
    world.reset();
    world.start_anew(host, 2_000_000, (0..CONTACTS).collect());
    world.begin(host);
    let (node, mut own) = (world.hosts[host].me, None);
    let begun = world.now;
    let all = world.until(STEP, Duration::from_secs(120), |world| {
        let known = || world.hosts.iter().all(|h| h.me == node || h.takes_for_alive(node));
        if own.is_none() && world.hosts[host].knows() >= host {
            own = Some(world.now - begun);
        }
        own.is_some() && known()
    });
    let mut figures = world.figures(1.0, all);
    figures.own_seconds = own.map(|o| o.as_secs_f64());
    figures
}

/// One node dies without a word: until all take it for dead.
pub fn death(world: &mut World) -> Figures {
    let host = world.hosts.len() / 2;
    world.reset();
    let node = world.hosts[host].me;
    world.hosts[host].up = false;
    let dead = world.until(STEP, Duration::from_secs(120), |world| {
        world.hosts.iter().all(|h| h.me == node || !h.takes_for_alive(node))
    });
    world.figures(1.0, dead)
}

/// Two halves apart until each takes the other for dead, and together again: until all
/// take all for alive.
pub fn heal(world: &mut World) -> Figures {
    for (index, host) in world.hosts.iter_mut().enumerate() {
        host.side = index % 2 == 0;
        host.targets = (0..CONTACTS * 2).collect();
    }
    world.parted = true;
    let living = world.hosts.iter().filter(|h| h.up).count();
    let half = |world: &World, side| world.hosts.iter().filter(|h| h.up && h.side == side).count();
    let sides = [half(world, false), half(world, true)];
    let apart = world.until(Duration::from_secs(1), Duration::from_secs(300), |world| {
        let up = world.hosts.iter().filter(|h| h.up);
        up.clone().all(|h| h.knows() < sides[usize::from(h.side)])
    });
    if apart.is_none() {
        return world.figures(1.0, None);
    }
    world.parted = false;
    world.reset();
    // Half of the nodes have a contact on the other side that they go on trying.
    (0..world.hosts.len()).for_each(|host| world.pursue_all(host));
    let whole = world.until(STEP * 4, Duration::from_secs(300), |world| {
        world.hosts.iter().filter(|h| h.up).all(|h| h.knows() + 1 >= living)
    });
    world.figures(1.0, whole)
}

/// All agents start within a second and know three contacts: until all know all.
pub fn cold(nodes: usize) -> Figures {
    let mut world = World::new(nodes, SEED);
    for host in 0..nodes {
        world.start_anew(host, 3_000_000, (0..CONTACTS).collect());
        world.hosts[host].up = false;
    }
    for host in 0..nodes {
        world.begin(host);
    }
    let known = world.until(STEP * 4, Duration::from_secs(300), |world| {
        world.hosts.iter().all(|h| h.knows() + 1 >= nodes)
    });
    world.figures(1.0, known)
}

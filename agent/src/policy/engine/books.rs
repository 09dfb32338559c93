//! Counters of refused packets, and their lines in the log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use weft_proto::api::PolicyRefusedPort;

use super::report::{Count, RefusedPackets};
use crate::dataplane::netlink::codec::ip;
use crate::dataplane::netlink::socket::{Refused, Requests};
use crate::policy::explain::{End, Explanation, Reason};
use crate::policy::nflog::{Cause, Drop, Pace, protocol_name};
use crate::policy::nft::kernel;
use crate::policy::nft::layout::{Families, REFUSED_PORTS, refused_name};
use crate::policy::state::{Direction, Protocol};
use crate::policy::world::World;

/// What the kernel counted, kept over the end of its counters.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// By local address and direction (true: ingress), as the kernel has it now.
    now: BTreeMap<(IpAddr, bool), Count>,
    ports: Ledger<(u8, u16)>,
    totals: [Count; 2],
    pace: Pace,
    logged: u64,
    suppressed: u64,
}

/// Sums of counters that may begin anew.
#[derive(Debug, Default)]
struct Ledger<K> {
    last: BTreeMap<K, u64>,
    sums: BTreeMap<K, u64>,
}

fn since(before: u64, now: u64) -> u64 {
    if now >= before { now - before } else { now }
}

impl Books {
    /// Reads the kernel's counters.
    pub(super) fn read(&mut self, nft: &mut Requests, families: Families) -> Result<(), Refused> {
        let mut found = BTreeMap::new();
        for fam in families.iter() {
            for (ingress, direction) in [(true, Direction::Ingress), (false, Direction::Egress)] {
                for (key, count) in kernel::counts(nft, &refused_name(direction, fam))? {
                    found.extend(ip(&key).map(|ip| ((ip, ingress), count)));
                }
            }
        }
        for (key, count) in &found {
            let before = self.now.get(key).copied().unwrap_or_default();
            let total = &mut self.totals[usize::from(key.1)];
            total.packets += since(before.packets, count.packets);
            total.bytes += since(before.bytes, count.bytes);
        }
        self.now = found;
        let ports: BTreeMap<(u8, u16), u64> = kernel::counts(nft, REFUSED_PORTS)?
            .into_iter()
            .filter_map(|(key, count)| {
                let port = u16::from_be_bytes(key.get(4..6)?.try_into().ok()?);
                Some(((*key.first()?, port), count.packets))
            })
            .collect();
        self.ports.read(ports);
        Ok(())
    }

    /// Of a pod.
    pub(super) fn of(&self, addresses: &[IpAddr], ingress: bool) -> Count {
        addresses.iter().filter_map(|ip| self.now.get(&(*ip, ingress))).fold(
            Count::default(),
            |sum, one| Count { packets: sum.packets + one.packets, bytes: sum.bytes + one.bytes },
        )
    }

    pub(super) fn refused(&self) -> RefusedPackets {
        let port = |((protocol, port), packets): (&(u8, u16), &u64)| PolicyRefusedPort {
            protocol: protocol_name(*protocol),
            port: *port,
            packets: *packets,
        };
        RefusedPackets {
            ingress: self.totals[1],
            egress: self.totals[0],
            ports: self.ports.sums.iter().map(port).collect(),
            logged: self.logged,
            suppressed: self.suppressed,
        }
    }

    /// Writes a refused packet to the log, unless there is too much of it.
    pub(super) fn tell(&mut self, world: &World, drop: Drop, now: Instant) {
        if !self.pace.admit(drop, now) {
            self.suppressed += 1;
            return;
        }
        self.logged += 1;
        tracing::info!(target: "weft_agent::policy", "{}", line(world, &drop));
    }
}

/// A refused packet in words, with names where they are known.
fn line(world: &World, drop: &Drop) -> String {
    let end = |ip: IpAddr, port: Option<u16>| {
        let at = match (port, ip) {
            (Some(port), ip) => std::net::SocketAddr::new(ip, port).to_string(),
            (None, ip) => ip.to_string(),
        };
        world.pod_at(ip).map_or_else(|| at.clone(), |pod| format!("{pod} ({at})"))
    };
    let from = end(drop.from, drop.ports.map(|(from, _)| from));
    let to = end(drop.to, drop.ports.map(|(_, to)| to));
    let protocol = protocol_name(drop.protocol);
    let (direction, reason) = match drop.cause {
        Cause::Policy(direction) => (
            if direction == Direction::Ingress { "ingress" } else { "egress" },
            why(world, drop, direction),
        ),
        Cause::Stray => ("stray", "TCP of a connection that is not known".to_owned()),
    };
    format!("{protocol} from {from} to {to} refused by policy ({direction}): {reason}")
}

impl<K: Ord + Copy> Ledger<K> {
    /// A key beyond the bound is left out: with its counter gone from the kernel
    /// and others in its place, sums would grow for ever.
    fn read(&mut self, now: BTreeMap<K, u64>) {
        const MOST: usize = 256;
        for (key, count) in &now {
            let before = self.last.get(key).copied().unwrap_or(0);
            if self.sums.contains_key(key) || self.sums.len() < MOST {
                *self.sums.entry(*key).or_default() += since(before, *count);
            }
        }
        self.last = now;
    }
}

/// The reason in the words of the policies.
fn why(world: &World, drop: &Drop, direction: Direction) -> String {
    let protocol = match drop.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return "no rule allows this protocol".to_owned(),
    };
    let Some((_, port)) = drop.ports else { return "no rule allows it".to_owned() };
    let (from, to) = (End::Address(drop.from), End::Address(drop.to));
    match world.explain(&from, &to, protocol, port) {
        Ok(explanation) => reason(&explanation, direction),
        Err(_) => "not known here any more".to_owned(),
    }
}

fn reason(explanation: &Explanation, direction: Direction) -> String {
    let side = match direction {
        Direction::Ingress => &explanation.ingress,
        Direction::Egress => &explanation.egress,
    };
    if side.allowed {
        return "allowed by now".to_owned();
    }
    match &side.reason {
        Reason::Rule { policy, field, .. } => format!("{policy} {field}"),
        Reason::NoRule { policies } => {
            let names: Vec<String> = policies.iter().take(3).map(ToString::to_string).collect();
            let more = policies.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("no rule of {}{more} allows it", names.join(", "))
        }
        Reason::Unknown { .. } => "the pod is not known yet".to_owned(),
        Reason::Itself | Reason::NoPod | Reason::NotSelected | Reason::NotMentioned { .. } => {
            "no policy applies any more".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::world::{Change, Settings, Unknown};

    #[test]
    fn a_line_names_pods_and_policy() {
        let settings = Settings { unknown: Unknown::Deny, ipv4: true, ipv6: false };
        let mut world = World::new(settings);
        let pod = |name: &str, address: &str| {
            let object = json!({
                "metadata": {"namespace": "default", "name": name, "uid": name},
                "status": {"podIP": address},
            });
            Change::Pod(serde_json::from_value(object).unwrap())
        };
        let policy = json!({
            "metadata": {"namespace": "default", "name": "closed"},
            "spec": {"podSelector": {}},
        });
        world.apply_all(vec![
            Change::Namespace(
                serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap(),
            ),
            pod("a", "10.32.0.2"),
            pod("b", "10.32.0.3"),
            Change::Policy(serde_json::from_value(policy).unwrap()),
        ]);
        let drop = Drop {
            cause: Cause::Policy(Direction::Ingress),
            from: "10.32.0.2".parse().unwrap(),
            to: "10.32.0.3".parse().unwrap(),
            protocol: 6,
            ports: Some((4000, 80)),
        };
        assert_eq!(
            line(&world, &drop),
            "tcp from default/a (10.32.0.2:4000) to default/b (10.32.0.3:80) refused by policy \
             (ingress): no rule of NetworkPolicy default/closed allows it"
        );
        let ping = Drop { protocol: 1, ports: None, from: "192.0.2.1".parse().unwrap(), ..drop };
        assert_eq!(
            line(&world, &ping),
            "icmp from 192.0.2.1 to default/b (10.32.0.3) refused by policy (ingress): no rule \
             allows this protocol"
        );
        let stray = line(&world, &Drop { cause: Cause::Stray, ..drop });
        assert!(stray.ends_with("(stray): TCP of a connection that is not known"), "{stray}");
    }

    #[test]
    fn sums_survive_counters_that_begin_anew() {
        let mut ledger = Ledger::default();
        for (count, sum) in [(5, 5), (7, 7), (2, 9), (2, 9)] {
            ledger.read(BTreeMap::from([(80, count)]));
            assert_eq!(ledger.sums[&80], sum);
        }
        ledger.read(BTreeMap::new());
        ledger.read((0..1000).map(|port| (port, 1)).collect());
        assert_eq!(ledger.sums.len(), 256);
    }
}

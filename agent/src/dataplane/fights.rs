//! Does somebody keep undoing our work? A pure function of repairs and their times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use weft_proto::api::Condition;
use weft_proto::names::BRIDGE;

use super::desired::{DesiredPods, condition};
use super::model::{Link, Op};

/// Repairs older than this are forgotten.
const WINDOW: Duration = Duration::from_secs(60);
/// So many repairs of one thing within the window are no accident.
const ENOUGH: usize = 5;
/// Things named in the condition.
const NAMED: usize = 3;
/// Things watched at a time; whoever undoes more of them is seen by these.
const MOST: usize = 1024;

/// What was put right, and the index of the pod's interface, if it was one: the next
/// interface of that name is another thing.
pub(crate) type Repair = (String, u32);

/// Repairs of the last minute, by what was repaired.
#[derive(Debug, Default)]
pub(crate) struct Fights {
    repairs: BTreeMap<Repair, Past>,
}

#[derive(Debug, Default)]
struct Past {
    times: VecDeque<Instant>,
    /// Place in its plan: what comes first is what the rest needs.
    rank: usize,
}

/// A change as a repair, if it is one. Around pods that come and go the kernel is found half
/// done all the time: what is of a pod counts by its interface, and what is of none only while
/// no pod did.
pub(crate) fn repair(
    op: &Op,
    pods: &DesiredPods,
    links: &BTreeMap<String, Link>,
    churn: bool,
) -> Option<Repair> {
    let at = |net: IpNet| pods.pods.iter().find(|(_, pod)| pod.addresses.contains(&net.addr()));
    let device = match op {
        Op::SetPodRoute(net) => Some(at(*net).map_or("", |(name, _)| name)),
        Op::SetNeigh(dev, ip, _) if dev == BRIDGE => {
            Some(at((*ip).into()).map_or("", |(name, _)| name))
        }
        Op::DelPodRoute(_) => Some(""),
        Op::DelNeigh(dev, _) if dev == BRIDGE => Some(""),
        _ => op.port(),
    };
    let index = device.map(|name| links.get(name).map_or(0, |link| link.index));
    match index {
        None => Some((op.to_string(), 0)),
        Some(0) if churn => None,
        Some(index) => Some((op.to_string(), index)),
    }
}

impl Fights {
    /// These were put right, in this order, that were right before.
    pub(crate) fn note(&mut self, now: Instant, repairs: impl IntoIterator<Item = Repair>) {
        self.forget(now);
        for (rank, what) in repairs.into_iter().enumerate() {
            if self.repairs.len() >= MOST && !self.repairs.contains_key(&what) {
                continue;
            }
            let past = self.repairs.entry(what).or_default();
            // Once, however many requests it took.
            if past.times.back() != Some(&now) {
                past.times.push_back(now);
                past.rank = rank;
            }
        }
    }

    /// What an operator should know by now.
    pub(crate) fn condition(&mut self, now: Instant) -> Option<Condition> {
        self.forget(now);
        let mut fought: Vec<_> =
            self.repairs.iter().filter(|(_, past)| past.times.len() >= ENOUGH).collect();
        if fought.is_empty() {
            return None;
        }
        fought.sort_by_key(|(_, past)| (past.rank, Reverse(past.times.len())));
        let named = fought.iter().take(NAMED);
        let named: Vec<_> =
            named.map(|((what, _), past)| format!("`{what}` {} times", past.times.len())).collect();
        let more = match fought.len().saturating_sub(NAMED) {
            0 => String::new(),
            n => format!(", and {n} more things"),
        };
        Some(condition(
            "KernelFight",
            format!(
                "another program keeps changing what weft keeps in the kernel: in the last \
                 minute weft had to {}{more}",
                named.join(", ")
            ),
            "find and stop it: `nft monitor` names the process that changes rules, `ip -ts \
             monitor all` shows what else goes when. Network managers must leave the devices \
             weft, weft-vx and weft*, and routes of protocol 117, alone",
        ))
    }

    fn forget(&mut self, now: Instant) {
        self.repairs.retain(|_, past| {
            while past.times.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
                past.times.pop_front();
            }
            !past.times.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::desired::PodWiring;
    use super::super::model::{Kind, LinkSpec, Observed};
    use super::*;

    fn route(n: u32) -> Repair {
        (format!("set route {n}"), 0)
    }

    #[test]
    fn one_thing_again_and_again_is_a_fight() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut fights = Fights::default();
        for second in 0..4 {
            fights.note(at(second), [route(40), route(40)]);
        }
        assert_eq!(fights.condition(at(4)), None);
        // Many different things once, as after a flush, are an accident.
        for n in 0..2000 {
            fights.note(at(5), [route(100 + n), ("set port wefta of weft".to_owned(), n)]);
        }
        assert_eq!(fights.condition(at(5)), None);
        assert!(fights.repairs.len() <= MOST);
        fights.note(at(6), [route(40)]);
        let told = fights.condition(at(6)).unwrap();
        assert_eq!(told.reason, "KernelFight");
        assert!(told.message.contains("`set route 40` 5 times"), "{}", told.message);
        // A minute after most of it, it is over.
        assert_eq!(fights.condition(at(64)), None);
        assert_eq!(fights.condition(at(200)), None);
        assert!(fights.repairs.is_empty());
    }

    #[test]
    fn pods_that_come_and_go_are_no_fight() {
        let net: IpNet = "10.32.0.5/32".parse().unwrap();
        let wiring = PodWiring { mac: [2; 6], addresses: vec![net.addr()] };
        let pods = DesiredPods { pods: [("wefta".to_owned(), wiring)].into(), port: None };
        let mut observed = Observed::default();
        let spec = LinkSpec { kind: Kind::Bridge, mac: [2; 6], mtu: 1450 };
        observed.apply(&Op::AddLink("wefta".to_owned(), spec));
        observed.links.get_mut("wefta").unwrap().index = 7;
        let one = |op: &Op, churn| repair(op, &pods, &observed.links, churn);
        let gone = [Op::DelPodRoute(net), Op::DelNeigh(BRIDGE.to_owned(), net.addr())];
        for op in &gone {
            assert_eq!(one(op, true), None);
            assert_eq!(one(op, false), Some((op.to_string(), 0)));
        }
        for op in [Op::SetPodRoute(net), Op::SetNeigh(BRIDGE.to_owned(), net.addr(), [2; 6])] {
            assert_eq!(one(&op, true), Some((op.to_string(), 7)), "the next one has another index");
        }
        let far = Op::SetNeigh("weft-vx".to_owned(), net.addr(), [2; 6]);
        assert_eq!(one(&far, true), Some((far.to_string(), 0)));
    }
}

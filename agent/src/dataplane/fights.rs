//! Does somebody keep undoing our work? A pure function of repairs and their times.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use weft_proto::api::Condition;

use super::desired::condition;

/// Repairs older than this are forgotten.
const WINDOW: Duration = Duration::from_secs(60);
/// So many repairs of one thing within the window are no accident.
const ENOUGH: usize = 5;
/// Things watched at a time; whoever undoes more of them is seen by these.
const MOST: usize = 1024;

/// What was put right, and the index of the pod's interface, if it was one: the next
/// interface of that name is another thing.
pub(crate) type Repair = (String, u32);

/// Repairs of the last minute, by what was repaired.
#[derive(Debug, Default)]
pub(crate) struct Fights {
    repairs: BTreeMap<Repair, VecDeque<Instant>>,
}

impl Fights {
    /// Something was put right that was right before.
    pub(crate) fn note(&mut self, now: Instant, what: Repair) {
        self.forget(now);
        if self.repairs.len() < MOST || self.repairs.contains_key(&what) {
            self.repairs.entry(what).or_default().push_back(now);
        }
    }

    /// What an operator should know by now.
    pub(crate) fn condition(&mut self, now: Instant) -> Option<Condition> {
        self.forget(now);
        let fought = || self.repairs.iter().filter(|(_, times)| times.len() >= ENOUGH);
        let ((what, _), times) = fought().max_by_key(|(_, times)| times.len())?;
        let more = match fought().count() - 1 {
            0 => String::new(),
            n => format!(", and so with {n} more"),
        };
        let times = times.len();
        Some(condition(
            "KernelFight",
            format!(
                "another program keeps changing what weft keeps in the kernel: weft had to \
                 `{what}` {times} times in the last minute{more}"
            ),
            "find and stop it: `nft monitor` names the process that changes rules, `ip -ts \
             monitor all` shows what else goes when. Network managers must leave the devices \
             weft, weft-vx and weft*, and routes of protocol 117, alone",
        ))
    }

    fn forget(&mut self, now: Instant) {
        self.repairs.retain(|_, times| {
            while times.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
                times.pop_front();
            }
            !times.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
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
            fights.note(at(second), route(40));
        }
        assert_eq!(fights.condition(at(4)), None);
        // Many different things once, as after a flush, are an accident.
        for n in 0..2000 {
            fights.note(at(5), route(100 + n));
            fights.note(at(5), ("set port wefta of weft".to_owned(), n));
        }
        assert_eq!(fights.condition(at(5)), None);
        assert!(fights.repairs.len() <= MOST);
        fights.note(at(6), route(40));
        let told = fights.condition(at(6)).unwrap();
        assert_eq!(told.reason, "KernelFight");
        assert!(told.message.contains("`set route 40` 5 times"), "{}", told.message);
        // A minute after most of it, it is over.
        assert_eq!(fights.condition(at(64)), None);
        assert_eq!(fights.condition(at(200)), None);
        assert!(fights.repairs.is_empty());
    }
}

//! From conditions to Events: pure. A condition that holds for a while is told
//! once, and once more when it is over; a changed text is told at most every
//! [`REPEAT`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_proto::api::{Condition, Health};

/// What passes sooner is not told: a start goes through some.
pub const HOLD: Duration = Duration::from_secs(5);
/// Between two tellings of one reason whose text changes.
const REPEAT: Duration = Duration::from_secs(600);

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiding {
    /// The condition's reason.
    pub reason: String,
    /// A warning, or that it is over.
    pub warning: bool,
    /// Message and hint.
    pub note: String,
}

#[derive(Debug, Clone)]
struct Seen {
    since: Instant,
    last: Instant,
    note: String,
    /// What was told, and when.
    told: Option<(Instant, String)>,
}

/// What was told so far.
#[derive(Debug, Default)]
pub struct Tidings {
    seen: BTreeMap<String, Seen>,
}

impl Tidings {
    /// What is to be told now: what has held, or been over, for `hold`. It is
    /// asked for again until [`Self::told`].
    pub fn due(&mut self, conditions: &[Condition], hold: Duration, now: Instant) -> Vec<Tiding> {
        let mut notes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for condition in conditions.iter().filter(|c| c.health != Health::Ok) {
            let mut note = condition.message.clone();
            if !condition.hint.is_empty() {
                note = format!("{note}. Do: {}", condition.hint);
            }
            notes.entry(&condition.reason).or_default().push(note);
        }
        for (reason, notes) in &notes {
            let note = notes.join("\n");
            let seen = self.seen.entry((*reason).to_owned()).or_insert_with(|| Seen {
                since: now,
                last: now,
                note: note.clone(),
                told: None,
            });
            seen.last = now;
            seen.note = note;
        }
        let over = |seen: &Seen| now.saturating_duration_since(seen.last) >= hold;
        // What came and went untold is forgotten.
        self.seen.retain(|reason, seen| {
            notes.contains_key(reason.as_str()) || seen.told.is_some() || !over(seen)
        });
        let mut due = Vec::new();
        for (reason, seen) in &self.seen {
            let holds = notes.contains_key(reason.as_str());
            let warning = match &seen.told {
                None => holds && now.saturating_duration_since(seen.since) >= hold,
                Some((at, note)) => {
                    holds && *note != seen.note && now.saturating_duration_since(*at) >= REPEAT
                }
            };
            if warning {
                due.push(Tiding { reason: reason.clone(), warning: true, note: seen.note.clone() });
            } else if !holds && seen.told.is_some() && over(seen) {
                let note = format!("resolved: {}", seen.note);
                due.push(Tiding { reason: reason.clone(), warning: false, note });
            }
        }
        due
    }

    /// This one was delivered.
    pub fn told(&mut self, tiding: &Tiding, now: Instant) {
        if !tiding.warning {
            self.seen.remove(&tiding.reason);
        } else if let Some(seen) = self.seen.get_mut(&tiding.reason) {
            seen.told = Some((now, tiding.note.clone()));
        }
    }
}

/// So many at once, and one more every [`REFILL`].
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(6);

/// Bounds the rate of all Events of this agent.
#[derive(Debug)]
pub struct Bucket {
    left: u32,
    filled: Instant,
}

impl Bucket {
    /// Full.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, filled: now }
    }

    /// Takes one out; or how long to wait for it.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled);
        let steps = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        if steps > 0 {
            self.left = self.left.saturating_add(steps).min(BURST);
            self.filled = if self.left == BURST { now } else { self.filled + REFILL * steps };
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(REFILL.saturating_sub(passed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(reason: &str, message: &str) -> Condition {
        Condition {
            health: Health::Degraded,
            reason: reason.into(),
            message: message.into(),
            hint: "do x".into(),
        }
    }

    #[test]
    fn told_once_and_once_more_at_the_end() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut tidings = Tidings::default();
        let lasting = [condition("NoQuorum", "m")];
        assert_eq!(tidings.due(&lasting, HOLD, at(0)), []);
        let due = tidings.due(&lasting, HOLD, at(5));
        assert_eq!(due[0].note, "m. Do: do x");
        // Not delivered: due again.
        assert_eq!(tidings.due(&lasting, HOLD, at(6)), due);
        tidings.told(&due[0], at(6));
        assert_eq!(tidings.due(&lasting, HOLD, at(7)), []);
        assert_eq!(tidings.due(&[], HOLD, at(8)), []);
        let due = tidings.due(&[], HOLD, at(12));
        assert!(!due[0].warning && due[0].note.starts_with("resolved: m"));
        tidings.told(&due[0], at(12));
        assert_eq!(tidings.due(&[], HOLD, at(60)), []);
    }

    #[test]
    fn what_passes_is_not_told_and_flapping_is_one_tale() {
        let start = Instant::now();
        let mut tidings = Tidings::default();
        for s in 0..4 {
            tidings.due(&[condition("NotJoined", "m")], HOLD, start + Duration::from_secs(s));
        }
        for s in 4..20 {
            assert_eq!(tidings.due(&[], HOLD, start + Duration::from_secs(s)), []);
        }
        let flapping = [condition("PeerDead", "m")];
        let mut told = 0;
        for s in 20..600 {
            let now = start + Duration::from_secs(s);
            let conditions: &[Condition] = if s % 3 == 0 { &[] } else { &flapping };
            for tiding in tidings.due(conditions, HOLD, now) {
                tidings.told(&tiding, now);
                told += 1;
            }
        }
        assert_eq!(told, 1);
    }

    proptest! {
        /// However often Events are wanted, so many pass and no more.
        #[test]
        fn the_rate_is_bounded(pauses in prop::collection::vec(0u64..9000, 1..400)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(start);
            let (mut now, mut passed) = (start, 0u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                match bucket.take(now) {
                    Ok(()) => passed += 1,
                    Err(wait) => {
                        prop_assert!(wait <= REFILL);
                        prop_assert!(bucket.take(now + wait).is_ok());
                        passed += 1;
                        now += wait;
                    }
                }
                let most = BURST + u32::try_from((now - start).as_secs() / REFILL.as_secs()).unwrap() + 1;
                prop_assert!(passed <= most, "{} of {}", passed, most);
            }
        }
    }
}

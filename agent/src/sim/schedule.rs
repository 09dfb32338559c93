//! A schedule: a cluster and what befalls it, as a list of moments and actions.
//! Generated from a seed, printed and read as one line, shrunk by leaving out.

use std::fmt;
use std::str::FromStr;

use super::host::mix;

/// What befalls the cluster. Machines are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The agent is killed; what it wrote is there.
    Crash(usize),
    /// The power fails: what was not synced may be gone, pods are.
    Power(usize),
    /// The same in the middle of the disk's work: after so many more changes.
    Fuse(usize, u64),
    /// The agent is stopped in good order.
    Stop(usize),
    /// The agent is started, if it is not running.
    Start(usize),
    /// SIGSTOP.
    Pause(usize),
    /// SIGCONT.
    Resume(usize),
    /// Packets from one to the other are lost.
    Cut(usize, usize),
    /// No longer.
    Mend(usize, usize),
    /// Machines whose bit is set cannot talk to the others.
    Split(u64),
    /// All cuts end, the weather is fine.
    Heal,
    /// So many packets of a thousand are lost.
    Loss(u64),
    /// So many notifications of a thousand arrive twice.
    Twice(u64),
    /// Packets take up to so many milliseconds.
    Lag(u64),
    /// The wall clock is set forward or back by so many milliseconds.
    Jump(usize, i64),
    /// Every access to the disk takes up to so many milliseconds.
    Slow(usize, u64),
    /// The disk is full.
    Full(usize),
    /// It has room again.
    Room(usize),
    /// The state directory is lost; the machine comes back as a new node.
    Wipe(usize),
    /// So many pods start.
    Add(usize, u64),
    /// So many pods end.
    Del(usize, u64),
    /// `agent rmpeer` on the first of the second, if it is not alive.
    Evict(usize, usize),
    /// The same with `--force`.
    Force(usize, usize),
    /// The machine has another address.
    Move(usize),
    /// `agent grow` on a machine.
    Grow(usize),
    /// The lease store is lost.
    Forget(usize),
    /// The power fails with the next vote the machine gives.
    Ballot(usize),
    /// The power fails soon after the machine has asked to hand over a part of its blocks.
    Donor(usize),
    /// So many answers of a thousand are lost with their connection.
    Mute(u64),
    /// A majority of the voters is lost for good; `agent recover` on a survivor.
    Recover(usize),
}

/// Name, and how many numbers follow.
const WORDS: &[(&str, usize)] = &[
    ("crash", 1),
    ("power", 1),
    ("fuse", 2),
    ("stop", 1),
    ("start", 1),
    ("pause", 1),
    ("resume", 1),
    ("cut", 2),
    ("mend", 2),
    ("split", 1),
    ("heal", 0),
    ("loss", 1),
    ("twice", 1),
    ("lag", 1),
    ("jump", 2),
    ("slow", 2),
    ("full", 1),
    ("room", 1),
    ("wipe", 1),
    ("add", 2),
    ("del", 2),
    ("evict", 2),
    ("force", 2),
    ("move", 1),
    ("grow", 1),
    ("forget", 1),
    ("ballot", 1),
    ("donor", 1),
    ("mute", 1),
    ("recover", 1),
];

impl Action {
    fn parts(self) -> (&'static str, Vec<i64>) {
        let n = |n: usize| n as i64;
        match self {
            Self::Crash(a) => ("crash", vec![n(a)]),
            Self::Power(a) => ("power", vec![n(a)]),
            Self::Fuse(a, k) => ("fuse", vec![n(a), k as i64]),
            Self::Stop(a) => ("stop", vec![n(a)]),
            Self::Start(a) => ("start", vec![n(a)]),
            Self::Pause(a) => ("pause", vec![n(a)]),
            Self::Resume(a) => ("resume", vec![n(a)]),
            Self::Cut(a, b) => ("cut", vec![n(a), n(b)]),
            Self::Mend(a, b) => ("mend", vec![n(a), n(b)]),
            Self::Split(mask) => ("split", vec![mask as i64]),
            Self::Heal => ("heal", vec![]),
            Self::Loss(k) => ("loss", vec![k as i64]),
            Self::Twice(k) => ("twice", vec![k as i64]),
            Self::Lag(k) => ("lag", vec![k as i64]),
            Self::Jump(a, by) => ("jump", vec![n(a), by]),
            Self::Slow(a, k) => ("slow", vec![n(a), k as i64]),
            Self::Full(a) => ("full", vec![n(a)]),
            Self::Room(a) => ("room", vec![n(a)]),
            Self::Wipe(a) => ("wipe", vec![n(a)]),
            Self::Add(a, k) => ("add", vec![n(a), k as i64]),
            Self::Del(a, k) => ("del", vec![n(a), k as i64]),
            Self::Evict(a, b) => ("evict", vec![n(a), n(b)]),
            Self::Force(a, b) => ("force", vec![n(a), n(b)]),
            Self::Move(a) => ("move", vec![n(a)]),
            Self::Grow(a) => ("grow", vec![n(a)]),
            Self::Forget(a) => ("forget", vec![n(a)]),
            Self::Ballot(a) => ("ballot", vec![n(a)]),
            Self::Donor(a) => ("donor", vec![n(a)]),
            Self::Mute(k) => ("mute", vec![k as i64]),
            Self::Recover(a) => ("recover", vec![n(a)]),
        }
    }

    fn of(word: &str, numbers: &[i64]) -> Option<Self> {
        let n = |at: usize| usize::try_from(*numbers.get(at)?).ok();
        let k = |at: usize| u64::try_from(*numbers.get(at)?).ok();
        Some(match word {
            "crash" => Self::Crash(n(0)?),
            "power" => Self::Power(n(0)?),
            "fuse" => Self::Fuse(n(0)?, k(1)?),
            "stop" => Self::Stop(n(0)?),
            "start" => Self::Start(n(0)?),
            "pause" => Self::Pause(n(0)?),
            "resume" => Self::Resume(n(0)?),
            "cut" => Self::Cut(n(0)?, n(1)?),
            "mend" => Self::Mend(n(0)?, n(1)?),
            "split" => Self::Split(k(0)?),
            "heal" => Self::Heal,
            "loss" => Self::Loss(k(0)?),
            "twice" => Self::Twice(k(0)?),
            "lag" => Self::Lag(k(0)?),
            "jump" => Self::Jump(n(0)?, *numbers.get(1)?),
            "slow" => Self::Slow(n(0)?, k(1)?),
            "full" => Self::Full(n(0)?),
            "room" => Self::Room(n(0)?),
            "wipe" => Self::Wipe(n(0)?),
            "add" => Self::Add(n(0)?, k(1)?),
            "del" => Self::Del(n(0)?, k(1)?),
            "evict" => Self::Evict(n(0)?, n(1)?),
            "force" => Self::Force(n(0)?, n(1)?),
            "move" => Self::Move(n(0)?),
            "grow" => Self::Grow(n(0)?),
            "forget" => Self::Forget(n(0)?),
            "ballot" => Self::Ballot(n(0)?),
            "donor" => Self::Donor(n(0)?),
            "mute" => Self::Mute(k(0)?),
            "recover" => Self::Recover(n(0)?),
            _ => return None,
        })
    }

    /// Its name, for counting.
    pub(crate) fn word(self) -> &'static str {
        self.parts().0
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, numbers) = self.parts();
        write!(f, "{word}")?;
        numbers.iter().try_for_each(|number| write!(f, " {number}"))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Chance of everything that is not written here.
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// The founders are a list; else the first machine founds alone.
    pub(crate) listed: bool,
    /// Length of the range's prefix.
    pub(crate) prefix: u8,
    pub(crate) quarantine_ms: u64,
    pub(crate) cooldown_ms: u64,
    /// Milliseconds since the start.
    pub(crate) actions: Vec<(u64, Action)>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, nodes, listed, prefix, quarantine_ms, cooldown_ms, actions } = self;
        write!(
            f,
            "seed={seed} nodes={nodes} listed={listed} prefix={prefix} \
             quarantine={quarantine_ms} cooldown={cooldown_ms}"
        )?;
        actions.iter().try_for_each(|(at, action)| write!(f, "; {at} {action}"))
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let mut out = Self {
            seed: 0,
            nodes: 5,
            listed: true,
            prefix: 24,
            quarantine_ms: 20_000,
            cooldown_ms: 5_000,
            actions: Vec::new(),
        };
        for word in parts.next().unwrap_or_default().split_whitespace() {
            let bad = || format!("`{word}` is not NAME=NUMBER of a schedule");
            let (name, value) = word.split_once('=').ok_or_else(bad)?;
            match name {
                "seed" => out.seed = value.parse().map_err(|_| bad())?,
                "nodes" => out.nodes = value.parse().map_err(|_| bad())?,
                "listed" => out.listed = value.parse().map_err(|_| bad())?,
                "prefix" => out.prefix = value.parse().map_err(|_| bad())?,
                "quarantine" => out.quarantine_ms = value.parse().map_err(|_| bad())?,
                "cooldown" => out.cooldown_ms = value.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        for part in parts {
            let bad = || format!("`{part}` is not MILLISECONDS ACTION NUMBERS");
            let mut words = part.split_whitespace();
            let at = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let word = words.next().ok_or_else(bad)?;
            let numbers: Vec<i64> =
                words.map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
            let known = WORDS.iter().any(|(w, count)| *w == word && *count == numbers.len());
            let action = Action::of(word, &numbers).filter(|_| known).ok_or_else(bad)?;
            out.actions.push((at, action));
        }
        Ok(out)
    }
}

/// Numbers from a seed, apart from those of the run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        mix(&mut self.0) % limit.max(1)
    }

    fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// Time the founding is left alone, mostly.
const QUIET: u64 = 8_000;

impl Schedule {
    /// What a seed stands for.
    pub(crate) fn generate(seed: u64, nodes: usize) -> Self {
        let mut dice = Dice(seed ^ 0x7765_6674_2073_696d);
        let prefix = if nodes > 20 { 16 } else { dice.of(&[28, 26, 24, 24, 22]) };
        let mut out = Self {
            seed,
            nodes,
            listed: dice.chance(60),
            prefix,
            quarantine_ms: dice.of(&[5_000, 15_000, 60_000]),
            cooldown_ms: dice.of(&[0, 3_000, 30_000]),
            actions: Vec::new(),
        };
        // Each seed has its own few kinds of faults: all at once hide each other.
        let share = dice.of(&[15, 30, 60]);
        let kinds: Vec<u64> = (0..KINDS).filter(|_| dice.chance(share)).collect();
        let calm = dice.chance(5);
        let start = if dice.chance(20) { 0 } else { QUIET };
        let pace = dice.of(&[300, 1_000, 3_000, 10_000]);
        let mut at = start;
        for _ in 0..dice.of(&[3, 6, 10, 20]) {
            at += dice.range(1, pace);
            if !kinds.is_empty() && !calm {
                let kind = dice.of(&kinds);
                out.fault(kind, at, &mut dice);
            }
            if dice.chance(70) {
                let (node, count) = (out.some(&mut dice), dice.range(1, 4));
                let action = if dice.chance(60) { Action::Add } else { Action::Del };
                out.actions.push((at, action(node, count)));
            }
        }
        out.actions.sort_by_key(|(at, _)| *at);
        out
    }

    fn some(&self, dice: &mut Dice) -> usize {
        dice.range(1, self.nodes as u64) as usize
    }

    fn fault(&mut self, kind: u64, at: u64, dice: &mut Dice) {
        let node = self.some(dice);
        let other = self.some(dice);
        let soon = at + dice.of(&[100, 1_000, 4_000, 12_000, 25_000]);
        let mut push = |at: u64, action: Action| self.actions.push((at, action));
        match kind {
            0 => {
                push(at, if dice.chance(80) { Action::Crash(node) } else { Action::Stop(node) });
                push(soon, Action::Start(node));
            }
            1 => {
                push(at, Action::Power(node));
                push(soon, Action::Start(node));
            }
            2 => {
                push(at, Action::Fuse(node, dice.range(1, 40)));
                push(soon + 3_000, Action::Start(node));
            }
            3 => {
                push(at, Action::Pause(node));
                push(dice.of(&[soon, at + 60_000]), Action::Resume(node));
            }
            4 if node != other => {
                push(at, Action::Cut(node, other));
                push(soon, Action::Mend(node, other));
            }
            5 => {
                push(at, Action::Split(dice.range(1, (1 << self.nodes.min(40)) - 1)));
                push(soon, Action::Heal);
            }
            6 => {
                push(at, Action::Loss(dice.of(&[10, 100, 300])));
                push(at, Action::Twice(dice.of(&[0, 100, 500])));
                push(at, Action::Lag(dice.of(&[5, 50, 400, 2_000])));
                push(soon, Action::Heal);
            }
            7 => {
                let by = dice.of(&[-3_600_000, -30_000, -1_000, 1_000, 30_000, 3_600_000]);
                push(at, Action::Jump(node, by));
            }
            8 => {
                push(at, Action::Slow(node, dice.of(&[5, 50, 500])));
                push(soon, Action::Slow(node, 0));
            }
            9 => {
                push(at, Action::Full(node));
                push(soon, Action::Room(node));
            }
            10 => {
                push(at, Action::Wipe(node));
                push(soon, Action::Start(node));
            }
            11 if node != other => {
                if dice.chance(50) {
                    push(at, Action::Crash(other));
                    push(at + 8_000, Action::Evict(node, other));
                    push(soon + 9_000, Action::Start(other));
                } else {
                    push(at, Action::Force(node, other));
                }
            }
            12 => push(at, Action::Move(node)),
            13 => push(at, Action::Grow(node)),
            14 => push(at, Action::Forget(node)),
            15 => push(at, Action::Recover(node)),
            // Voters that are about to vote: some other machine falls silent.
            16 if node != other => {
                push(at, Action::Ballot(node));
                push(at, Action::Pause(other));
                push(at + 4_000, Action::Resume(other));
                push(at + dice.of(&[3_000, 3_500, 5_000]), Action::Start(node));
            }
            17 => {
                push(at, Action::Mute(dice.of(&[10, 100, 400])));
                push(soon, Action::Heal);
            }
            // A donor dies with its promise, and comes back where it hears nothing of it.
            18 => {
                // Nobody gives anything while there are free blocks.
                if self.nodes <= 8 && self.actions.is_empty() {
                    self.prefix = self.prefix.max(dice.of(&[26, 28, 28]));
                }
                let mut push = |at: u64, action: Action| self.actions.push((at, action));
                push(at, Action::Donor(node));
                let others = (1..=self.nodes.min(8)).filter(|n| *n != node);
                others.for_each(|n| push(at + n as u64, Action::Add(n, dice.range(3, 8))));
                let back = at + dice.of(&[1_500, 3_000, 6_000]);
                push(back - 100, Action::Split(1 << ((node - 1) % 64)));
                push(back, Action::Start(node));
                (1..6).for_each(|n| push(back + n * 200, Action::Add(node, 3)));
                push(back + 5_000, Action::Heal);
            }
            // Pods start all the time while their node learns that it was removed.
            19 if node != other => {
                push(at, Action::Force(node, other));
                (1..12).for_each(|_| push(at + dice.range(0, 60), Action::Add(other, 1)));
            }
            _ => {}
        }
    }
}

/// Kinds of faults that are drawn from.
const KINDS: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_its_text() {
        for seed in 0..200 {
            let schedule = Schedule::generate(seed, 5);
            assert_eq!(schedule.to_string().parse(), Ok(schedule));
        }
        for bad in ["seed", "seed=1; x", "seed=1; 5 crash", "seed=1; 5 fly 1", "foo=1"] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
    }
}

//! Many seeds, on all cores: `make sim`.
//!
//! Environment: `SIM_NODES` (5), `SIM_SEEDS` or `SIM_SECONDS` (how many, or how
//! long), `SIM_FROM` (first seed, else by the clock), `SIM_SEED` or
//! `SIM_SCHEDULE` (only this one, told in full), `SIM_THREADS` (all cores),
//! `SIM_FRESH` (not those that failed once), `SIM_FIRST` (one failure is enough).

use std::collections::BTreeMap;
use std::env;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::run::{Report, run};
use super::schedule::Schedule;
use super::shrink::shrink;

/// Schedules that failed once, one a line.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={text} cannot be read"),
    }
}

/// Schedules that failed once.
pub(crate) fn regressions() -> Vec<Schedule> {
    let lines = REGRESSIONS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect()
}

/// Sums over runs.
#[derive(Default)]
struct Sum {
    runs: u64,
    time: Duration,
    counts: BTreeMap<&'static str, u64>,
    failed: Vec<(Schedule, String)>,
}

impl Sum {
    fn add(&mut self, schedule: &Schedule, report: Report) {
        self.runs += 1;
        self.time += report.time;
        for (what, count) in report.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if let Some(broken) = report.broken {
            println!("FAILED {schedule}\n       {broken}");
            self.failed.push((schedule.clone(), broken));
        }
    }
}

/// Failures after which a campaign ends.
const ENOUGH: usize = 5;
/// Runs what the environment asks for. Panics if anything is broken.
pub(crate) fn campaign() {
    let nodes = variable("SIM_NODES").unwrap_or(5);
    let one = variable::<u64>("SIM_SEED").map(|seed| Schedule::generate(seed, nodes));
    let one = one.or_else(|| variable("SIM_SCHEDULE"));
    if let Some(schedule) = one {
        return tell(&schedule);
    }
    let seconds = variable("SIM_SECONDS");
    let count: u64 =
        variable("SIM_SEEDS").unwrap_or(if seconds.is_some() { u64::MAX } else { 1000 });
    let seconds = Duration::from_secs(seconds.unwrap_or(u64::from(u32::MAX)));
    let first: u64 = variable("SIM_FROM").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_micros() as u64 & 0xffff_ffff_ffff
    });
    // A mutant only has to be noticed.
    let enough = if variable::<u8>("SIM_FIRST").is_some() { 1 } else { ENOUGH };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: usize = variable("SIM_THREADS").unwrap_or(cores);

    let sum = Mutex::new(Sum::default());
    let start = Instant::now();
    let old = if variable::<u8>("SIM_FRESH").is_some() { Vec::new() } else { regressions() };
    println!("{} schedules that failed once, then seeds from {first}, {nodes} nodes", old.len());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let fresh = number.checked_sub(old.len() as u64);
                    let schedule = match fresh {
                        None => old[number as usize].clone(),
                        Some(fresh) => {
                            if fresh >= count || start.elapsed() >= seconds {
                                return;
                            }
                            Schedule::generate(first + fresh, nodes)
                        }
                    };
                    let report = run(&schedule, false);
                    let mut sum = sum.lock().unwrap();
                    sum.add(&schedule, report);
                    if sum.failed.len() >= enough {
                        return;
                    }
                    if sum.runs % 1000 == 0 {
                        let rate = sum.runs as f64 / start.elapsed().as_secs_f64();
                        println!("{:>8} schedules, {rate:.1} a second", sum.runs);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    show(&sum, start.elapsed(), threads);
    if let Some((schedule, broken)) = sum.failed.first() {
        assert!(enough > 1, "{broken}");
        println!("\nshrinking the first failure …");
        let (short, why) = shrink(schedule, broken);
        tell_text(&short);
        println!("\nbroken:   {why}\nreplay:   make sim SCHEDULE=\"{short}\"");
        println!("keep it:  a line of agent/src/sim/regressions.txt");
        panic!("{} of {} schedules failed", sum.failed.len(), sum.runs);
    }
}

fn show(sum: &Sum, took: Duration, threads: usize) {
    let days = sum.time.as_secs_f64() / 86_400.0;
    println!(
        "{} schedules in {:.1} s: {:.1} a second on {threads} threads; {days:.2} days of virtual time",
        sum.runs,
        took.as_secs_f64(),
        sum.runs as f64 / took.as_secs_f64(),
    );
    let width = sum.counts.keys().map(|what| what.len()).max().unwrap_or(0);
    for (what, count) in &sum.counts {
        println!("  {what:<width$} {count:>12}");
    }
}

fn tell_text(schedule: &Schedule) {
    let report = run(schedule, true);
    report.lines.iter().for_each(|line| println!("{line}"));
}

/// One schedule, told in full.
fn tell(schedule: &Schedule) {
    println!("{schedule}");
    let report = run(schedule, true);
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("trace {:016x}, {:.1} s of virtual time", report.hash, report.time.as_secs_f64());
    if let Some(broken) = report.broken {
        let (short, why) = shrink(schedule, &broken);
        println!("\nshortest: {short}\nbroken:   {why}");
        panic!("{broken}");
    }
}

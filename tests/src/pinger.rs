//! A steady ping in the background, every request accounted for.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use weft_agent::lab::netns::Netns;
use weft_agent::lab::probe::Echo;

use crate::pod::Pod;

/// What became of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent.
    pub sent: usize,
    /// Sequence numbers (counted from 0) without a reply.
    pub lost: Vec<usize>,
}

/// A running ping.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<usize>>,
    receiver: JoinHandle<Result<Vec<bool>>>,
}

impl Pinger {
    /// Pings `to` from `from` every `period`. At most 65,536 requests.
    pub fn start(from: &Pod, to: IpAddr, period: Duration) -> Result<Self> {
        Self::start_in(&from.netns(), to, period)
    }

    /// The same from any namespace.
    pub fn start_in(from: &Netns, to: IpAddr, period: Duration) -> Result<Self> {
        let echo = Arc::new(Echo::open(from, to)?);
        let stop = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let (echo, stop) = (Arc::clone(&echo), Arc::clone(&stop));
            move || {
                let start = Instant::now();
                let mut sent = 0_u32;
                while !stop.load(Ordering::Relaxed) && sent < u32::from(u16::MAX) {
                    // A send that fails at once is a lost one, too.
                    let _ = echo.send(sent as u16, 56);
                    sent += 1;
                    std::thread::sleep((period * sent).saturating_sub(start.elapsed()));
                }
                stop.store(true, Ordering::Relaxed);
                Ok(sent as usize)
            }
        });
        let receiver = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut seen = vec![false; usize::from(u16::MAX) + 1];
                let mut quiet = Duration::ZERO;
                const STEP: Duration = Duration::from_millis(100);
                // After the last request, whatever is on its way may arrive.
                while !stop.load(Ordering::Relaxed) || quiet < Duration::from_secs(1) {
                    match echo.receive(STEP)? {
                        Some(sequence) => {
                            seen[usize::from(sequence)] = true;
                            quiet = Duration::ZERO;
                        }
                        None => quiet += STEP,
                    }
                }
                Ok(seen)
            }
        });
        Ok(Self { stop, sender, receiver })
    }

    /// Stops, and counts.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let seen = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let lost = (0..sent).filter(|sequence| !seen[*sequence]).collect();
        Ok(Tally { sent, lost })
    }
}

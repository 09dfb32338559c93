//! UDP there and back in the background, every datagram accounted for.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::pinger::Tally;
use crate::pod::Pod;

/// How long a receiver waits before it looks whether it shall stop.
const STEP: Duration = Duration::from_millis(100);
/// How long the last datagrams may be on their way.
const LATE: Duration = Duration::from_secs(1);

/// A running flow: numbers, echoed by the other pod.
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<usize>,
    receiver: JoinHandle<Result<Vec<bool>>>,
    echo: JoinHandle<Result<()>>,
}

impl Datagrams {
    /// Sends one every `period` from `from` to `to`.
    pub fn start(from: &Pod, to: &Pod, period: Duration) -> Result<Self> {
        let bind = |pod: &Pod| -> Result<UdpSocket> {
            let at = SocketAddr::new(pod.address(), 0);
            let socket = pod.netns().run(|| UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(STEP))?;
            Ok(socket)
        };
        let (client, server) = (bind(from)?, bind(to)?);
        client.connect(server.local_addr()?)?;
        let (stop, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let echo = std::thread::spawn({
            let gone = Arc::clone(&gone);
            move || {
                let mut word = [0; 8];
                while !gone.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = server.recv_from(&mut word) {
                        server.send_to(&word[..length], from)?;
                    }
                }
                Ok(())
            }
        });
        let socket = client.try_clone()?;
        let sender = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let start = Instant::now();
                let mut sent = 0_usize;
                while !stop.load(Ordering::Relaxed) {
                    // A send that fails at once is a lost one, too.
                    let _ = socket.send(&sent.to_le_bytes());
                    sent += 1;
                    let due = period * u32::try_from(sent).unwrap_or(u32::MAX);
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                }
                sent
            }
        });
        let receiver = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut seen = Vec::new();
                let mut word = [0; 8];
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) || last.elapsed() < LATE {
                    let Ok(8) = client.recv(&mut word) else { continue };
                    let number = usize::from_le_bytes(word);
                    if seen.len() <= number {
                        seen.resize(number + 1, false);
                    }
                    seen[number] = true;
                    last = Instant::now();
                }
                gone.store(true, Ordering::Relaxed);
                Ok(seen)
            }
        });
        Ok(Self { stop, sender, receiver, echo })
    }

    /// Stops, and counts.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let seen = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        self.echo.join().map_err(|_| anyhow!("the echo panicked"))??;
        let lost = (0..sent).filter(|number| seen.get(*number) != Some(&true)).collect();
        Ok(Tally { sent, lost })
    }
}

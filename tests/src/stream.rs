//! TCP between pods: bulk with a checksum, and a stream that must not break.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ring::digest;
use weft_agent::lab::netns::Netns;

use crate::pod::Pod;

const CHUNK: usize = 256 * 1024;
const STUCK: Duration = Duration::from_secs(20);

fn pair(from: &Pod, to: &Pod) -> Result<(TcpStream, TcpStream)> {
    pair_in(&from.netns(), &to.netns(), SocketAddr::new(to.address(), 0), None)
}

/// Listens at `at` inside `to`, and connects to it, or to what leads there, from inside `from`.
fn pair_in(
    from: &Netns,
    to: &Netns,
    at: SocketAddr,
    via: Option<SocketAddr>,
) -> Result<(TcpStream, TcpStream)> {
    let listener = to.run(|| TcpListener::bind(at))??;
    let address = via.unwrap_or(listener.local_addr()?);
    let client = from.run(|| TcpStream::connect_timeout(&address, STUCK))?;
    let client = client.with_context(|| format!("{} cannot connect to {address}", from.name()))?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(STUCK))?;
        stream.set_write_timeout(Some(STUCK))?;
    }
    Ok((client, server))
}

/// Sends `bytes` and compares SHA-256 of both ends. Returns bits per second.
pub fn bulk(from: &Pod, to: &Pod, bytes: usize) -> Result<f64> {
    transfer(pair(from, to)?, bytes)
}

/// The same between any two namespaces: to a listener at `at`, and if told so
/// by another address that leads there.
pub fn bulk_in(
    from: &Netns,
    to: &Netns,
    at: SocketAddr,
    via: Option<SocketAddr>,
    bytes: usize,
) -> Result<f64> {
    transfer(pair_in(from, to, at, via)?, bytes)
}

fn transfer(streams: (TcpStream, TcpStream), bytes: usize) -> Result<f64> {
    let (mut client, mut server) = streams;
    let start = Instant::now();
    let sender = std::thread::spawn(move || -> Result<digest::Digest> {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut block = vec![0_u8; CHUNK];
        let mut sent = 0;
        while sent < bytes {
            // Every block differs, and no block is a shift of another.
            let word = (sent as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for (at, part) in block.chunks_exact_mut(8).enumerate() {
                part.copy_from_slice(&word.rotate_left(at as u32 % 64).to_le_bytes());
            }
            let part = &block[..CHUNK.min(bytes - sent)];
            context.update(part);
            client.write_all(part)?;
            sent += part.len();
        }
        Ok(context.finish())
    });
    let mut context = digest::Context::new(&digest::SHA256);
    let mut block = vec![0_u8; CHUNK];
    let mut got = 0;
    loop {
        let length = server.read(&mut block).with_context(|| format!("stuck after {got} bytes"))?;
        if length == 0 {
            break;
        }
        context.update(&block[..length]);
        got += length;
    }
    let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))??;
    ensure!(got == bytes, "{got} of {bytes} bytes arrived");
    ensure!(sent.as_ref() == context.finish().as_ref(), "the checksums differ");
    Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64())
}

/// A TCP stream that carries a little all the time.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    workers: [JoinHandle<Result<()>>; 2],
}

impl Steady {
    /// Starts it: numbers there and back, every two milliseconds.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        Self::over(pair(from, to)?)
    }

    /// The same between any two namespaces; `at` is an address of `to`.
    pub fn start_in(from: &Netns, to: &Netns, at: SocketAddr) -> Result<Self> {
        Self::over(pair_in(from, to, at, None)?)
    }

    fn over(streams: (TcpStream, TcpStream)) -> Result<Self> {
        let (mut client, mut server) = streams;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicU64::new(0));
        let echo = std::thread::spawn(move || -> Result<()> {
            let mut word = [0; 8];
            while server.read_exact(&mut word).is_ok() {
                server.write_all(&word)?;
            }
            Ok(())
        });
        let ask = std::thread::spawn({
            let (stop, echoed) = (Arc::clone(&stop), Arc::clone(&echoed));
            move || -> Result<()> {
                let mut word = [0; 8];
                while !stop.load(Ordering::Relaxed) {
                    let number = echoed.load(Ordering::Relaxed);
                    client.write_all(&number.to_le_bytes())?;
                    client.read_exact(&mut word).context("the stream broke")?;
                    ensure!(word == number.to_le_bytes(), "the stream carried something else");
                    echoed.store(number + 1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }
        });
        Ok(Self { stop, echoed, workers: [ask, echo] })
    }

    /// Numbers echoed so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::Relaxed)
    }

    /// Stops it; fails if it ever broke.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.join().map_err(|_| anyhow!("a stream worker panicked"))??;
        }
        Ok(self.echoed.load(Ordering::Relaxed))
    }
}

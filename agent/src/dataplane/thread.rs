//! Starting a thread that owns sockets, and waking it.

use std::io;
use std::os::unix::net::UnixStream;

/// The two ends of a wake-up pipe: one to write to, one to poll.
pub(crate) fn pipe() -> io::Result<(UnixStream, UnixStream)> {
    let (waker, woken) = UnixStream::pair()?;
    waker.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    Ok((waker, woken))
}

/// Starts a thread of this name that makes its driver in there, and runs it; waits
/// until it is made. `None`: the thread has ended without a word.
pub(crate) fn start<D, E: Send + 'static>(
    name: &str,
    make: impl FnOnce() -> Result<D, E> + Send + 'static,
    run: impl FnOnce(D) + Send + 'static,
) -> io::Result<Option<Result<(), E>>> {
    let (tell, told) = std::sync::mpsc::channel();
    let work = move || match make() {
        Ok(driver) => {
            let _ = tell.send(Ok(()));
            run(driver);
        }
        Err(error) => {
            let _ = tell.send(Err(error));
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(told.recv().ok())
}

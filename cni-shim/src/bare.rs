//! What the Rust runtime does at the start of a program, as far as this one needs it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Opens standard streams that are closed, or the first file opened would be one of them;
/// makes writing to nobody an error instead of the end.
pub(crate) fn prepare() -> io::Result<()> {
    // In this order: a file takes the lowest number that is free.
    open_if_closed(&io::stdin())?;
    open_if_closed(&io::stdout())?;
    open_if_closed(&io::stderr())?;
    #[allow(unsafe_code, reason = "no handler of ours runs: the signal is ignored")]
    // SAFETY: ignoring a signal installs no code.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    Ok(())
}

fn open_if_closed(stream: &impl AsFd) -> io::Result<()> {
    if fcntl(stream, FcntlArg::F_GETFD) != Err(Errno::EBADF) {
        return Ok(());
    }
    let number = stream.as_fd().as_raw_fd();
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // It stays open, under the number of the stream.
    if nothing.into_raw_fd() == number { Ok(()) } else { Err(Errno::EBADF.into()) }
}

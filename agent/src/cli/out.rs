//! Writing to standard output without falling over a closed pipe.

use std::io::{self, IsTerminal, Write};

/// Standard output. A reader that went away (`agent status | head -1`) is not
/// an error and not a panic; the rest of the text is dropped.
#[derive(Debug, Default)]
pub(super) struct Out {
    closed: bool,
}

impl Out {
    /// Writes a text, with a line end if it has none.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        if self.closed || text.is_empty() {
            return Ok(());
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let mut stdout = io::stdout().lock();
        let done = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.write_all(end.as_bytes()))
            .and_then(|()| stdout.flush());
        match done {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other,
        }
    }

    /// The reader went away.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }
}

/// Colours are for people who look at a terminal and did not ask for none.
pub(super) fn colour() -> bool {
    io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

/// One line to standard error; nowhere to complain if that fails.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

//! A blocking netlink socket: batches with acknowledgements, and dumps.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::codec::{self, F_ACK, F_DUMP, Writer, messages, u32_at};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_CAPPED: u16 = 0x100;
const F_ACK_TLVS: u16 = 0x200;
const F_DUMP_INTR: u16 = 0x10;
const MSG_DONTWAIT: i32 = 0x40;

/// A request that the kernel refused, or that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Number of the message in its batch.
    pub(crate) seq: u32,
    /// `errno`, positive.
    pub(crate) errno: i32,
    /// What the kernel says about it beyond the number.
    pub(crate) text: String,
}

impl Refused {
    /// A list that changed while it was read.
    pub(crate) fn interrupted() -> Self {
        let text = "the list changed while it was read".to_owned();
        Self { seq: 0, errno: nix::libc::EAGAIN, text }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let os = std::io::Error::from_raw_os_error(self.errno);
        if self.text.is_empty() { write!(f, "{os}") } else { write!(f, "{os}: {}", self.text) }
    }
}

impl std::error::Error for Refused {}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self { seq: 0, errno: error.raw_os_error().unwrap_or(nix::libc::EIO), text: String::new() }
    }
}

/// One protocol's request socket, with its receive buffer.
pub(crate) struct Requests {
    socket: Socket,
    port: u32,
    seq: u32,
    buf: Vec<u8>,
}

impl Requests {
    pub(crate) fn open(protocol: isize) -> std::io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let address = socket.bind_auto()?;
        // Old kernels lack these; then errors come with less text, no more.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        socket.set_rx_buf_sz(4_u32 << 20)?;
        raise_send_buffer(&socket);
        Ok(Self { socket, port: address.port_number(), seq: 1, buf: Vec::with_capacity(1 << 16) })
    }

    /// The port notifications caused by this socket carry.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The socket alone, for what it now hears unasked.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// A sequence number not used before on this socket.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends a batch and returns what was refused. The kernel works a batch
    /// off within the send, so all answers are waiting when it returns.
    pub(crate) fn send(&mut self, batch: &Writer) -> std::io::Result<Vec<Refused>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(batch.bytes(), &kernel, 0)?;
        let mut refused = Vec::new();
        loop {
            match self.receive(MSG_DONTWAIT) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(refused),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            for message in messages(&self.buf) {
                if message.kind == NLMSG_ERROR
                    && let Some(error) = refusal(&message)
                {
                    refused.push(error);
                }
            }
        }
    }

    /// Asks for one object. `each` gets the message type and payload.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Writer),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        self.exchange(F_ACK, kind, body, each)
    }

    /// Asks for all objects of a kind. `each` gets the message type and payload.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Writer),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        self.exchange(F_DUMP, kind, body, each)
    }

    /// Sends a request and reads to the end of its answer: what a dump ends with, or
    /// an acknowledgement.
    fn exchange(
        &mut self,
        flags: u16,
        kind: u16,
        body: impl Fn(&mut Writer),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        let seq = self.next_seq();
        let mut request = Writer::default();
        request.message(kind, flags, seq, body);
        self.socket.send_to(request.bytes(), &SocketAddr::new(0, 0), 0)?;
        let mut interrupted = false;
        loop {
            match self.receive(0) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for message in messages(&self.buf).filter(|m| m.seq == seq) {
                interrupted |= message.flags & F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE if interrupted => return Err(Refused::interrupted()),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return refusal(&message).map_or(Ok(()), Err);
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    fn receive(&mut self, flags: i32) -> std::io::Result<()> {
        self.buf.clear();
        self.socket.recv(&mut self.buf, flags).map(|_| ())
    }
}

struct Fd<'a>(&'a Socket);

impl AsFd for Fd<'_> {
    #[allow(unsafe_code, reason = "netlink-sys has no AsFd")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Big rule sets travel as one datagram.
fn raise_send_buffer(socket: &Socket) {
    let _ = setsockopt(&Fd(socket), sockopt::SndBufForce, &(16 << 20));
}

/// Room for the notifications of a big change, whatever the system's limit for
/// others is.
pub(crate) fn raise_receive_buffer(socket: &Socket, bytes: usize) {
    let _ = setsockopt(&Fd(socket), sockopt::RcvBufForce, &bytes);
}

fn refusal(message: &codec::Message<'_>) -> Option<Refused> {
    let errno = u32_at(message.payload, 0)?.cast_signed();
    if errno == 0 {
        return None;
    }
    // errno, the request's header, then the request itself unless capped.
    let request = u32_at(message.payload, 4)? as usize;
    let echoed = if message.flags & F_CAPPED != 0 { codec::HEADER } else { request };
    let text = (message.flags & F_ACK_TLVS != 0)
        .then(|| message.payload.get(4 + echoed.next_multiple_of(4)..))
        .flatten()
        .and_then(|tlvs| codec::attr(tlvs, 1))
        .map(codec::text)
        .unwrap_or_default();
    let seq = u32_at(message.payload, 12)?;
    Some(Refused { seq, errno: errno.saturating_neg(), text })
}

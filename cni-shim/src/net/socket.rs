//! A netlink socket that sends a batch at once and hears every answer.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use weft_proto::cni::{CniError, code};

use super::message::{DUMP, Message};
use super::view::attributes;

const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Dumps come in datagrams of up to 32 KiB.
const RECEIVE: usize = 64 << 10;

/// What the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {errno}{}", .reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
pub(crate) struct KernelError {
    /// What was tried, on what.
    pub what: String,
    /// Its error.
    pub errno: Errno,
    /// Its own words, if any.
    pub reason: Option<String>,
}

impl From<KernelError> for CniError {
    fn from(error: KernelError) -> Self {
        let hint = match error.errno {
            Errno::EPERM => "the plugin must run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN",
            Errno::EOPNOTSUPP => "the kernel may lack a module: veth, bridge or sch_tbf",
            _ => "",
        };
        Self::new(code::KERNEL, format!("the kernel refused to {error}")).details(hint)
    }
}

/// One answer to one request of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

struct Request {
    what: String,
    tolerated: &'static [Errno],
    dump: bool,
}

/// Requests that are sent together and carried out in order.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    requests: Vec<Request>,
}

impl Batch {
    /// Adds a request. `what` completes "the kernel refused to …".
    pub(crate) fn add(
        &mut self,
        message: Message,
        flags: u16,
        what: impl Into<String>,
    ) -> &mut Self {
        self.add_tolerant(message, flags, what, &[])
    }

    /// Adds a request some of whose errors are as good as success.
    pub(crate) fn add_tolerant(
        &mut self,
        message: Message,
        flags: u16,
        what: impl Into<String>,
        tolerated: &'static [Errno],
    ) -> &mut Self {
        let Message { kind, payload } = message;
        let dump = flags & DUMP == DUMP;
        // A dump ends with a message of its own.
        let ack = if dump { 0 } else { NLM_F_ACK };
        let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(NLM_F_REQUEST | ack | flags).to_ne_bytes());
        let sequence = self.next_sequence();
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.requests.push(Request { what: what.into(), tolerated, dump });
        self
    }

    // From 1: sequence minus 1 is the index of the request.
    fn next_sequence(&self) -> u32 {
        u32::try_from(self.requests.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// A socket in the namespace it was opened in.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    receive: Vec<u8>,
}

impl Socket {
    /// Opens one in the current namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        // Old kernels have neither; errors are then without words.
        let _ = inner.set_ext_ack(true);
        let _ = inner.set_cap_ack(true);
        Ok(Self { inner, receive: Vec::with_capacity(RECEIVE) })
    }

    /// Sends the batch and waits for all answers: one entry per request.
    pub(crate) fn exchange(
        &mut self,
        batch: &Batch,
    ) -> Result<Vec<Result<Vec<Reply>, KernelError>>, KernelError> {
        let mut results: Vec<Result<Vec<Reply>, KernelError>> =
            batch.requests.iter().map(|_| Ok(Vec::new())).collect();
        if batch.requests.is_empty() {
            return Ok(results);
        }
        let failed = |what: &str, error: &io::Error| KernelError {
            what: what.to_owned(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            reason: None,
        };
        self.inner
            .send(&batch.bytes, 0)
            .map_err(|error| failed("take netlink requests", &error))?;
        let mut open = batch.requests.len();
        while open > 0 {
            self.receive.clear();
            match self.inner.recv(&mut self.receive, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed("answer netlink requests", &error)),
            }
            for (kind, sequence, payload) in Messages(&self.receive) {
                let index = sequence.wrapping_sub(1) as usize;
                let (Some(request), Some(result)) =
                    (batch.requests.get(index), results.get_mut(index))
                else {
                    continue;
                };
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        open -= 1;
                        if let Some(error) = error_of(payload, request) {
                            *result = Err(error);
                        }
                    }
                    _ => {
                        if let Ok(replies) = result {
                            replies.push(Reply { payload: payload.to_vec() });
                        }
                    }
                }
            }
        }
        Ok(results)
    }

    /// As [`Self::exchange`], but the first error ends it.
    pub(crate) fn run(&mut self, batch: &Batch) -> Result<Vec<Vec<Reply>>, KernelError> {
        self.exchange(batch)?.into_iter().collect()
    }
}

/// The messages of one datagram: type, sequence number, payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, payload))
    }
}

fn error_of(payload: &[u8], request: &Request) -> Option<KernelError> {
    let number = payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    let errno = Errno::from_raw(number.saturating_neg());
    if number == 0 || request.tolerated.contains(&errno) {
        return None;
    }
    // After the echoed header, since NETLINK_CAP_ACK cuts the echoed request.
    let reason = if request.dump { None } else { payload.get(4 + HEADER..) }
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some(KernelError { what: request.what.clone(), errno, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_datagrams_end_quietly() {
        let mut batch = Batch::default();
        batch.add(super::super::get_links(), 0, "look");
        assert_eq!(Messages(&batch.bytes).count(), 1);
        for cut in 0..batch.bytes.len() {
            assert_eq!(Messages(&batch.bytes[..cut]).count(), 0);
        }
        // A length of zero must not loop.
        assert_eq!(Messages(&[0; 64]).count(), 0);
    }

    #[test]
    fn a_refusal_has_its_words() {
        let mut socket = Socket::open().unwrap();
        let mut batch = Batch::default();
        batch.add(super::super::get_link("no-such-link"), 0, "look at no-such-link");
        let error = socket.run(&batch).unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV);
    }
}

//! As much HTTP/1.1 as one request to the local agent needs: every wait and
//! every length is bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Largest answer read.
const MAX_BODY: usize = 1 << 20;
/// Largest head (status line and headers) read.
const MAX_HEAD: usize = 16 << 10;

/// One request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// `GET`, `POST`, `DELETE`.
    pub method: &'a str,
    /// Path, percent-encoded already.
    pub path: &'a str,
    /// Headers beyond Host, Content-Type, Content-Length and Connection.
    pub headers: &'a [(&'a str, String)],
    /// JSON, or empty.
    pub body: &'a [u8],
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The address is not one.
    #[error("{0:?} is not an address:port")]
    Address(String),
    /// The connection broke.
    #[error("{0}")]
    Io(io::Error),
    /// The answer is not HTTP, or too long.
    #[error("the answer is not what an agent says: {0}")]
    Malformed(&'static str),
}

/// Where the agent listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Its socket file: asked first, since nothing is nearer. Nobody there: the address.
    pub socket: &'a Path,
    /// `address:port`.
    pub address: &'a str,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(target: Target<'_>, patience: Duration) -> Result<Self, HttpError> {
        let address = resolve(target.address)?;
        if let Ok(stream) = connect_unix(target.socket) {
            return Ok(Self::Unix(stream));
        }
        let io = |error| HttpError::of(error, patience);
        let stream = TcpStream::connect_timeout(&address, patience).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        Ok(Self::Tcp(stream))
    }

    fn write(&mut self, bytes: &[u8], left: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_write_timeout(Some(left))?;
                stream.write_all(bytes)
            }
            Self::Tcp(stream) => {
                stream.set_write_timeout(Some(left))?;
                stream.write_all(bytes)
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8], left: Duration) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.read(chunk)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.read(chunk)
            }
        }
    }
}

/// Without waiting: a full queue is a refusal, too.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl HttpError {
    fn of(error: io::Error, patience: Duration) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Timeout(patience),
            _ => Self::Io(error),
        }
    }
}

/// Sends a request and reads the answer, all within `patience`. What can be done
/// while the other side works on it is done by `meanwhile`.
pub(crate) fn exchange(
    target: Target<'_>,
    request: &Request<'_>,
    connect_patience: Duration,
    patience: Duration,
    meanwhile: impl FnOnce(),
) -> Result<Response, HttpError> {
    let deadline = Instant::now() + patience;
    let io = |error| HttpError::of(error, patience);
    let mut stream = Stream::open(target, connect_patience.min(patience))?;
    let bytes = encode(target.address, request);
    stream.write(&bytes, remaining(deadline, patience)?).map_err(io)?;
    meanwhile();
    let mut buffer = Vec::with_capacity(4096);
    let mut chunk = [0_u8; 4096];
    loop {
        // The deadline is for the whole answer, so it is set anew before each read.
        let read = match stream.read(&mut chunk, remaining(deadline, patience)?) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(io(error)),
        };
        buffer.extend_from_slice(&chunk[..read]);
        if let Some(response) = parse(&buffer, read == 0)? {
            return Ok(response);
        }
    }
}

fn resolve(address: &str) -> Result<SocketAddr, HttpError> {
    if let Ok(target) = address.parse() {
        return Ok(target);
    }
    let bad = || HttpError::Address(address.to_owned());
    // Names other than localhost would need a resolver; ":6784" is a habit of Go programs.
    let text = match address.strip_prefix("localhost:").or_else(|| address.strip_prefix(':')) {
        Some(port) => format!("127.0.0.1:{port}"),
        None => return Err(bad()),
    };
    // Parsed, not resolved: a resolver would double the size of a static binary.
    text.parse().map_err(|_| bad())
}

fn remaining(deadline: Instant, patience: Duration) -> Result<Duration, HttpError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(HttpError::Timeout(patience)) } else { Ok(left) }
}

fn encode(host: &str, request: &Request<'_>) -> Vec<u8> {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n",
        request.method,
        request.path,
        request.body.len()
    );
    if !request.body.is_empty() {
        head.push_str("Content-Type: application/json\r\n");
    }
    for (name, value) in request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(request.body);
    bytes
}

enum Framing {
    Length(usize),
    Chunked,
    Close,
}

/// The answer in `buffer`, if it is complete (`closed`: nothing more will come).
pub fn parse(buffer: &[u8], closed: bool) -> Result<Option<Response>, HttpError> {
    let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else {
        if closed || buffer.len() > MAX_HEAD {
            return Err(HttpError::Malformed("it has no head"));
        }
        return Ok(None);
    };
    let head = std::str::from_utf8(&buffer[..end])
        .map_err(|_| HttpError::Malformed("its head is not text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .filter(|code| (200..=599).contains(code))
        .ok_or(HttpError::Malformed("it has no status"))?;
    let mut framing =
        if status == 204 || status == 304 { Framing::Length(0) } else { Framing::Close };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().ok().filter(|n| *n <= MAX_BODY);
            framing = Framing::Length(length.ok_or(HttpError::Malformed("its length is not one"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Malformed("its transfer encoding is unknown"));
            }
            framing = Framing::Chunked;
            break;
        }
    }
    let rest = &buffer[end + 4..];
    if rest.len() > MAX_BODY + MAX_HEAD {
        return Err(HttpError::Malformed("it is too long"));
    }
    let body = match framing {
        Framing::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
        Framing::Chunked => dechunk(rest)?,
        Framing::Close => closed.then(|| rest.to_vec()),
    };
    match body {
        Some(body) => Ok(Some(Response { status, body })),
        None if closed => Err(HttpError::Malformed("it ends too early")),
        None => Ok(None),
    }
}

fn dechunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, HttpError> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .map(|text| text.split(';').next().unwrap_or_default().trim())
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .filter(|size| body.len() + size.min(&(MAX_BODY + 1)) <= MAX_BODY)
            .ok_or(HttpError::Malformed("a chunk has no size"))?;
        if size == 0 {
            return Ok(Some(body));
        }
        let start = end + 2;
        let Some(chunk) = rest.get(start..start + size) else { return Ok(None) };
        body.extend_from_slice(chunk);
        let Some(next) = rest.get(start + size + 2..) else { return Ok(None) };
        rest = next;
    }
}

/// Percent-encodes one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str, closed: bool) -> Option<Vec<u8>> {
        parse(text.as_bytes(), closed).unwrap().map(|r| r.body)
    }

    #[test]
    fn three_framings() {
        let fixed = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(body(fixed, false).unwrap(), b"ok");
        assert_eq!(body(&fixed[..fixed.len() - 1], false), None);
        assert!(parse(&fixed.as_bytes()[..fixed.len() - 1], true).is_err());
        let chunked =
            "HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;x\r\n!\r\n0\r\n\r\n";
        assert_eq!(
            parse(chunked.as_bytes(), false).unwrap().unwrap(),
            Response { status: 503, body: b"ok!".to_vec() }
        );
        for cut in 0..chunked.len() - 4 {
            assert_eq!(parse(&chunked.as_bytes()[..cut], false).unwrap(), None, "{cut}");
        }
        let close = "HTTP/1.0 200 OK\r\n\r\nall";
        assert_eq!(body(close, false), None);
        assert_eq!(body(close, true).unwrap(), b"all");
        assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n", false).unwrap(), b"");
    }

    #[test]
    fn nonsense_is_named() {
        for text in [
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 200 x\r\ncontent-length: 99999999\r\n\r\n",
            "HTTP/1.1 200 x\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(parse(text.as_bytes(), false).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_and_segments() {
        assert!(
            resolve("127.0.0.1:6784").is_ok()
                && resolve("localhost:1").is_ok()
                && resolve(":1").is_ok()
        );
        assert!(resolve("example.org:1").is_err() && resolve("").is_err());
        assert_eq!(segment("eth0-ü/."), "eth0-%C3%BC%2F.");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), closed: bool) {
            let _ = parse(&bytes, closed);
            let _ = dechunk(&bytes);
            let mut with_head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            with_head.extend(bytes);
            let _ = parse(&with_head, closed);
        }
    }
}

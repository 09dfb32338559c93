//! Frames: how every message travels, on a QUIC stream, in a datagram, on disk.
//!
//! ```text
//!  0      2      4       5       6        8            12
//! +------+------+-------+-------+--------+------------+---------
//! | "WF" | kind | vers. | flags | zero   | length u32 | payload
//! +------+------+-------+-------+--------+------------+---------
//! ```
//! All integers big-endian. The payload is bincode of the frozen struct that
//! (kind, version) names; bincode cannot add a field, so a new field is a new
//! version beside the old one. Kinds this build does not know are skipped.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes before the payload.
pub const HEADER: usize = 12;
/// No frame is longer than this, whatever its kind.
pub const MAX_PAYLOAD: usize = 8 << 20;
const MAGIC: [u8; 2] = *b"WF";

/// A message type that can travel in a frame.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of the kind, unique for all time.
    const KIND: u16;
    /// Version of the payload's layout.
    const VERSION: u8;
    /// Longest payload of this kind in bytes, at most [`MAX_PAYLOAD`].
    const LIMIT: usize;
    /// Name in logs and errors.
    const NAME: &'static str;
}

/// One frame, payload still encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: u16,
    /// Layout of the payload.
    pub version: u8,
    /// bincode of the struct (kind, version) names.
    pub payload: Vec<u8>,
}

/// What is wrong with bytes that claim to be a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first two bytes are not ours: another protocol, or garbage.
    #[error("not a weft frame (starts with {0:02x?})")]
    Magic([u8; 2]),
    /// The header announces more than is ever sent.
    #[error("frame of kind {kind} announces {length} bytes, the limit is {limit}")]
    TooLong {
        /// Kind in the header.
        kind: u16,
        /// Length in the header.
        length: usize,
        /// Longest accepted.
        limit: usize,
    },
    /// Fewer bytes than the header announces.
    #[error("frame cut short: {have} bytes of {want}")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes announced.
        want: usize,
    },
    /// Bytes after the end of a single frame.
    #[error("{0} bytes after the frame")]
    Trailing(usize),
    /// Another kind or version than the one asked for.
    #[error(
        "expected {name} (kind {want_kind} version {want_version}), got kind {kind} version {version}"
    )]
    Unexpected {
        /// What was asked for.
        name: &'static str,
        /// Its kind.
        want_kind: u16,
        /// Its version.
        want_version: u8,
        /// Kind received.
        kind: u16,
        /// Version received.
        version: u8,
    },
    /// The payload is not the struct it claims to be.
    #[error("{name} does not decode: {why}")]
    Payload {
        /// The struct.
        name: &'static str,
        /// What the decoder said.
        why: String,
    },
}

/// The one bincode dialect of weft: little-endian varints, no trailing bytes, a limit.
fn codec(limit: usize) -> impl Options {
    bincode::DefaultOptions::new().with_limit(limit as u64).reject_trailing_bytes()
}

impl Frame {
    /// Encodes a message. Fails only for a message over its kind's limit.
    pub fn new<M: Message>(message: &M) -> Result<Self, FrameError> {
        let payload = codec(M::LIMIT)
            .serialize(message)
            .map_err(|e| FrameError::Payload { name: M::NAME, why: e.to_string() })?;
        Ok(Self { kind: M::KIND, version: M::VERSION, payload })
    }

    /// True if this frame holds an `M`.
    pub fn is<M: Message>(&self) -> bool {
        self.kind == M::KIND && self.version == M::VERSION
    }

    /// Decodes the payload as an `M`.
    pub fn decode<M: Message>(&self) -> Result<M, FrameError> {
        if !self.is::<M>() {
            return Err(FrameError::Unexpected {
                name: M::NAME,
                want_kind: M::KIND,
                want_version: M::VERSION,
                kind: self.kind,
                version: self.version,
            });
        }
        if self.payload.len() > M::LIMIT {
            return Err(FrameError::TooLong {
                kind: self.kind,
                length: self.payload.len(),
                limit: M::LIMIT,
            });
        }
        codec(M::LIMIT)
            .deserialize(&self.payload)
            .map_err(|e| FrameError::Payload { name: M::NAME, why: e.to_string() })
    }

    /// Header and payload, ready to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.payload.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&[self.version, 0, 0, 0]);
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.payload);
        out
    }

    /// Reads exactly one frame that fills `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(FrameError::Short { have: bytes.len(), want: HEADER });
        };
        let header = Header::parse(head)?;
        match rest.len().checked_sub(header.length) {
            None => Err(FrameError::Short { have: rest.len(), want: header.length }),
            Some(0) => Ok(header.with_payload(rest.to_vec())),
            Some(more) => Err(FrameError::Trailing(more)),
        }
    }
}

/// A parsed header: how much to read next, known to be within limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of the payload.
    pub kind: u16,
    /// Version of the payload.
    pub version: u8,
    /// Bytes of payload that follow.
    pub length: usize,
}

impl Header {
    /// Parses a header and checks its length against the limit of its kind,
    /// before anything of that length is allocated.
    pub fn parse(head: &[u8; HEADER]) -> Result<Self, FrameError> {
        let [m0, m1, k0, k1, version, _, _, _, l0, l1, l2, l3] = *head;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        let kind = u16::from_be_bytes([k0, k1]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let limit = crate::wire::limit_of(kind);
        if length > limit {
            return Err(FrameError::TooLong { kind, length, limit });
        }
        Ok(Self { kind, version, length })
    }

    /// The frame, once the payload has been read.
    pub fn with_payload(self, payload: Vec<u8>) -> Frame {
        Frame { kind: self.kind, version: self.version, payload }
    }
}

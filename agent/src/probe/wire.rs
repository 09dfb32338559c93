//! What a probe looks like: `"WP"`, version, kind, nonce, padding of zeros.

use std::net::IpAddr;

const MAGIC: [u8; 2] = *b"WP";
const VERSION: u8 = 1;
const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// Bytes of a probe without padding.
pub const SMALLEST: usize = 12;

/// A probe, or the answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// "Do you hear me?"
    Ask(u64),
    /// "Yes", with the nonce of the question.
    Answer(u64),
}

impl Packet {
    /// The bytes, padded to `length`.
    pub fn encode(self, length: usize) -> Vec<u8> {
        let (kind, nonce) = match self {
            Self::Ask(nonce) => (ASK, nonce),
            Self::Answer(nonce) => (ANSWER, nonce),
        };
        let mut bytes = Vec::with_capacity(length.max(SMALLEST));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, kind]);
        bytes.extend_from_slice(&nonce.to_be_bytes());
        bytes.resize(length.max(SMALLEST), 0);
        bytes
    }

    /// Reads what came in; `None` for what is no probe of a known version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?;
        let (kind, rest) = rest.split_first()?;
        let nonce = u64::from_be_bytes(*rest.first_chunk::<8>()?);
        match *kind {
            ASK => Some(Self::Ask(nonce)),
            ANSWER => Some(Self::Answer(nonce)),
            _ => None,
        }
    }
}

/// UDP payload that makes an IP packet of `mtu` bytes to this address.
pub fn udp_payload(to: IpAddr, mtu: u32) -> usize {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    (mtu as usize).saturating_sub(headers).max(SMALLEST)
}

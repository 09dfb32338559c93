//! Messages between nodes.

use std::net::IpAddr;

use weft_agent::probe::{Packet, SMALLEST, udp_payload};
use weft_proto::frame::{Frame, FrameError, HEADER, Header, MAX_PAYLOAD, Message};
use weft_proto::wire::v1::{self, Hello, Rumor};

/// One golden value of every message, as bytes.
const GOLDEN: &str = include_str!("../../../../proto/tests/golden.txt");

pub(super) fn golden() -> Vec<Vec<u8>> {
    let lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| unhex(line.split_once(' ')?.1.trim())).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes().chunks(2).map(|two| Some(digit(two[0])? << 4 | digit(*two.get(1)?)?)).collect()
}

fn payloads(kind: u16) -> Vec<Vec<u8>> {
    let frames = golden().into_iter().filter_map(|bytes| Frame::from_bytes(&bytes).ok());
    frames.filter(|frame| frame.kind == kind).map(|frame| frame.payload).collect()
}

pub(super) fn rumors() -> Vec<Vec<u8>> {
    payloads(Rumor::KIND)
}

pub(super) fn hellos() -> Vec<Vec<u8>> {
    payloads(Hello::KIND)
}

/// Headers and whole frames: what is read is written the same, but for bytes that
/// are zero today; a length over its kind's limit is refused by the header alone.
pub(super) fn frame(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<HEADER>() {
        match Header::parse(head) {
            Ok(header) => assert!(header.length <= MAX_PAYLOAD),
            Err(e) => assert!(matches!(e, FrameError::Magic(_) | FrameError::TooLong { .. })),
        }
    }
    match Frame::from_bytes(bytes) {
        Ok(frame) => {
            let mut canonical = bytes.to_vec();
            canonical[5..8].fill(0);
            assert_eq!(frame.to_bytes(), canonical);
            assert_eq!(Frame::from_bytes(&canonical), Ok(frame));
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

fn again<M: Message + PartialEq + std::fmt::Debug>(frame: &Frame) {
    match frame.decode::<M>() {
        Ok(message) => {
            // Written anew it is no longer than it came: short numbers are short.
            match Frame::new(&message) {
                Ok(again) => {
                    assert!(again.payload.len() <= frame.payload.len());
                    assert_eq!(again.decode::<M>(), Ok(message));
                }
                Err(e) => unreachable!("{} does not encode again: {e}", M::NAME),
            }
        }
        Err(e) => assert!(e.to_string().contains(M::NAME), "{e}"),
    }
}

/// A message of any kind: decode(encode(x)) is x, for every x that decodes.
pub(super) fn message(bytes: &[u8]) {
    let Ok(frame) = Frame::from_bytes(bytes) else { return };
    macro_rules! each {
        ($($name:ident)*) => { $( if frame.kind == v1::$name::KIND { again::<v1::$name>(&frame); } )* };
    }
    each! {
        Hello HelloAck Failure Ack Swim SyncDigest SyncReply Rumor LedgerHead LedgerPull
        LedgerDelta LedgerSnapshot Raft RaftReply FoundingAsk FoundingState Propose
        ProposeReply Donate DonateReply Echo
    }
}

pub(super) fn probes() -> Vec<Vec<u8>> {
    vec![Packet::Ask(7).encode(64), Packet::Answer(u64::MAX).encode(64)]
}

/// A probe of the data path.
pub(super) fn probe(bytes: &[u8]) {
    if let Some(packet) = Packet::decode(bytes) {
        let again = packet.encode(bytes.len());
        assert_eq!(Packet::decode(&again), Some(packet));
        assert!(again.len() <= bytes.len(), "an answer is no longer than the question");
    }
    if let Some((mtu, _)) = bytes.split_first_chunk::<4>() {
        let mtu = u32::from_be_bytes(*mtu);
        for to in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            assert!(udp_payload(to, mtu) <= (mtu as usize).max(SMALLEST));
        }
    }
}

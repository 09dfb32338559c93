//! Layout of SWIM packets: fixed-size, big-endian, ours, so that it stays the
//! same whatever the library does.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};
use weft_proto::id::NodeId;

/// A member as SWIM knows it: a node, one of its lives, and how often it had
/// to come back within that life after being declared dead by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SwimId {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) rejoins: u32,
}

impl foca::Identity for SwimId {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { rejoins: self.rejoins.wrapping_add(1), ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.session, self.rejoins) > (adversary.session, adversary.rejoins)
    }
}

const ID: usize = 16 + 8 + 4;

/// A packet that does not decode, or an id that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error("packet full")]
    Full,
    #[error("packet cut short")]
    Short,
    #[error("unknown message or state {0}")]
    Unknown(u8),
}

/// See the module.
pub(super) struct SwimCodec;

fn put_id(id: &SwimId, buf: &mut impl BufMut) {
    buf.put_slice(&id.node.0);
    buf.put_u64(id.session);
    buf.put_u32(id.rejoins);
}

fn need(buf: &impl Buf, bytes: usize) -> Result<(), CodecError> {
    if buf.remaining() < bytes { Err(CodecError::Short) } else { Ok(()) }
}

fn get_id(buf: &mut impl Buf) -> Result<SwimId, CodecError> {
    need(buf, ID)?;
    let mut node = [0; 16];
    buf.copy_to_slice(&mut node);
    Ok(SwimId { node: NodeId(node), session: buf.get_u64(), rejoins: buf.get_u32() })
}

fn get_u16(buf: &mut impl Buf) -> Result<u16, CodecError> {
    need(buf, 2)?;
    Ok(buf.get_u16())
}

fn get_probe(buf: &mut impl Buf) -> Result<u8, CodecError> {
    need(buf, 1)?;
    Ok(buf.get_u8())
}

type Wire = (u8, Option<SwimId>, Option<u8>);

fn flatten(message: &Message<SwimId>) -> Wire {
    match message {
        Message::Ping(n) => (1, None, Some(*n)),
        Message::Ack(n) => (2, None, Some(*n)),
        Message::PingReq { target, probe_number } => (3, Some(*target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (4, Some(*origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (5, Some(*target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (6, Some(*origin), Some(*probe_number)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        Message::Gossip => (9, None, None),
        Message::Broadcast => (10, None, None),
        Message::TurnUndead => (11, None, None),
    }
}

fn get_message(buf: &mut impl Buf) -> Result<Message<SwimId>, CodecError> {
    need(buf, 1)?;
    Ok(match buf.get_u8() {
        1 => Message::Ping(get_probe(buf)?),
        2 => Message::Ack(get_probe(buf)?),
        3 => Message::PingReq { target: get_id(buf)?, probe_number: get_probe(buf)? },
        4 => Message::IndirectPing { origin: get_id(buf)?, probe_number: get_probe(buf)? },
        5 => Message::IndirectAck { target: get_id(buf)?, probe_number: get_probe(buf)? },
        6 => Message::ForwardedAck { origin: get_id(buf)?, probe_number: get_probe(buf)? },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        other => return Err(CodecError::Unknown(other)),
    })
}

impl Codec<SwimId> for SwimCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<SwimId>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        if buf.remaining_mut() < 3 * ID + 2 + 1 + 1 {
            return Err(CodecError::Full);
        }
        put_id(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_id(&header.dst, &mut buf);
        let (kind, id, probe) = flatten(&header.message);
        buf.put_u8(kind);
        if let Some(id) = id {
            put_id(&id, &mut buf);
        }
        if let Some(probe) = probe {
            buf.put_u8(probe);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<SwimId>, CodecError> {
        let src = get_id(&mut buf)?;
        let src_incarnation = get_u16(&mut buf)?;
        let dst = get_id(&mut buf)?;
        let message = get_message(&mut buf)?;
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &Member<SwimId>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        if buf.remaining_mut() < ID + 2 + 1 {
            return Err(CodecError::Full);
        }
        put_id(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<SwimId>, CodecError> {
        let id = get_id(&mut buf)?;
        need(&buf, 3)?;
        let incarnation = buf.get_u16();
        let state = match buf.get_u8() {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            other => return Err(CodecError::Unknown(other)),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> SwimId {
        SwimId { node: NodeId([n; 16]), session: u64::from(n) << 40, rejoins: u32::from(n) }
    }

    #[test]
    fn every_message_survives_the_trip() {
        for kind in 1..=11u8 {
            let mut bytes = vec![kind];
            put_id(&id(7), &mut bytes);
            bytes.put_u8(99);
            let plain = [kind, 42];
            let body = if (3..=6).contains(&kind) { &bytes[..] } else { &plain[..] };
            let message = get_message(&mut { body }).unwrap();
            let header = Header { src: id(1), src_incarnation: 3, dst: id(2), message };
            let mut packet = Vec::new();
            SwimCodec.encode_header(&header, &mut packet).unwrap();
            let mut rest = &packet[..];
            assert_eq!(SwimCodec.decode_header(&mut rest), Ok(header));
            assert!(rest.is_empty());
        }
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(id(3), 9, state);
            let mut packet = Vec::new();
            SwimCodec.encode_member(&member, &mut packet).unwrap();
            assert_eq!(SwimCodec.decode_member(&packet[..]), Ok(member));
        }
    }

    /// Every kind by its number, and the layout of what is in it.
    #[test]
    fn the_bytes_are_frozen() {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let id_hex = |n: u8| {
            let node = hex(&[n; 16]);
            format!("{node}0000{n:02x}0000000000{n:08x}")
        };
        let ask = Message::PingReq { target: id(7), probe_number: 99 };
        for (message, body) in [
            (Message::Ping(42), "012a".to_owned()),
            (Message::Ack(42), "022a".to_owned()),
            (ask, format!("03{}63", id_hex(7))),
            (
                Message::IndirectPing { origin: id(7), probe_number: 1 },
                format!("04{}01", id_hex(7)),
            ),
            (Message::IndirectAck { target: id(7), probe_number: 1 }, format!("05{}01", id_hex(7))),
            (
                Message::ForwardedAck { origin: id(7), probe_number: 1 },
                format!("06{}01", id_hex(7)),
            ),
            (Message::Announce, "07".to_owned()),
            (Message::Feed, "08".to_owned()),
            (Message::Gossip, "09".to_owned()),
            (Message::Broadcast, "0a".to_owned()),
            (Message::TurnUndead, "0b".to_owned()),
        ] {
            let header = Header { src: id(1), src_incarnation: 3, dst: id(2), message };
            let mut packet = Vec::new();
            SwimCodec.encode_header(&header, &mut packet).unwrap();
            assert_eq!(hex(&packet), format!("{}0003{}{body}", id_hex(1), id_hex(2)));
        }
        for (state, number) in [(State::Alive, 0), (State::Suspect, 1), (State::Down, 2)] {
            let mut packet = Vec::new();
            SwimCodec.encode_member(&Member::new(id(3), 9, state), &mut packet).unwrap();
            assert_eq!(hex(&packet), format!("{}0009{number:02x}", id_hex(3)));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SwimCodec.decode_header(&bytes[..]);
            let _ = SwimCodec.decode_member(&bytes[..]);
        }
    }
}

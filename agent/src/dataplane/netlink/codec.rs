//! Netlink messages: writing batches, reading attributes. Total: short or
//! malformed input yields fewer attributes, never a panic.

use std::net::IpAddr;

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_REPLACE: u16 = 0x100;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
const F_NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// A buffer of netlink messages.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buf: Vec<u8>,
}

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn clear(&mut self) {
        self.buf.clear();
    }

    /// One message; `body` writes the fixed header of its kind and the attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.buf.len();
        self.buf.extend([0; 4]);
        self.buf.extend(kind.to_ne_bytes());
        self.buf.extend((flags | F_REQUEST).to_ne_bytes());
        self.buf.extend(seq.to_ne_bytes());
        self.buf.extend([0; 4]);
        body(self);
        let len = u32::try_from(self.buf.len() - start).unwrap_or(u32::MAX);
        self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// Bytes as they are: the fixed header after `nlmsghdr`.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend(bytes);
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buf.extend(len.to_ne_bytes());
        self.buf.extend(kind.to_ne_bytes());
        self.buf.extend(value);
        self.pad();
    }

    pub(crate) fn attr_u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    pub(crate) fn attr_u16(&mut self, kind: u16, value: u16) {
        self.attr(kind, &value.to_ne_bytes());
    }

    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Big-endian, as netfilter wants all numbers.
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    pub(crate) fn attr_ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(v4) => self.attr(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attr(kind, &v6.octets()),
        }
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.buf.len();
        self.buf.extend([0; 2]);
        self.buf.extend((kind | F_NESTED).to_ne_bytes());
        body(self);
        let len = u16::try_from(self.buf.len() - start).unwrap_or(u16::MAX);
        self.buf[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// Port of the socket whose request caused a notification, 0 for the kernel's own.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages in a datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        let payload = bytes.get(HEADER..len)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            seq: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            payload,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: (type without flags, value).
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of one type.
pub(crate) fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_is_read() {
        let mut w = Writer::default();
        w.message(20, F_ACK, 7, |w| {
            w.raw(&[1, 2, 3, 4]);
            w.attr_str(3, "weft");
            w.nest(5, |w| w.attr_u32(1, 42));
        });
        w.message(21, 0, 8, |_| {});
        let all: Vec<_> = messages(w.bytes()).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].seq, all[0].flags), (20, 7, F_ACK | F_REQUEST));
        let body = &all[0].payload[4..];
        assert_eq!(attr(body, 3).map(text).as_deref(), Some("weft"));
        let nested = attr(body, 5).unwrap();
        assert_eq!(attr(nested, 1).and_then(|v| u32_at(v, 0)), Some(42));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                for (_, value) in attrs(message.payload) {
                    attrs(value).count();
                }
            }
            attrs(&bytes).count();
        }
    }
}

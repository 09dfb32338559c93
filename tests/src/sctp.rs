//! An SCTP INIT, written and read by hand (RFC 9260, 3.3.2).

/// Length of common header and INIT chunk.
const LENGTH: usize = 12 + 20;

/// An INIT that carries `token` in its initiate tag and its first sequence number.
pub fn init(source: u16, destination: u16, token: u64) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0..2].copy_from_slice(&source.to_be_bytes());
    packet[2..4].copy_from_slice(&destination.to_be_bytes());
    packet[12] = 1;
    packet[14..16].copy_from_slice(&20_u16.to_be_bytes());
    // A tag of zero is not allowed; rounds count from 1.
    packet[16..24].copy_from_slice(&[
        (token >> 56) as u8,
        (token >> 48) as u8,
        (token >> 40) as u8,
        (token >> 32) as u8,
        0,
        1,
        0,
        0,
    ]);
    // Streams out and in; then the sequence number.
    packet[24..28].copy_from_slice(&[0, 1, 0, 1]);
    packet[28..32].copy_from_slice(&(token as u32).to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The token of an INIT, from a packet as a raw socket yields it: with its header
/// if that is IPv4.
pub fn token(packet: &[u8], v6: bool) -> Option<u64> {
    let header = if v6 { 0 } else { usize::from(packet.first()? & 0xf) * 4 };
    let sctp = packet.get(header..).filter(|rest| rest.len() >= LENGTH && rest[12] == 1)?;
    let high = u32::from_be_bytes(sctp[16..20].try_into().ok()?);
    let low = u32::from_be_bytes(sctp[28..32].try_into().ok()?);
    Some(u64::from(high) << 32 | u64::from(low))
}

/// The checksum of SCTP; what is wrong counts as invalid for connection tracking.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn tokens_come_back() {
        let mut packet = vec![0x45; 20];
        packet.extend(init(2000, 80, 0x0000_0007_0000_0123));
        assert_eq!(token(&packet, false), Some(0x0000_0007_0000_0123));
        assert_eq!(token(&packet[20..], true), Some(0x0000_0007_0000_0123));
        assert_eq!(token(&packet[..40], false), None);
        assert_eq!(token(&[], false), None);
    }
}

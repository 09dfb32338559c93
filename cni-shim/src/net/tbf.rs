//! Bandwidth limits: a token bucket at the root of an interface.
//!
//! Both limits are egress limits of one end of the pair: traffic to the
//! container leaves the host end, traffic from it leaves the container's end,
//! inside its namespace. The usual way for the latter, an ifb device on the
//! host, costs a device per container (16 ms each to remove), a module that
//! not every kernel has, and a redirect per packet. The price of ours: a
//! container with CAP_NET_ADMIN could lift its own limit, but it could as well
//! change its addresses; such containers are trusted with the node already.

use super::message::{CREATE, Message, REPLACE, attribute};
use super::socket::Batch;

const RTM_NEWQDISC: u16 = 36;
const TC_H_ROOT: u32 = 0xffff_ffff;
const HANDLE: u32 = 0x0001_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const LINKLAYER_ETHERNET: u8 = 1;
/// Longest wait in the queue behind the bucket: 25 ms.
const LATENCY_PER_SECOND: u64 = 40;

/// Bits to what the kernel counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    bytes_per_second: u64,
    burst: u32,
    limit: u32,
}

fn bucket(rate_bits: u64, burst_bits: u64, mtu: u32) -> Bucket {
    let bytes_per_second = (rate_bits / 8).max(1);
    // A packet larger than the bucket would never leave.
    let least = u64::from(mtu) + 22;
    let burst = (burst_bits / 8).max(least).min(u64::from(u32::MAX));
    let limit = (bytes_per_second / LATENCY_PER_SECOND).saturating_add(burst);
    Bucket {
        bytes_per_second,
        burst: u32::try_from(burst).unwrap_or(u32::MAX),
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
    }
}

fn payload(link: u32, bucket: Bucket) -> Vec<u8> {
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
    // Saying the link layer spares the kernel a rate table.
    let mut parms = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    let rate = u32::try_from(bucket.bytes_per_second).unwrap_or(u32::MAX);
    parms.extend_from_slice(&rate.to_ne_bytes());
    parms.extend_from_slice(&[0; 12]);
    // struct tc_tbf_qopt goes on: limit, buffer (TCA_TBF_BURST instead), mtu.
    parms.extend_from_slice(&bucket.limit.to_ne_bytes());
    parms.extend_from_slice(&[0; 8]);
    let mut options = Vec::new();
    attribute(&mut options, TCA_TBF_PARMS, &parms);
    attribute(&mut options, TCA_TBF_BURST, &bucket.burst.to_ne_bytes());
    if bucket.bytes_per_second > u64::from(u32::MAX) {
        attribute(&mut options, TCA_TBF_RATE64, &bucket.bytes_per_second.to_ne_bytes());
    }
    // struct tcmsg: family, padding, ifindex, handle, parent, info.
    let mut out = vec![0; 4];
    for word in [link, HANDLE, TC_H_ROOT, 0] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    attribute(&mut out, TCA_KIND, b"tbf\0");
    attribute(&mut out, TCA_OPTIONS, &options);
    out
}

/// Limits what leaves `link`, unless the rate is 0.
pub(crate) fn limit(
    batch: &mut Batch,
    link: u32,
    rate_bits: u64,
    burst_bits: u64,
    mtu: u32,
    what: &str,
) {
    if rate_bits == 0 {
        return;
    }
    let payload = payload(link, bucket(rate_bits, burst_bits, mtu));
    batch.add(Message { kind: RTM_NEWQDISC, payload }, CREATE | REPLACE, what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_fit() {
        let small = bucket(8, 8, 1500);
        assert_eq!((small.bytes_per_second, small.burst), (1, 1522));
        let large = bucket(u64::MAX, u64::MAX, 1500);
        assert_eq!((large.burst, large.limit), (u32::MAX, u32::MAX));
        let usual = bucket(8_000_000, 800_000, 1500);
        assert_eq!(
            (usual.bytes_per_second, usual.burst, usual.limit),
            (1_000_000, 100_000, 125_000)
        );
    }
}

//! Sums of what is known, by the first bits of the node id: two nodes see with a few
//! bytes whether they know the same, and with a few more where they differ. Pure.

use weft_proto::id::NodeId;
use weft_proto::wire::v1::Standing;

/// Sums are kept for so many leaves; coarser ones are made of them.
pub(super) const LEAVES: usize = 256;

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sum(node: NodeId, facts: [u64; 3]) -> u64 {
    let (high, low) = node.0.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    [word(high), word(low)].into_iter().chain(facts).fold(0, |sum, fact| mix(sum ^ fact))
}

/// Sum of a record: whose it is and its stamp.
pub(super) fn of_record(node: NodeId, incarnation: u64, version: u64) -> u64 {
    sum(node, [1, incarnation, version])
}

/// Sum of a membership. Who refuted what is not in it: that is for the moment.
pub(super) fn of_standing(standing: &Standing) -> u64 {
    let rest = u64::from(standing.rejoins) << 1 | u64::from(standing.down);
    sum(standing.node, [2, standing.session, rest])
}

/// Where a node belongs, of `of` leaves.
pub(super) fn leaf(node: NodeId, of: usize) -> usize {
    usize::from(node.0[0]) * of / LEAVES
}

/// A number of leaves as it may come from another node.
pub(super) fn valid(of: usize) -> bool {
    of.is_power_of_two() && of <= LEAVES
}

/// How many leaves pay for so many records: about as many as there are records in one.
pub(super) fn leaves_for(records: usize) -> usize {
    (records.isqrt() * 2).next_power_of_two().clamp(1, LEAVES)
}

/// The same sums for fewer leaves.
pub(super) fn fold(sums: &[u64; LEAVES], of: usize) -> Vec<u64> {
    sums.chunks(LEAVES / of.max(1)).map(|chunk| chunk.iter().fold(0, |all, s| all ^ s)).collect()
}

/// One sum of all.
pub(super) fn root(sums: &[u64; LEAVES]) -> u64 {
    sums.iter().fold(0, |all, s| all ^ s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_keeps_the_root_and_the_place() {
        let mut sums = [0; LEAVES];
        for n in 0..=255u8 {
            let node = NodeId([n; 16]);
            sums[leaf(node, LEAVES)] ^= of_record(node, 5, u64::from(n));
        }
        for of in [1, 2, 16, 128, 256] {
            assert!(valid(of));
            let folded = fold(&sums, of);
            assert_eq!(folded.len(), of);
            assert_eq!(folded.iter().fold(0, |a, s| a ^ s), root(&sums));
            // One record of another version shows in its leaf and in no other.
            let node = NodeId([77; 16]);
            let mut other = sums;
            other[leaf(node, LEAVES)] ^= of_record(node, 5, 77) ^ of_record(node, 5, 78);
            let differ: Vec<_> = (0..of).filter(|i| fold(&other, of)[*i] != folded[*i]).collect();
            assert_eq!(differ, [leaf(node, of)]);
        }
        assert!([0, 3, 512].into_iter().all(|of| !valid(of)));
        assert_eq!([1, 100, 5000].map(leaves_for), [2, 32, 256]);
    }

    #[test]
    fn every_fact_counts() {
        let node = NodeId([1; 16]);
        let standing = Standing { node, session: 1, rejoins: 0, incarnation: 0, down: false };
        let sums = [
            of_record(node, 1, 0),
            of_record(node, 0, 1),
            of_record(NodeId([2; 16]), 1, 0),
            of_standing(&standing),
            of_standing(&Standing { session: 2, ..standing }),
            of_standing(&Standing { rejoins: 1, ..standing }),
            of_standing(&Standing { down: true, ..standing }),
        ];
        let different: std::collections::BTreeSet<_> = sums.into_iter().collect();
        assert_eq!(different.len(), sums.len());
        let refuted = Standing { incarnation: 9, ..standing };
        assert_eq!(of_standing(&refuted), of_standing(&standing));
    }
}

//! All messages between nodes. Structs are frozen per version; see [`crate::frame`].

pub mod v1;

use crate::frame::{MAX_PAYLOAD, Message};

/// (kind, limit) of messages whose structs are frozen in other crates:
/// 34 is the ledger snapshot of `weft-ipam`.
const ELSEWHERE: &[(u16, usize)] = &[(34, MAX_PAYLOAD - 4096)];

macro_rules! messages {
    ($( $kind:literal / $version:literal $ty:path, limit $limit:expr; )*) => {
        $( impl Message for $ty {
            const KIND: u16 = $kind;
            const VERSION: u8 = $version;
            const LIMIT: usize = $limit;
            const NAME: &'static str = stringify!($ty);
        } )*

        /// Longest payload accepted for a kind. Kinds of a newer build are
        /// read (to be skipped) up to a modest size.
        pub fn limit_of(kind: u16) -> usize {
            let known = [$( ($kind as u16, $limit as usize) ),*];
            known.iter().chain(ELSEWHERE).filter(|(k, _)| *k == kind).map(|(_, limit)| *limit).max()
                .unwrap_or(64 << 10)
                .min(MAX_PAYLOAD)
        }

        /// (kind, version, name) of every message of this build.
        pub const KINDS: &[(u16, u8, &str)] = &[$( ($kind, $version, stringify!($ty)) ),*];
    };
}

messages! {
    1 / 1 v1::Hello, limit 4096;
    2 / 1 v1::HelloAck, limit 4096;
    3 / 1 v1::Failure, limit 4096;
    4 / 1 v1::Ack, limit 16;
    10 / 1 v1::Swim, limit 64 << 10;
    20 / 1 v1::SyncDigest, limit 2 << 20;
    21 / 1 v1::SyncReply, limit 4 << 20;
    22 / 1 v1::Rumor, limit 256 << 10;
    23 / 1 v1::SyncSummary, limit 256;
    24 / 1 v1::SyncLeaves, limit 4096;
    25 / 1 v1::SyncPart, limit 4 << 20;
    26 / 1 v1::SyncPartReply, limit 4 << 20;
    30 / 1 v1::LedgerHead, limit 256;
    31 / 1 v1::LedgerPull, limit 256;
    32 / 1 v1::LedgerDelta, limit 4 << 20;
    33 / 1 v1::LedgerSnapshot, limit MAX_PAYLOAD;
    40 / 1 v1::Raft, limit MAX_PAYLOAD;
    41 / 1 v1::RaftReply, limit 64 << 10;
    42 / 1 v1::FoundingAsk, limit 4096;
    43 / 1 v1::FoundingState, limit 4096;
    50 / 1 v1::Propose, limit 64 << 10;
    51 / 1 v1::ProposeReply, limit 256 << 10;
    60 / 1 v1::Donate, limit 4096;
    61 / 1 v1::DonateReply, limit 4096;
    62 / 1 v1::Echo, limit 4096;
}

//! What a simulation looks at.

use super::{IpamService, now_ms};

/// Where all usable addresses of a node are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) owned: u64,
    pub(crate) free: u64,
    /// Leased, in own blocks.
    pub(crate) leased: u64,
    /// Prefixes withheld.
    pub(crate) withheld: usize,
    /// Position of the ledger it follows.
    pub(crate) followed: u64,
}

impl IpamService {
    /// IPv4 only.
    pub(crate) fn sum(&self) -> Sum {
        let state = self.lock();
        let held: usize = state.table.iter().map(|(_, addresses)| addresses.len()).sum();
        Sum {
            owned: state.table.owned(false),
            free: state.table.free(false),
            leased: (held - state.table.foreign().len()) as u64,
            withheld: state.table.withheld().count(),
            followed: state.followed,
        }
    }

    /// Addresses that were never used or have rested for the cool-down.
    pub(crate) fn ready(&self) -> u64 {
        self.lock().table.ready(false, now_ms())
    }
}

//! Who gets an answer: addresses inside the cluster's ranges, so many times a
//! second. An answer is never longer than the question.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use weft_proto::names::PROBE_PORT;

/// From one address within a second; a peer asks at most twice as often as it ticks.
const PER_SOURCE: u32 = 8;
/// From all addresses within a second.
const IN_ALL: u32 = 2048;

/// Decides about answers.
#[derive(Debug, Default)]
pub struct Echo {
    second: u64,
    given: u32,
    sources: HashMap<std::net::IpAddr, u32>,
}

impl Echo {
    /// May this one be answered? Counts it if so.
    pub fn allows(&mut self, now: Duration, from: SocketAddr, ranges: &[IpNet]) -> bool {
        // Only peers' probe sockets: nobody can be made to talk to something else.
        if from.port() != PROBE_PORT || !ranges.iter().any(|range| range.contains(&from.ip())) {
            return false;
        }
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            self.given = 0;
            self.sources.clear();
        }
        let source = self.sources.len();
        if self.given >= IN_ALL || source > IN_ALL as usize {
            return false;
        }
        let count = self.sources.entry(from.ip()).or_default();
        if *count >= PER_SOURCE {
            return false;
        }
        *count += 1;
        self.given += 1;
        true
    }
}

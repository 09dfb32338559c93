//! Keeps the stock of addresses filled: from the ledger, else from other nodes.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::frame::Frame;
use weft_proto::ledger::{Op, Outcome, Refusal};
use weft_proto::wire::v1;

use super::supply::{Donor, Order, Stock, donors, order};
use super::{IpamService, Registry, Verdict};
use crate::api::backend::BackendError;
use crate::mesh::net::{MeshView, PeerNet};

/// How many nodes are asked before a request is told that nothing is left.
const ASK_AT_MOST: usize = 32;
const PROPOSE_PATIENCE: Duration = Duration::from_secs(5);
const DONATE_PATIENCE: Duration = Duration::from_secs(6);
/// Pause after a try ahead of need that failed.
const AHEAD_PAUSE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Supplier {
    service: Arc<IpamService>,
    registry: Arc<dyn Registry>,
    net: Arc<dyn PeerNet>,
}

impl std::fmt::Debug for Supplier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supplier").finish_non_exhaustive()
    }
}

impl Supplier {
    /// A supplier for `service`.
    pub fn new(
        service: Arc<IpamService>,
        registry: Arc<dyn Registry>,
        net: Arc<dyn PeerNet>,
    ) -> Self {
        Self { service, registry, net }
    }

    /// Runs for as long as the agent.
    pub async fn run(self) {
        let mut ahead_after = tokio::time::Instant::now();
        loop {
            let mut idle = true;
            for ipv6 in [false, true] {
                let order = match self.order(ipv6) {
                    Order::Ahead if tokio::time::Instant::now() < ahead_after => Order::Nothing,
                    other => other,
                };
                match order {
                    Order::Nothing => {}
                    Order::Now => {
                        idle = false;
                        self.fetch(ipv6).await;
                    }
                    Order::Ahead => {
                        let acquired = self.acquire(ipv6).await;
                        if let Err(e) = &acquired {
                            tracing::debug!("spare block: {e}");
                        }
                        idle = !matches!(acquired, Ok(true));
                        if idle {
                            ahead_after = tokio::time::Instant::now() + AHEAD_PAUSE;
                        }
                    }
                }
            }
            if idle {
                let _ = tokio::time::timeout(Duration::from_secs(2), self.service.need.notified())
                    .await;
            }
        }
    }

    fn order(&self, ipv6: bool) -> Order {
        let ledger = self.registry.ledger();
        if self.service.is_leaving() || ledger.member(self.net.me()).is_none() {
            // Not (yet) a member: say so to whoever waits, and wait with them.
            self.block(
                ipv6,
                "this node is not a member of the cluster yet; `agent status` says why",
            );
            return Order::Nothing;
        }
        let family = |r: &&ipnet::IpNet| matches!(r, ipnet::IpNet::V6(_)) == ipv6;
        let Some(range) = ledger.ranges().iter().find(family) else { return Order::Nothing };
        let host_bits = range.max_prefix_len() - weft_ipam::block_len(range);
        let state = self.service.lock();
        order(Stock {
            waiting: state.families[usize::from(ipv6)].waiting.len(),
            free: state.table.free(ipv6),
            block: 1 << host_bits,
            unowned: ledger.unowned(ipv6),
        })
    }

    fn block(&self, ipv6: bool, why: &str) {
        let mut state = self.service.lock();
        let family = &mut state.families[usize::from(ipv6)];
        if !family.waiting.is_empty() {
            family.blocked = Some(why.to_owned());
        }
    }

    /// One block from the ledger. `Ok(false)`: it has none.
    async fn acquire(&self, ipv6: bool) -> Result<bool, String> {
        let op = Op::Acquire { node: self.net.me(), ipv6, count: 1 };
        let request = self.registry.next_request();
        match self.registry.propose(request, op, PROPOSE_PATIENCE).await? {
            (_, Outcome::Granted(blocks)) => {
                for block in &blocks {
                    tracing::info!(block = %block.prefix, epoch = block.epoch, "block acquired");
                }
                self.service.follow(&self.registry.ledger());
                Ok(true)
            }
            (_, Outcome::Refused(Refusal::Exhausted { .. })) => Ok(false),
            (_, Outcome::Refused(refusal)) => Err(refusal.to_string()),
            (_, other) => Err(format!("unexpected answer of the ledger: {other:?}")),
        }
    }

    /// Somebody waits: the ledger first, then the others.
    async fn fetch(&self, ipv6: bool) {
        let round = {
            let mut state = self.service.lock();
            let family = &mut state.families[usize::from(ipv6)];
            family.rounds += 1;
            family.rounds
        };
        let verdict = match self.acquire(ipv6).await {
            Ok(true) => return,
            Ok(false) => match self.ask_around(ipv6).await {
                Ok(()) => return,
                Err(why) => BackendError::Exhausted(why),
            },
            Err(why) => {
                // Could not be committed: keep trying while somebody waits.
                self.block(ipv6, &why);
                tokio::time::sleep(Duration::from_millis(300)).await;
                return;
            }
        };
        {
            let mut state = self.service.lock();
            if state.table.free(ipv6) > 0 {
                return;
            }
            let family = &mut state.families[usize::from(ipv6)];
            tracing::warn!("{verdict}");
            family.verdict = Some(Verdict { round, error: verdict });
        }
        self.service.changed.notify_waiters();
    }

    /// Asks other nodes for some of theirs.
    async fn ask_around(&self, ipv6: bool) -> Result<(), String> {
        let view = self.net.view();
        let me = self.net.me();
        let ledger = self.registry.ledger();
        let owners = ledger
            .blocks()
            .filter(|b| matches!(b.prefix, ipnet::IpNet::V6(_)) == ipv6 && b.owner != me)
            .map(|b| b.owner)
            .collect::<std::collections::BTreeSet<_>>();
        let candidates = owners
            .iter()
            .filter(|n| view.is_alive(**n))
            .filter_map(|n| {
                let record = &view.members.get(n)?.record;
                Some(Donor { node: *n, free: if ipv6 { record.free6 } else { record.free4 } })
            })
            .collect();
        let mut answers = Vec::new();
        for donor in donors(candidates, ASK_AT_MOST) {
            match self.ask(donor.node, ipv6).await {
                Ok(prefix) => {
                    tracing::info!(%prefix, from = %view.name_of(donor.node), "addresses handed over");
                    self.service.follow(&self.registry.ledger());
                    return Ok(());
                }
                Err(why) => answers.push(format!("{}: {why}", view.name_of(donor.node))),
            }
        }
        Err(self.nothing_left(ipv6, &view, &owners, &answers))
    }

    async fn ask(&self, node: weft_proto::id::NodeId, ipv6: bool) -> Result<ipnet::IpNet, String> {
        let request = Frame::new(&v1::Donate { ipv6, address: None }).map_err(|e| e.to_string())?;
        let answer =
            self.net.call(node, request, DONATE_PATIENCE).await.map_err(|e| e.to_string())?;
        match answer.decode::<v1::DonateReply>().map_err(|e| e.to_string())? {
            v1::DonateReply::Given { prefix, index } => {
                self.catch_up(index).await?;
                Ok(prefix)
            }
            v1::DonateReply::Nothing { why } => Err(why),
        }
    }

    /// Waits until the own replica has applied position `index`.
    async fn catch_up(&self, index: u64) -> Result<(), String> {
        for _ in 0..100 {
            if self.registry.ledger().head().index >= index {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Err(format!("the ledger of this node has not reached position {index} within 3 s"))
    }

    fn nothing_left(
        &self,
        ipv6: bool,
        view: &MeshView,
        owners: &std::collections::BTreeSet<weft_proto::id::NodeId>,
        answers: &[String],
    ) -> String {
        let ledger = self.registry.ledger();
        let ranges: Vec<String> = ledger
            .ranges()
            .iter()
            .filter(|r| matches!(r, ipnet::IpNet::V6(_)) == ipv6)
            .map(ToString::to_string)
            .collect();
        let mut text = format!("no address is left in {}: every block is owned", ranges.join(","));
        if !answers.is_empty() {
            text.push_str(&format!(", and nobody can spare any ({})", answers.join("; ")));
        }
        let dead: Vec<String> =
            owners.iter().filter(|n| !view.is_alive(**n)).map(|n| view.name_of(*n)).collect();
        if !dead.is_empty() {
            text.push_str(&format!(
                "; unreachable owners: {} (gone for good? `agent rmpeer NAME` gives their addresses back)",
                dead.join(", ")
            ));
        }
        let resting = ledger.quarantined(ipv6);
        if resting > 0 {
            text.push_str(&format!("; {resting} addresses of removed nodes rest in quarantine"));
        }
        text.push_str("; delete pods, or widen the range with `agent grow`");
        text
    }
}

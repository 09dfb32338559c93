//! Keeps the stock of addresses filled: from the ledger, else from other nodes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::frame::Frame;
use weft_proto::id::RequestId;
use weft_proto::ledger::{Op, Outcome, Refusal};
use weft_proto::wire::v1;

use super::donate::WAITING_HERE;
use super::supply::{Donor, Order, Stock, donors, order};
use super::{Gate, IpamService, Registry, Verdict};
use crate::api::backend::BackendError;
use crate::mesh::net::{MeshView, PeerNet};

/// How many nodes are asked before a request is told that nothing is left.
const ASK_AT_MOST: usize = 32;
const PROPOSE_PATIENCE: Duration = Duration::from_secs(5);
const DONATE_PATIENCE: Duration = Duration::from_secs(6);
/// All asking of one round together: a request should hear of it in time.
const ROUND_PATIENCE: Duration = Duration::from_secs(12);
/// Pause after a try ahead of need that failed; doubled from try to try.
const AHEAD_PAUSE: Duration = Duration::from_secs(5);
const AHEAD_PAUSE_MOST: Duration = Duration::from_secs(60);
/// Pause after a try that could not be committed, while somebody waits.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// So often is everybody asked while addresses are on the move, with this pause
/// at first, doubled from time to time.
const ASK_AGAIN: u32 = 4;
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// Without news the stock is looked at this often.
const LOOK: Duration = Duration::from_secs(2);

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

    /// Runs for as long as the agent. Families do not wait for each other.
    pub async fn run(self) {
        tokio::join!(self.supply(false), self.supply(true));
    }

    async fn supply(&self, ipv6: bool) {
        let mut pending = None;
        let mut ahead_after = Instant::now();
        let mut pause = AHEAD_PAUSE;
        loop {
            match self.order(ipv6) {
                Order::Now => self.fetch(ipv6, &mut pending).await,
                Order::Ahead if Instant::now() >= ahead_after => {
                    match self.acquire(ipv6, &mut pending).await {
                        Ok(true) => pause = AHEAD_PAUSE,
                        failed => {
                            tracing::debug!(?failed, "no spare block");
                            ahead_after = Instant::now() + pause;
                            pause = (pause * 2).min(AHEAD_PAUSE_MOST);
                        }
                    }
                }
                Order::Ahead | Order::Nothing => {
                    let need = self.service.need[usize::from(ipv6)].notified();
                    let _ = tokio::time::timeout(LOOK, need).await;
                }
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
        if self.service.gate() != Gate::Open {
            self.block(ipv6, "it is being asked whether another machine runs as this node");
            return Order::Nothing;
        }
        let family = |r: &&ipnet::IpNet| matches!(r, ipnet::IpNet::V6(_)) == ipv6;
        let Some(range) = ledger.ranges().iter().find(family) else { return Order::Nothing };
        // Right after a start the lease table may not know yet what is owned already.
        if self.service.followed() < ledger.head().index {
            self.service.follow(&ledger);
        }
        let host_bits = range.max_prefix_len() - weft_ipam::block_len(range);
        let (waiting, free) = {
            let state = self.service.lock();
            (state.families[usize::from(ipv6)].unanswered(), state.table.free(ipv6))
        };
        let block = 1u64.checked_shl(u32::from(host_bits)).unwrap_or(u64::MAX);
        // Counted only when it matters: that walks through all blocks there are.
        order(Stock { waiting, free, block }, || ledger.unowned(ipv6))
    }

    fn block(&self, ipv6: bool, why: &str) {
        let mut state = self.service.lock();
        let family = &mut state.families[usize::from(ipv6)];
        if !family.waiting.is_empty() {
            family.blocked = Some(why.to_owned());
        }
    }

    /// One block from the ledger. `Ok(false)`: it has none.
    ///
    /// A request without an answer may have been granted, or may be yet: it is
    /// asked again as the same request, lest a long loss of quorum end with a
    /// block for every try. What an old request was refused says nothing of now.
    async fn acquire(&self, ipv6: bool, pending: &mut Option<RequestId>) -> Result<bool, String> {
        loop {
            let op = Op::Acquire { node: self.net.me(), ipv6, count: 1 };
            let old = pending.is_some();
            let request = *pending.get_or_insert_with(|| self.registry.next_request());
            let (_, outcome) = self.registry.propose(request, op, PROPOSE_PATIENCE).await?;
            *pending = None;
            return match outcome {
                Outcome::Granted(blocks) => {
                    for block in &blocks {
                        tracing::info!(block = %block.prefix, epoch = block.epoch, "block acquired");
                    }
                    self.service.follow(&self.registry.ledger());
                    Ok(true)
                }
                Outcome::Refused(_) if old => continue,
                Outcome::Refused(Refusal::Exhausted { .. }) => Ok(false),
                Outcome::Refused(refusal) => Err(refusal.to_string()),
                other => Err(format!("unexpected answer of the ledger: {other:?}")),
            };
        }
    }

    /// Somebody waits: the ledger first, then the others.
    async fn fetch(&self, ipv6: bool, pending: &mut Option<RequestId>) {
        let round = {
            let mut state = self.service.lock();
            let family = &mut state.families[usize::from(ipv6)];
            family.rounds += 1;
            family.rounds
        };
        let verdict = match self.acquire(ipv6, pending).await {
            Ok(true) => return,
            Ok(false) => match self.ask_until_sure(ipv6, pending).await {
                Ok(()) => return,
                Err(why) => BackendError::Exhausted(why),
            },
            Err(why) => {
                // Could not be committed: keep trying while somebody waits.
                self.block(ipv6, &why);
                tokio::time::sleep(RETRY_PAUSE).await;
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
            family.verdict = Some(Verdict { round, at: Instant::now(), error: verdict });
        }
        self.service.changed.notify_waiters();
    }

    /// Asks around until somebody gives or it is plain that nobody can.
    ///
    /// One by one, nodes may each truly say that they have nothing while the
    /// last addresses are on their way between them. So nothing is concluded
    /// from a round in which the ledger changed or somebody was waiting.
    async fn ask_until_sure(
        &self,
        ipv6: bool,
        pending: &mut Option<RequestId>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + ROUND_PATIENCE;
        let mut pause = ASK_PAUSE;
        for _ in 1..ASK_AGAIN {
            let before = self.registry.ledger().head().index;
            match self.ask_around(ipv6, deadline).await {
                Ok(()) => return Ok(()),
                Err(why) => {
                    let moved = self.registry.ledger().head().index != before;
                    if !moved && !why.contains(WAITING_HERE) {
                        return Err(why);
                    }
                }
            }
            if self.service.lock().table.free(ipv6) > 0 {
                return Ok(());
            }
            if Instant::now() + pause >= deadline {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        // Blocks may have come back to the ledger meanwhile.
        if self.acquire(ipv6, pending).await == Ok(true) {
            return Ok(());
        }
        self.ask_around(ipv6, deadline).await
    }

    /// Asks other nodes for some of theirs.
    async fn ask_around(&self, ipv6: bool, deadline: Instant) -> Result<(), String> {
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
            if Instant::now() >= deadline {
                answers.push("the others were not asked for want of time".to_owned());
                break;
            }
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
                super::catch_up(self.registry.as_ref(), index).await?;
                Ok(prefix)
            }
            v1::DonateReply::Nothing { why } => Err(why),
        }
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

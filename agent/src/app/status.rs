//! What the daemon says of itself.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use weft_proto::api::{
    Condition, Health, IpamStatus, MemberStatus, NodeStatus, OwnerStatus, Readiness, Status,
};
use weft_proto::id::NodeId;
use weft_proto::wire::v1::Failure;

use super::App;
use super::remove::host_bits;
use crate::ipam_service::{Gate, Stand, now_ms};
use crate::mesh::Refusal;
use crate::mesh::net::{MeshView, PeerNet};
use crate::policy::engine::EngineHandle;
use crate::status::count;

/// How long a refusal stays on the screen after it last happened.
const REFUSAL_SHOWN: Duration = Duration::from_secs(300);

/// How long after a start the addresses of peers may be missing without a word.
const ADDRESS_GRACE: Duration = Duration::from_secs(15);

/// Addresses that nobody owns and anybody can have, and those that rest, at `now_ms`.
/// The ledger's own time is that of its last command: on a quiet cluster, quarantines
/// would never be over in it.
fn unheld(ledger: &weft_ipam::ledger::Ledger, now_ms: u64) -> (u128, u128) {
    let both = |count: &dyn Fn(bool) -> u128| count(false).saturating_add(count(true));
    let over = both(&|ipv6| ledger.rested(ipv6, now_ms));
    (
        both(&|ipv6| ledger.unowned(ipv6)).saturating_add(over),
        both(&|ipv6| ledger.quarantined(ipv6)).saturating_sub(over),
    )
}

fn condition(health: Health, reason: &str, message: String, hint: &str) -> Condition {
    Condition { health, reason: reason.to_owned(), message, hint: hint.to_owned() }
}

impl App {
    pub(super) fn why_not_joined(&self) -> String {
        if let Some(refusal) = self.mesh.refusals().iter().rfind(|r| !r.by_us) {
            return format!("{} refused this node: {}", refusal.address, refusal.message);
        }
        self.consensus
            .status()
            .waiting
            .unwrap_or_else(|| "this node is joining the cluster; try again in a moment".to_owned())
    }

    pub(super) fn build_readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        let stand = self.ipam.stand();
        let own = !self.own_addresses().is_empty();
        let data = self.dataplane.status();
        let joined = self.consensus.ledger().member(self.me).is_some();
        let gate = self.ipam.gate();
        if let Gate::Closed(why) = &gate {
            reasons.push(why.clone());
        } else if gate == Gate::Asking {
            reasons.push(
                "the other nodes are being asked whether another machine runs as this one".into(),
            );
        } else if !own {
            // A member without an address of its own lacks addresses, not a cluster.
            let lacks = stand.exhausted.clone().or_else(|| stand.blocked.clone());
            reasons.push(lacks.filter(|_| joined).unwrap_or_else(|| self.why_not_joined()));
        }
        if !data.in_sync {
            reasons.extend(
                data.errors
                    .first()
                    .cloned()
                    .or_else(|| Some("the data plane is not set up yet".to_owned())),
            );
        }
        if own
            && stand.free4 == 0
            && stand.free6 == 0
            && let Some(why) = stand.exhausted
        {
            reasons.push(why);
        }
        if self.ipam.is_leaving() {
            reasons.push("this node has left the cluster; restart the agent to join again".into());
        }
        Readiness { ready: reasons.is_empty(), connectivity: own && data.in_sync, reasons }
    }

    pub(super) fn build_status(&self) -> Status {
        let view = self.mesh.view();
        let ledger = self.consensus.ledger();
        let mut mesh = self.mesh.status();
        let mut blocks: BTreeMap<NodeId, (usize, u64)> = BTreeMap::new();
        for block in ledger.blocks() {
            let entry = blocks.entry(block.owner).or_default();
            entry.0 += 1;
            let size = 1u64.checked_shl(host_bits(&block.prefix)).unwrap_or(u64::MAX);
            entry.1 = entry.1.saturating_add(size);
        }
        for member in &mut mesh.members {
            if let Ok(id) = member.id.parse::<NodeId>() {
                member.blocks = blocks.get(&id).map_or(0, |b| b.0);
            }
        }
        let overlay = self.overlay_status(&mut mesh.members);
        let consensus = self.consensus.status();
        let stand = self.ipam.stand();
        let dataplane = self.dataplane.status();
        let conditions = self.judge(&consensus, &mesh.members, &stand);
        let ipam = self.ipam_status(&ledger, &view, &blocks, &stand, &consensus);
        Status {
            health: conditions.iter().map(|c| c.health).max().unwrap_or_default(),
            conditions,
            node: NodeStatus {
                id: self.me.to_string(),
                name: self.config.node_name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cluster: ledger.cluster().map(|c| c.to_string()).unwrap_or_default(),
                uptime_s: self.started.elapsed().as_secs(),
                underlay: self.underlay.clone(),
                overlay: self.own_addresses(),
            },
            mesh,
            consensus,
            ipam,
            dataplane,
            overlay,
            policy: self.policy_status(),
            kubernetes: self.kubernetes.as_ref().map(super::kubernetes::Wired::status),
        }
    }

    fn ipam_status(
        &self,
        ledger: &weft_ipam::ledger::Ledger,
        view: &MeshView,
        blocks: &BTreeMap<NodeId, (usize, u64)>,
        stand: &Stand,
        consensus: &weft_proto::api::ConsensusStatus,
    ) -> IpamStatus {
        let name_of = |node: NodeId| {
            ledger.member(node).map_or_else(|| view.name_of(node), |m| m.name.clone())
        };
        let owners = blocks
            .iter()
            .map(|(node, (count, addresses))| OwnerStatus {
                id: node.to_string(),
                name: name_of(*node),
                addresses: *addresses,
                blocks: *count,
                leases: if *node == self.me {
                    u32::try_from(stand.leases).unwrap_or(u32::MAX)
                } else {
                    view.members.get(node).map_or(0, |m| m.record.leases)
                },
                alive: view.is_alive(*node),
            })
            .collect::<Vec<_>>();
        let ranges = if ledger.ranges().is_empty() {
            self.config.ranges.as_slice()
        } else {
            ledger.ranges()
        };
        let clamp = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        let (unowned, resting) = unheld(ledger, now_ms());
        let state = if ledger.cluster().is_none() {
            let known = consensus.voters.iter().filter(|v| v.alive).count();
            let quorum = consensus.voters.len() / 2 + 1;
            format!("awaiting consensus (quorum: {quorum}, known: {known})")
        } else if stand.waiting.is_empty() {
            "ready".to_owned()
        } else if owners.iter().filter(|o| o.id != self.me.to_string()).all(|o| !o.alive)
            && unowned == 0
            && owners.len() > 1
        {
            "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead".to_owned()
        } else {
            "waiting for IP(s) to become available".to_owned()
        };
        IpamStatus {
            state,
            ranges: ranges.to_vec(),
            usable: clamp(ranges.iter().map(weft_ipam::usable).fold(0, u128::saturating_add)),
            blocks: ledger.blocks_of(self.me).map(|b| b.prefix).collect(),
            owned: stand.owned,
            leases: stand.leases,
            waiting: stand.waiting.clone(),
            owners,
            unowned: clamp(unowned),
            quarantined: clamp(resting),
        }
    }

    /// Owners of blocks that no route can be made for.
    fn unknown_addresses(&self, ledger: &weft_ipam::ledger::Ledger) -> Option<Condition> {
        let unknown = {
            let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            routes.unknown.clone()
        };
        if unknown.is_empty() || self.started.elapsed() < ADDRESS_GRACE {
            return None;
        }
        let names: Vec<String> = unknown
            .iter()
            .map(|node| ledger.member(*node).map_or_else(|| node.short(), |m| m.name.clone()))
            .collect();
        Some(condition(
            Health::Degraded,
            "PeerAddressUnknown",
            format!(
                "no route to the pods of {}: the node's address is not known here",
                names.join(", ")
            ),
            "check that its agent runs and has an address of the same family as this node's; \
             if it is gone for good: agent rmpeer NAME",
        ))
    }

    /// Everything an operator should know, worst first.
    fn judge(
        &self,
        consensus: &weft_proto::api::ConsensusStatus,
        members: &[MemberStatus],
        stand: &Stand,
    ) -> Vec<Condition> {
        let mut all = self.dataplane.conditions();
        all.extend(self.policy.iter().flat_map(EngineHandle::conditions));
        all.extend(
            self.conditions.lock().unwrap_or_else(PoisonError::into_inner).values().cloned(),
        );
        all.extend(self.path_conditions(&self.mesh.view()));
        all.extend(self.feed_conditions());
        let ledger = self.consensus.ledger();
        all.extend(self.unknown_addresses(&ledger));
        let joined = ledger.member(self.me).is_some();
        judge(all, joined, &self.mesh.refusals(), consensus, members, stand)
    }
}

/// Adds to what the parts say of themselves; worst first.
fn judge(
    mut all: Vec<Condition>,
    joined: bool,
    refusals: &[Refusal],
    consensus: &weft_proto::api::ConsensusStatus,
    members: &[MemberStatus],
    stand: &Stand,
) -> Vec<Condition> {
    let copied = all.iter().any(|c| c.reason == "IdentityCopied");
    for refusal in refusals {
        let at = refusal.address;
        let clone = refusal.code == Failure::CLONE;
        // Said already, and better.
        if clone && copied && !refusal.by_us {
            continue;
        }
        // An old refusal of somebody else is history, not a state.
        if refusal.last.elapsed() > REFUSAL_SHOWN {
            continue;
        }
        all.push(if refusal.by_us {
            condition(
                Health::Degraded,
                "PeerRefused",
                format!("refused {at} ({} times): {}", refusal.count, refusal.message),
                if clone {
                    "find that machine, and stop it, or empty its STATE_DIR and start it under its own \
                     NODE_NAME; it gives out no addresses meanwhile"
                } else {
                    "if it is one of your nodes, make its settings agree with the cluster's"
                },
            )
        } else {
            condition(
                if joined { Health::Degraded } else { Health::Broken },
                "RefusedByPeer",
                format!("{at} refused this node: {}", refusal.message),
                "make this node's settings agree with the cluster's, then restart its agent",
            )
        });
    }
    match &consensus.waiting {
        Some(why) if !joined => all.push(condition(
            Health::Broken,
            "NotJoined",
            why.clone(),
            "check that the other nodes run, that UDP 6783 is open between them, and KUBE_PEERS",
        )),
        Some(why) => all.push(condition(
            Health::Degraded,
            "NoQuorum",
            why.clone(),
            "pods start from blocks already owned; bring the missing voters back for new blocks, or, if \
             they are lost for good: agent recover",
        )),
        None if !joined => all.push(condition(
            Health::Broken,
            "NotJoined",
            "this node is not a member of the cluster yet".to_owned(),
            "wait a few seconds; if it stays so, look at the agent's log",
        )),
        None => {}
    }
    for member in members.iter().filter(|m| m.state == "dead") {
        all.push(condition(
            Health::Degraded,
            "PeerDead",
            format!(
                "node {} does not answer; it owns {}",
                member.name,
                count(member.blocks, "block")
            ),
            &if consensus.quorum && consensus.waiting.is_none() {
                format!("bring it back, or, if it is gone for good: agent rmpeer {}", member.name)
            } else {
                "bring it back; nodes can be removed again once there is a quorum".to_owned()
            },
        ));
    }
    if let Some(why) = stand.exhausted.as_ref().filter(|_| stand.free4 == 0 && stand.free6 == 0) {
        all.push(condition(
            Health::Degraded,
            "Exhausted",
            why.clone(),
            "running pods are not affected; new ones cannot start here",
        ));
    } else if !stand.waiting.is_empty() {
        all.push(condition(
            Health::Degraded,
            "AddressWanted",
            format!(
                "requests that wait for an address: {}{}",
                stand.waiting.len(),
                stand.blocked.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
            ),
            "see the conditions about quorum and peers",
        ));
    }
    all.sort_by(|a, b| b.health.cmp(&a.health).then_with(|| a.reason.cmp(&b.reason)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn refusal(by_us: bool) -> Refusal {
        Refusal {
            address: "192.0.2.9:6783".parse().unwrap(),
            by_us,
            code: 1,
            reason: "range",
            message: "IPALLOC_RANGE differs".into(),
            count: 2,
            last: Instant::now(),
        }
    }

    #[test]
    fn a_quarantine_ends_although_nobody_asks() {
        use weft_ipam::ledger::Ledger;
        use weft_proto::id::{ClusterId, RequestId};
        use weft_proto::ledger::{Command, Op};
        let node = NodeId([1; 16]);
        let (cluster, ranges) = (ClusterId([7; 16]), vec!["10.0.0.0/24".parse().unwrap()]);
        let mut ledger = Ledger::new();
        let ops = [
            Op::Found { cluster, ranges: ranges.clone(), quarantine_ms: 500 },
            Op::Join { node, name: "n1".into(), ranges, replace: false },
            Op::Acquire { node, ipv6: false, count: 1 },
            Op::Evict { node },
        ];
        for (at, op) in (1..).zip(ops) {
            let request = RequestId { node, session: 1, seq: at };
            ledger.apply(at, Some(&Command { request, at_ms: 1_000, op })).unwrap();
        }
        assert_eq!(unheld(&ledger, 1_499), (248, 8));
        assert_eq!(unheld(&ledger, 1_500), (256, 0));
        // Nobody has told the ledger.
        assert_eq!(ledger.quarantined(false), 8);
        // A clock that is behind takes nothing back.
        assert_eq!(unheld(&ledger, 0), (248, 8));
    }

    fn reasons(all: &[Condition]) -> Vec<(Health, &str)> {
        all.iter().map(|c| (c.health, c.reason.as_str())).collect()
    }

    #[test]
    fn a_quiet_member_is_well() {
        assert!(judge(vec![], true, &[], &quorum(None), &[], &Stand::default()).is_empty());
    }

    fn quorum(waiting: Option<&String>) -> weft_proto::api::ConsensusStatus {
        weft_proto::api::ConsensusStatus {
            quorum: waiting.is_none(),
            waiting: waiting.cloned(),
            ..Default::default()
        }
    }

    #[test]
    fn outside_everything_is_worse() {
        let why = "no voter is reachable".to_owned();
        let refusals = [refusal(false), refusal(true)];
        let inside = judge(vec![], true, &refusals, &quorum(Some(&why)), &[], &Stand::default());
        let degraded = Health::Degraded;
        assert_eq!(
            reasons(&inside),
            [(degraded, "NoQuorum"), (degraded, "PeerRefused"), (degraded, "RefusedByPeer")]
        );
        let outside = judge(vec![], false, &refusals, &quorum(Some(&why)), &[], &Stand::default());
        assert_eq!(
            reasons(&outside),
            [
                (Health::Broken, "NotJoined"),
                (Health::Broken, "RefusedByPeer"),
                (degraded, "PeerRefused")
            ]
        );
        let joining = judge(vec![], false, &[], &quorum(None), &[], &Stand::default());
        assert_eq!(reasons(&joining), [(Health::Broken, "NotJoined")]);
    }

    #[test]
    fn dead_peers_and_lack_of_addresses() {
        let member = |name: &str, state: &str| MemberStatus {
            overlay_rtt_us: None,
            overlay_ok: None,
            id: "00".repeat(16),
            name: name.into(),
            state: state.into(),
            underlay: vec![],
            overlay: vec![],
            blocks: 3,
            leases: 0,
            version: String::new(),
            ledger_index: 0,
        };
        let members = [member("n1", "alive"), member("n2", "dead"), member("n3", "suspect")];
        let used_up = Stand { exhausted: Some("no address is left".into()), ..Stand::default() };
        let all = judge(vec![], true, &[], &quorum(None), &members, &used_up);
        assert_eq!(
            reasons(&all),
            [(Health::Degraded, "Exhausted"), (Health::Degraded, "PeerDead")]
        );
        assert!(all[1].hint.contains("rmpeer n2"));
        // With addresses free again the verdict is history.
        let free = Stand { free4: 1, ..used_up.clone() };
        assert!(judge(vec![], true, &[], &quorum(None), &[], &free).is_empty());
        let waits = Stand {
            waiting: vec!["a/eth0".into()],
            blocked: Some("no quorum".into()),
            ..Stand::default()
        };
        let all = judge(vec![], true, &[], &quorum(None), &[], &waits);
        assert_eq!(reasons(&all), [(Health::Degraded, "AddressWanted")]);
        assert!(all[0].message.contains("no quorum"));
    }
}

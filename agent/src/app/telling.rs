//! What a node says of itself in its record beside where it is, and when.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::names;
use weft_proto::wire::v1::NodeRecord;

use crate::consensus::ConsensusHandle;
use crate::ipam_service::{IpamService, Stand, http_key};
use crate::mesh::net::PeerNet;

/// News are gathered this long.
const GATHER: Duration = Duration::from_secs(2);
/// Nobody tells of a new MTU, or that it is somebody's turn.
const LOOK: Duration = Duration::from_secs(5);

/// What others may want to know of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct News {
    free4: u32,
    free6: u32,
    leases: u32,
    overlay: Vec<IpAddr>,
    mtu: u32,
}

impl News {
    fn new(stand: &Stand, overlay: Vec<IpAddr>, mtu: u32) -> Self {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            free4: small(stand.free4),
            free6: small(stand.free6),
            leases: small(stand.leases as u64),
            overlay,
            mtu,
        }
    }

    /// True if others need it to reach this node, or to ask it for addresses.
    fn is_urgent(&self, told: Option<&Self>) -> bool {
        let empty = |news: &Self| (news.free4 == 0, news.free6 == 0);
        told.is_none_or(|told| {
            (&told.overlay, told.mtu) != (&self.overlay, self.mtu) || empty(told) != empty(self)
        })
    }

    fn write(self, ledger_index: u64, record: &mut NodeRecord) {
        let Self { free4, free6, leases, overlay, mtu } = self;
        (record.free4, record.free6, record.leases) = (free4, free6, leases);
        (record.overlay, record.mtu, record.ledger_index) = (overlay, mtu, ledger_index);
    }
}

/// Pause between two tellings of what changes with every pod: every change is a rumor to
/// the whole cluster, and all members together may start fifty of them a second.
fn pause(members: usize) -> Duration {
    let all = u32::try_from(members).unwrap_or(u32::MAX);
    Duration::from_millis(20).saturating_mul(all).max(GATHER)
}

/// Tells the others what they may want to know of this node: at once what they need to
/// reach it or to ask it for addresses, the rest when it is its turn. Ends with the service.
pub(crate) async fn tell(
    ipam: Arc<IpamService>,
    consensus: ConsensusHandle,
    net: Arc<dyn PeerNet>,
    mtu: impl Fn() -> u32,
) {
    let mut leases = ipam.watch();
    let mut ledgers = consensus.subscribe();
    let mut told = None;
    let mut told_at = Instant::now();
    loop {
        leases.borrow_and_update();
        ledgers.borrow_and_update();
        let own = ipam.addresses(&http_key(names::EXPOSE_ID));
        let now = News::new(&ipam.stand(), own, mtu());
        let turn = told_at.elapsed() >= pause(net.view().members.len());
        if now.is_urgent(told.as_ref()) || (turn && told.as_ref() != Some(&now)) {
            told_at = Instant::now();
            let (news, ledger_index) = (now.clone(), consensus.ledger().head().index);
            net.update_record(Box::new(move |record| news.write(ledger_index, record)));
            told = Some(now);
        }
        tokio::time::sleep(GATHER).await;
        tokio::select! {
            changed = leases.changed() => if changed.is_err() { return },
            changed = ledgers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_is_told_at_once() {
        let told = News { free4: 5, leases: 3, mtu: 1450, ..News::default() };
        assert!(told.is_urgent(None));
        let urgent = |change: fn(&mut News)| {
            let mut news = told.clone();
            change(&mut news);
            news.is_urgent(Some(&told))
        };
        assert!(!urgent(|news| (news.free4, news.leases) = (4, 4)));
        assert!(urgent(|news| news.free4 = 0));
        assert!(urgent(|news| news.free6 = 1));
        assert!(urgent(|news| news.mtu = 1400));
        assert!(urgent(|news| news.overlay = vec![IpAddr::from([10, 32, 0, 1])]));
        assert_eq!([1, 100, 5000].map(pause), [2, 2, 100].map(Duration::from_secs));
    }
}

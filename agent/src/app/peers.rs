//! Where peers were last seen: kept on disk, so that an agent that starts
//! while nobody answers still knows where its routes must point.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use weft_proto::id::NodeId;

use crate::files;
use crate::kube::contacts::contact;
use crate::mesh::net::MeshView;

/// The book of addresses.
#[derive(Debug, Clone)]
pub(crate) struct PeerBook {
    path: PathBuf,
    known: BTreeMap<NodeId, Vec<IpAddr>>,
}

impl PeerBook {
    /// Reads the book; a damaged one is as good as none, since gossip fills it again.
    pub(crate) fn open(path: &Path) -> Self {
        let known = files::read_json(path).unwrap_or_else(|e| {
            tracing::warn!("{}: {e}; starting with an empty book of peers", path.display());
            None
        });
        Self { path: path.to_owned(), known: known.unwrap_or_default() }
    }

    /// Learns from the mesh; true if something is new.
    pub(crate) fn learn(&mut self, view: &MeshView, me: NodeId) -> bool {
        let mut news = false;
        for (node, member) in view.members.iter().filter(|(node, _)| **node != me) {
            let underlay = &member.record.underlay;
            if !underlay.is_empty() && self.known.get(node) != Some(underlay) {
                self.known.insert(*node, underlay.clone());
                news = true;
            }
        }
        news
    }

    /// Forgets who is no longer a member of the cluster.
    pub(crate) fn keep(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.known.retain(|node, _| is_member(*node));
    }

    /// Where to send packets for a node: its first address of the wanted family.
    pub(crate) fn address(&self, node: NodeId, ipv6: bool) -> Option<IpAddr> {
        self.known.get(&node)?.iter().copied().find(|ip| ip.is_ipv6() == ipv6)
    }

    /// Some of the peers, by chance, as targets to dial.
    pub(crate) fn some(&self, most: usize, port: u16) -> Vec<String> {
        let mut known: Vec<_> = self.known.values().filter_map(|list| list.first()).collect();
        known.shuffle(&mut rand::rng());
        known.into_iter().take(most).map(|ip| contact(*ip, port)).collect()
    }

    /// Writes the book.
    pub(crate) fn store(&self) -> io::Result<()> {
        files::replace_json(&self.path, &self.known)
    }
}

#[cfg(test)]
impl PeerBook {
    /// A book in memory.
    pub(crate) fn of(known: impl IntoIterator<Item = (NodeId, Vec<IpAddr>)>) -> Self {
        Self { path: PathBuf::new(), known: known.into_iter().collect() }
    }
}

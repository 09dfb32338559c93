//! Whom to call first: a few addresses, not all nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::api::{Api, ListParams};
use kube::core::ObjectMeta;
use rand::seq::SliceRandom;
use weft_proto::id::ClusterId;
use weft_proto::names::MESH_PORT;

use super::node::{CLUSTER, Node, UNDERLAY};
use super::{Ask, Kube, KubeError};
use crate::config::is_target;

/// So many contacts are enough to meet everybody else through gossip.
pub const ENOUGH: usize = 16;
/// Nodes read at once.
const PAGE: u32 = 500;
/// Longest list of contacts that is taken from anywhere.
const MOST: usize = 64;

/// A list of contacts in text: `HOST` or `HOST:PORT`, separated by spaces or
/// commas; what is malformed is left out.
pub fn parse(text: &str) -> Vec<String> {
    text.split([' ', ',', '\n', '\t'])
        .filter(|word| !word.is_empty() && is_target(word))
        .take(MOST)
        .map(str::to_owned)
        .collect()
}

/// How others call a node at this address.
pub fn contact(address: IpAddr, port: u16) -> String {
    if port == MESH_PORT {
        address.to_string()
    } else {
        std::net::SocketAddr::new(address, port).to_string()
    }
}

/// What Nodes say of the mesh: contacts other than `own`, and the cluster.
pub fn of_nodes<'a>(
    nodes: impl Iterator<Item = &'a ObjectMeta>,
    own: &str,
) -> (Vec<String>, Option<ClusterId>) {
    let mut contacts = Vec::new();
    let mut clusters: BTreeMap<ClusterId, usize> = BTreeMap::new();
    for meta in nodes.filter(|meta| meta.name.as_deref() != Some(own)) {
        let Some(notes) = &meta.annotations else { continue };
        if let Some(first) = notes.get(UNDERLAY).map(|text| parse(text)).unwrap_or_default().first()
        {
            contacts.push(first.clone());
        }
        if let Some(cluster) = notes.get(CLUSTER).and_then(|text| text.parse().ok()) {
            *clusters.entry(cluster).or_default() += 1;
        }
    }
    // Several would be remains of clusters that are gone: most nodes decide.
    let cluster = clusters.into_iter().max_by_key(|(_, count)| *count).map(|(id, _)| id);
    (contacts, cluster)
}

/// Which targets to drop and which to add so that `wanted` are called; those
/// that somebody else asked for stay.
pub fn change(mine: &BTreeSet<String>, wanted: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let drop = mine.difference(wanted).cloned().collect();
    let add = wanted.difference(mine).cloned().collect();
    (drop, add)
}

impl Kube {
    /// Contacts from the Nodes' annotations, read page by page until there are
    /// [`ENOUGH`], in random order; and the cluster they name.
    pub async fn ask_nodes(&self) -> Result<(Vec<String>, Option<ClusterId>), KubeError> {
        const LIST: Ask = Ask::cluster("list", "nodes");
        let nodes: Api<Node> = Api::all(self.client());
        let mut params = ListParams::default().limit(PAGE);
        let (mut found, mut cluster) = (Vec::new(), None);
        loop {
            let page = self.ask(LIST, nodes.list_metadata(&params)).await?;
            let (contacts, named) =
                of_nodes(page.items.iter().map(|node| &node.metadata), self.node_name());
            found.extend(contacts);
            cluster = cluster.or(named);
            let next = page.metadata.continue_.filter(|token| !token.is_empty());
            match next {
                Some(token) if found.len() < ENOUGH => params = params.continue_token(&token),
                _ => break,
            }
        }
        found.shuffle(&mut rand::rng());
        found.truncate(ENOUGH);
        Ok((found, cluster))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(name: &str, notes: &[(&str, &str)]) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            annotations: Some(
                notes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn contacts_come_from_annotations_of_others() {
        let cluster = "00".repeat(15) + "07";
        let nodes = [
            meta("n1", &[(UNDERLAY, "10.0.0.1")]),
            meta("n2", &[(UNDERLAY, "10.0.0.2,fd00::2"), (CLUSTER, &cluster)]),
            meta("n3", &[(UNDERLAY, "rubbish/"), (CLUSTER, "x")]),
            ObjectMeta::default(),
        ];
        let (contacts, named) = of_nodes(nodes.iter(), "n1");
        assert_eq!(contacts, ["10.0.0.2"]);
        assert_eq!(named, cluster.parse().ok());
    }

    #[test]
    fn addresses_as_others_call_them() {
        assert_eq!(contact("10.0.0.1".parse().unwrap(), 6783), "10.0.0.1");
        assert_eq!(contact("fd00::1".parse().unwrap(), 7000), "[fd00::1]:7000");
        assert_eq!(
            parse(" 10.0.0.1:7000, a/b [fd00::1]:7000"),
            ["10.0.0.1:7000", "[fd00::1]:7000"]
        );
    }

    proptest! {
        /// Whatever stands in an annotation: no more than a bounded list of targets.
        #[test]
        fn any_text_is_bounded(text in ".{0,400}") {
            let parsed = parse(&text);
            prop_assert!(parsed.len() <= MOST && parsed.iter().all(|word| is_target(word)));
        }
    }
}

//! The Nodes of the cluster, watched by voters: names only.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::departed::Nodes;
use super::watch::{Asked, Collection, Heard, Outcome, Versioned, follow};
use super::{Ask, Kube, pace};

/// Messages between watch and reader: what is beyond waits in the connection.
const QUEUE: usize = 64;

/// As much of a Node as is asked for and read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    metadata: Metadata,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
}

impl Versioned for Named {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// Applies what was heard; what is being listed anew shows once it is whole.
fn apply(nodes: &mut Nodes, fresh: &mut Nodes, heard: Heard<Named>) -> bool {
    match heard {
        Heard::Begin => *fresh = Nodes::default(),
        Heard::Items(items) => fresh.names.extend(items.into_iter().map(|one| one.metadata.name)),
        Heard::End(_) => {
            *nodes = Nodes { complete: true, ..std::mem::take(fresh) };
            return true;
        }
        Heard::Put(node) => return nodes.names.insert(node.metadata.name),
        Heard::Gone(node) => return nodes.names.remove(&node.metadata.name),
        Heard::Answer(_) | Heard::Alive(_) | Heard::Failed(_) => {}
    }
    false
}

impl Kube {
    /// Follows the Nodes for ever: a list in pages, then changes, from where it stood
    /// when a connection breaks, with growing pauses.
    pub async fn watch_nodes(&self, tell: &watch::Sender<Nodes>) {
        let kube = self.clone();
        let note = move |verb, resource, outcome: Outcome<'_>| {
            kube.heard(Ask::cluster(verb, resource), outcome);
        };
        let collection = Collection {
            path: "/api/v1/nodes",
            resource: "nodes",
            fields: None,
            large: true,
            metadata_only: true,
            longest: pace::WATCH,
        };
        let (heard, mut hear) = mpsc::channel(QUEUE);
        let listen = async {
            let (mut nodes, mut fresh) = (Nodes::default(), Nodes::default());
            while let Some(heard) = hear.recv().await {
                if apply(&mut nodes, &mut fresh, heard) {
                    tell.send_replace(nodes.clone());
                }
            }
        };
        let asked = Asked::new(self.client(), Arc::new(note));
        tokio::join!(follow(asked, collection, heard, |heard| heard), listen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        let text =
            format!(r#"{{"kind":"x","metadata":{{"name":"{name}","resourceVersion":"7"}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_new_list_replaces_the_old_one_at_its_end() {
        let (mut nodes, mut fresh) = (Nodes::default(), Nodes::default());
        let mut play = |heard| {
            let news = apply(&mut nodes, &mut fresh, heard);
            (news, nodes.complete, nodes.names.iter().cloned().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(play(Heard::Begin), (false, false, String::new()));
        play(Heard::Items(vec![named("a")]));
        assert_eq!(play(Heard::End("7".into())), (true, true, "a".into()));
        assert_eq!(play(Heard::Put(named("b"))), (true, true, "a b".into()));
        assert_eq!(play(Heard::Put(named("b"))), (false, true, "a b".into()));
        // A list that breaks off is begun anew.
        assert_eq!(play(Heard::Begin), (false, true, "a b".into()));
        play(Heard::Items(vec![named("c")]));
        assert_eq!(play(Heard::Begin), (false, true, "a b".into()));
        assert_eq!(play(Heard::Items(vec![named("b")])), (false, true, "a b".into()));
        assert_eq!(play(Heard::Alive(None)), (false, true, "a b".into()));
        assert_eq!(play(Heard::End("9".into())), (true, true, "b".into()));
        assert_eq!(play(Heard::Gone(named("b"))), (true, true, String::new()));
        assert_eq!(named("a").version(), "7");
    }
}

//! The Nodes of the cluster, watched by voters: names only.

use futures_util::StreamExt;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;

use super::departed::Nodes;
use super::node::Node;
use super::pace::Watch;
use super::{Ask, Kube};

const WATCH: Ask = Ask::cluster("watch", "nodes");
const LIST: Ask = Ask::cluster("list", "nodes");

/// Applies one event; what is being listed anew shows once it is whole.
pub fn apply(nodes: &mut Nodes, fresh: &mut Option<Nodes>, event: Event<String>) -> bool {
    match event {
        Event::Init => {
            *fresh = Some(Nodes::default());
            false
        }
        Event::InitApply(name) => {
            if let Some(fresh) = fresh {
                fresh.names.insert(name);
            }
            false
        }
        Event::InitDone => {
            let listed = fresh.take().unwrap_or_default();
            *nodes = Nodes { complete: true, ..listed };
            true
        }
        Event::Apply(name) => nodes.names.insert(name),
        Event::Delete(name) => nodes.names.remove(&name),
    }
}

impl Kube {
    /// Follows the Nodes for ever: a list in pages of 500, then changes, from
    /// where it stood when a connection breaks, with growing pauses.
    pub async fn watch_nodes(&self, tell: &watch::Sender<Nodes>) {
        let api: Api<PartialObjectMeta<Node>> = Api::all(self.client());
        let events = watcher(api, watcher::Config::default()).backoff(Watch::pauses());
        let mut events = std::pin::pin!(events);
        let (mut nodes, mut fresh) = (Nodes::default(), None);
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    self.note_watch(&error);
                    continue;
                }
            };
            if matches!(event, Event::InitDone) {
                self.heard(LIST, Ok(()));
                self.heard(WATCH, Ok(()));
            }
            if apply(&mut nodes, &mut fresh, name_of(event)) {
                tell.send_replace(nodes.clone());
            }
        }
    }

    fn note_watch(&self, error: &watcher::Error) {
        match error {
            watcher::Error::InitialListFailed(error) => self.heard(LIST, Err(error)),
            watcher::Error::WatchStartFailed(error) => self.heard(WATCH, Err(error)),
            // A connection that ends, or a position that is too old, is ordinary.
            other => tracing::debug!("watching Nodes: {other}"),
        }
    }
}

fn name_of(event: Event<PartialObjectMeta<Node>>) -> Event<String> {
    let name = |node: PartialObjectMeta<Node>| node.metadata.name.unwrap_or_default();
    match event {
        Event::Apply(node) => Event::Apply(name(node)),
        Event::Delete(node) => Event::Delete(name(node)),
        Event::InitApply(node) => Event::InitApply(name(node)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_list_replaces_the_old_one_at_its_end() {
        let (mut nodes, mut fresh) = (Nodes::default(), None);
        let mut play = |event| {
            let news = apply(&mut nodes, &mut fresh, event);
            (news, nodes.complete, nodes.names.iter().cloned().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(play(Event::Init), (false, false, String::new()));
        play(Event::InitApply("a".into()));
        assert_eq!(play(Event::InitDone), (true, true, "a".into()));
        assert_eq!(play(Event::Apply("b".into())), (true, true, "a b".into()));
        assert_eq!(play(Event::Apply("b".into())), (false, true, "a b".into()));
        assert_eq!(play(Event::Init), (false, true, "a b".into()));
        assert_eq!(play(Event::InitApply("b".into())), (false, true, "a b".into()));
        assert_eq!(play(Event::InitDone), (true, true, "b".into()));
        assert_eq!(play(Event::Delete("b".into())), (true, true, String::new()));
    }
}

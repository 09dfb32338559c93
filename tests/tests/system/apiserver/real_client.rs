//! The client that the agent uses, against the server: what one takes for
//! granted, the other must do.

use std::pin::{Pin, pin};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Event as News, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use weft_tests::apiserver::{Verb, objects};
use weft_tests::{ApiServer, Result};

use crate::apiserver::client::PATIENCE;

type NodeMeta = PartialObjectMeta<Node>;

async fn client(server: &ApiServer) -> Result<Client> {
    // Another test of this process may have done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::from_yaml(&server.kubeconfig())?;
    let mut config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.root_cert = Some(Vec::new());
    Ok(Client::try_from(config)?)
}

/// Two letters and the name.
fn told<K: ResourceExt>(event: &Event<K>) -> String {
    match event {
        Event::Apply(object) => format!("+ {}", object.name_any()),
        Event::Delete(object) => format!("- {}", object.name_any()),
        Event::Init => "init".to_owned(),
        Event::InitApply(object) => format!("| {}", object.name_any()),
        Event::InitDone => "done".to_owned(),
    }
}

type Watching<'a> = Pin<&'a mut dyn Stream<Item = watcher::Result<Event<NodeMeta>>>>;

/// The next so many events, and the errors in between.
async fn next(events: &mut Watching<'_>, count: usize) -> Result<(Vec<String>, Vec<String>)> {
    let (mut seen, mut errors) = (Vec::new(), Vec::new());
    while seen.len() < count {
        let event = tokio::time::timeout(PATIENCE, events.next()).await;
        match event.with_context(|| format!("only {seen:?}, {errors:?}"))? {
            Some(Ok(event)) => seen.push(told(&event)),
            Some(Err(error)) => errors.push(error.to_string()),
            None => bail!("the watcher has ended"),
        }
    }
    Ok((seen, errors))
}

fn lists(server: &ApiServer) -> u64 {
    server.counts().of(Verb::List, "nodes").requests
}

#[tokio::test]
async fn a_watcher_lists_follows_and_recovers() -> Result {
    let mut server = ApiServer::builder().token("secret").start()?;
    let put = |server: &ApiServer, name: &str| {
        server.put(&objects::node(name, "192.0.2.1".parse()?)).map(drop)
    };
    for name in ["n1", "n2", "n3", "n4", "n5"] {
        put(&server, name)?;
    }
    let api: Api<NodeMeta> = Api::all(client(&server).await?);
    let config = watcher::Config::default().page_size(2);
    let mut events: Watching<'_> = pin!(watcher(api, config).default_backoff());
    let (seen, errors) = next(&mut events, 7).await?;
    ensure!(seen == ["init", "| n1", "| n2", "| n3", "| n4", "| n5", "done"] && errors.is_empty());
    ensure!(lists(&server) == 3, "in pages: {}", server.counts());
    let whole = |logged: &weft_tests::apiserver::Logged| !logged.accept.contains("Partial");
    ensure!(!server.requests().iter().any(whole), "metadata alone: {:?}", server.requests());

    put(&server, "n6")?;
    server.delete("nodes", "", "n6")?;
    ensure!(next(&mut events, 2).await?.0 == ["+ n6", "- n6"]);

    // Cut: it goes on where it was.
    let watched = server.counts().of(Verb::Watch, "nodes").requests;
    server.cut_watches();
    put(&server, "n7")?;
    ensure!(next(&mut events, 1).await?.0 == ["+ n7"]);
    // The event may have made it before the cut: then the next one comes by a new watch.
    if server.counts().of(Verb::Watch, "nodes").requests == watched {
        server.put(&objects::node("n7", "192.0.2.2".parse()?))?;
        ensure!(next(&mut events, 1).await?.0 == ["+ n7"]);
    }
    ensure!(server.counts().of(Verb::Watch, "nodes").requests > watched && lists(&server) == 3);

    // Away: the same.
    server.stop()?;
    put(&server, "n8")?;
    server.resume()?;
    ensure!(next(&mut events, 1).await?.0 == ["+ n8"] && lists(&server) == 3);

    // Away for too long: a new list, once.
    server.stop()?;
    server.delete("nodes", "", "n1")?;
    server.compact();
    server.resume()?;
    let (seen, errors) = next(&mut events, 8).await?;
    ensure!(seen == ["init", "| n2", "| n3", "| n4", "| n5", "| n7", "| n8", "done"], "{seen:?}");
    ensure!(errors.iter().any(|error| error.contains("too old")), "{errors:?}");
    ensure!(lists(&server) == 6, "{}", server.counts());

    // A bookmark is a position that outlives compaction.
    put(&server, "n9")?;
    ensure!(next(&mut events, 1).await?.0 == ["+ n9"]);
    let sent = || server.counts().of(Verb::Watch, "nodes").bytes;
    let before = sent();
    server.compact();
    server.bookmark();
    let marked = async {
        while sent() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, marked).await?;
    server.cut_watches();
    put(&server, "n10")?;
    ensure!(next(&mut events, 1).await?.0 == ["+ n10"] && lists(&server) == 6);
    Ok(())
}

#[tokio::test]
async fn one_of_many_creates_wins() -> Result {
    let server = ApiServer::start()?;
    let maps: Api<ConfigMap> = Api::namespaced(client(&server).await?, "kube-system");
    let founder = |number: usize| {
        let maps = maps.clone();
        async move {
            let map =
                json!({"metadata": {"name": "weft"}, "data": {"founder": number.to_string()}});
            let map: ConfigMap = serde_json::from_value(map)?;
            match maps.create(&PostParams::default(), &map).await {
                Ok(_) => Ok(Some(number)),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
                Err(error) => bail!("{error}"),
            }
        }
    };
    let mut winners = Vec::new();
    for result in futures_util::future::join_all((0..20).map(founder)).await {
        winners.extend(result?);
    }
    let kept = maps.get("weft").await?;
    let data = kept.data.clone().unwrap_or_default();
    ensure!(winners.len() == 1 && data["founder"] == winners[0].to_string(), "{winners:?}");

    // Who is late with a replacement is told.
    let mut first = kept.clone();
    first.data.get_or_insert_default().insert("founded".to_owned(), "true".to_owned());
    maps.replace("weft", &PostParams::default(), &first).await?;
    let late = maps.replace("weft", &PostParams::default(), &kept).await;
    let Err(kube::Error::Api(status)) = late else { bail!("a stale write was taken") };
    ensure!(status.code == 409 && status.reason == "Conflict", "{status:?}");
    Ok(())
}

#[tokio::test]
async fn conditions_and_events_arrive() -> Result {
    let server = ApiServer::start()?;
    server.put(&objects::node("n1", "192.0.2.1".parse()?))?;
    let client = client(&server).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = json!({
        "metadata": {"annotations": {"weft.io/underlay": "192.0.2.1"}},
        "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]},
    });
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Strategic(patch)).await?;
    let node = server.get("nodes", "", "n1")?.context("no node")?;
    let network = objects::condition(&node, "NetworkUnavailable").context("no condition")?;
    ensure!(network["status"] == "False" && objects::condition(&node, "Ready").is_some());
    ensure!(node["metadata"]["annotations"]["weft.io/underlay"] == "192.0.2.1");

    let reporter = Reporter { controller: "weft".into(), instance: Some("n1".into()) };
    let recorder = Recorder::new(client, reporter);
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some("n1".into()),
        ..ObjectReference::default()
    };
    let news = News {
        type_: EventType::Warning,
        reason: "RangeOverlap".into(),
        note: Some("the range overlaps".into()),
        action: "Raised".into(),
        secondary: None,
    };
    for _ in 0..3 {
        recorder.publish(&news, &about).await?;
    }
    let seen = server.events()?;
    ensure!(seen.len() == 1 && seen[0].count == 3, "the same again is counted: {seen:?}");
    let about = ("Node".to_owned(), "n1".to_owned());
    ensure!(seen[0].reason == "RangeOverlap" && seen[0].about == about, "{seen:?}");
    ensure!(seen[0].note == "the range overlaps" && seen[0].kind == "Warning", "{seen:?}");
    Ok(())
}

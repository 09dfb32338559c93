//! LIST, WATCH, and in what form.

use anyhow::{Context, ensure};
use serde_json::json;
use weft_tests::apiserver::objects;
use weft_tests::{ApiServer, Result, wait_until};

use crate::apiserver::client::{JSON, PATIENCE, get, names, send, watch};

const PARTIAL: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

#[test]
fn lists_in_pages_of_one_version() -> Result {
    let server = ApiServer::start()?;
    for number in 1..=5 {
        let app = if number % 2 == 0 { "even" } else { "odd" };
        let node = format!("n{number}");
        let pod = objects::pod("default", &format!("p{number}")).label("app", app).node(&node);
        server.put(&pod.build())?;
    }
    let pods = "/api/v1/pods";
    let first = get(&server, &format!("{pods}?limit=2"))?;
    ensure!(names(&first) == ["p1", "p2"] && first["metadata"]["remainingItemCount"] == 3);
    ensure!(first["kind"] == "PodList" && first["items"][0].get("kind").is_none());
    let token = first["metadata"]["continue"].as_str().context("no token")?;
    // What happens in between is not in the list.
    server.delete("pods", "default", "p3")?;
    server.put(&objects::pod("default", "p9").build())?;
    let second = get(&server, &format!("{pods}?limit=2&continue={token}"))?;
    ensure!(names(&second) == ["p3", "p4"], "{second}");
    ensure!(first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().context("no token")?;
    let third = get(&server, &format!("{pods}?limit=2&continue={token}"))?;
    ensure!(names(&third) == ["p5"] && third["metadata"].get("continue").is_none());

    let version = &first["metadata"]["resourceVersion"].as_str().context("no version")?;
    let exact = format!("{pods}?resourceVersion={version}&resourceVersionMatch=Exact");
    ensure!(names(&get(&server, &exact)?) == ["p1", "p2", "p3", "p4", "p5"]);
    let table: [(String, &[&str]); 6] = [
        ("labelSelector=app%3Dodd".into(), &["p1", "p5"]),
        ("labelSelector=app%20notin%20(odd)".into(), &["p2", "p4", "p9"]),
        ("fieldSelector=spec.nodeName%3Dn4".into(), &["p4"]),
        ("fieldSelector=metadata.name%3Dp9".into(), &["p9"]),
        ("limit=1&resourceVersion=0".into(), &["p1", "p2", "p4", "p5", "p9"]),
        (format!("resourceVersion={version}"), &["p1", "p2", "p4", "p5", "p9"]),
    ];
    for (query, expected) in table {
        let list = get(&server, &format!("{pods}?{query}"))?;
        ensure!(names(&list) == expected, "{query}: {:?}", names(&list));
    }
    let refused = [
        ("fieldSelector=spec.color%3Dred".to_owned(), 400),
        ("labelSelector=a%20b".to_owned(), 400),
        ("limit=x".to_owned(), 400),
        ("continue=nonsense".to_owned(), 400),
        ("resourceVersionMatch=Exact".to_owned(), 400),
        ("resourceVersion=99999".to_owned(), 504),
    ];
    for (query, code) in refused {
        let status = get(&server, &format!("{pods}?{query}"))?;
        ensure!(status["code"] == code, "{query}: {status}");
    }
    server.compact();
    for query in [format!("limit=2&continue={token}"), exact.replace("/api/v1/pods?", "")] {
        let status = get(&server, &format!("{pods}?{query}"))?;
        ensure!(status["code"] == 410 && status["reason"] == "Expired", "{query}: {status}");
    }
    Ok(())
}

#[test]
fn watches() -> Result {
    let server = ApiServer::start()?;
    server.put(&objects::node("n1", "192.0.2.1".parse()?))?;
    let list = get(&server, "/api/v1/nodes")?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no version")?.to_owned();
    let path = format!("/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={version}");
    let mut all = watch(&server, &path)?;
    let mut red = watch(&server, "/api/v1/nodes?watch=1&labelSelector=color%3Dred")?;
    let mut one = watch(&server, "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dn1")?;
    ensure!(one.next(1)?[0].0 == "ADDED", "without a version, what is there comes first");

    let paint = |color: &str| {
        server.edit("nodes", "", "n1", |node| node["metadata"]["labels"]["color"] = json!(color))
    };
    paint("red")?;
    paint("green")?;
    server.put(&objects::node("n2", "192.0.2.2".parse()?))?;
    server.delete("nodes", "", "n1")?;
    let kinds = |events: Vec<(String, String, String)>| -> Vec<String> {
        events.into_iter().map(|(kind, name, _)| format!("{kind} {name}")).collect()
    };
    let events = all.next(4)?;
    ensure!(events[3].2 == server.revision().to_string(), "a deletion has its own version");
    ensure!(kinds(events) == ["MODIFIED n1", "MODIFIED n1", "ADDED n2", "DELETED n1"]);
    ensure!(kinds(red.next(2)?) == ["ADDED n1", "DELETED n1"], "as far as it is selected");
    ensure!(kinds(one.next(3)?) == ["MODIFIED n1", "MODIFIED n1", "DELETED n1"]);
    // What others write moves bookmarks, too.
    server.put(&objects::config_map("default", "m", &[]))?;
    server.bookmark();
    let mark = all.next(1)?;
    ensure!(mark[0].0 == "BOOKMARK" && mark[0].2 == server.revision().to_string(), "{mark:?}");
    ensure!(server.open_watches()["nodes"] == 3);

    // Compaction is nothing to those who watch, but to those who come back.
    server.compact();
    server.put(&objects::node("n3", "192.0.2.3".parse()?))?;
    ensure!(kinds(all.next(1)?) == ["ADDED n3"]);
    let mut late = watch(&server, &path)?;
    let error = late.events()?.context("no event")?.remove(0);
    ensure!(error["type"] == "ERROR" && error["object"]["code"] == 410, "{error}");
    ensure!(late.events()?.is_none(), "a watch ends with its error");

    let mut short = watch(&server, &format!("{}&timeoutSeconds=1", path.replace(&version, "0")))?;
    ensure!(kinds(short.next(2)?) == ["ADDED n2", "ADDED n3"]);
    ensure!(short.next(1)?[0].0 == "BOOKMARK" && short.events()?.is_none());
    let initial = "/api/v1/nodes?watch=1&allowWatchBookmarks=true&sendInitialEvents=true";
    let mut initial = watch(&server, &format!("{initial}&resourceVersionMatch=NotOlderThan"))?;
    let events = initial.events()?.context("no event")?;
    let end = &events[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    ensure!(events.len() == 3 && end == "true", "{events:?}");

    server.cut_watches();
    ensure!(all.events()?.is_none() && red.events()?.is_none());
    drop((one, initial, all, red));
    wait_until("all watches to be closed", PATIENCE, || Ok(server.open_watches().is_empty()))?;
    Ok(())
}

#[test]
fn metadata_alone() -> Result {
    let server = ApiServer::start()?;
    server.put(&objects::node("n1", "192.0.2.1".parse()?))?;
    let ask = |path: &str, accept: &str| {
        send(server.address(), "GET", path, &format!("Accept: {accept}\r\n"), "")
    };
    let list = ask("/api/v1/nodes", &format!("{PARTIAL_LIST}, {JSON}"))?.json()?;
    ensure!(list["kind"] == "PartialObjectMetadataList" && list["apiVersion"] == "meta.k8s.io/v1");
    let item = &list["items"][0];
    ensure!(item["kind"] == "PartialObjectMetadata" && item["metadata"]["name"] == "n1");
    ensure!(item.get("status").is_none() && item.get("spec").is_none(), "{item}");
    let one = ask("/api/v1/nodes/n1", PARTIAL)?.json()?;
    ensure!(one == *item);
    let mut events = ask("/api/v1/nodes?watch=1", PARTIAL)?;
    let event = events.events()?.context("no event")?.remove(0);
    ensure!(event["object"] == *item, "{event}");
    let refused = ask("/api/v1/nodes", "application/vnd.kubernetes.protobuf")?;
    ensure!(refused.code == 406);
    Ok(())
}

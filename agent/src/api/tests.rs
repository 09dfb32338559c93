pub(crate) mod fake;
mod weave_routes;

use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, Server};
use serde_json::Value;
use weft_proto::api::ApiError;

use super::{Limits, serve_metrics, serve_status};
use crate::config::Callers;

#[tokio::test]
async fn changes_need_the_token() {
    let server = Server::start(Callers::Token).await;
    let changes = [
        ("POST", "/ip/a"),
        ("POST", "/ip/a/10.32.0.0/24"),
        ("PUT", "/ip/a/10.32.0.9/12"),
        ("DELETE", "/ip/a"),
        ("DELETE", "/ip/a/10.32.0.9"),
        ("POST", "/connect?peer=x"),
        ("POST", "/forget?peer=x"),
        ("POST", "/expose/10.32.0.1/12"),
        ("DELETE", "/peer"),
        ("DELETE", "/peer/x"),
        ("POST", "/v1/attachments"),
        ("DELETE", "/v1/attachments/a/eth0"),
        ("POST", "/v1/gc"),
        ("DELETE", "/v1/peers/x"),
        ("POST", "/v1/ranges"),
        ("POST", "/v1/recover?yes-i-accept-the-loss=true"),
    ];
    let wrong = format!("x-weft-token: {}\r\n", "0".repeat(64));
    let bearer = format!("Authorization: Bearer {}\r\n", "0".repeat(64));
    for (method, path) in changes {
        for headers in ["", "x-weft-token: \r\n", "x-weft-token: short\r\n", &wrong, &bearer] {
            let reply = server.send(method, path, headers, "").await;
            assert_eq!(reply.code, 403, "{method} {path} {headers}");
            if path.starts_with("/v1/") {
                let error: ApiError = serde_json::from_str(&reply.body).unwrap();
                assert_eq!(error.error, "forbidden");
                assert!(error.message.contains("x-weft-token"));
            }
        }
    }
    assert_eq!(server.fake.calls(), Vec::<String>::new());
    let token = server.token.reveal();
    let reply =
        server.send("POST", "/ip/a", &format!("Authorization: Bearer {token}\r\n"), "").await;
    assert_eq!(reply.code, 200);
    assert_eq!(server.stats.snapshot().refused["token"], 80);
}

#[tokio::test]
async fn any_caller_may_use_ip_routes_if_so_configured() {
    let server = Server::start(Callers::Any).await;
    assert_eq!(server.send("POST", "/ip/a", "", "").await.code, 200);
    assert_eq!(server.send("DELETE", "/ip/a", "", "").await.code, 204);
    assert_eq!(server.send("DELETE", "/peer/dead", "", "").await.code, 403);
    assert_eq!(server.send("POST", "/ipx", "", "").await.code, 403);
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let server = Server::start(Callers::Any).await;
    for host in ["evil.example", "evil.example:6784", "127.0.0.1.evil.example", ""] {
        let head = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(server.raw(head.as_bytes()).await.code, 403, "{host}");
    }
    let none = b"GET /status HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(none).await.code, 400);
    let two = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(two).await.code, 400);
    let absolute =
        b"GET http://evil.example/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(absolute).await.code, 403);
    let origin = "Origin: http://127.0.0.1:6784\r\n";
    assert_eq!(server.send("GET", "/status", origin, "").await.code, 403);
    assert_eq!(server.send("POST", "/ip/a", origin, "").await.code, 403);
    for host in ["localhost", "[::1]:6784", "10.0.0.1"] {
        let head = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(server.raw(head.as_bytes()).await.code, 200, "{host}");
    }
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_are_cut_off() {
    let limits = Limits {
        header_timeout: Duration::from_millis(100),
        body_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::with(Callers::Any, limits).await;
    // Half a head, or nothing at all, and then silence: the server ends it.
    for start in ["", "GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "] {
        let answer = server.until_closed(start.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    // A connection kept alive and not used again.
    let whole = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    assert!(server.until_closed(whole.as_bytes()).await.starts_with("HTTP/1.1 200"));
    let half = "POST /connect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n";
    let half = format!("{half}x-weft-token: {}\r\n\r\npeer", server.token.reveal());
    let answer = server.until_closed(half.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(server.fake.calls().is_empty());
    assert_eq!(server.send("GET", "/healthz", "", "").await.code, 200);
}

#[tokio::test]
async fn large_bodies_and_heads_are_refused() {
    let server = Server::start(Callers::Any).await;
    let body = "x".repeat(64 * 1024 + 1);
    for path in ["/v1/attachments", "/v1/gc", "/v1/ranges", "/connect", "/forget"] {
        assert_eq!(server.call("POST", path, &body).await.code, 413, "{path}");
    }
    let keys: Vec<_> =
        (0..450).map(|n| format!(r#"{{"container_id":"{n:064}","ifname":"eth0"}}"#)).collect();
    let keep = format!(r#"{{"keep":[{}]}}"#, keys.join(","));
    assert_eq!(server.call("POST", "/v1/gc", &keep).await.code, 200, "{}", keep.len());
    // Announced and never sent.
    let head = format!(
        "POST /v1/gc HTTP/1.1\r\nHost: 127.0.0.1\r\nx-weft-token: {}\r\nContent-Length: 99999999999\r\n\r\n",
        server.token.reveal()
    );
    let answer = server.until_closed(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let long = format!("GET /{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "a".repeat(20_000));
    assert!(matches!(server.raw(long.as_bytes()).await.code, 0 | 414 | 431));
    let many = "X: y\r\n".repeat(100);
    assert!(matches!(server.send("GET", "/status", &many, "").await.code, 0 | 431));
    for garbage in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        assert!(matches!(server.raw(garbage.as_bytes()).await.code, 0 | 400 | 505), "{garbage:?}");
    }
    assert!(server.fake.calls().is_empty());
}

#[tokio::test]
async fn too_many_connections_are_closed_at_once() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let server = Server::with(Callers::Any, limits).await;
    let first = server.connect().await;
    let second = server.connect().await;
    fake::eventually(|| server.stats.snapshot().connections == 2).await;
    assert_eq!(server.until_closed(b"").await, "");
    assert_eq!(server.stats.snapshot().refused["connections"], 1);
    drop((first, second));
    fake::eventually(|| server.stats.snapshot().connections == 0).await;
    assert_eq!(server.send("GET", "/healthz", "", "").await.code, 200);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_forgotten_at_once() {
    let server = Server::start(Callers::Any).await;
    let body = r#"{"container_id":"hang","ifname":"eth0"}"#;
    for (method, path, body) in
        [("POST", "/ip/hang", ""), ("GET", "/ring?wait=60", ""), ("POST", "/v1/attachments", body)]
    {
        let stream = server.begin(method, path, body).await;
        fake::eventually(|| server.fake.waiting() == 1).await;
        drop(stream);
        fake::eventually(|| server.fake.waiting() == 0).await;
    }
    fake::eventually(|| server.stats.snapshot().refused.get("hung_up") == Some(&3)).await;
}

#[tokio::test]
async fn waits_are_bounded() {
    let server = Server::start(Callers::Any).await;
    for (method, path) in [
        ("POST", "/ip/hang?wait=10ms"),
        ("POST", "/ip/hang/10.32.0.0/24?wait=10ms"),
        ("PUT", "/ip/hang/10.32.0.9/12?wait=10ms"),
        ("GET", "/ring?wait=10ms"),
    ] {
        let reply = server.call(method, path, "").await;
        assert_eq!((reply.code, reply.header("retry-after")), (503, Some("5")), "{path}");
        assert!(reply.body.contains("no answer within 10ms") && reply.body.ends_with('\n'));
        assert_eq!(server.fake.waiting(), 0);
    }
    let body = r#"{"container_id":"hang","ifname":"eth0","wait_ms":10}"#;
    let reply = server.call("POST", "/v1/attachments", body).await;
    assert_eq!((reply.code, reply.header("retry-after")), (503, Some("5")));
    let error: ApiError = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((error.error.as_str(), error.retry_after_ms), ("not_ready", Some(5000)));
    assert_eq!(server.call("POST", "/ip/hang?wait=soon", "").await.code, 400);
}

#[tokio::test]
async fn a_request_that_runs_too_long_is_given_up() {
    let limits = Limits { request_deadline: Duration::from_millis(50), ..Limits::default() };
    let server = Server::with(Callers::Any, limits).await;
    let reply = server.call("POST", "/ip/hang?wait=60", "").await;
    assert_eq!(reply.code, 503);
    assert_eq!(server.fake.waiting(), 0);
}

#[tokio::test]
async fn attachments() {
    let server = Server::start(Callers::Token).await;
    let body = r#"{"container_id":"c1","ifname":"eth0","wait_ms":9999999}"#;
    let reply = server.call("POST", "/v1/attachments", body).await;
    assert_eq!(reply.code, 200, "{}", reply.body);
    let json: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((&json["container_id"], &json["addresses"][0]), (&"c1".into(), &"10.32.0.5".into()));
    assert_eq!(server.fake.calls(), ["attach c1/eth0 wait 20000"]);
    let again = server.call("GET", "/v1/attachments/c1/eth0", "").await;
    assert_eq!(again.code, 200);
    // An id with a slash, percent-encoded.
    let odd = server.call("GET", "/v1/attachments/a%2Fb%20c/eth0", "").await;
    assert_eq!((odd.code, odd.body.contains("a/b c/eth0")), (404, true), "{}", odd.body);
    assert_eq!(server.call("GET", "/v1/attachments/%ff/eth0", "").await.code, 400);
    assert!(server.call("GET", "/v1/attachments", "").await.body.starts_with("[{"));
    assert_eq!(server.call("DELETE", "/v1/attachments/c1/eth0", "").await.code, 204);
    let gone = server.call("DELETE", "/v1/attachments/c1/eth0", "").await;
    assert_eq!((gone.code, gone.error().as_str()), (404, "not_found"));
    let reply = server.call("POST", "/v1/gc", r#"{"keep":[]}"#).await;
    assert_eq!((reply.code, reply.body.as_str()), (200, r#"{"released":[]}"#));
    for (body, word) in [
        ("", "not as expected"),
        ("[]", "not as expected"),
        (r#"{"container_id":"c1"}"#, "ifname"),
        (r#"{"container_id":"","ifname":"eth0"}"#, "container_id"),
        (r#"{"container_id":"a b","ifname":"eth0"}"#, "container_id"),
        (r#"{"container_id":"c1","ifname":"a/b"}"#, "ifname"),
        (r#"{"container_id":"c1","ifname":"sixteen-letters-"}"#, "ifname"),
    ] {
        let reply = server.call("POST", "/v1/attachments", body).await;
        assert_eq!((reply.code, reply.error().as_str()), (400, "bad_request"), "{body}");
        assert!(reply.body.contains(word), "{}", reply.body);
    }
}

#[tokio::test]
async fn backend_errors_have_their_codes() {
    let server = Server::start(Callers::Token).await;
    for (id, code, word) in [
        ("exhausted", 503, "exhausted"),
        ("notready", 503, "not_ready"),
        ("notfound", 404, "not_found"),
        ("conflict", 409, "conflict"),
        ("bad", 400, "bad_request"),
        ("internal", 500, "internal"),
    ] {
        let body = format!(r#"{{"container_id":"{id}","ifname":"eth0"}}"#);
        let reply = server.call("POST", "/v1/attachments", &body).await;
        assert_eq!((reply.code, reply.error().as_str()), (code, word));
        assert_eq!(reply.header("retry-after").is_some(), code == 503);
    }
}

#[tokio::test]
async fn v1_rest() {
    let server = Server::start(Callers::Token).await;
    let ready: Value =
        serde_json::from_str(&server.call("GET", "/v1/ready", "").await.body).unwrap();
    assert_eq!(ready["ready"], true);
    let status = server.call("GET", "/v1/status", "").await;
    let status: weft_proto::api::Status = serde_json::from_str(&status.body).unwrap();
    assert_eq!(status.ipam, crate::status::sample::status().ipam);
    assert_eq!(server.call("GET", "/v1/config", "").await.body, r#"{"values":[]}"#);
    assert_eq!(
        server.call("DELETE", "/v1/peers/dead", "").await.body,
        r#"{"addresses":64,"peer":"dead"}"#
    );
    assert_eq!(server.call("DELETE", "/v1/peers/live", "").await.code, 409);
    assert_eq!(server.call("DELETE", "/v1/peers/live?force=true", "").await.code, 200);
    assert_eq!(server.call("DELETE", "/v1/peers/nobody", "").await.code, 404);
    assert_eq!(server.call("POST", "/v1/ranges", r#"{"range":"10.96.0.0/16"}"#).await.code, 204);
    for bad in ["10.96.0.1/16", "x", "127.0.0.0/8"] {
        let reply = server.call("POST", "/v1/ranges", &format!(r#"{{"range":"{bad}"}}"#)).await;
        assert_eq!((reply.code, reply.error().as_str()), (400, "bad_request"));
    }
    for bad in ["", "?yes-i-accept-the-loss", "?yes-i-accept-the-loss=yes", "?yes=true"] {
        let reply = server.call("POST", &format!("/v1/recover{bad}"), "").await;
        assert_eq!((reply.code, reply.error().as_str()), (400, "bad_request"), "{bad}");
    }
    let reply = server.call("POST", "/v1/recover?yes-i-accept-the-loss=true", "").await;
    assert_eq!((reply.code, reply.body.as_str()), (200, r#"{"position":7}"#));
    let reply = server.call("GET", "/v1/nothing", "").await;
    assert_eq!((reply.code, reply.error().as_str()), (404, "not_found"));
    assert_eq!(server.call("PUT", "/v1/status", "").await.code, 405);
}

#[tokio::test]
async fn other_listeners_only_read() {
    let fake = Arc::new(Fake::default());
    let status =
        Server::listen(Arc::clone(&fake), |listener, backend, limits, stats, stop| async move {
            serve_status(listener, backend, limits, stats, stop).await;
        })
        .await;
    for path in ["/status", "/status/ipam", "/report", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(status.call("GET", path, "").await.code, 200, "{path}");
    }
    for path in ["/ip/a", "/v1/attachments", "/peer/dead", "/v1/config"] {
        assert_eq!(status.call("POST", path, "").await.code, 404, "{path}");
        assert_eq!(status.call("DELETE", path, "").await.code, 404, "{path}");
    }
    let metrics =
        Server::listen(Arc::clone(&fake), |listener, backend, limits, stats, stop| async move {
            serve_metrics(listener, backend, limits, stats, stop).await;
        })
        .await;
    // Scraped by name from elsewhere.
    let head = b"GET /metrics HTTP/1.1\r\nHost: node-1.example:6782\r\nConnection: close\r\n\r\n";
    let reply = metrics.raw(head).await;
    assert_eq!(reply.code, 200);
    assert!(reply.header("content-type").is_some_and(|v| v.contains("version=0.0.4")));
    let series = crate::status::tests::check_metrics(&reply.body);
    assert!(series.iter().any(|s| s == "weave_max_ips"));
    assert_eq!(metrics.call("GET", "/status", "").await.code, 404);
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn shutdown_ends_service() {
    let mut server = Server::start(Callers::Any).await;
    let _idle = server.connect().await;
    let hanging = server.begin("POST", "/ip/hang?wait=60", "").await;
    fake::eventually(|| server.fake.waiting() == 1).await;
    server.stop().await;
    assert_eq!(server.fake.waiting(), 0);
    drop(hanging);
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

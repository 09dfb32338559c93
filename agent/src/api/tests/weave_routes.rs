//! Weave's routes, one line each: method, path, code, body.

use super::fake::{Server, eventually};
use crate::config::Callers;

const PLAIN: &str = "text/plain; charset=utf-8";

/// `None`: the body is looked at elsewhere.
const ROUTES: &[(&str, &str, u16, Option<&str>)] = &[
    ("POST", "/ip/c1", 200, Some("10.32.0.5/12")),
    ("POST", "/ip/c1?check-alive=true", 200, Some("10.32.0.5/12")),
    ("POST", "/ip/weave:expose", 200, Some("10.32.0.5/12")),
    ("POST", "/ip/_", 200, Some("10.32.0.5/12")),
    ("POST", "/ip/c1/10.32.1.0/24", 200, Some("10.32.0.5/24")),
    (
        "POST",
        "/ip/c1/10.32.1.1/24",
        400,
        Some("invalid subnet - bits after network prefix are not all zero: 10.32.1.1/24\n"),
    ),
    (
        "POST",
        "/ip/c1/10.32.1.0/31",
        400,
        Some("invalid subnet - smaller than minimum size 4: 10.32.1.0/31\n"),
    ),
    ("POST", "/ip/c1/10.32.1.0/x", 400, Some("invalid CIDR address: 10.32.1.0/x\n")),
    ("POST", "/ip/bad", 400, Some("bad: because\n")),
    ("POST", "/ip/conflict", 400, Some("conflict: because\n")),
    ("POST", "/ip/internal", 500, Some("internal: because\n")),
    ("POST", "/ip/exhausted", 503, Some("exhausted: because\n")),
    ("POST", "/ip/notready", 503, Some("notready: because\n")),
    (
        "POST",
        "/ip/a%20b",
        400,
        Some("invalid id: 1 to 255 characters without blanks are expected\n"),
    ),
    ("GET", "/ip/two", 200, Some("10.32.0.5/12 10.32.0.6/12")),
    ("GET", "/ip/c1", 200, Some("")),
    ("GET", "/ip/c1/10.32.1.0/24", 200, Some("")),
    ("GET", "/ip/c1/10.32.1.7/24", 400, None),
    (
        "GET",
        "/ip",
        200,
        Some(r#"{"owned":[{"addrs":["10.32.0.1/12"],"containerid":"weave:expose"}]}"#),
    ),
    ("PUT", "/ip/c1/10.32.0.9/12", 204, Some("")),
    ("PUT", "/ip/conflict/10.32.0.9/12", 400, Some("Unable to claim: conflict: because\n")),
    ("PUT", "/ip/_/10.32.0.99/12", 204, Some("")),
    ("PUT", "/ip/notready/10.32.0.9/12", 503, Some("Unable to claim: notready: because\n")),
    ("PUT", "/ip/notready/10.32.0.9/12?noErrorOnUnknown=true", 204, Some("")),
    ("PUT", "/ip/c1/10.32.0.9/33", 400, Some("invalid CIDR address: 10.32.0.9/33\n")),
    ("DELETE", "/ip/c1", 204, Some("")),
    ("DELETE", "/ip/none", 400, Some("Delete: no addresses for none\n")),
    ("DELETE", "/ip/notfound", 400, Some("Delete: no addresses for notfound\n")),
    ("DELETE", "/ip/c1/10.32.0.9", 204, Some("")),
    (
        "DELETE",
        "/ip/notfound/10.32.0.9",
        400,
        Some("Unable to free: Free: address 10.32.0.9 not found for notfound\n"),
    ),
    ("DELETE", "/ip/c1/10.32.0", 400, None),
    ("GET", "/ipinfo/defaultsubnet", 200, Some("10.32.0.0/12")),
    ("GET", "/ipinfo/tracker", 200, Some("\n")),
    ("GET", "/ring", 200, Some("")),
    ("POST", "/connect?peer=a&peer=b:6783&replace=true", 200, Some("")),
    ("POST", "/connect?peer=a&peer=%21x&peer=%21y", 400, Some("bad target !x\nbad target !y\n")),
    ("POST", "/forget?peer=nobody", 200, Some("")),
    ("POST", "/expose/10.32.0.1/12", 204, Some("")),
    ("POST", "/expose/10.32.0.1/12?skipNAT=true", 204, Some("")),
    ("POST", "/expose/10.32.0.1/99", 400, None),
    ("DELETE", "/peer", 204, Some("")),
    ("DELETE", "/peer/dead", 200, Some("64 IPs taken over from dead")),
    ("DELETE", "/peer/live", 409, Some("live is alive\n")),
    ("DELETE", "/peer/live?force=true", 200, Some("64 IPs taken over from live")),
    ("DELETE", "/peer/nobody", 404, Some("nobody: because\n")),
    ("GET", "/status", 200, None),
    ("GET", "/status/targets", 200, None),
    ("GET", "/status/connections", 200, None),
    ("GET", "/status/peers", 200, None),
    ("GET", "/status/ipam", 200, None),
    ("GET", "/status/dns", 404, Some("404 page not found\n")),
    ("GET", "/report", 200, None),
    ("GET", "/report?format=%7B%7B.Ready%7D%7D", 400, None),
    ("GET", "/metrics", 200, None),
    ("GET", "/healthz", 200, Some("ok\n")),
    ("GET", "/readyz", 200, Some("ok\n")),
    ("GET", "/nothing", 404, Some("404 page not found\n")),
    ("GET", "/", 404, Some("404 page not found\n")),
    ("GET", "/debug/pprof/", 404, Some("404 page not found\n")),
    ("PATCH", "/ip/c1", 405, Some("")),
    ("HEAD", "/status", 405, Some("")),
    ("POST", "/status", 405, Some("")),
    ("GET", "/connect", 405, Some("")),
    ("PUT", "/peer/x", 405, Some("")),
];

#[tokio::test]
async fn every_route_has_weaves_code_and_text() {
    let server = Server::start(Callers::Token).await;
    for (method, path, code, body) in ROUTES {
        let reply = server.call(method, path, "").await;
        assert_eq!(reply.code, *code, "{method} {path}: {}", reply.body);
        if let Some(body) = body {
            assert_eq!(reply.body, *body, "{method} {path}");
        }
        if *code == 400 {
            assert_eq!(reply.header("content-type"), Some(PLAIN), "{path}");
            assert!(reply.body.ends_with('\n'), "{path}");
        }
        assert_eq!(reply.header("retry-after"), (*code == 503).then_some("5"), "{path}");
        assert_ne!(reply.body, "cancelled");
    }
}

#[tokio::test]
async fn forms_are_read_from_query_and_body() {
    let server = Server::start(Callers::Token).await;
    server.call("POST", "/connect?peer=a", "peer=b%3A6783&replace=true\n").await;
    server.call("POST", "/forget", "peer=a&peer=b").await;
    assert_eq!(server.call("POST", "/expose/10.32.0.1/12", "skipNAT=maybe").await.code, 400);
    server.call("POST", "/expose/10.32.0.1/12", "skipNAT=true").await;
    assert_eq!(
        server.fake.calls(),
        [r#"connect ["a", "b:6783"] true"#, r#"forget ["a", "b"]"#, "expose 10.32.0.1/12 true"]
    );
}

#[tokio::test]
async fn a_relaxed_claim_goes_on_in_the_background() {
    let server = Server::start(Callers::Token).await;
    let path = "/ip/notready/10.32.0.9/12?noErrorOnUnknown=true";
    assert_eq!(server.call("PUT", path, "").await.code, 204);
    let mut seen = 0;
    while seen < 2 {
        seen += server.fake.calls().len();
        eventually(|| true).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn report_is_json() {
    let server = Server::start(Callers::Token).await;
    for headers in ["", "Accept: application/json\r\n", "Accept: */*\r\n"] {
        let reply = server.send("GET", "/report", headers, "").await;
        assert_eq!((reply.code, reply.header("content-type")), (200, Some("application/json")));
        let json: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(json["Router"]["NickName"], "n1");
    }
    assert_eq!(server.send("GET", "/report", "Accept: text/html\r\n", "").await.code, 406);
}

/// The text is there either way; the code is for probes.
#[tokio::test]
async fn status_is_a_readiness_probe() {
    let server = Server::start(Callers::Token).await;
    let ready = server.call("GET", "/status", "").await;
    server.fake.unready.store(true, std::sync::atomic::Ordering::Relaxed);
    let unready = server.call("GET", "/status", "").await;
    assert_eq!((ready.code, unready.code), (200, 503));
    assert_eq!(ready.body.trim_end(), unready.body.trim_end());
    assert_eq!(unready.header("retry-after"), Some("5"));
    // A process that waits is not to be killed for it.
    assert_eq!(server.call("GET", "/healthz", "").await.code, 200);
}

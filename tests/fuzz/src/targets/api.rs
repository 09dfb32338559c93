//! HTTP, on both sides of the local API.

use std::sync::Arc;

use weft_agent::api::{Token, fuzzing::serve_bytes};
use weft_agent::config::Callers;

use super::backend::Counting;

/// What an input writes where the token belongs.
const MARK: &[u8] = b"$TOKEN";

pub(super) fn requests() -> Vec<Vec<u8>> {
    const BODY: &str = r#"{"container_id":"a","ifname":"eth0","netns":"/x","args":{"a":"b"},"port_mappings":[{"hostPort":80,"containerPort":80}],"wait_ms":1}"#;
    let posts = [
        ("/v1/attachments", BODY),
        ("/v1/gc", r#"{"keep":[{"container_id":"a","ifname":"eth0"}]}"#),
        ("/v1/ranges", r#"{"range":"10.0.0.0/8"}"#),
        ("/v1/recover", "{}"),
        ("/ip/x", ""),
        ("/connect", "peer=192.0.2.1&replace=true"),
        ("/forget", "peer=192.0.2.1"),
        ("/expose/10.32.0.1/12?skipNAT=1", ""),
    ];
    let others = [
        ("PUT", "/ip/x/10.32.0.9/12?noErrorOnUnknown=true"),
        ("DELETE", "/ip/x"),
        ("DELETE", "/ip/x/10.32.0.9"),
        ("DELETE", "/peer"),
        ("DELETE", "/peer/n2?force=1"),
        ("DELETE", "/v1/peers/n2?force=true"),
        ("DELETE", "/v1/attachments/a/eth0"),
        ("GET", "/v1/attachments"),
        ("GET", "/v1/policy/explain?from=a/b&to=10.0.0.1&protocol=TCP&port=80"),
        ("GET", "/ring?wait=1s"),
        ("GET", "/metrics"),
        ("GET", "/status/peers"),
        ("GET", "/report?format=%7B%7Bx%7D%7D"),
        ("OPTIONS", "/v1/attachments"),
    ];
    let head = "Host: 127.0.0.1:6784\r\nx-weft-token: $TOKEN\r\n";
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (path, body) in posts {
        let length = body.len();
        out.push(
            format!("POST {path} HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n{body}").into(),
        );
    }
    out.extend(
        others.map(|(method, path)| format!("{method} {path} HTTP/1.1\r\n{head}\r\n").into()),
    );
    out.push(b"GET /status HTTP/1.0\r\n\r\n".to_vec());
    out.push(
        format!(
            "POST /v1/gc HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
        )
        .into(),
    );
    out.push(
        b"GET /status HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n".into(),
    );
    out
}

thread_local! {
    static RUNTIME: Option<tokio::runtime::Runtime> =
        tokio::runtime::Builder::new_current_thread().enable_all().build().ok();
}

fn serve(callers: Callers, token: &Token, bytes: &[u8]) -> (Vec<u8>, usize) {
    let backend = Arc::new(Counting::default());
    let answer = RUNTIME.with(|runtime| {
        let work = serve_bytes(backend.clone(), token.clone(), callers, bytes);
        runtime.as_ref().map(|runtime| runtime.block_on(work)).unwrap_or_default()
    });
    (answer, backend.changes())
}

/// The bytes of one connection to the local API. Without the token nothing changes,
/// nor with it for a foreign host or a web page; nothing breaks the server.
pub(super) fn server(bytes: &[u8]) {
    let Ok(token) = Token::random() else { return };
    let (answer, changes) = serve(Callers::Token, &token, bytes);
    assert_eq!(changes, 0, "something changed without the token");
    well_formed(&answer);

    let with_token = replace(bytes, MARK, token.reveal().as_bytes());
    let (answer, changes) = serve(Callers::Token, &token, &with_token);
    well_formed(&answer);
    let lower = with_token.to_ascii_lowercase();
    let says = |text: &[u8]| lower.windows(text.len()).any(|w| w == text);
    if changes > 0 {
        assert!(says(token.reveal().as_bytes()), "it needs the token");
    }
    // One request, from a page or for another name: refused with the token too.
    if lower.starts_with(b"get ") || lower.starts_with(b"post ") || lower.starts_with(b"delete ") {
        let mut page = Vec::new();
        let end = with_token.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        page.extend(&with_token[..end]);
        page.extend(b"Origin: http://127.0.0.1:6784\r\nConnection: close\r\n");
        page.extend(&with_token[end..]);
        let first = changes_of_first(&token, &page);
        assert_eq!(first, 0, "a web page changed something");
    }
}

/// What the first request of a connection changes: more may follow it in the input.
fn changes_of_first(token: &Token, bytes: &[u8]) -> usize {
    serve(Callers::Token, token, bytes).1
}

fn replace(bytes: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|w| w == what) {
        out.extend(&rest[..at]);
        out.extend(by);
        rest = &rest[at + what.len()..];
    }
    out.extend(rest);
    out
}

/// Nothing at all, or answers that begin as such and are no failure of the server.
fn well_formed(answer: &[u8]) {
    if answer.is_empty() {
        return;
    }
    assert!(answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(answer));
    let code = answer.get(9..12).unwrap_or_default();
    assert_ne!(code, b"500", "{}", String::from_utf8_lossy(answer));
}

pub(super) fn answers() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;x\r\n!\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nall",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// An answer to the plugin. It may come in any pieces: what is complete stays so,
/// and what is refused is refused whatever follows.
pub(super) fn client(bytes: &[u8]) {
    const LONGEST: usize = (1 << 20) + (16 << 10);
    let whole = weft_cni_shim::fuzzing::parse(bytes, true);
    if let Ok(Some(response)) = &whole {
        assert!((200..=599).contains(&response.status));
        assert!(response.body.len() <= bytes.len() && response.body.len() <= LONGEST);
    }
    assert!(!matches!(whole, Ok(None)), "closed is the end");
    let mut done = None;
    for cut in 0..=bytes.len() {
        match (weft_cni_shim::fuzzing::parse(&bytes[..cut], false), &done) {
            (Ok(Some(response)), None) => done = Some(response),
            (Ok(Some(response)), Some(first)) => assert_eq!(&response, first),
            (_, Some(_)) => unreachable!("what was complete no longer is"),
            (Ok(None), None) => {}
            (Err(e), None) => {
                assert!(e.to_string().len() > 10);
                break;
            }
        }
    }
    let segment = weft_cni_shim::fuzzing::segment(&String::from_utf8_lossy(bytes));
    assert!(segment.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'?'));
}

//! TLS with a server of our own; its certificates, valid until 2126, are made with
//! `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use super::*;
use crate::kube::connect::through;
use crate::kube::reach::Reach;

const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUPdi6qgtn7mzR0EwSpcMPCyxZJq0wCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdC1jYTAgFw0yNjExMjEyMzAxNDFaGA8yMTI2MTAyODIz
MDE0MVowEjEQMA4GA1UEAwwHdGVzdC1jYTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABDiO4Nz3Ce/yLqpeH11/QRFh6ZCqorsRAfg+Q2E+515s7hrJXG2d9UUtq4KZ
K8E67+pGWuUd//ZZZ1oERe3ume6jUzBRMB0GA1UdDgQWBBT0hqXt1wKMtgW/h2Yj
MZz8045xsTAfBgNVHSMEGDAWgBT0hqXt1wKMtgW/h2YjMZz8045xsTAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIBkFsspxjBdFAcCLylTWd9H/Z3ms
Hax3SQ3gzG8SfTTuAiEA4oJzYWbI1GsuDFvnS1V/9afEpfsCw8n4fh8ip9sPJos=
-----END CERTIFICATE-----
";
/// For 127.0.0.1 and `kubernetes`, by the authority above.
const SERVER: &str = "-----BEGIN CERTIFICATE-----
MIIBkjCCATegAwIBAgIUKydCD1Txpf2KwylTUSuMvmwrGpIwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdC1jYTAgFw0yNjExMjEyMzAxNDFaGA8yMTI2MTAyODIz
MDE0MVowETEPMA0GA1UEAwwGc2VydmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAEQcvsxdRRjQJiqLWZqejQqu9D+/H9mP55X5gMGwi8SiUen6e7pgNqY54iaA2N
+PsgJy44sk/MTI+ygG2acS/rg6NqMGgwGwYDVR0RBBQwEocEfwAAAYIKa3ViZXJu
ZXRlczAJBgNVHRMEAjAAMB0GA1UdDgQWBBToOVMOlcSwUIMxHbq5O2hMesBnFTAf
BgNVHSMEGDAWgBT0hqXt1wKMtgW/h2YjMZz8045xsTAKBggqhkjOPQQDAgNJADBG
AiEAwqjik+EntYcucMqTxxfVEcsppGcQ9ksKnFzUWPBJYHYCIQDg8OXBDQxPjzge
4n40vGygpqXvzsYeT1j/L7dYU+A9Xw==
-----END CERTIFICATE-----
";
/// Of the server above; it guards nothing.
const SERVER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgvQvyrsCneTxzXKU+
D9iA0JV00qVz8ROOfo3wgaUN4U2hRANCAARBy+zF1FGNAmKotZmp6NCq70P78f2Y
/nlfmAwbCLxKJR6fp7umA2pjniJoDY34+yAnLjiyT8xMj7KAbZpxL+uD
-----END PRIVATE KEY-----
";

/// Answers one request a connection, `connections` times; gives what it was asked.
fn serve(connections: usize) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            certificates(SERVER.as_bytes()).unwrap(),
            private_key(SERVER_KEY.as_bytes()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move || -> std::io::Result<String> {
        let (mut tcp, _) = listener.accept()?;
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let (mut asked, mut part) = (Vec::new(), [0; 1024]);
        while !asked.ends_with(b"\r\n\r\n") {
            match stream.read(&mut part)? {
                0 => break,
                n => asked.extend_from_slice(&part[..n]),
            }
        }
        let body = r#"{"major":"1","minor":"30","gitVersion":"v1.30.0","gitCommit":"","gitTreeState":"",
            "buildDate":"","goVersion":"","compiler":"","platform":""}"#;
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        stream.flush()?;
        Ok(String::from_utf8_lossy(&asked).into_owned())
    };
    let serve = move || {
        (0..connections).map(|_| answer().unwrap_or_else(|error| error.to_string())).collect()
    };
    (address, std::thread::spawn(serve))
}

fn access(address: SocketAddr, trust: Trust) -> Access {
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    Access { trust, ..Access::new(format!("https://{address}").parse().unwrap()) }
}

async fn ask(access: Access) -> Result<String, String> {
    let client = through(access, &Reach::new("x")).unwrap();
    client.apiserver_version().await.map(|info| info.git_version).map_err(|e| chain(&e))
}

fn file(name: &str, text: &str) -> PathBuf {
    let name = format!("weft-access-{name}-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_and_nobody_else() {
    let (address, server) = serve(5);
    let roots = certificates(AUTHORITY.as_bytes()).unwrap();
    let wrong = certificates(SERVER.as_bytes()).unwrap();
    let token = file("token", "first\n");
    let authority = file("authority", AUTHORITY);

    let mut pod = access(address, Trust::File(authority.clone()));
    pod.credential = Credential::File(TokenFile::new(token.clone()).unwrap());
    assert_eq!(ask(pod).await, Ok("v1.30.0".to_owned()));
    let named = ServerName::try_from("kubernetes").unwrap();
    let named = Access { server_name: Some(named), ..access(address, Trust::Roots(roots.clone())) };
    assert_eq!(ask(named).await, Ok("v1.30.0".to_owned()));
    assert_eq!(ask(access(address, Trust::Anybody)).await, Ok("v1.30.0".to_owned()));
    let stranger = ask(access(address, Trust::Roots(wrong))).await.unwrap_err();
    assert!(stranger.contains("invalid peer certificate"), "{stranger}");
    let other = ServerName::try_from("other").unwrap();
    let other = Access { server_name: Some(other), ..access(address, Trust::Roots(roots)) };
    let other = ask(other).await.unwrap_err();
    assert!(other.contains("invalid peer certificate"), "{other}");

    let asked = server.join().unwrap();
    assert!(asked[0].contains("authorization: Bearer first\r\n"), "{}", asked[0]);
    assert!(!asked[1].contains("authorization"), "{}", asked[1]);
    assert!(asked[3].contains("alert") || asked[3].contains("Alert"), "{}", asked[3]);
    for path in [token, authority] {
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_token_that_is_replaced_is_used_soon_and_one_that_is_gone_stays() {
    let path = file("rotated", "one");
    let token = TokenFile::new(path.clone()).unwrap();
    let start = Instant::now();
    let at = |s: u64| token.header(start + Duration::from_secs(s));
    std::fs::write(&path, "two").unwrap();
    assert_eq!(at(1), "Bearer one");
    assert_eq!(at(60), "Bearer two");
    std::fs::write(&path, "bad\u{1}token").unwrap();
    assert_eq!(at(120), "Bearer two");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(at(180), "Bearer two");
    assert!(TokenFile::new(path).is_err_and(|why| why.contains("No such file")));
}

#[test]
fn requests_go_below_the_path_of_the_server() {
    let at = |base: &str, path: &str| {
        below(&base.parse().unwrap(), path.parse::<Uri>().unwrap().path_and_query()).unwrap()
    };
    assert_eq!(at("https://a:1", "/api?x=1"), "https://a:1/api?x=1");
    assert_eq!(at("https://a:1/", "/api"), "https://a:1/api");
    assert_eq!(at("http://[fd00::1]:8/k8s/c/", "/api"), "http://[fd00::1]:8/k8s/c/api");
}

#[test]
fn files_that_are_none_are_named() {
    let why = Rotated::new("/none".into()).err().unwrap();
    assert!(why.starts_with("its certificate authority, /none: No such file"), "{why}");
    assert!(certificates(b"x").unwrap_err().contains("there is no certificate"));
    assert!(private_key(AUTHORITY.as_bytes()).unwrap_err().contains("no usable key"));
    assert_eq!(bearer("a\nb").unwrap_err(), "the token has bytes that no header can have");
}

//! Strangers and broken peers: named, counted, and without effect.

use std::net::UdpSocket;

use quinn::crypto::rustls::QuicClientConfig;
use weft_proto::frame::HEADER;
use weft_proto::wire::v1::{Hello, HelloAck, Swim};

use super::super::auth::{ClusterKeys, LABEL, Role};
use super::super::stream::{read_frame, write_frame};
use super::super::tls;
use super::*;

/// A client with a key of its own, and as much of the protocol as a test wants.
pub(super) struct Stranger {
    pub(super) identity: Identity,
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    pub(super) runtime: Runtime,
}

impl Stranger {
    pub(super) fn new() -> Self {
        let runtime = runtime();
        let identity = Identity::generate().unwrap();
        let client = tls::configs(&identity).unwrap().client;
        let endpoint = runtime
            .block_on(async { quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()) })
            .unwrap();
        Self { identity, endpoint, client, runtime }
    }

    fn connect(&self, to: SocketAddr) -> quinn::Connection {
        self.try_connect(self.client.clone(), to).unwrap()
    }

    fn try_connect(
        &self,
        client: quinn::ClientConfig,
        to: SocketAddr,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.runtime
            .block_on(async { self.endpoint.connect_with(client, to, "weft").unwrap().await })
    }

    fn hello(&self, connection: &quinn::Connection, key: &str) -> Hello {
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, LABEL, b"").unwrap();
        let node = self.identity.node();
        Hello {
            node,
            name: "stranger".to_owned(),
            cluster: None,
            ranges: vec![],
            session: 1,
            software: String::new(),
            observed: "127.0.0.1:1".parse().unwrap(),
            proof: ClusterKeys::new(&[key.to_owned()]).prove(0, Role::Client, &exporter, node),
        }
    }

    fn ask(&self, connection: &quinn::Connection, frame: &Frame) -> Frame {
        self.runtime.block_on(async {
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            write_frame(&mut send, frame).await.unwrap();
            read_frame(&mut receive).await.unwrap()
        })
    }

    /// An authenticated connection.
    pub(super) fn join(&self, to: SocketAddr) -> quinn::Connection {
        let connection = self.connect(to);
        let hello = self.hello(&connection, "secret");
        let answer = self.ask(&connection, &Frame::new(&hello).unwrap());
        answer.decode::<HelloAck>().unwrap();
        connection
    }

    pub(super) fn raw(&self, connection: &quinn::Connection, bytes: &[u8]) {
        self.runtime.block_on(async {
            let mut send = connection.open_uni().await.unwrap();
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
        });
    }

    /// Listens, and answers every greeting with this refusal.
    pub(super) fn refuse_all(&self, code: u16) -> SocketAddr {
        let server = tls::configs(&self.identity).unwrap().server;
        let endpoint = self
            .runtime
            .block_on(async { quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()) })
            .unwrap();
        let at = endpoint.local_addr().unwrap();
        self.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let Ok((mut send, mut receive)) = connection.accept_bi().await else { continue };
                let _ = read_frame(&mut receive).await;
                let failure = Failure { code, message: "because I say so".to_owned() };
                let _ = write_frame(&mut send, &Frame::new(&failure).unwrap()).await;
                let _ = send.stopped().await;
            }
        });
        at
    }

    fn is_closed(&self, connection: &quinn::Connection) {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, connection.closed()).await })
            .expect("the connection must be closed by the other side");
    }
}

/// The node still serves others.
#[track_caller]
fn unharmed(node: &Node) {
    let friend = start(MeshConfig { targets: vec![node.target()], ..config("friend") });
    until("a good node still gets in", || {
        node.sees(friend.id()) == Some(Liveness::Alive)
            && friend.sees(node.id()) == Some(Liveness::Alive)
    });
}

#[test]
fn a_replayed_or_relayed_proof() {
    let node = start(config("a"));
    let stranger = Stranger::new();
    let first = stranger.connect(node.address());
    let good = Frame::new(&stranger.hello(&first, "secret")).unwrap();
    stranger.ask(&first, &good).decode::<HelloAck>().unwrap();
    // The same bytes on another connection, from the same and from another node.
    let thief = Stranger::new();
    for who in [&stranger, &thief] {
        let second = who.connect(node.address());
        let answer = who.ask(&second, &good).decode::<Failure>().unwrap();
        assert_eq!(answer.code, Failure::WRONG_KEY);
        who.is_closed(&second);
    }
    assert_eq!(node.counter("handshake_wrong_key"), 2);
}

#[test]
fn nothing_is_served_before_the_proof() {
    let node = start(config("a"));
    mirror(&node);
    let stranger = Stranger::new();
    let connection = stranger.connect(node.address());
    stranger.raw(&connection, &Frame::new(&Swim(vec![1; 50])).unwrap().to_bytes());
    let _ = connection.send_datagram(Frame::new(&Swim(vec![1; 50])).unwrap().to_bytes().into());
    // A request in the place of the hello.
    stranger.runtime.block_on(async {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        write_frame(&mut send, &frame(MIRROR, vec![])).await.unwrap();
        assert!(read_frame(&mut receive).await.is_err());
    });
    stranger.is_closed(&connection);
    assert_eq!(node.counter("swim_bad_packet"), 0);
    assert_eq!(node.counter("frame_bad"), 1);
    unharmed(&node);
}

#[test]
fn no_key_a_certificate_or_somebody_elses_key() {
    let node = start(config("a"));
    let stranger = Stranger::new();
    #[derive(Debug)]
    struct Anything;
    impl rustls::client::danger::ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ED25519]
        }
        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    }
    #[derive(Debug)]
    struct X509;
    impl rustls::client::ResolvesClientCert for X509 {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let builder = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
    };
    let no_key = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    let certificates = builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_cert_resolver(Arc::new(X509));
    // The public key of another node, without its private half.
    let victim = Identity::generate().unwrap();
    let key = rustls::crypto::ring::sign::any_eddsa_type(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(stranger.identity.pkcs8().to_vec()),
    )
    .unwrap();
    let spki = tls::spki(&victim);
    let forged = Arc::new(rustls::sign::CertifiedKey::new(vec![spki.into()], key));
    let forger = builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_client_cert_resolver(Arc::new(
            rustls::client::AlwaysResolvesClientRawPublicKeys::new(forged),
        ));
    let other_protocol = {
        let mut tls = forger.clone();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls
    };
    for (i, mut tls) in [no_key, certificates, forger, other_protocol].into_iter().enumerate() {
        if tls.alpn_protocols.is_empty() {
            tls.alpn_protocols = vec![b"weft/1".to_vec()];
        }
        let quic = QuicClientConfig::try_from(tls).unwrap();
        let client = quinn::ClientConfig::new(Arc::new(quic));
        // A client without a key believes itself connected until it is told.
        if let Ok(connection) = stranger.try_connect(client, node.address()) {
            stranger.is_closed(&connection);
        }
        let want = i as u64 + 1;
        until("counted", || node.counter("handshake_tls") >= want);
    }
    assert_eq!(node.established(), 0);
    unharmed(&node);
}

#[test]
fn garbage_datagrams_on_the_port() {
    let node = start(config("a"));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 1u32;
    for length in (1..1200).step_by(7) {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        socket.send_to(&bytes, node.address()).unwrap();
        let long_header: Vec<u8> = [&[0xc3, 0, 0, 0, 1][..], &bytes].concat();
        socket.send_to(&long_header, node.address()).unwrap();
    }
    unharmed(&node);
    assert_eq!(node.mesh.view().members.len(), 2);
}

#[test]
fn garbage_and_oversized_frames_of_a_peer() {
    let node = start(config("a"));
    mirror(&node);
    let mut too_long = Frame::new(&Swim(vec![])).unwrap().to_bytes();
    too_long[8..HEADER].copy_from_slice(&u32::MAX.to_be_bytes());
    let cases: [(&[u8], &str); 3] = [
        (b"GET / HTTP/1.1\r\n\r\n", "frame_garbage"),
        (&too_long, "frame_too_long"),
        (b"WF", "frame_bad"),
    ];
    for (bytes, counter) in cases {
        let peer = Stranger::new();
        let connection = peer.join(node.address());
        peer.raw(&connection, bytes);
        peer.is_closed(&connection);
        assert_eq!(node.counter(counter), 1, "{counter}");
    }
    // Unknown kinds and foreign membership packets are skipped, the peer stays.
    let peer = Stranger::new();
    let connection = peer.join(node.address());
    peer.raw(&connection, &frame(60_000, vec![1, 2, 3]).to_bytes());
    until("skipped", || node.counter("frame_unknown_kind") == 1);
    peer.raw(&connection, &Frame::new(&Swim(vec![9; 300])).unwrap().to_bytes());
    until("refused", || node.counter("swim_bad_packet") >= 1);
    let answer = peer.ask(&connection, &frame(60_000, vec![]));
    assert_eq!(answer.decode::<Failure>().unwrap().code, Failure::UNKNOWN_KIND);
    assert_eq!(peer.ask(&connection, &frame(MIRROR, vec![5])).payload, [5]);
    unharmed(&node);
}

#[test]
fn strangers_that_say_nothing_do_not_keep_others_out() {
    let node = start(config("a"));
    let stranger = Stranger::new();
    let silent: Vec<_> = (0..40).map(|_| stranger.connect(node.address())).collect();
    unharmed(&node);
    for connection in &silent {
        stranger.is_closed(connection);
    }
    assert!(node.counter("handshake_timeout") >= 1);
}

//! A QUIC client that has a key of its own and speaks TLS as nodes do: what anybody
//! on the underlay can be. With the cluster's key it is a member, one that need not
//! keep to the rules.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::QuicClientConfig;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{hkdf, hmac};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use weft_agent::lab::netns::Netns;
use weft_proto::frame::Frame;
use weft_proto::id::NodeId;
use weft_proto::names;
use weft_proto::wire::v1::{Hello, HelloAck};

/// Everything before the key in an Ed25519 SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Trusts whoever answers.
#[derive(Debug)]
pub(crate) struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A new key, as TLS wants it.
pub(crate) struct Credentials {
    pub(crate) certified: Arc<CertifiedKey>,
    node: NodeId,
}

impl Credentials {
    pub(crate) fn new() -> Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).ok().context("no randomness")?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).ok().context("no key")?;
        let spki = [&SPKI[..], pair.public_key().as_ref()].concat();
        let key = PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec());
        let key = rustls::crypto::ring::sign::any_eddsa_type(&key)?;
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
        let mut node = NodeId([0; 16]);
        let hash = digest(&SHA256, pair.public_key().as_ref());
        node.0.copy_from_slice(&hash.as_ref()[..16]);
        Ok(Self { certified, node })
    }

    /// TLS of a client with this key, that trusts whoever answers.
    pub(crate) fn client(&self) -> Result<quinn::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certified = Arc::clone(&self.certified);
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
        tls.alpn_protocols = vec![names::ALPN.to_vec()];
        Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
    }
}

/// The client, in a namespace.
#[derive(Debug)]
pub struct Stranger {
    runtime: tokio::runtime::Runtime,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    node: NodeId,
}

impl Stranger {
    /// A new one with a new key.
    pub fn new(netns: &Netns) -> Result<Self> {
        let credentials = Credentials::new()?;
        let config = credentials.client()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
        let inside = runtime.enter();
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            socket,
            Arc::new(quinn::TokioRuntime),
        )?;
        drop(inside);
        Ok(Self { runtime, endpoint, config, node: credentials.node })
    }

    fn within<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T> {
        let bounded = async { tokio::time::timeout(Duration::from_secs(20), work).await };
        self.runtime.block_on(bounded).with_context(|| format!("no end of: {what}"))
    }

    /// A connection with a valid TLS handshake.
    pub fn connect(&self, to: SocketAddr) -> Result<quinn::Connection> {
        // Connections start tasks.
        let _inside = self.runtime.enter();
        let connecting = self.endpoint.connect_with(self.config.clone(), to, "weft")?;
        Ok(self.within("the handshake", connecting)??)
    }

    /// Its node id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A request and its answer.
    pub fn ask(&self, connection: &quinn::Connection, frame: &Frame) -> Result<Frame> {
        self.within("an answer", async {
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(&frame.to_bytes()).await?;
            send.finish()?;
            Ok(Frame::from_bytes(&receive.read_to_end(8 << 20).await?)?)
        })?
    }

    /// A notification.
    pub fn tell(&self, connection: &quinn::Connection, frame: &Frame) -> Result<()> {
        self.within("telling", async {
            let mut send = connection.open_uni().await?;
            send.write_all(&frame.to_bytes()).await?;
            Ok(send.finish()?)
        })?
    }

    /// A connection as a member, of this name, that knows the cluster's key. The proof
    /// is made from its description in the protocol, not by the agent's own code.
    pub fn join(&self, to: SocketAddr, key: &str, name: &str) -> Result<quinn::Connection> {
        const LABEL: &[u8] = b"weft hello v1";
        let connection = self.connect(to)?;
        let mut exporter = [0; 32];
        let exported = connection.export_keying_material(&mut exporter, LABEL, b"");
        exported.ok().context("no exporter")?;
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft cluster key v1")
            .extract(key.as_bytes())
            .expand(&[LABEL], hmac::HMAC_SHA256)
            .map(hmac::Key::from)
            .ok()
            .context("no key")?;
        let tag = hmac::sign(&secret, &[LABEL, b"c", &exporter, &self.node.0].concat());
        let hello = Hello {
            node: self.node,
            name: name.to_owned(),
            cluster: None,
            ranges: Vec::new(),
            session: 1_700_000_000_000,
            software: "liar".to_owned(),
            observed: to,
            proof: tag.as_ref().try_into()?,
        };
        let answer = self.ask(&connection, &Frame::new(&hello)?)?;
        answer.decode::<HelloAck>().context("the greeting is refused")?;
        Ok(connection)
    }

    /// Closes a connection, and waits until the other end can know.
    pub fn leave(&self, connection: &quinn::Connection) -> Result<()> {
        connection.close(0_u32.into(), b"done");
        self.within("closing", self.endpoint.wait_idle())
    }

    /// So many connections, `at_once` at a time, that say nothing until they are
    /// closed; how many had a TLS handshake.
    pub fn flood(&self, to: SocketAddr, count: usize, at_once: usize) -> usize {
        let gate = Arc::new(tokio::sync::Semaphore::new(at_once));
        self.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..count {
                let Ok(permit) = Arc::clone(&gate).acquire_owned().await else { break };
                let connecting = self.endpoint.connect_with(self.config.clone(), to, "weft");
                tasks.spawn(async move {
                    let _permit = permit;
                    let connected = match connecting {
                        Ok(connecting) => connecting.await,
                        Err(_) => return false,
                    };
                    match connected {
                        Ok(connection) => {
                            connection.closed().await;
                            true
                        }
                        Err(_) => false,
                    }
                });
            }
            let mut shaken = 0;
            while let Some(done) = tasks.join_next().await {
                shaken += usize::from(done.unwrap_or(false));
            }
            shaken
        })
    }

    /// Sends bytes on a new stream, as many as the other side takes.
    pub fn send(&self, connection: &quinn::Connection, bytes: &[u8]) -> Result<()> {
        self.within("sending", async {
            if let Ok((mut send, _receive)) = connection.open_bi().await {
                // The other side may hang up in the middle.
                let _ = send.write_all(bytes).await;
                let _ = send.finish();
                let _ = send.stopped().await;
            }
        })
    }

    /// Waits until the other side has closed the connection; why.
    pub fn closed(&self, connection: &quinn::Connection) -> Result<quinn::ConnectionError> {
        self.within("the connection", connection.closed())
    }
}

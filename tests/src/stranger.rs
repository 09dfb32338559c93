//! A QUIC client that has a key of its own and speaks TLS as nodes do, but has
//! not the cluster's key: what anybody on the underlay can be.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::QuicClientConfig;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use weft_agent::lab::netns::Netns;
use weft_proto::names;

/// Everything before the key in an Ed25519 SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Trusts whoever answers.
#[derive(Debug)]
struct Trusting;

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

/// The client, in a namespace.
#[derive(Debug)]
pub struct Stranger {
    runtime: tokio::runtime::Runtime,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl Stranger {
    /// A new one with a new key.
    pub fn new(netns: &Netns) -> Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).ok().context("no randomness")?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).ok().context("no key")?;
        let spki = [&SPKI[..], pair.public_key().as_ref()].concat();
        let key = PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec());
        let key = rustls::crypto::ring::sign::any_eddsa_type(&key)?;
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
        tls.alpn_protocols = vec![names::ALPN.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
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
        Ok(Self { runtime, endpoint, config })
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

//! Who sits on the path between two nodes: ends QUIC on both sides with a key of its
//! own, and passes on what they say, word for word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::DigitallySignedStruct;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use weft_agent::lab::netns::Netns;
use weft_proto::names;

use crate::stranger::{Credentials, Trusting};

impl ClientCertVerifier for Trusting {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
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

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// It works until it is dropped.
#[derive(Debug)]
pub struct Middle {
    runtime: Option<tokio::runtime::Runtime>,
    passed: Arc<AtomicUsize>,
}

impl Drop for Middle {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Middle {
    /// In a namespace, at an address of it; who connects there is passed on to `to`.
    pub fn start(netns: &Netns, at: SocketAddr, to: SocketAddr) -> Result<Self> {
        let credentials = Credentials::new()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certified = Arc::clone(&credentials.certified);
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Trusting))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        tls.alpn_protocols = vec![names::ALPN.to_vec()];
        let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        let client = credentials.client()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = netns.run(|| std::net::UdpSocket::bind(at))??;
        let inside = runtime.enter();
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            Some(server),
            socket,
            Arc::new(quinn::TokioRuntime),
        )?;
        drop(inside);
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (endpoint, client) = (endpoint.clone(), client.clone());
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let near = incoming.await?;
                    let far = endpoint.connect_with(client, to, "weft")?.await?;
                    let (mut answer, mut question) = near.accept_bi().await?;
                    let (mut forth, mut back) = far.open_bi().await?;
                    forth.write_all(&question.read_to_end(1 << 20).await?).await?;
                    forth.finish()?;
                    let said = back.read_to_end(1 << 20).await?;
                    answer.write_all(&said).await?;
                    answer.finish()?;
                    count.fetch_add(1, Ordering::SeqCst);
                    near.closed().await;
                    anyhow::Ok(()).context("passed on")
                });
            }
        });
        Ok(Self { runtime: Some(runtime), passed })
    }

    /// Greetings that were passed on, and answered.
    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }
}

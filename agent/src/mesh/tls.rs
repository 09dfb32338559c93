//! TLS 1.3 with raw public keys (RFC 7250) on both sides, and the QUIC settings.
//!
//! The verifiers accept any Ed25519 key, but only with proof of possession:
//! the handshake signature is really checked. Who may talk is decided after
//! that, by the proof of the cluster key.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use weft_proto::id::NodeId;
use weft_proto::names::ALPN;

use super::identity::{Identity, node_id};

/// Everything before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo.
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A silent peer is given up after this long.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// What a peer may have on its way here before it has proved the cluster key,
/// and after: strangers together cannot fill the memory.
const STRANGER_WINDOW: u32 = 128 << 10;
pub(super) const PEER_WINDOW: u32 = 1 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The raw key inside an Ed25519 SubjectPublicKeyInfo.
pub(super) fn raw_key(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

/// The SubjectPublicKeyInfo of an identity.
pub(super) fn spki(identity: &Identity) -> Vec<u8> {
    [&SPKI_PREFIX[..], identity.public()].concat()
}

/// Node id of the peer, from the key its TLS handshake proved.
pub(super) fn peer_node(connection: &quinn::Connection) -> Option<NodeId> {
    let keys = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    keys.first().and_then(|spki| raw_key(spki)).map(|key| node_id(&key))
}

#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl AnyKey {
    fn check(spki: &CertificateDer<'_>) -> Result<(), Error> {
        raw_key(spki).map(|_| ()).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(spki.as_ref()),
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn tls12() -> Error {
        Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
    }
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    // Small windows and no MTU probes: many connections, little traffic on each.
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(64))
        .max_concurrent_uni_streams(VarInt::from_u32(64))
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW))
        .send_window(1 << 20)
        .datagram_receive_buffer_size(Some(64 << 10))
        .datagram_send_buffer_size(64 << 10)
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    Arc::new(config)
}

/// Settings of both directions.
pub(super) struct QuicConfigs {
    pub(super) endpoint: quinn::EndpointConfig,
    pub(super) server: quinn::ServerConfig,
    pub(super) client: quinn::ClientConfig,
}

/// QUIC settings for an identity.
pub(super) fn configs(identity: &Identity) -> Result<QuicConfigs, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(
        identity.pkcs8().to_vec(),
    ))?;
    let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(identity))], key));
    let verifier = Arc::new(AnyKey(Arc::clone(&provider)));
    let only13 = &[&rustls::version::TLS13];

    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(only13)?
        .with_client_cert_verifier(Arc::<AnyKey>::clone(&verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(
            &certified,
        ))));
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the signature; every handshake is a full one.
    server.send_tls13_tickets = 0;

    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(only13)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    client.enable_sni = false;

    let suite = |e: quinn::crypto::rustls::NoInitialCipherSuite| Error::General(e.to_string());
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(server).map_err(suite)?,
    ));
    server.transport_config(transport()).max_incoming(128).migration(true);
    let mut client =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).map_err(suite)?));
    client.transport_config(transport());

    // Derived from the identity, so that a restarted agent can tell its peers
    // at once that the connections of its former life are gone.
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.pkcs8());
    let reset = ring::hmac::sign(&reset, b"weft stateless reset v1");
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset.as_ref());
    Ok(QuicConfigs { endpoint: quinn::EndpointConfig::new(Arc::new(reset)), server, client })
}

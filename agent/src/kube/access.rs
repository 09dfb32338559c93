//! Who the agent is to the API server, and whom it trusts there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Uri};
use hyper_rustls::{ConfigBuilderExt, FixedServerNameResolver, HttpsConnector};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::connect::chain;

/// Files that are rotated are read again after this.
const AGAIN: Duration = Duration::from_secs(50);

/// Why there is no access.
pub(super) type Why = String;

/// What an API server is trusted by.
pub(super) enum Trust {
    /// These certificates.
    Roots(Vec<CertificateDer<'static>>),
    /// Those in a file, which may be replaced while the agent runs.
    File(PathBuf),
    /// What this machine trusts.
    System,
    /// It is not asked who it is.
    Anybody,
}

/// What tells the server who asks.
pub(super) enum Credential {
    /// Nothing, or the client certificate.
    None,
    /// The header `Authorization`.
    Header(HeaderValue),
    /// A bearer token in a file, which may be replaced while the agent runs.
    File(TokenFile),
}

/// All that is needed to ask.
pub(super) struct Access {
    /// Where; requests go below its path.
    pub(super) url: Uri,
    pub(super) trust: Trust,
    /// The name in the server's certificate, if it is another than in the URL.
    pub(super) server_name: Option<ServerName<'static>>,
    /// Client certificate and its key.
    pub(super) identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    pub(super) credential: Credential,
    /// Headers of every request.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Access {
    /// For anybody, by what this machine trusts.
    pub(super) fn new(url: Uri) -> Self {
        Self {
            url,
            trust: Trust::System,
            server_name: None,
            identity: None,
            credential: Credential::None,
            headers: Vec::new(),
        }
    }

    /// Connections of `connector`, in TLS if the URL says so.
    pub(super) fn tls<C>(&self, connector: C) -> Result<HttpsConnector<C>, Why> {
        let config = if self.url.scheme_str() == Some("http") {
            // Nothing to trust is needed, and an empty image has nothing.
            ClientConfig::builder()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        } else {
            self.tls_config()?
        };
        let builder =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let builder = match &self.server_name {
            Some(name) => {
                builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone()))
            }
            None => builder,
        };
        Ok(builder.enable_http1().wrap_connector(connector))
    }

    fn tls_config(&self) -> Result<ClientConfig, Why> {
        let builder = ClientConfig::builder();
        let builder = match &self.trust {
            Trust::Roots(roots) => builder.with_root_certificates(store(roots.clone())?),
            Trust::File(path) => {
                let verifier = Rotated::new(path.clone())?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Trust::System => builder.with_native_roots().map_err(|e| {
                format!("it has no certificate authority, and this machine trusts none: {e}")
            })?,
            Trust::Anybody => {
                let provider = Arc::clone(builder.crypto_provider());
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
        };
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|e| format!("the client certificate and its key cannot be used: {e}")),
        }
    }

    /// Makes a request for a path one of this server.
    pub(super) fn prepare(&self, uri: &mut Uri, headers: &mut HeaderMap) -> Result<(), Why> {
        *uri = below(&self.url, uri.path_and_query()).map_err(|e| e.to_string())?;
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        let authorization = match &self.credential {
            Credential::None => return Ok(()),
            Credential::Header(value) => value.clone(),
            Credential::File(file) => file.header(Instant::now()),
        };
        headers.insert(AUTHORIZATION, authorization);
        Ok(())
    }
}

fn below(base: &Uri, path: Option<&PathAndQuery>) -> Result<Uri, hyper::http::Error> {
    let mut parts = base.clone().into_parts();
    let base = base.path().trim_end_matches('/');
    let path = format!("{base}{}", path.map_or("/", PathAndQuery::as_str));
    parts.path_and_query = Some(path.parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// `Authorization: Bearer TOKEN`.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, Why> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| "the token has bytes that no header can have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token that is read again every minute. If it cannot be, the last one is kept: some
/// take the file away after the start.
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<(HeaderValue, Instant)>,
}

impl TokenFile {
    /// Reads it.
    pub(super) fn new(path: PathBuf) -> Result<Self, Why> {
        let last = Mutex::new((Self::read(&path)?, Instant::now()));
        Ok(Self { path, last })
    }

    fn read(path: &PathBuf) -> Result<HeaderValue, Why> {
        let token = std::fs::read_to_string(path);
        bearer(&token.map_err(|e| format!("its token, {}: {e}", path.display()))?)
    }

    fn header(&self, now: Instant) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(last.1) >= AGAIN {
            match Self::read(&self.path) {
                Ok(token) => last.0 = token,
                Err(why) => tracing::debug!("the token before is used on: {why}"),
            }
            last.1 = now;
        }
        last.0.clone()
    }
}

/// The certificates in PEM text, of which there must be one at least.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Why> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        found => found.map_err(|e| format!("it is malformed: {e}")),
    }
}

/// The private key in PEM text.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Why> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| format!("it has no usable key: {e}"))
}

fn store(roots: Vec<CertificateDer<'static>>) -> Result<RootCertStore, Why> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).map_err(|e| format!("a certificate authority cannot be used: {e}"))?;
    }
    Ok(store)
}

/// Trusts what is in a file that is read again every minute; if it cannot be, what was.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    last: Mutex<(Arc<WebPkiServerVerifier>, Instant)>,
}

impl Rotated {
    fn new(path: PathBuf) -> Result<Self, Why> {
        let last = Mutex::new((Self::read(&path)?, Instant::now()));
        Ok(Self { path, last })
    }

    fn read(path: &PathBuf) -> Result<Arc<WebPkiServerVerifier>, Why> {
        let wrong = |why: &dyn std::fmt::Display| {
            format!("its certificate authority, {}: {why}", path.display())
        };
        let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
        let roots = certificates(&pem).and_then(store).map_err(|e| wrong(&e))?;
        WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|e| wrong(&chain(&e)))
    }

    fn now(&self) -> Arc<WebPkiServerVerifier> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.1.elapsed() >= AGAIN {
            match Self::read(&self.path) {
                Ok(verifier) => last.0 = verifier,
                Err(why) => tracing::warn!("what was trusted before is trusted on: {why}"),
            }
            last.1 = Instant::now();
        }
        Arc::clone(&last.0)
    }
}

impl ServerCertVerifier for Rotated {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.now().verify_server_cert(end, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}

/// `insecure-skip-tls-verify`: whoever answers has some key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;

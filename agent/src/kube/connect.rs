//! Where the API server is, and who this agent is to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::reach::{Connector, Reach, Sender};
use crate::config::Kubernetes;

/// Time to get a connection, over all ways there are, and a TLS session in it.
const CONNECT: Duration = Duration::from_secs(8);
/// What a pod with a service account finds here.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why there is no client. None of them heals by waiting: they stop the start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is not there or malformed.
    #[error("KUBECONFIG={}: {why}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The service account is incomplete.
    #[error(
        "this pod's service account cannot be used: {0}; mount it \
         (automountServiceAccountToken), or set KUBECONFIG, or KUBERNETES=off"
    )]
    ServiceAccount(String),
    /// An address that is no URL.
    #[error(
        "the API server's address `{0}` is malformed: {1}; set KUBE_APISERVER to https://HOST:PORT"
    )]
    Address(String, String),
    /// TLS or credentials.
    #[error("no client for the API server {server} can be made: {why}")]
    Client {
        /// Its address.
        server: String,
        /// What is wrong.
        why: String,
    },
}

/// Where the API server's address was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: this is not Kubernetes, or it is not wanted.
    None,
    /// In a file.
    Kubeconfig(PathBuf),
    /// In the pod's environment; `token` is there.
    Pod,
}

/// Is this Kubernetes?
pub(super) fn place(config: &Kubernetes, token: bool) -> Place {
    match (&config.kubeconfig, &config.service_host) {
        _ if !config.wanted => Place::None,
        (Some(path), _) => Place::Kubeconfig(path.clone()),
        (None, Some(_)) if token => Place::Pod,
        _ => Place::None,
    }
}

/// A client for the API server, and the ways it goes; `None` where there is none.
/// Nothing is sent.
pub(super) async fn client(
    config: &Kubernetes,
) -> Result<Option<(kube::Client, String, Reach)>, ConnectError> {
    // More than one crypto provider may be linked in; the one of the mesh counts.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    let mut found = match place(config, Path::new(TOKEN).exists()) {
        Place::None => return Ok(None),
        Place::Kubeconfig(path) => {
            let wrong = |why: String| ConnectError::Kubeconfig { path: path.clone(), why };
            let file = Kubeconfig::read_from(&path).map_err(|e| wrong(chain(&e)))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| wrong(chain(&e)))?
        }
        Place::Pod => {
            let mut found = kube::Config::incluster_env()
                .map_err(|e| ConnectError::ServiceAccount(chain(&e)))?;
            if let Some(host) = &config.service_host {
                found.cluster_url =
                    url(&format!("https://{}", bracketed(host, config.service_port)))?;
            }
            found
        }
    };
    if let Some(server) = &config.server {
        found.cluster_url = url(server)?;
    }
    if found.cluster_url.scheme_str() == Some("http") && found.root_cert.is_none() {
        // Nothing to trust is needed, and an empty image has nothing.
        found.root_cert = Some(Vec::new());
    }
    found.connect_timeout = Some(CONNECT);
    let server = found.cluster_url.to_string().trim_end_matches('/').to_owned();
    let reach = Reach::new(&server);
    let client = match &found.proxy_url {
        None => through(&found, &reach),
        Some(_) => kube::Client::try_from(found),
    };
    let client =
        client.map_err(|e| ConnectError::Client { server: server.clone(), why: chain(&e) })?;
    Ok(Some((client, server, reach)))
}

/// As [`kube::Client::try_from`] makes one, but connected by [`Reach`], and without
/// retries: whoever asks here has a pause of his own, and wants to see the code.
pub(super) fn through(config: &kube::Config, reach: &Reach) -> Result<kube::Client, kube::Error> {
    let tls = config.rustls_https_connector_with_connector(Connector::new(reach.clone()))?;
    let mut connector = hyper_timeout::TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let sender = Sender { client, reach: reach.clone() };
    let plain = ClientBuilder::new(sender, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer()? {
        Some(auth) => plain.with_layer(&auth).with_layer(&base).build(),
        None => plain.with_layer(&base).build(),
    })
}

fn url<T: std::str::FromStr>(text: &str) -> Result<T, ConnectError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| ConnectError::Address(text.to_owned(), e.to_string()))
}

fn bracketed(host: &str, port: u16) -> String {
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// An error with its causes, each said once: the outermost alone says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags, MapEnv};

    fn config(vars: &[(&str, &str)]) -> Kubernetes {
        let env = MapEnv::new(vars.iter().copied());
        Config::parse(&env, &Flags::new()).unwrap().kubernetes
    }

    #[test]
    fn what_counts_as_kubernetes() {
        let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
        let file = [("KUBECONFIG", "/k"), ("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
        let off = [("KUBECONFIG", "/k"), ("KUBERNETES", "off")];
        assert_eq!(place(&config(&[]), true), Place::None);
        assert_eq!(place(&config(&pod), true), Place::Pod);
        assert_eq!(place(&config(&pod), false), Place::None);
        assert_eq!(place(&config(&file), true), Place::Kubeconfig("/k".into()));
        assert_eq!(place(&config(&off), true), Place::None);
    }

    #[tokio::test]
    async fn plain_http_needs_no_certificates_and_the_override_wins() {
        let path = std::env::temp_dir().join(format!("weft-kubeconfig-{}", std::process::id()));
        std::fs::write(
            &path,
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{name: k, cluster: {server: \"http://127.0.0.1:1\"}}]\n\
             users: [{name: u, user: {token: t}}]\n\
             contexts: [{name: c, context: {cluster: k, user: u}}]\n",
        )
        .unwrap();
        let text = path.to_str().unwrap().to_owned();
        let (_, server, _) = client(&config(&[("KUBECONFIG", &text)])).await.unwrap().unwrap();
        assert_eq!(server, "http://127.0.0.1:1");
        let other = config(&[("KUBECONFIG", &text), ("KUBE_APISERVER", "http://127.0.0.1:2")]);
        assert_eq!(client(&other).await.unwrap().unwrap().1, "http://127.0.0.1:2");
        std::fs::write(&path, "clusters: 7").unwrap();
        let error = client(&other).await.err().unwrap().to_string();
        assert!(error.starts_with("KUBECONFIG="), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = client(&other).await.err().unwrap().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}

//! Where the API server is, and who this agent is to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::client::ClientBuilder;

use super::access::{Access, Credential, TokenFile, Trust, Why};
use super::kubeconfig;
use super::reach::{Connector, Reach, Sender};
use crate::config::Kubernetes;

/// Time to get a connection, over all ways there are, and a TLS session in it.
const CONNECT: Duration = Duration::from_secs(8);
/// Time to send a request.
const SEND: Duration = Duration::from_secs(295);
/// What a pod with a service account finds here.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

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
pub(super) fn client(
    config: &Kubernetes,
) -> Result<Option<(kube::Client, String, Reach)>, ConnectError> {
    // More than one crypto provider may be linked in; the one of the mesh counts.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    let mut access = match place(config, Path::new(TOKEN).exists()) {
        Place::None => return Ok(None),
        Place::Kubeconfig(path) => kubeconfig::read(&path)
            .map_err(|why| ConnectError::Kubeconfig { path: path.clone(), why })?,
        Place::Pod => {
            let host = config.service_host.as_deref().unwrap_or_default();
            let address = url(&format!("https://{}", bracketed(host, config.service_port)))?;
            pod(address).map_err(ConnectError::ServiceAccount)?
        }
    };
    if let Some(server) = &config.server {
        access.url = url(server)?;
    }
    let server = access.url.to_string().trim_end_matches('/').to_owned();
    let reach = Reach::new(&server);
    let client = through(access, &reach)
        .map_err(|why| ConnectError::Client { server: server.clone(), why })?;
    Ok(Some((client, server, reach)))
}

/// The access of a pod's service account. Its files are replaced while the pod runs.
fn pod(url: hyper::Uri) -> Result<Access, Why> {
    let trust = Trust::File(AUTHORITY.into());
    let credential = Credential::File(TokenFile::new(TOKEN.into())?);
    Ok(Access { trust, credential, ..Access::new(url) })
}

/// A client that is connected by [`Reach`], and without retries: whoever asks here has a
/// pause of his own, and wants to see the code. kube would make one that also knows every
/// way to log in that command lines have, which doubles its size.
pub(super) fn through(access: Access, reach: &Reach) -> Result<kube::Client, Why> {
    let tls = access.tls(Connector::new(reach.clone()))?;
    let mut connector = hyper_timeout::TimeoutConnector::new(tls);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_write_timeout(Some(SEND));
    let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let sender = Sender { client, reach: reach.clone(), access: Arc::new(access) };
    Ok(ClientBuilder::new(sender, "default").build())
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
        let (_, server, _) = client(&config(&[("KUBECONFIG", &text)])).unwrap().unwrap();
        assert_eq!(server, "http://127.0.0.1:1");
        let other = config(&[("KUBECONFIG", &text), ("KUBE_APISERVER", "http://127.0.0.1:2")]);
        assert_eq!(client(&other).unwrap().unwrap().1, "http://127.0.0.1:2");
        std::fs::write(&path, "clusters: 7").unwrap();
        let error = client(&other).err().unwrap().to_string();
        assert!(error.starts_with("KUBECONFIG="), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = client(&other).err().unwrap().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}

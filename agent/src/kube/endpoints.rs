//! The endpoints behind the API server's service.
//!
//! Of core/v1 `Endpoints`, as every server from 1.20 to 1.36 keeps for itself:
//! `discovery.k8s.io/v1` EndpointSlices came with 1.21 only, and that Endpoints are
//! deprecated since 1.33 takes none away.

use std::net::{IpAddr, SocketAddr};

use kube::core::Request;
use kube::core::params::GetParams;
use serde::Deserialize;

use super::{Ask, Kube, reach};

/// Where `kubernetes` is.
const PATH: &str = "/api/v1/namespaces/default/endpoints";
const GET: Ask = Ask::cluster("get", "endpoints");

#[derive(Debug, Clone, Default, Deserialize)]
struct Endpoints {
    #[serde(default)]
    subsets: Vec<Subset>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Subset {
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Address {
    #[serde(default)]
    ip: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Port {
    #[serde(default)]
    name: String,
    #[serde(default)]
    port: u16,
}

/// All of them, sorted; each subset's port `https`, or its only one.
fn sockets(found: &Endpoints) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for subset in &found.subsets {
        let named = subset.ports.iter().find(|port| port.name == "https");
        let only = || subset.ports.first().filter(|_| subset.ports.len() == 1);
        let Some(port) = named.or_else(only).filter(|port| port.port != 0) else { continue };
        let addresses = subset.addresses.iter().filter_map(|a| a.ip.parse::<IpAddr>().ok());
        all.extend(addresses.map(|ip| SocketAddr::new(ip, port.port)));
    }
    all.sort_unstable();
    all.dedup();
    all.truncate(reach::MOST);
    all
}

impl Kube {
    /// The API server's endpoints; `None` where it does not tell. Rules of an earlier
    /// manifest do not allow it: that is no fault.
    pub async fn endpoints(&self) -> Option<Vec<SocketAddr>> {
        let request = Request::new(PATH).get("kubernetes", &GetParams::any());
        let found = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            self.client().request::<Endpoints>(request).await
        };
        let found = self.hint(GET, found).await.map(|found| sockets(&found))?;
        (!found.is_empty()).then_some(found)
    }

    /// Remembers endpoints, for when the server's address does not answer.
    pub fn remember(&self, endpoints: &[SocketAddr]) {
        self.inner.reach.remember(endpoints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_the_right_port() {
        let text = r#"{"metadata":{"name":"kubernetes"},"subsets":[
            {"addresses":[{"ip":"192.0.2.2"},{"ip":"192.0.2.1"},{"ip":"rubbish"}],
             "notReadyAddresses":[{"ip":"192.0.2.9"}],
             "ports":[{"name":"x","port":1},{"name":"https","port":6443,"protocol":"TCP"}]},
            {"addresses":[{"ip":"2001:db8::1"}],"ports":[{"port":443}]},
            {"addresses":[{"ip":"192.0.2.3"}],"ports":[{"port":1},{"port":2}]},
            {"addresses":[{"ip":"192.0.2.4"}]}]}"#;
        let found = sockets(&serde_json::from_str(text).unwrap());
        let expected = ["192.0.2.1:6443", "192.0.2.2:6443", "[2001:db8::1]:443"];
        assert_eq!(found, expected.map(|text| text.parse().unwrap()));
        assert!(sockets(&serde_json::from_str("{}").unwrap()).is_empty());
    }
}

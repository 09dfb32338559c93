//! The address ranges of services, where the API server tells them (1.33 and
//! later).

use std::borrow::Cow;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::ClusterResourceScope;
use kube::api::{Api, ListParams};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::Kube;

/// An answer that helps but is not needed is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A ServiceCIDR object.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct ServiceCidr {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Spec {
    #[serde(default)]
    cidrs: Vec<String>,
}

impl kube::Resource for ServiceCidr {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ServiceCIDR".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "servicecidrs".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn ranges(objects: &[ServiceCidr]) -> Vec<IpNet> {
    let texts = objects.iter().flat_map(|object| &object.spec.cidrs);
    texts.filter_map(|text| text.parse().ok()).collect()
}

impl Kube {
    /// The ranges of services; `None` where the server does not tell. Old servers
    /// have no such objects, and older rules do not allow it: that is no fault.
    pub async fn services(&self) -> Option<Vec<IpNet>> {
        let api: Api<ServiceCidr> = Api::all(self.client());
        let params = ListParams::default();
        match tokio::time::timeout(PATIENCE, api.list(&params)).await {
            Ok(Ok(list)) => Some(ranges(&list.items)),
            Ok(Err(error)) => {
                tracing::debug!("service ranges are not told: {error}");
                None
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_all_objects() {
        let text = r#"[{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/12","fd00:1::/108"]},
            "status":{}},{"metadata":{},"spec":{"cidrs":["rubbish"]}},{}]"#;
        let objects: Vec<ServiceCidr> = serde_json::from_str(text).unwrap();
        let expected: Vec<IpNet> =
            vec!["10.96.0.0/12".parse().unwrap(), "fd00:1::/108".parse().unwrap()];
        assert_eq!(ranges(&objects), expected);
    }
}

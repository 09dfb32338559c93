//! The address ranges of services, where the API server tells them (1.33 and
//! later).

use ipnet::IpNet;
use kube::core::params::ListParams;
use kube::core::{ObjectList, Request};
use serde::Deserialize;

use super::{Ask, Kube};

const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const LIST: Ask = Ask::of("list", "networking.k8s.io", "servicecidrs");

/// A ServiceCIDR object.
#[derive(Debug, Clone, Default, Deserialize)]
struct ServiceCidr {
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    cidrs: Vec<String>,
}

fn ranges(objects: &[ServiceCidr]) -> Vec<IpNet> {
    let texts = objects.iter().flat_map(|object| &object.spec.cidrs);
    texts.filter_map(|text| text.parse().ok()).collect()
}

impl Kube {
    /// The ranges of services; `None` where the server does not tell. Old servers
    /// have no such objects, and older rules do not allow it: that is no fault.
    pub async fn services(&self) -> Option<Vec<IpNet>> {
        let request = Request::new(PATH).list(&ListParams::default());
        let found = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            self.client().request::<ObjectList<ServiceCidr>>(request).await
        };
        self.hint(LIST, found).await.map(|list| ranges(&list.items))
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

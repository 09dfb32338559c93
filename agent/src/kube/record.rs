//! ConfigMap `weft`: read, create, compare-and-swap.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;

use super::founding::Record;
use super::{Ask, Kube, KubeError, NAME};

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it says.
    pub record: Record,
    /// Its resourceVersion: what a change is based on.
    pub version: String,
}

const GET: Ask = Ask::own("get", "configmaps");
const CREATE: Ask = Ask::own("create", "configmaps");
const UPDATE: Ask = Ask::own("update", "configmaps");

fn seen(map: &ConfigMap) -> Seen {
    Seen {
        record: Record::read(map.data.as_ref().unwrap_or(&std::collections::BTreeMap::new())),
        version: map.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn object(record: &Record, version: Option<&str>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            resource_version: version.map(str::to_owned),
            ..ObjectMeta::default()
        },
        data: Some(record.data()),
        ..ConfigMap::default()
    }
}

impl Kube {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), self.namespace())
    }

    /// The record, if there is one.
    pub async fn record(&self) -> Result<Option<Seen>, KubeError> {
        match self.ask(GET, self.maps().get(NAME)).await {
            Ok(map) => Ok(Some(seen(&map))),
            Err(KubeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the record; `None` if somebody was faster.
    pub async fn create_record(&self, record: &Record) -> Result<Option<Seen>, KubeError> {
        let map = object(record, None);
        match self.ask(CREATE, self.maps().create(&PostParams::default(), &map)).await {
            Ok(map) => Ok(Some(seen(&map))),
            Err(KubeError::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record that was read; `None` if it has changed meanwhile.
    pub async fn replace_record(
        &self,
        version: &str,
        record: &Record,
    ) -> Result<Option<Seen>, KubeError> {
        let map = object(record, Some(version));
        let maps = self.maps();
        match self.ask(UPDATE, maps.replace(NAME, &PostParams::default(), &map)).await {
            Ok(map) => Ok(Some(seen(&map))),
            // Changed or deleted in between.
            Err(KubeError::Conflict(_) | KubeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

//! The cluster key: Secret `weft`, made by whoever comes first.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use ring::rand::SecureRandom;

use super::{Ask, Kube, KubeError, NAME};
use crate::config;

/// Entry of the Secret: keys, one per line; the first signs, all are accepted.
pub const ENTRY: &str = "key";

const GET: Ask = Ask::own("get", "secrets");
const CREATE: Ask = Ask::own("create", "secrets");

/// The keys in a Secret's data.
pub fn read(data: Option<&BTreeMap<String, ByteString>>) -> Result<Vec<String>, String> {
    let Some(bytes) = data.and_then(|data| data.get(ENTRY)) else {
        return Err(format!("it has no entry `{ENTRY}`"));
    };
    let text = std::str::from_utf8(&bytes.0).map_err(|_| format!("`{ENTRY}` is not text"))?;
    config::keys(text).map_err(|why| format!("`{ENTRY}`: {why}"))
}

/// A new key: 32 random bytes as text.
fn fresh() -> Result<String, KubeError> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KubeError::Away("the kernel gives no random bytes".to_owned()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Kube {
    /// The keys of the Secret; `None` if there is none.
    pub async fn keys(&self) -> Result<Option<Vec<String>>, KubeError> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), self.namespace());
        let found = self.ask(GET, secrets.get(NAME)).await;
        let secret = match found {
            Ok(secret) => secret,
            Err(KubeError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        read(secret.data.as_ref()).map(Some).map_err(|why| {
            KubeError::Other(
                200,
                format!(
                    "Secret {}/{NAME} cannot be used: {why}; put a key there, or delete the \
                     Secret while no agent runs",
                    self.namespace()
                ),
            )
        })
    }

    /// The keys of the Secret, which is made if there is none.
    pub async fn keys_or_new(&self) -> Result<Vec<String>, KubeError> {
        loop {
            if let Some(keys) = self.keys().await? {
                return Ok(keys);
            }
            let keys = vec![fresh()?];
            // If somebody was faster, its key counts.
            if self.put_keys(&keys).await? {
                return Ok(keys);
            }
        }
    }

    /// Creates the Secret; false if there is one.
    pub async fn put_keys(&self, keys: &[String]) -> Result<bool, KubeError> {
        let text = ByteString(keys.join("\n").into_bytes());
        let secret = Secret {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(ENTRY.to_owned(), text)])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client(), self.namespace());
        match self.ask(CREATE, secrets.create(&PostParams::default(), &secret)).await {
            Ok(_) => {
                tracing::info!(namespace = self.namespace(), "cluster key written: Secret {NAME}");
                Ok(true)
            }
            Err(KubeError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_of_one_entry() {
        let secret = |entry: &str, bytes: &[u8]| {
            BTreeMap::from([(entry.to_owned(), ByteString(bytes.to_vec()))])
        };
        assert_eq!(read(Some(&secret("key", b"new\nold\n"))).unwrap(), ["new", "old"]);
        for (data, why) in [
            (None, "no entry"),
            (Some(secret("kee", b"x")), "no entry"),
            (Some(secret("key", b" \n")), "no key"),
            (Some(secret("key", &[0xff, 0xfe])), "not text"),
        ] {
            let error = read(data.as_ref()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn fresh_keys_differ() {
        let (a, b) = (fresh().unwrap(), fresh().unwrap());
        assert!(a.len() == 64 && a != b);
    }
}

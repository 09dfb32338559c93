//! The API server, and the books about what it was asked.

use std::sync::Arc;

use kube::Client;

/// Counts a request: verb, resource, and `ok`, the code of the answer, or `-`.
pub type Count = Arc<dyn Fn(&'static str, &'static str, &str) + Send + Sync>;

/// A client whose requests are counted.
#[derive(Clone)]
pub struct Asked {
    pub(super) client: Client,
    count: Count,
}

impl Asked {
    /// Nothing is sent yet.
    pub fn new(client: Client, count: Count) -> Self {
        Self { client, count }
    }

    /// Enters how a request went; `None`: no answer in time.
    pub(super) fn note<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        answer: Option<&Result<T, kube::Error>>,
    ) {
        let code = match answer {
            Some(Ok(_)) => "ok".to_owned(),
            Some(Err(kube::Error::Api(status))) => status.code.to_string(),
            _ => "-".to_owned(),
        };
        (self.count)(verb, resource, &code);
    }
}

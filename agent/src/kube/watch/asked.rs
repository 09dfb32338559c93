//! The API server, and the books about what it was asked.

use std::sync::Arc;

use kube::Client;

/// How a request went.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It was answered.
    Ok,
    /// It failed, or was refused.
    Failed(&'a kube::Error),
    /// No answer in time.
    Late,
}

impl Outcome<'_> {
    /// `ok`, the code of the answer, or `-`.
    pub fn code(&self) -> String {
        match self {
            Self::Ok => "ok".to_owned(),
            Self::Failed(kube::Error::Api(status)) => status.code.to_string(),
            Self::Failed(_) | Self::Late => "-".to_owned(),
        }
    }
}

/// Takes note of a request: verb, resource, and how it went.
pub type Note = Arc<dyn Fn(&'static str, &'static str, Outcome<'_>) + Send + Sync>;

/// A client whose requests are noted.
#[derive(Clone)]
pub struct Asked {
    pub(crate) client: Client,
    note: Note,
}

impl Asked {
    /// Nothing is sent yet.
    pub fn new(client: Client, note: Note) -> Self {
        Self { client, note }
    }

    /// Enters how a request went; `None`: no answer in time.
    pub(crate) fn note<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        answer: Option<&Result<T, kube::Error>>,
    ) {
        let outcome = match answer {
            Some(Ok(_)) => Outcome::Ok,
            Some(Err(error)) => Outcome::Failed(error),
            None => Outcome::Late,
        };
        (self.note)(verb, resource, outcome);
    }
}

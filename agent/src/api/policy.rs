//! Network policy under `/v1`.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;

use super::answer::{json, v1_error, within};
use super::backend::{BackendError, NO_POLICY, PolicyQuestion};
use super::routes::query;
use super::v1::{Shared, answer, bad};
use crate::policy::explain::{End, Explanation};
use crate::policy::state::Protocol;

/// The engine may be in the middle of a large change.
const PATIENCE: Duration = Duration::from_secs(10);

/// `GET /v1/policy`.
pub(super) async fn status(State(api): Shared) -> Response {
    match api.backend.status().policy {
        Some(policy) => json(StatusCode::OK, &policy),
        None => v1_error(&BackendError::NotFound(NO_POLICY.to_owned())),
    }
}

/// `GET /v1/policy/explain?from=&to=&port=&protocol=`: the explanation, with its
/// words for people under `text`.
pub(super) async fn explain(State(api): Shared, RawQuery(raw): RawQuery) -> Response {
    match question(raw.as_deref()) {
        Ok(question) => {
            answer(within(PATIENCE, api.backend.explain(question)).await.map(|e| document(&e)))
        }
        Err(why) => bad(why),
    }
}

fn document(explanation: &Explanation) -> Value {
    let mut value = serde_json::to_value(explanation).unwrap_or_default();
    value["text"] = Value::String(explanation.to_string());
    value
}

fn question(raw: Option<&str>) -> Result<PolicyQuestion, String> {
    let given = |name: &str| query(raw, name).filter(|value| !value.is_empty());
    let end = |name: &str| {
        let text = given(name).ok_or_else(|| {
            format!("{name}: namespace/pod or an address is expected, for example default/web-0")
        })?;
        text.parse::<End>().map_err(|e| format!("{name}: {e}"))
    };
    let (from, to) = (end("from")?, end("to")?);
    let port = given("port")
        .and_then(|text| text.parse::<u16>().ok())
        .filter(|port| *port != 0)
        .ok_or("port: a number from 1 to 65535 is expected")?;
    let protocol = match given("protocol") {
        None => Protocol::Tcp,
        Some(text) => Protocol::parse(&text.to_ascii_uppercase())
            .ok_or("protocol: tcp, udp or sctp is expected")?,
    };
    Ok(PolicyQuestion { from, to, protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::objects::PodRef;

    #[test]
    fn questions_are_read_or_refused_by_name() {
        let asked = question(Some("from=a/x&to=10.32.0.7&port=53&protocol=udp")).unwrap();
        assert_eq!(asked.from, End::Pod(PodRef::new("a", "x")));
        assert_eq!(asked.to, End::Address("10.32.0.7".parse().unwrap()));
        assert_eq!((asked.protocol, asked.port), (Protocol::Udp, 53));
        let asked = question(Some("from=a%2Fx&to=b/y&port=80")).unwrap();
        assert_eq!(asked.protocol, Protocol::Tcp);
        for (raw, names) in [
            ("to=a/x&port=80", "from:"),
            ("from=a/x&to=nowhere&port=80", "to:"),
            ("from=a/x&to=b/y&port=0", "port:"),
            ("from=a/x&to=b/y&port=http", "port:"),
            ("from=a/x&to=b/y&port=80&protocol=icmp", "protocol:"),
        ] {
            assert!(question(Some(raw)).unwrap_err().starts_with(names), "{raw}");
        }
        assert!(question(None).is_err());
    }
}

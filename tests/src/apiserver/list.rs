//! LIST: versions, pages, selectors. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;
use super::selectors::Selector;
use super::store::{Key, Store};
use super::verbs::{Answer, Request};

/// Where the next page starts: the version of the list, and the key of the last
/// object of the page before. Clients must not look inside.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    revision: u64,
    namespace: String,
    name: String,
}

impl Token {
    fn encode(&self) -> String {
        let text = json!([self.revision, self.namespace, self.name]).to_string();
        text.bytes().map(|byte| format!("{byte:02x}")).collect()
    }

    fn decode(text: &str) -> Option<Self> {
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let bytes: Option<Vec<u8>> =
            digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
        let value: Value = serde_json::from_slice(&bytes?).ok()?;
        let text = |at: usize| value[at].as_str().map(str::to_owned);
        Some(Self { revision: value[0].as_u64()?, namespace: text(1)?, name: text(2)? })
    }
}

/// Which version of the list is asked for.
pub(super) fn revision(store: &Store, request: &Request<'_>) -> Result<u64, ApiError> {
    let (current, query) = (store.revision(), request.query);
    let asked = query.number("resourceVersion")?;
    let how = query.text("resourceVersionMatch");
    if asked.is_none() && !how.is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    match (asked, how) {
        (Some(0) | None, "" | "NotOlderThan") => Ok(current),
        (Some(0), _) => Err(ApiError::bad_request(
            "resourceVersionMatch: Exact is forbidden for resourceVersion \"0\"",
        )),
        (Some(asked), _) if asked > current => Err(ApiError::too_large(asked, current)),
        (Some(asked), "Exact") => Ok(asked),
        // Without a word on how, pages are of exactly that version.
        (Some(asked), "") if query.number("limit")?.unwrap_or(0) > 0 => Ok(asked),
        (Some(_), "" | "NotOlderThan") => Ok(current),
        (_, other) => Err(ApiError::bad_request(format!("resourceVersionMatch: {other}"))),
    }
}

pub(super) fn list(store: &Store, request: &Request<'_>) -> Result<Answer, ApiError> {
    let query = request.query;
    let resource = request.resource.qualified();
    let namespace = request.target.namespace.as_deref().unwrap_or_default();
    let selector =
        Selector::parse(&resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    let token = match query.text("continue") {
        "" => None,
        text => {
            let wrong = || ApiError::bad_request("continue key is not valid");
            Some(Token::decode(text).ok_or_else(wrong)?)
        }
    };
    if token.is_some() && !query.text("resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let revision = token.as_ref().map_or_else(|| revision(store, request), |t| Ok(t.revision))?;
    let mut objects = store.list(&resource, namespace, revision)?;
    if let Some(token) = token {
        let after = Key::new(&resource, &token.namespace, &token.name);
        objects.retain(|(key, _)| *key > after);
    }
    objects.retain(|(_, object)| selector.matches(object));
    // "Any version" is answered from a cache, which knows no pages.
    let from_cache = query.text("resourceVersion") == "0";
    let limit = query.number("limit")?.filter(|limit| *limit > 0 && !from_cache);
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let rest = objects.len().saturating_sub(limit);
    objects.truncate(limit);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some((last, _)) = objects.last().filter(|_| rest > 0) {
        let (namespace, name) = (last.namespace.clone(), last.name.clone());
        metadata["continue"] = json!(Token { revision, namespace, name }.encode());
        if selector.is_empty() {
            metadata["remainingItemCount"] = json!(rest);
        }
    }
    let items: Vec<Arc<Value>> = objects.into_iter().map(|(_, object)| object).collect();
    Ok(Answer::List { metadata, items })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_round() {
        let token = Token { revision: 7, namespace: "ns".to_owned(), name: "näme".to_owned() };
        assert_eq!(Token::decode(&token.encode()), Some(token));
        for wrong in ["x", "00", "zz", "5b5d", "é"] {
            assert_eq!(Token::decode(wrong), None, "{wrong}");
        }
    }
}

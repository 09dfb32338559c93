//! What a request asks for: its path and its query. Pure.

use super::error::ApiError;

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/api`.
    Versions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Resources(String, String),
    /// `/version`.
    Version,
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// Objects.
    Objects(Target),
}

/// One object, or all of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// As in the path.
    pub plural: String,
    /// None for cluster scope, or for all namespaces.
    pub namespace: Option<String>,
    /// None for all objects.
    pub name: Option<String>,
    /// `status`, …
    pub subresource: Option<String>,
}

impl Route {
    /// None for a path that no API server knows.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(unescape).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Some(match parts[..] {
            ["version"] => Self::Version,
            ["healthz" | "livez" | "readyz", ..] => Self::Health,
            ["api"] => Self::Versions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group(group.to_owned()),
            ["api", version] => Self::Resources(String::new(), version.to_owned()),
            ["apis", group, version] => Self::Resources(group.to_owned(), version.to_owned()),
            ["api", version, ref rest @ ..] => Self::Objects(target("", version, rest)?),
            ["apis", group, version, ref rest @ ..] => Self::Objects(target(group, version, rest)?),
            _ => return None,
        })
    }
}

fn target(group: &str, version: &str, rest: &[&str]) -> Option<Target> {
    let (namespace, plural, rest) = match rest {
        // What is below a namespace object, and no resource inside it.
        ["namespaces", name] => (None, "namespaces", vec![*name]),
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            (None, "namespaces", vec![*name, *sub])
        }
        ["namespaces", namespace, plural, rest @ ..] => (Some(*namespace), *plural, rest.to_vec()),
        [plural, rest @ ..] => (None, *plural, rest.to_vec()),
        [] => return None,
    };
    if rest.len() > 2 {
        return None;
    }
    let part = |at: usize| rest.get(at).map(|text| (*text).to_owned());
    Some(Target {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        namespace: namespace.map(str::to_owned),
        name: part(0),
        subresource: part(1),
    })
}

/// `%41` is `A`; what is no such triple stays.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = || std::str::from_utf8(after.get(..2)?).ok();
        match hex().filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The query of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses `a=b&c=d`.
    pub fn parse(text: &str) -> Self {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(&name.replace('+', " ")), unescape(&value.replace('+', " ")))
        };
        Self { pairs: text.split('&').filter(|p| !p.is_empty()).map(pair).collect() }
    }

    /// A parameter; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.pairs.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// A switch.
    pub fn flag(&self, name: &str) -> bool {
        let given = self.pairs.iter().any(|(key, _)| key == name);
        given && !matches!(self.text(name), "false" | "0")
    }

    /// A number, if it is there and not empty.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |_| ApiError::bad_request(format!("{name}: Invalid value: \"{text}\""));
        text.parse().map(Some).map_err(wrong)
    }
}

/// In what form objects are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole.
    Whole,
    /// `PartialObjectMetadata`, or a list of them.
    Metadata,
}

/// Negotiates by `Accept`: the first form that is known.
pub fn form(accept: &str) -> Result<Form, ApiError> {
    if accept.trim().is_empty() {
        return Ok(Form::Whole);
    }
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameter = |name: &str| {
            range
                .split(';')
                .filter_map(|part| part.trim().split_once('='))
                .find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))
        };
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        match (parameter("as"), parameter("g"), parameter("v")) {
            (None, ..) => return Ok(Form::Whole),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) => return Ok(Form::Metadata),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let object = |group: &str, version: &str, rest: [Option<&str>; 4]| {
            let [namespace, plural, name, subresource] = rest.map(|part| part.map(str::to_owned));
            let (group, version) = (group.to_owned(), version.to_owned());
            let plural = plural.unwrap_or_default();
            Some(Route::Objects(Target { group, version, plural, namespace, name, subresource }))
        };
        let network = "networking.k8s.io";
        let table = [
            ("/api/v1/nodes", object("", "v1", [None, Some("nodes"), None, None])),
            ("/api/v1/nodes/n1", object("", "v1", [None, Some("nodes"), Some("n1"), None])),
            (
                "/api/v1/nodes/n1/status",
                object("", "v1", [None, Some("nodes"), Some("n1"), Some("status")]),
            ),
            (
                "/api/v1/namespaces/ns/pods/p%2d1",
                object("", "v1", [Some("ns"), Some("pods"), Some("p-1"), None]),
            ),
            ("/api/v1/namespaces", object("", "v1", [None, Some("namespaces"), None, None])),
            (
                "/api/v1/namespaces/ns",
                object("", "v1", [None, Some("namespaces"), Some("ns"), None]),
            ),
            (
                "/api/v1/namespaces/ns/status",
                object("", "v1", [None, Some("namespaces"), Some("ns"), Some("status")]),
            ),
            (
                "/apis/networking.k8s.io/v1/networkpolicies",
                object(network, "v1", [None, Some("networkpolicies"), None, None]),
            ),
            (
                "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies/",
                object(network, "v1", [Some("ns"), Some("networkpolicies"), None, None]),
            ),
            ("/api", Some(Route::Versions)),
            ("/apis", Some(Route::Groups)),
            ("/apis/apps", Some(Route::Group("apps".to_owned()))),
            ("/apis/apps/v1", Some(Route::Resources("apps".to_owned(), "v1".to_owned()))),
            ("/readyz", Some(Route::Health)),
            ("/version", Some(Route::Version)),
            ("/", None),
            ("/nonsense", None),
            ("/api/v1/pods/a/b/c", None),
        ];
        for (path, expected) in table {
            assert_eq!(Route::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("watch=true&labelSelector=a%3Db%2Cc&limit=5&x=1+2&bad=%zz&empty=");
        assert!(query.flag("watch") && !query.flag("nothing"));
        assert_eq!(query.text("labelSelector"), "a=b,c");
        assert_eq!(query.text("x"), "1 2");
        assert_eq!(query.text("bad"), "%zz");
        assert_eq!(query.number("limit"), Ok(Some(5)));
        assert_eq!(query.number("empty"), Ok(None));
        assert_eq!(query.number("bad").unwrap_err().code, 400);
        assert!(!Query::parse("watch=false").flag("watch"));
    }

    #[test]
    fn accepts() {
        let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let list = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let table = [
            ("", Ok(Form::Whole)),
            ("application/json", Ok(Form::Whole)),
            ("*/*", Ok(Form::Whole)),
            (partial, Ok(Form::Metadata)),
            (list, Ok(Form::Metadata)),
            ("application/vnd.kubernetes.protobuf, application/json", Ok(Form::Whole)),
            ("application/json;as=Table;g=meta.k8s.io;v=v1, application/json", Ok(Form::Whole)),
            ("application/vnd.kubernetes.protobuf", Err(406)),
            ("application/json;as=Table;g=meta.k8s.io;v=v1", Err(406)),
        ];
        for (accept, expected) in table {
            assert_eq!(form(accept).map_err(|error| error.code), expected, "{accept}");
        }
    }
}

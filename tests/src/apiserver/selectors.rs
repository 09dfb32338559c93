//! Label and field selectors.

use serde_json::Value;

use super::error::ApiError;

/// Which objects a LIST or WATCH is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<LabelRule>,
    fields: Vec<FieldRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelRule {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRule {
    path: String,
    value: String,
    equal: bool,
}

/// Fields a selector may name, besides those of metadata, by `PLURAL.GROUP`.
const FIELDS: [(&str, &[&str]); 6] = [
    (
        "pods",
        &[
            "spec.nodeName",
            "spec.hostNetwork",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
    ),
    ("nodes", &["spec.unschedulable"]),
    ("namespaces", &["status.phase"]),
    ("secrets", &["type"]),
    (
        "events",
        &[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "reason",
            "type",
        ],
    ),
    (
        "events.events.k8s.io",
        &["regarding.kind", "regarding.name", "regarding.namespace", "reason", "type"],
    ),
];

impl Selector {
    /// Parses `labelSelector` and `fieldSelector` of a request for `resource`.
    pub fn parse(resource: &str, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).into_iter().map(label_rule).collect::<Result<_, _>>()?;
        let fields = split(fields)
            .into_iter()
            .map(|term| field_rule(resource, term))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Is the object meant?
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|rule| rule.matches(object))
            && self.fields.iter().all(|rule| rule.matches(object))
    }
}

impl LabelRule {
    fn matches(&self, object: &Value) -> bool {
        let value = |key: &str| object["metadata"]["labels"][key].as_str();
        let among = |key, values: &[String]| {
            value(key).is_some_and(|value| values.iter().any(|allowed| allowed == value))
        };
        match self {
            Self::In(key, values) => among(key, values),
            Self::NotIn(key, values) => !among(key, values),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

impl FieldRule {
    fn matches(&self, object: &Value) -> bool {
        let found = self.path.split('.').fold(object, |at, part| &at[part]);
        let found = match found {
            Value::String(text) => text.clone(),
            Value::Bool(yes) => yes.to_string(),
            // An absent boolean is a false one.
            Value::Null if matches!(self.value.as_str(), "true" | "false") => "false".to_owned(),
            _ => String::new(),
        };
        (found == self.value) == self.equal
    }
}

/// Terms between commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut terms, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn label_rule(term: &str) -> Result<LabelRule, ApiError> {
    let wrong = || ApiError::bad_request(format!("unable to parse requirement: {term}"));
    let key = |text: &str| {
        let text = text.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let ok = !text.is_empty() && text.chars().all(fine);
        ok.then(|| text.to_owned()).ok_or_else(wrong)
    };
    let one = |text: &str| vec![text.trim().to_owned()];
    if let Some((name, rest)) = term.split_once('(') {
        let values = rest.strip_suffix(')').ok_or_else(wrong)?;
        let values: Vec<_> = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (name, operator) = name.trim().rsplit_once(' ').ok_or_else(wrong)?;
        return match operator {
            "in" => Ok(LabelRule::In(key(name)?, values)),
            "notin" => Ok(LabelRule::NotIn(key(name)?, values)),
            _ => Err(wrong()),
        };
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(LabelRule::NotIn(key(name)?, one(value)));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(LabelRule::In(key(name)?, one(value)));
    }
    match term.strip_prefix('!') {
        Some(name) => Ok(LabelRule::Absent(key(name)?)),
        None => Ok(LabelRule::Exists(key(term)?)),
    }
}

fn field_rule(resource: &str, term: &str) -> Result<FieldRule, ApiError> {
    let negative = term.split_once("!=").map(|(path, value)| (path, value, false));
    let positive = || {
        let pair = term.split_once("==").or_else(|| term.split_once('='));
        pair.map(|(path, value)| (path, value, true))
    };
    let (path, value, equal) = negative.or_else(positive).ok_or_else(|| {
        ApiError::bad_request(format!("invalid field selector: {term}: want FIELD=VALUE"))
    })?;
    let own = FIELDS.iter().find(|(name, _)| *name == resource).map_or(&[][..], |row| row.1);
    let path = path.trim();
    if !["metadata.name", "metadata.namespace"].contains(&path) && !own.contains(&path) {
        return Err(ApiError::bad_request(format!("field label not supported: {path}")));
    }
    Ok(FieldRule { path: path.to_owned(), value: value.trim().to_owned(), equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": ""}}});
        let table = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("zone!=a", true),
            ("app", true),
            ("!app", false),
            ("!zone", true),
            ("tier=", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,web)", false),
            ("zone notin (a)", true),
            ("zone in (a)", false),
            ("app in (web,db),tier,!zone", true),
            ("app in (web,db),zone", false),
        ];
        for (text, expected) in table {
            let selector = Selector::parse("pods", text, "").unwrap();
            assert_eq!(selector.matches(&object), expected, "{text}");
        }
        for wrong in ["a b", "app in web", "app within (a)", "app in (a", "=x", "!"] {
            assert_eq!(Selector::parse("pods", wrong, "").unwrap_err().code, 400, "{wrong}");
        }
    }

    #[test]
    fn fields() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        let table = [
            ("metadata.name=p", true),
            ("metadata.name!=p", false),
            ("spec.nodeName=n1,status.phase==Running", true),
            ("spec.nodeName=n2", false),
            ("spec.nodeName!=", true),
            ("spec.hostNetwork=false", true),
            ("spec.hostNetwork=true", false),
        ];
        for (text, expected) in table {
            let selector = Selector::parse("pods", "", text).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{text}");
        }
        let error = Selector::parse("nodes", "", "spec.nodeName=n1").unwrap_err();
        assert!(error.message.contains("not supported: spec.nodeName"), "{error}");
        assert_eq!(Selector::parse("nodes", "", "nonsense").unwrap_err().code, 400);
    }
}

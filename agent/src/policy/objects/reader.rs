//! Reading a policy part by part, so that one bad part does not spoil the rest.

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::network::Port;
use super::problem::{PolicyRef, Problem};
use super::text::Text;
use crate::policy::selector::{Requirement, Selector};
use crate::policy::state::Protocol;

/// Problems kept of one policy; the last tells how many more there are.
const PROBLEMS: usize = 16;

/// What was noted of the policy that is being read.
pub(super) struct Reader {
    id: PolicyRef,
    problems: Vec<Problem>,
    more: usize,
}

/// A part that could not be understood; the problem is noted.
pub(super) struct Bad;

pub(super) type Read<T> = Result<T, Bad>;

/// An object's members, without those that are `null`.
pub(super) struct Fields<'v>(Vec<(&'v str, &'v Value)>);

impl<'v> Fields<'v> {
    pub(super) fn get(&self, name: &str) -> Option<&'v Value> {
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    pub(super) fn names(&self) -> Vec<&'v str> {
        self.0.iter().map(|(key, _)| *key).collect()
    }
}

impl Reader {
    pub(super) fn new(id: PolicyRef) -> Self {
        Self { id, problems: Vec::new(), more: 0 }
    }

    pub(super) fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            self.problems.push(Problem {
                policy: self.id,
                field: "spec".to_owned(),
                what: format!("{} more parts cannot be understood", self.more),
                hint: "correct those named first".to_owned(),
            });
        }
        self.problems
    }

    pub(super) fn note(&mut self, field: &str, what: impl Into<String>, hint: &str) {
        if self.problems.len() >= PROBLEMS {
            self.more += 1;
            return;
        }
        self.problems.push(Problem {
            policy: self.id.clone(),
            field: field.to_owned(),
            what: what.into(),
            hint: hint.to_owned(),
        });
    }

    pub(super) fn bad<T>(&mut self, field: &str, what: impl Into<String>, hint: &str) -> Read<T> {
        self.note(field, what, hint);
        Err(Bad)
    }

    /// Members of an object that has no others than `known`.
    pub(super) fn fields<'v>(
        &mut self,
        value: &'v Value,
        field: &str,
        known: &[&str],
    ) -> Read<Fields<'v>> {
        let fields = self.object(value, field)?;
        for name in fields.names() {
            if !known.contains(&name) {
                return self.bad(
                    &format!("{field}.{name}"),
                    "this field is not known, so what it is in cannot be understood",
                    "remove it, or use a weft that knows it",
                );
            }
        }
        Ok(fields)
    }

    pub(super) fn object<'v>(&mut self, value: &'v Value, field: &str) -> Read<Fields<'v>> {
        match value {
            Value::Object(map) => Ok(present(map)),
            other => self.bad(field, format!("{other} is not an object"), "write an object"),
        }
    }

    /// A list; empty if absent.
    pub(super) fn list<'v>(&mut self, value: Option<&'v Value>, field: &str) -> Read<&'v [Value]> {
        match value {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => self.bad(field, format!("{other} is not a list"), "write a list"),
        }
    }

    pub(super) fn text<'v>(&mut self, value: &'v Value, field: &str) -> Read<&'v str> {
        match value.as_str() {
            Some(text) if !text.is_empty() => Ok(text),
            _ => self.bad(
                field,
                format!("{value} is not a word"),
                "write a string that is not empty",
            ),
        }
    }

    /// A selector; everything if absent.
    pub(super) fn selector(&mut self, value: Option<&Value>, field: &str) -> Read<Selector> {
        let Some(value) = value else { return Ok(Selector::all()) };
        let fields = self.fields(value, field, &["matchLabels", "matchExpressions"])?;
        let mut requirements = Vec::new();
        if let Some(labels) = fields.get("matchLabels") {
            let field = format!("{field}.matchLabels");
            for (key, value) in self.object(labels, &field)?.0 {
                let Some(value) = value.as_str() else {
                    return self.bad(
                        &field,
                        format!("{value} is no label value"),
                        "write a string",
                    );
                };
                requirements.push(Requirement::In(key.into(), vec![value.into()]));
            }
        }
        let field = format!("{field}.matchExpressions");
        for (i, expression) in self.list(fields.get("matchExpressions"), &field)?.iter().enumerate()
        {
            requirements.push(self.expression(expression, &format!("{field}[{i}]"))?);
        }
        Ok(Selector::new(requirements))
    }

    fn expression(&mut self, value: &Value, field: &str) -> Read<Requirement> {
        let fields = self.fields(value, field, &["key", "operator", "values"])?;
        let key = fields.get("key").unwrap_or(&Value::Null);
        let key: Text = self.text(key, &format!("{field}.key"))?.into();
        let listed = self.list(fields.get("values"), &format!("{field}.values"))?;
        let mut values: Vec<Text> = Vec::with_capacity(listed.len());
        for value in listed {
            let Some(value) = value.as_str() else {
                let field = format!("{field}.values");
                return self.bad(&field, format!("{value} is no label value"), "write strings");
            };
            values.push(value.into());
        }
        let operator = fields.get("operator").and_then(Value::as_str).unwrap_or_default();
        match (operator, values.is_empty()) {
            ("In", false) => Ok(Requirement::In(key, values)),
            ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
            ("Exists", true) => Ok(Requirement::Exists(key)),
            ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
            ("In" | "NotIn", true) => self.bad(
                &format!("{field}.values"),
                format!("{operator} without values"),
                "list at least one value",
            ),
            ("Exists" | "DoesNotExist", false) => self.bad(
                &format!("{field}.values"),
                format!("{operator} with values"),
                "leave `values` out",
            ),
            _ => self.bad(
                &format!("{field}.operator"),
                format!("`{operator}` is no operator"),
                "use In, NotIn, Exists or DoesNotExist",
            ),
        }
    }

    pub(super) fn block(&mut self, value: &Value, field: &str) -> Read<IpNet> {
        let net = value.as_str().and_then(|text| text.parse::<IpNet>().ok());
        match net {
            Some(net) => Ok(net.trunc()),
            None => self.bad(
                field,
                format!("{value} is no block of addresses"),
                "write it like 10.0.0.0/8 or fd00::/8",
            ),
        }
    }

    pub(super) fn protocol(&mut self, value: Option<&Value>, field: &str) -> Read<Protocol> {
        let Some(value) = value else { return Ok(Protocol::Tcp) };
        match value.as_str().and_then(Protocol::parse) {
            Some(protocol) => Ok(protocol),
            None => self.bad(field, format!("{value} is no protocol"), "use TCP, UDP or SCTP"),
        }
    }

    pub(super) fn port_number(&mut self, value: &Value, field: &str) -> Read<u16> {
        let port = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|port| *port != 0);
        match port {
            Some(port) => Ok(port),
            None => {
                self.bad(field, format!("{value} is no port"), "write a number from 1 to 65535")
            }
        }
    }

    /// Name of a container port, as the API allows it.
    pub(super) fn port_name(
        &mut self,
        protocol: Option<Protocol>,
        name: &str,
        field: &str,
    ) -> Read<Port> {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = (1..=15).contains(&name.len())
            && name.bytes().all(letters)
            && name.bytes().any(|b| b.is_ascii_lowercase())
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        if good {
            return Ok(Port::Named(protocol, name.into()));
        }
        self.bad(
            field,
            format!("`{name}` can be no container port's name"),
            "write a number without quotes, or a name of at most 15 characters of a-z, 0-9 and -",
        )
    }
}

fn present(map: &Map<String, Value>) -> Fields<'_> {
    Fields(
        map.iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(key, value)| (key.as_str(), value))
            .collect(),
    )
}

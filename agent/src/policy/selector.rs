//! Label selectors in a normal form: equal meaning by equal words is equal value.

use std::fmt;

use crate::policy::objects::{Labels, Text};

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label has one of these values; sorted, not empty.
    In(Text, Vec<Text>),
    /// The label is absent or has none of these values; sorted, not empty.
    NotIn(Text, Vec<Text>),
    /// The label is there.
    Exists(Text),
    /// The label is not there.
    DoesNotExist(Text),
}

/// All of its requirements hold; none: everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// Matches everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Of these requirements, in any order, with values in any order.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for requirement in &mut requirements {
            if let Requirement::In(_, values) | Requirement::NotIn(_, values) = requirement {
                values.sort_unstable();
                values.dedup();
            }
        }
        requirements.sort_unstable();
        requirements.dedup();
        Self(requirements)
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// True if every requirement holds for `labels`.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels.get(key).is_some_and(|value| values.binary_search(value).is_ok())
            }
            Requirement::NotIn(key, values) => {
                labels.get(key).is_none_or(|value| values.binary_search(value).is_err())
            }
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("everything");
        }
        for (i, requirement) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => {
                    write!(f, "{key}={}", values[0])?;
                }
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => {
                    write!(f, "{key} notin ({})", values.join(","))?;
                }
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

//! What was wrong with the configuration: everything at once.

use std::fmt;

use super::vars::Var;

/// Longest part of a value that an error repeats.
const SHOWN: usize = 100;

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The name under which the value was given: the variable, an alias, or the flag.
    pub given_as: String,
    /// The variable.
    pub variable: &'static str,
    /// What is wrong, with the value, the form and an example.
    pub sentence: String,
}

impl ConfigError {
    /// `why` may be empty where the form says it all.
    pub fn new(var: &Var, given_as: &str, value: &str, why: &str) -> Self {
        let shown = if var.secret { "(hidden)".to_owned() } else { shorten(value) };
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Self {
            given_as: given_as.to_owned(),
            variable: var.name,
            sentence: format!(
                "{given_as}=`{shown}` is not usable{why}; expected {}, for example {}",
                var.form, var.example
            ),
        }
    }
}

fn shorten(value: &str) -> String {
    // Escaped, so that a value cannot forge lines or colours of the log.
    let text: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().count() > SHOWN { format!("{text}…") } else { text }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// All wrong values of one start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

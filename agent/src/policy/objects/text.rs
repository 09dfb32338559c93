//! Strings of objects, shared among all of them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// A string that many objects share once it went through [`Intern`].
pub type Text = Arc<str>;

/// Labels, sorted by key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Text, Text)]>);

impl Labels {
    /// Value of `key`.
    pub fn get(&self, key: &str) -> Option<&Text> {
        let at = self.0.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, &Text)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn intern(&mut self, intern: &mut Intern) {
        for (key, value) in &mut self.0 {
            intern.text(key);
            intern.text(value);
        }
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let sorted: BTreeMap<String, String> = pairs.into_iter().collect();
        Self(sorted.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// Keeps one copy of each string. Strings that nobody else holds any more are
/// dropped when the table has doubled since it was last looked through.
#[derive(Debug, Default)]
pub struct Intern {
    texts: HashSet<Text>,
    sweep_at: usize,
}

impl Intern {
    /// Replaces `text` by the shared copy.
    pub fn text(&mut self, text: &mut Text) {
        if let Some(known) = self.texts.get(text) {
            *text = known.clone();
            return;
        }
        if self.texts.len() >= self.sweep_at.max(1024) {
            self.texts.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = self.texts.len() * 2;
        }
        self.texts.insert(text.clone());
    }
}

//! What a test can do to the server's answers, and what it can count.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::error::ApiError;
use super::verbs::Verb;

/// Requests remembered one by one.
const LOGGED: usize = 100_000;

/// What happens to a request instead of, or before, its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// 403, as without a rule of RBAC.
    Deny,
    /// Answered as usual, but late.
    Delay(Duration),
    /// This code, with `Retry-After` if given.
    Fail(u16, Option<u64>),
    /// Done as asked, but the answer says 504: nobody can know what became of it.
    Lose,
}

/// Names a rule, to lift it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleId(u64);

#[derive(Debug)]
struct Rule {
    id: RuleId,
    verb: Option<Verb>,
    resource: String,
    effect: Effect,
    left: Option<usize>,
}

/// Rules in force. The first that fits decides.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    next: u64,
}

impl Rules {
    pub(super) fn add(
        &mut self,
        verb: Option<Verb>,
        resource: &str,
        effect: Effect,
        times: Option<usize>,
    ) -> RuleId {
        self.next += 1;
        let id = RuleId(self.next);
        self.rules.push(Rule { id, verb, resource: resource.to_owned(), effect, left: times });
        id
    }

    pub(super) fn lift(&mut self, id: RuleId) {
        self.rules.retain(|rule| rule.id != id);
    }

    pub(super) fn lift_all(&mut self) {
        self.rules.clear();
    }

    /// What happens to this request; one use of the rule is then spent.
    pub(super) fn effect(&mut self, verb: Verb, resource: &str) -> Option<Effect> {
        let fits = |rule: &&mut Rule| {
            rule.verb.is_none_or(|wanted| wanted == verb)
                && (rule.resource == "*" || rule.resource == resource)
                && rule.left != Some(0)
        };
        let rule = self.rules.iter_mut().find(fits)?;
        rule.left = rule.left.map(|left| left - 1);
        Some(rule.effect)
    }
}

/// What was asked, of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests begun.
    pub requests: u64,
    /// Bytes of bodies sent, those of running watches included.
    pub bytes: u64,
    /// Requests answered with 400 or more.
    pub refused: u64,
}

/// One request, as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Who asked.
    pub from: IpAddr,
    /// What.
    pub verb: Verb,
    /// `PLURAL.GROUP`, with `/SUBRESOURCE`.
    pub resource: String,
    /// Where, if in a namespace.
    pub namespace: Option<String>,
    /// Which, if one.
    pub name: Option<String>,
    /// The query, as it came.
    pub query: String,
    /// `Accept`, as it came.
    pub accept: String,
    /// The code of the answer.
    pub code: u16,
}

/// Counters by verb and resource (`PLURAL.GROUP/SUBRESOURCE`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    counts: BTreeMap<(Verb, String), Count>,
}

impl Counts {
    /// Of one verb and resource.
    pub fn of(&self, verb: Verb, resource: &str) -> Count {
        self.counts.get(&(verb, resource.to_owned())).copied().unwrap_or_default()
    }

    /// All together.
    pub fn total(&self) -> Count {
        self.counts.values().fold(Count::default(), |sum, count| Count {
            requests: sum.requests + count.requests,
            bytes: sum.bytes + count.bytes,
            refused: sum.refused + count.refused,
        })
    }

    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |((verb, resource), now): (&(Verb, String), &Count)| {
            let before = earlier.of(*verb, resource);
            let count = Count {
                requests: now.requests - before.requests,
                bytes: now.bytes - before.bytes,
                refused: now.refused - before.refused,
            };
            (count != Count::default()).then(|| ((*verb, resource.clone()), count))
        };
        Self { counts: self.counts.iter().filter_map(less).collect() }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for ((verb, resource), count) in &self.counts {
            let Count { requests, bytes, refused } = count;
            let verb = verb.word();
            writeln!(f, "{verb:>16} {resource}: {requests} ({refused} refused), {bytes} bytes")?;
        }
        Ok(())
    }
}

/// Counters and log of a running server.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) counts: Counts,
    pub(super) log: std::collections::VecDeque<Logged>,
    /// Watches that are open now, by resource.
    pub(super) watches: BTreeMap<String, usize>,
    /// Requests that named no object: discovery, health, wrong paths, wrong tokens.
    pub(super) others: u64,
}

impl Ledger {
    fn count(&mut self, verb: Verb, resource: &str) -> &mut Count {
        self.counts.counts.entry((verb, resource.to_owned())).or_default()
    }

    pub(super) fn answered(&mut self, request: Logged) {
        let count = self.count(request.verb, &request.resource);
        count.requests += 1;
        count.refused += u64::from(request.code >= 400);
        self.log.push_back(request);
        if self.log.len() > LOGGED {
            self.log.pop_front();
        }
    }

    pub(super) fn sent(&mut self, verb: Verb, resource: &str, bytes: usize) {
        self.count(verb, resource).bytes += bytes as u64;
    }
}

impl Effect {
    /// The refusal, unless the request is only late.
    pub(super) fn error(
        self,
        verb: Verb,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Option<ApiError> {
        match self {
            Self::Deny => Some(ApiError::forbidden(verb.word(), resource, namespace, name)),
            Self::Fail(code, retry_after) => Some(ApiError::other(code, retry_after)),
            Self::Delay(_) | Self::Lose => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fit_in_order_and_wear_out() {
        let mut rules = Rules::default();
        rules.add(Some(Verb::List), "nodes", Effect::Fail(500, None), Some(1));
        let all = rules.add(None, "nodes", Effect::Deny, None);
        rules.add(Some(Verb::Get), "*", Effect::Delay(Duration::ZERO), None);
        assert_eq!(rules.effect(Verb::List, "nodes"), Some(Effect::Fail(500, None)));
        assert_eq!(rules.effect(Verb::List, "nodes"), Some(Effect::Deny));
        assert_eq!(rules.effect(Verb::List, "pods"), None);
        assert_eq!(rules.effect(Verb::Get, "pods"), Some(Effect::Delay(Duration::ZERO)));
        assert_eq!(rules.effect(Verb::Update, "nodes/status"), None);
        rules.lift(all);
        assert_eq!(rules.effect(Verb::List, "nodes"), None);
    }

    #[test]
    fn counts_can_be_subtracted() {
        let mut ledger = Ledger::default();
        ledger.sent(Verb::List, "nodes", 10);
        let before = ledger.counts.clone();
        ledger.sent(Verb::List, "nodes", 5);
        ledger.sent(Verb::Watch, "pods", 7);
        let news = ledger.counts.since(&before);
        assert_eq!(news.of(Verb::List, "nodes").bytes, 5);
        assert_eq!(news.total().bytes, 12);
        assert!(ledger.counts.since(&ledger.counts).to_string().is_empty());
    }
}

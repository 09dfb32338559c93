//! Where a list-and-watch stands: what to ask next, and when. Pure.

use std::time::Duration;

/// First pause after a failure.
const START: Duration = Duration::from_millis(250);
/// Between denials at first: a server that has just started denies everything
/// until it has read its roles, and then nothing.
const QUICK: Duration = Duration::from_millis(1300);
/// So long.
const AT_FIRST: Duration = Duration::from_secs(30);
/// How often a resource is asked for that is not served, or not to us.
const SELDOM: Duration = Duration::from_secs(60);

/// What to ask the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// A page of the list: the first one, or the one after a token. `any`: the
    /// server may answer from its cache.
    List { page: Option<String>, any: bool },
    /// What changed since a resource version.
    Watch { from: String },
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The version or token is not kept any more (410), or not yet known.
    Expired(String),
    /// 403: a rule is missing.
    Denied(String),
    /// 404: the resource is not served.
    Absent,
    /// 429 and its like: come back later.
    Busy(String, Duration),
    /// No answer, or one that makes no sense.
    Away(String),
}

/// State of one list-and-watch.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    /// Longest pause before jitter.
    longest: Duration,
    /// Resource version up to which everything is known.
    at: Option<String>,
    /// Token of the next page of a list under way.
    page: Option<String>,
    /// Some list was complete once: from then on no cache may answer a list,
    /// it could be older than what is known.
    complete: bool,
    failures: u32,
    /// How many of the last failures said 403, in a row, and their pauses.
    denials: u32,
    denied_for: Duration,
}

impl Cursor {
    /// Nothing is known; while the server is away, the pauses grow to `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            at: None,
            page: None,
            complete: false,
            failures: 0,
            denials: 0,
            denied_for: Duration::ZERO,
        }
    }

    /// The next request.
    pub(super) fn ask(&self) -> Ask {
        match (&self.at, &self.page) {
            (Some(at), _) => Ask::Watch { from: at.clone() },
            (None, page) => Ask::List { page: page.clone(), any: !self.complete },
        }
    }

    /// A page has come; true if it was the last.
    pub(super) fn page(&mut self, version: &str, next: Option<&str>) -> bool {
        (self.failures, self.denials, self.denied_for) = (0, 0, Duration::ZERO);
        self.page = next.filter(|token| !token.is_empty()).map(str::to_owned);
        if self.page.is_none() {
            self.at = Some(version.to_owned());
            self.complete = true;
        }
        self.page.is_none()
    }

    /// The watch speaks: everything up to this version is known.
    pub(super) fn seen(&mut self, version: &str) {
        (self.failures, self.denials, self.denied_for) = (0, 0, Duration::ZERO);
        if !version.is_empty() {
            self.at = Some(version.to_owned());
        }
    }

    /// A request failed; how long to wait. `random` in 0..1 spreads many nodes.
    pub(super) fn failed(&mut self, failure: &Failure, random: f64) -> Duration {
        let jitter = 0.5 + random.clamp(0.0, 1.0);
        if matches!(failure, Failure::Expired(_) | Failure::Absent) {
            (self.at, self.page) = (None, None);
            // No cache twice: it might be what is too old.
            self.complete = true;
        }
        self.failures = self.failures.saturating_add(1);
        let denied = matches!(failure, Failure::Denied(_));
        if !denied {
            (self.denials, self.denied_for) = (0, Duration::ZERO);
        }
        match failure {
            Failure::Denied(_) => self.denied().mul_f64(jitter),
            Failure::Absent => SELDOM.mul_f64(jitter),
            Failure::Busy(_, pause) => (*pause).max(self.pause()).mul_f64(0.5 + jitter),
            Failure::Expired(_) if self.failures == 1 => Duration::ZERO,
            Failure::Expired(_) | Failure::Away(_) => self.pause().mul_f64(jitter),
        }
    }

    /// Seldom is for the server that keeps denying.
    fn denied(&mut self) -> Duration {
        self.denials = self.denials.saturating_add(1);
        let slow = if self.denied_for < AT_FIRST { QUICK } else { self.denied_for / 8 };
        let pause = doubled(self.denials).min(slow.max(QUICK)).min(SELDOM);
        self.denied_for = self.denied_for.saturating_add(pause);
        pause
    }

    fn pause(&self) -> Duration {
        doubled(self.failures).min(self.longest)
    }
}

/// Twice as long with each time in a row.
fn doubled(times: u32) -> Duration {
    START.saturating_mul(1 << times.saturating_sub(1).min(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_secs(15);

    fn list(page: Option<&str>, any: bool) -> Ask {
        Ask::List { page: page.map(str::to_owned), any }
    }

    fn watch(from: &str) -> Ask {
        Ask::Watch { from: from.to_owned() }
    }

    #[test]
    fn pages_then_watch() {
        let mut cursor = Cursor::new(CAP);
        assert_eq!(cursor.ask(), list(None, true));
        assert!(!cursor.page("7", Some("t")));
        assert_eq!(cursor.ask(), list(Some("t"), true));
        assert!(cursor.page("7", Some("")));
        assert_eq!(cursor.ask(), watch("7"));
        cursor.seen("9");
        cursor.seen("");
        assert_eq!(cursor.ask(), watch("9"));
    }

    #[test]
    fn an_outage_is_resumed_and_only_expiry_lists_again() {
        let mut cursor = Cursor::new(CAP);
        cursor.page("7", None);
        for failure in [
            Failure::Away("connection refused".into()),
            Failure::Busy("slow down".into(), Duration::from_secs(1)),
            Failure::Denied("no".into()),
        ] {
            assert!(cursor.failed(&failure, 0.5) > Duration::ZERO);
            assert_eq!(cursor.ask(), watch("7"), "{failure:?}");
        }
        cursor.seen("8");
        assert_eq!(cursor.failed(&Failure::Expired("gone".into()), 0.5), Duration::ZERO);
        assert_eq!(cursor.ask(), list(None, false));
        // A token that expires between pages begins anew, but not in a tight loop.
        cursor.page("9", Some("t"));
        cursor.failed(&Failure::Expired("gone".into()), 0.5);
        assert!(cursor.failed(&Failure::Expired("gone".into()), 0.5) > Duration::ZERO);
        assert_eq!(cursor.ask(), list(None, false));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let mut cursor = Cursor::new(CAP);
        let away = Failure::Away("x".into());
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            let pause = cursor.failed(&away, 0.5);
            assert!(pause >= last && pause <= CAP);
            last = pause;
        }
        assert_eq!(last, CAP);
        assert!(cursor.failed(&Failure::Absent, 0.0) >= SELDOM / 2);
        cursor.seen("1");
        assert_eq!(cursor.failed(&away, 0.5), START);
    }

    #[test]
    fn denials_are_asked_about_often_at_first() {
        let denied = Failure::Denied("no".into());
        let mut cursor = Cursor::new(CAP);
        // However long it was away: its first denial may be over in a moment.
        for _ in 0..20 {
            cursor.failed(&Failure::Away("x".into()), 0.5);
        }
        assert_eq!(cursor.failed(&denied, 0.5), START);
        let (mut passed, mut asked) = (START, 1);
        while passed < Duration::from_secs(30) {
            let latest = cursor.clone().failed(&denied, 1.0);
            assert!(latest <= Duration::from_secs(2), "{latest:?} after {passed:?}");
            passed += cursor.failed(&denied, 0.5);
            asked += 1;
        }
        assert!(asked < 40, "{asked} requests");
        // A role that comes late is still noticed soon; one that never does costs little.
        let mut last = cursor.failed(&denied, 0.5);
        assert!(last <= Duration::from_secs(5), "{last:?}");
        while passed < Duration::from_secs(3600) {
            last = cursor.failed(&denied, 0.5);
            (passed, asked) = (passed + last, asked + 1);
        }
        assert_eq!(last, SELDOM);
        assert!(asked < 150, "{asked} requests in an hour");
        cursor.seen("1");
        assert_eq!(cursor.failed(&denied, 0.5), START);
    }
}

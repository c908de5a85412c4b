//! Since when somebody else has a semaphore that is shared with firmware and other ports, as far as looks now and then can tell: who keeps it for longer than
//! he can be alive has died, and who only uses it often has not.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Looks further apart than this tell nothing of the time between: a control thread looks once a second.
const APART: Duration = Duration::from_secs(2);

/// The first and the last of the looks that found it kept, each of them.
#[derive(Debug, Default)]
pub(crate) struct Kept(Cell<Option<(Instant, Instant)>>);

impl Kept {
    /// It was kept at every look from `from` to `now`; gives for how long it has been so.
    pub(crate) fn seen(&self, from: Instant, now: Instant) -> Duration {
        let since = match self.0.get() {
            Some((since, last)) if from.saturating_duration_since(last) <= APART => since,
            _ => from,
        };
        self.0.set(Some((since, now)));
        now.saturating_duration_since(since)
    }

    /// It was free.
    pub(crate) fn forget(&self) {
        self.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_long_ago_says_nothing_of_now() {
        let (kept, start) = (Kept::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let seen = |from, to| kept.seen(at(from), at(to)).as_millis();
        assert_eq!([seen(0, 2), seen(1000, 1002), seen(3000, 3002)], [2, 1002, 3002]);
        assert_eq!([seen(5003, 5005), seen(6000, 6002)], [2, 999]);
        kept.forget();
        assert_eq!(seen(6500, 6502), 2);
    }
}

//! Sees that a transmit queue stands still: its head does not move though there is something before it.
#![forbid(unsafe_code)]

use std::time::Duration;

/// So long nothing stands while there is a link, for pause frames are not obeyed.
const LIMIT: Duration = Duration::from_secs(2);

/// One queue, as it was seen the last times.
#[derive(Debug, Default)]
pub(super) struct HangWatch {
    head: u32,
    since: Option<Duration>,
}

impl HangWatch {
    /// Forgets what it has seen.
    pub(super) fn reset(&mut self) {
        self.since = None;
    }

    /// Looks at the queue again; true where it has stood still for too long.
    pub(super) fn look(&mut self, head: u32, tail: u32, now: Duration) -> bool {
        if head == tail {
            self.since = None;
            return false;
        }
        match self.since {
            Some(since) if head == self.head => now.saturating_sub(since) >= LIMIT,
            _ => {
                (self.head, self.since) = (head, Some(now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_moves_or_is_empty_does_not_hang() {
        let at = Duration::from_millis;
        let mut watch = HangWatch::default();
        assert!(!watch.look(5, 9, at(0)) && !watch.look(5, 12, at(1900)), "not long enough");
        assert!(!watch.look(6, 12, at(2500)) && !watch.look(6, 12, at(4400)), "it moved");
        assert!(!watch.look(12, 12, at(4500)) && !watch.look(12, 13, at(9000)), "it was empty");
        assert!(!watch.look(12, 40, at(10_900)) && watch.look(12, 40, at(11_000)));
        watch.reset();
        assert!(!watch.look(12, 40, at(11_100)));
    }
}

//! A transmit queue that stands still: the device has descriptors to work on, and its head does not move.
//!
//! At 10 Mb/s the longest packet takes 8 ms, and there is no flow control, so that a second without a step is no load but a hang.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// How long a head may stand.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// One queue's watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    stands: Option<(u32, Instant)>,
}

impl Watch {
    /// Looks at the queue's registers; true once it has stood for longer than `patience`.
    pub(super) fn look(&mut self, head: u32, tail: u32, now: Instant, patience: Duration) -> bool {
        match self.stands {
            Some((stood, since)) if stood == head && head != tail => now.duration_since(since) >= patience,
            _ => {
                self.stands = (head != tail).then_some((head, now));
                false
            }
        }
    }

    /// Begins anew: nothing is known of what came before.
    pub(super) fn forget(&mut self) {
        self.stands = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_moves_or_has_nothing_to_do_is_no_hang() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = Watch::default();
        let mut look = |head, tail, ms| watch.look(head, tail, at(ms), PATIENCE);
        assert!(!look(0, 0, 0) && !look(0, 0, 9000), "nothing to do");
        assert!(!look(0, 5, 9001), "something, just now");
        assert!(!look(0, 6, 11_000) && look(0, 7, 11_001), "it stands, and more comes");
        assert!(!look(1, 7, 12_000) && !look(1, 7, 13_999), "it has moved");
        assert!(look(1, 7, 14_000));
        assert!(!look(7, 7, 15_000) && !look(7, 8, 99_000), "done, and begun anew");
    }
}

//! When the control core looks at the links: ten times a second, and when a NIC interrupts. One that never stops interrupting, whatever is the matter with it, has no more
//! than a hundred looks a second, and a hundred lines in the log.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How long it sleeps at most: changes are noticed this soon, those that a port has a descriptor for at once.
pub(crate) const CONTROL_PERIOD: Duration = Duration::from_millis(100);
/// Between two looks at least.
const LEAST_PERIOD: Duration = Duration::from_millis(10);

/// Times are those since the start.
#[derive(Default)]
pub(crate) struct LinkPace {
    next: Duration,
    interrupted: bool,
}

impl LinkPace {
    /// Whether it is time to look; then the next one is later.
    pub(crate) fn is_due(&mut self, elapsed: Duration) -> bool {
        let due = elapsed >= self.next;
        if due {
            *self = Self { next: elapsed + CONTROL_PERIOD, interrupted: false };
        }
        due
    }

    /// When the next one is.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// Whether an interrupt would be news.
    pub(crate) fn listens(&self) -> bool {
        !self.interrupted
    }

    /// A NIC has interrupted.
    pub(crate) fn interrupt(&mut self) {
        if self.listens() {
            self.next = self.next.saturating_sub(CONTROL_PERIOD - LEAST_PERIOD);
            self.interrupted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in a second in which a NIC interrupts at these times, in ms, and whenever it is listened to if there are none.
    fn looks(interrupts: &[u64]) -> Vec<u64> {
        let mut pace = LinkPace::default();
        (0..1000)
            .filter(|at| {
                let due = pace.is_due(Duration::from_millis(*at));
                if interrupts.contains(at) || interrupts.is_empty() && pace.listens() {
                    pace.interrupt();
                }
                due
            })
            .collect()
    }

    #[test]
    fn an_interrupt_is_looked_after_soon_and_a_storm_of_them_no_more_often_than_is_good() {
        assert_eq!(looks(&[5000]), [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
        assert_eq!(looks(&[150])[..5], [0, 100, 151, 251, 351]);
        // Soon after a look.
        assert_eq!(looks(&[203, 204, 205])[..5], [0, 100, 200, 210, 310]);
        assert_eq!(looks(&[]).len(), 100);
    }
}

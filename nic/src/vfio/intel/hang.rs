//! A transmit unit that hangs: its head stands still although descriptors wait, and nothing is reported as sent. (The head alone does not tell: a busy
//! ring may be seen at the same place again and again, each time a round later.)
#![forbid(unsafe_code)]

use crate::counters::QueueCounters;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than a pause of flow control and a busy link take together.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a queue stood when it was looked at: its head, and how many packets it had sent; and since when.
#[derive(Clone, Copy)]
struct Stand {
    head: u32,
    sent: u64,
    since: Instant,
}

/// What is known of each transmit queue.
pub(crate) struct HangDetector {
    queues: Vec<(Arc<QueueCounters>, Option<Stand>)>,
    patience: Duration,
}

impl HangDetector {
    /// For the queues that count here what they have sent.
    pub(crate) fn new(counters: impl IntoIterator<Item = Arc<QueueCounters>>) -> Self {
        Self { queues: counters.into_iter().map(|counters| (counters, None)).collect(), patience: PATIENCE }
    }

    /// Loses its patience at once.
    #[cfg(test)]
    pub(crate) fn impatient(&mut self) {
        self.patience = Duration::ZERO;
    }

    /// A queue's head and tail as they are now; true where it hangs: it stands for long where it stood at the look before.
    pub(crate) fn look(&mut self, queue: usize, head: u32, tail: u32, may_send: bool) -> bool {
        self.look_at(Instant::now(), queue, head, tail, may_send)
    }

    /// The same for a driver that has a clock of its own.
    pub(crate) fn look_at(
        &mut self,
        now: Instant,
        queue: usize,
        head: u32,
        tail: u32,
        may_send: bool,
    ) -> bool {
        let Some((counters, stand)) = self.queues.get_mut(queue) else { return false };
        let sent = counters.packets.get();
        let waits = head != tail && may_send;
        match *stand {
            Some(before) if waits && (before.head, before.sent) == (head, sent) => {
                now.saturating_duration_since(before.since) >= self.patience
            }
            _ => {
                *stand = waits.then_some(Stand { head, sent, since: now });
                false
            }
        }
    }

    /// Forgets all.
    pub(crate) fn restart(&mut self) {
        self.queues.iter_mut().for_each(|(_, stand)| *stand = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_head_that_stands_before_its_tail_hangs() {
        let counters = [(); 2].map(|()| Arc::<QueueCounters>::default());
        let mut detector = HangDetector::new(counters.clone());
        assert!(!detector.look(0, 5, 9, true) && !detector.look(0, 5, 9, true), "it has patience");
        detector.impatient();
        assert!(detector.look(0, 5, 9, true));
        assert!(!detector.look(1, 5, 9, true), "one look is not enough");
        counters[0].packets.add(1);
        assert!(!detector.look(0, 5, 9, true), "it has been round");
        assert!(!detector.look(0, 6, 9, true), "it moved");
        assert!(!detector.look(0, 6, 6, true) && !detector.look(0, 6, 9, true), "it had nothing to do");
        assert!(!detector.look(0, 6, 9, false) && !detector.look(0, 6, 9, true), "it was not to send");
        assert!(detector.look(0, 6, 9, true));
        detector.restart();
        assert!(!detector.look(0, 6, 9, true) && !detector.look(7, 0, 1, true));
    }
}

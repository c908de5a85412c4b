//! A transmit unit that hangs: its head stands still although descriptors wait.
#![forbid(unsafe_code)]

use crate::vfio::nic::Halt;
use std::time::{Duration, Instant};

/// Longer than a pause of flow control and a busy link take together.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of each transmit queue's head.
pub(crate) struct HangDetector {
    queues: Vec<Option<(u32, Instant)>>,
    patience: Duration,
}

impl HangDetector {
    /// For so many queues.
    pub(crate) fn new(queues: usize) -> Self {
        Self { queues: vec![None; queues], patience: PATIENCE }
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
        let Some(seen) = self.queues.get_mut(queue) else { return false };
        match *seen {
            Some((before, since)) if before == head && head != tail && may_send => {
                now.saturating_duration_since(since) >= self.patience
            }
            _ => {
                *seen = (head != tail && may_send).then_some((head, now));
                false
            }
        }
    }

    /// Forgets all.
    pub(crate) fn restart(&mut self) {
        self.queues.fill(None);
    }
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// There is none.
    Running,
    /// The device has been stopped, and not all queues have rebuilt their rings.
    Waiting,
    /// The device could not be set up again.
    Failed,
}

impl Recovery {
    /// The device has been stopped: has each queue rebuild its ring.
    pub(crate) fn begin(halt: &Halt) -> Self {
        halt.ask();
        Self::Waiting
    }

    /// Whether the device can be set up.
    pub(crate) fn is_due(self, halt: &Halt) -> bool {
        self == Self::Waiting && halt.is_ready()
    }

    /// The device has been set up.
    pub(crate) fn end(halt: &Halt) -> Self {
        halt.gates.iter().for_each(|gate| gate.open());
        Self::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_head_that_stands_before_its_tail_hangs() {
        let mut detector = HangDetector::new(2);
        assert!(!detector.look(0, 5, 9, true) && !detector.look(0, 5, 9, true), "it has patience");
        detector.impatient();
        assert!(detector.look(0, 5, 9, true));
        assert!(!detector.look(1, 5, 9, true), "one look is not enough");
        assert!(!detector.look(0, 6, 9, true), "it moved");
        assert!(!detector.look(0, 6, 6, true) && !detector.look(0, 6, 9, true), "it had nothing to do");
        assert!(!detector.look(0, 6, 9, false) && !detector.look(0, 6, 9, true), "it was not to send");
        assert!(detector.look(0, 6, 9, true));
        detector.restart();
        assert!(!detector.look(0, 6, 9, true) && !detector.look(7, 0, 1, true));
    }
}

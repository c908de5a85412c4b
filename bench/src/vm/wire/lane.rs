//! One direction of a wire: what has been sent, and what became of it.
#![forbid(unsafe_code)]

use super::Traffic;
use super::frame::Identity;

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub sent: u64,
    /// Of them, received whole at least once.
    pub received: u64,
    /// Of them, not received.
    pub lost: u64,
    /// Received again.
    pub duplicated: u64,
    /// Received behind a later one of the same flow.
    pub reordered: u64,
    /// Received, but not as they were sent, or not sent at all.
    pub corrupt: u64,
}

/// The books of one direction.
pub(super) struct Lane {
    run: u16,
    flows: u16,
    /// By frame, whether it has come.
    seen: Vec<bool>,
    /// By flow, the number behind the last that has come.
    next: Vec<u32>,
    /// Frames that were given up for the window's sake.
    given_up: u64,
    tally: Tally,
}

impl Lane {
    pub(super) fn new(run: u16, traffic: &Traffic) -> Self {
        let flows = traffic.flows.max(1);
        let next = vec![0; usize::from(flows)];
        Self { run, flows, seen: Vec::new(), next, given_up: 0, tally: Tally::default() }
    }

    pub(super) fn run(&self) -> u16 {
        self.run
    }

    /// Frames that may still be under way.
    pub(super) fn in_flight(&self) -> u64 {
        (self.tally.sent - self.given_up).saturating_sub(self.tally.received)
    }

    pub(super) fn sent(&self) -> u64 {
        self.tally.sent
    }

    /// Whether all that was sent has come.
    pub(super) fn is_complete(&self) -> bool {
        self.tally.received == self.tally.sent
    }

    /// Makes room for others: nothing has come for long.
    pub(super) fn give_up_in_flight(&mut self) {
        self.given_up += self.in_flight();
    }

    /// The frame to be sent next.
    pub(super) fn next_identity(&self) -> Identity {
        let (place, flows) = (self.tally.sent, u64::from(self.flows));
        Identity { run: self.run, flow: (place % flows) as u16, number: (place / flows) as u32 }
    }

    /// It has been sent.
    pub(super) fn note_sent(&mut self) {
        self.tally.sent += 1;
        self.seen.push(false);
    }

    /// A whole frame has come. False where it belongs to another run.
    pub(super) fn note_received(&mut self, identity: Identity) -> bool {
        if identity.run != self.run {
            return false;
        }
        let place = u64::from(identity.number) * u64::from(self.flows) + u64::from(identity.flow);
        let flow = usize::from(identity.flow);
        let seen = usize::try_from(place).ok().and_then(|place| self.seen.get_mut(place));
        let (Some(seen), Some(next)) = (seen, self.next.get_mut(flow)) else {
            self.tally.corrupt += 1;
            return true;
        };
        if std::mem::replace(seen, true) {
            self.tally.duplicated += 1;
        } else {
            self.tally.received += 1;
            if identity.number < *next {
                self.tally.reordered += 1;
            } else {
                *next = identity.number + 1;
            }
        }
        true
    }

    /// A damaged frame has come.
    pub(super) fn note_corrupt(&mut self) {
        self.tally.corrupt += 1;
    }

    pub(super) fn tally(&self) -> Tally {
        Tally { lost: self.tally.sent - self.tally.received, ..self.tally }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(frames: u64) -> Lane {
        let mut lane = Lane::new(1, &Traffic { flows: 2, ..Traffic::default() });
        (0..frames).for_each(|_| lane.note_sent());
        lane
    }

    fn id(flow: u16, number: u32) -> Identity {
        Identity { run: 1, flow, number }
    }

    #[test]
    fn every_fate_of_a_frame_has_its_number() {
        let mut lane = lane(8);
        // Flow 0 in order, twice; of flow 1 the last before the second; and two that nobody sent.
        for identity in [id(0, 0), id(0, 1), id(0, 1), id(1, 0), id(1, 3), id(1, 1), id(0, 9), id(2, 0)] {
            assert!(lane.note_received(identity));
        }
        assert!(!lane.note_received(Identity { run: 2, ..id(0, 2) }));
        lane.note_corrupt();
        let expected = Tally { sent: 8, received: 5, lost: 3, duplicated: 1, reordered: 1, corrupt: 3 };
        assert_eq!(lane.tally(), expected);
        assert_eq!((lane.in_flight(), lane.is_complete()), (3, false));
    }

    #[test]
    fn what_is_given_up_is_no_longer_in_flight_and_may_come_all_the_same() {
        let mut lane = lane(2);
        lane.give_up_in_flight();
        assert_eq!(lane.in_flight(), 0);
        lane.note_received(id(0, 0));
        lane.note_received(id(1, 0));
        assert_eq!((lane.in_flight(), lane.is_complete()), (0, true));
    }
}

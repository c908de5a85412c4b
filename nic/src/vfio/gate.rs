//! Where the control thread stops a queue to reset its device, without a lock and without a wait on either side.
//!
//! The way of a recovery: the control side ends the device's memory accesses, then [`asks`](Gate::ask) each queue. The worker sees it at its
//! queue's next turn, empties the ring (what was to be sent is dropped and counted), fills it anew, and says so; until it goes on, the queue receives and sends
//! nothing. When all have, the control side sets the device up and [`opens`](Gate::open) the gates; a queue that goes through an opened gate for the
//! first time writes its tail register.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

const OPEN: u32 = 0;
const ASKED: u32 = 1;
const READY: u32 = 2;

/// One queue's gate.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

/// What a queue does at its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Empty and refill the ring, then call [`Gate::ready`].
    Rebuild,
    /// Nothing yet.
    Wait,
}

impl Gate {
    /// `None` while all is well: one load of a line that seldom changes.
    #[inline(always)]
    pub(crate) fn closed(&self) -> Option<Turn> {
        match self.0.load(Ordering::Acquire) {
            OPEN => None,
            ASKED => Some(Turn::Rebuild),
            _ => Some(Turn::Wait),
        }
    }

    /// The worker has rebuilt the ring.
    pub(crate) fn ready(&self) {
        // Only from ASKED: the control side may have given up meanwhile.
        let _ = self.0.compare_exchange(ASKED, READY, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The control side asks for a rebuilt ring; the device has been stopped.
    pub(crate) fn ask(&self) {
        self.0.store(ASKED, Ordering::Release);
    }

    /// Whether the queue has answered.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == READY
    }

    /// The control side has set the device up.
    pub(crate) fn open(&self) {
        self.0.store(OPEN, Ordering::Release);
    }
}

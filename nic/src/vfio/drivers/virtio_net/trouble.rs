//! What a queue tells the control thread of itself.
#![forbid(unsafe_code)]

use crate::counters::{Counter, QueueCounters};
use crate::vfio::gate::Gate;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a device did that cannot be. The queue uses nothing of it, and stands still until the device has been reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Trouble {
    /// More is used than was available.
    UsedIndex = 1,
    /// Used, and not outstanding.
    UsedId = 2,
    /// Longer than the buffer, or shorter than its header.
    UsedLength = 3,
    /// No buffers, or more than there are.
    NumBuffers = 4,
}

impl Trouble {
    /// In words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Trouble::UsedIndex => "its used index is past what it was given",
            Trouble::UsedId => "it gave back a buffer that it did not have",
            Trouble::UsedLength => "it says it has written more than a buffer holds, or less than a header",
            Trouble::NumBuffers => "it says a packet is in no buffer, or in more than there are",
        }
    }
}

/// One queue's part that the control thread sees too.
#[derive(Default)]
pub(super) struct QueueState {
    pub(super) gate: Arc<Gate>,
    pub(super) counters: Arc<QueueCounters>,
    /// Notifications written. The worker's.
    pub(super) notified: Counter,
    /// Times that a transmit queue has looked for what is back. The worker's.
    pub(super) looks: Counter,
    trouble: AtomicU8,
}

impl QueueState {
    /// With a gate.
    pub(super) fn new(gate: &Arc<Gate>) -> Arc<Self> {
        Arc::new(Self { gate: Arc::clone(gate), ..Self::default() })
    }

    /// The queue reports it.
    pub(super) fn report(&self, trouble: Trouble) {
        self.trouble.store(trouble as u8, Ordering::Release);
    }

    /// What has been reported, once.
    pub(super) fn take(&self) -> Option<Trouble> {
        if self.trouble.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.trouble.swap(0, Ordering::AcqRel) {
            1 => Some(Trouble::UsedIndex),
            2 => Some(Trouble::UsedId),
            3 => Some(Trouble::UsedLength),
            4 => Some(Trouble::NumBuffers),
            _ => None,
        }
    }
}

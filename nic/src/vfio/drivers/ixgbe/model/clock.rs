//! Time that passes when somebody waits, or touches a register.
#![forbid(unsafe_code)]

use super::super::device::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds since the test began.
#[derive(Debug, Default)]
pub(in crate::vfio::drivers::ixgbe) struct VirtualClock(AtomicU64);

impl VirtualClock {
    pub(in crate::vfio::drivers::ixgbe) fn advance(&self, duration: Duration) {
        self.0.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

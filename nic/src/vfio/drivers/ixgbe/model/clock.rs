//! Time that passes when somebody waits, or touches a register.
#![forbid(unsafe_code)]

use super::super::device::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds since the test began.
#[derive(Debug)]
pub(in crate::vfio::drivers::ixgbe) struct VirtualClock {
    start: Instant,
    passed_ns: AtomicU64,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self { start: Instant::now(), passed_ns: AtomicU64::new(0) }
    }
}

impl VirtualClock {
    pub(in crate::vfio::drivers::ixgbe) fn advance(&self, duration: Duration) {
        self.passed_ns.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Time since the test began.
    pub(in crate::vfio::drivers::ixgbe) fn passed(&self) -> Duration {
        Duration::from_nanos(self.passed_ns.load(Ordering::Relaxed))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        self.start + self.passed()
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

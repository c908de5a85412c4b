//! From the time stamp counter, which handlers and workers read, to CLOCK_MONOTONIC, in which the kernel stamps its records.
#![forbid(unsafe_code)]

use percpu::tsc;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Both {
    tsc: u64,
    ns: u64,
}

impl Both {
    fn now() -> Self {
        let read = || {
            let before = tsc::now();
            let ns = tsc::monotonic_ns();
            let after = tsc::now();
            (after.wrapping_sub(before), Self { tsc: before / 2 + after / 2, ns })
        };
        // The reading that took least was interrupted least.
        let mut best = read();
        for _ in 0..3 {
            let next = read();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }
}

/// A line through two moments, which goes on with the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    first: Both,
    last: Both,
}

/// So far apart that the readings' errors do not count.
const APART_NS: u64 = 100_000_000;

impl Clock {
    pub(crate) fn start() -> Self {
        let now = Both::now();
        Self { first: now, last: now }
    }

    /// Reads both clocks again; to be called every second or more often.
    pub(crate) fn refresh(&mut self) {
        self.last = Both::now();
    }

    fn ns_per_tick(&self) -> f64 {
        let (ticks, ns) = (self.last.tsc.wrapping_sub(self.first.tsc), self.last.ns - self.first.ns);
        if ns < APART_NS { 1e9 / tsc::frequency_hz() as f64 } else { ns as f64 / ticks as f64 }
    }

    pub(crate) fn to_ns(self, ticks: u64) -> u64 {
        let distance = ticks.wrapping_sub(self.last.tsc) as i64;
        self.last.ns.saturating_add_signed((distance as f64 * self.ns_per_tick()) as i64)
    }

    pub(crate) fn to_tsc(self, ns: u64) -> u64 {
        let distance = ns as i64 - self.last.ns as i64;
        self.last.tsc.wrapping_add_signed((distance as f64 / self.ns_per_tick()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn both_clocks_agree() {
        let mut clock = Clock::start();
        let then = Both::now();
        std::thread::sleep(Duration::from_millis(150));
        clock.refresh();
        let now = Both::now();
        for both in [then, now] {
            let error = clock.to_ns(both.tsc).abs_diff(both.ns);
            assert!(error < 50_000, "{error} ns");
            assert!(clock.to_ns(clock.to_tsc(both.ns)).abs_diff(both.ns) < 100);
        }
    }
}
